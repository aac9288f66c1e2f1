import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage")

from pix2pixhd.cli.main import main
from pix2pixhd.config.parser import parse_train
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import check_pairs, find_pairs
from pix2pixhd.demo import dataset as demo_data
from pix2pixhd.demo import run as demo
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.reporting.image_grid import colorize, image_grid, with_titles

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    demo_data.write_demo_data(root, crops=16)
    return root


def read(path):
    return np.asarray(Image.open(path))


def test_demo_data_form_a_valid_dataset(written):
    options = DataOptions(dataroot=str(written), label_nc=demo_data.LABEL_NC, resize_or_crop="crop", fineSize=64)
    for phase, count in (("train", 16), ("test", 8)):
        pairs = find_pairs(options, phase)
        assert len(pairs) == count
        check_pairs(pairs, options, multiple=4)
    label = read(pairs[0].input)
    assert label.dtype == np.uint8
    assert 3 <= len(np.unique(label)) <= demo_data.LABEL_NC
    instance = read(pairs[0].instance)
    assert instance.min() > 32767
    for i in np.unique(instance):
        assert len(np.unique(label[instance == i])) == 1  # an instance lies in one class


def test_training_crops_never_touch_the_held_out_column():
    rng = np.random.default_rng(0)
    for width, left in ((481, 200), (320, 160), (480, 0)):
        for rows, columns in demo_data._training_crops(width, left, 200, rng):
            assert columns.stop <= left or columns.start >= left + demo_data.COLUMN
            assert 0 <= columns.start < columns.stop <= width
            assert rows.stop - rows.start == columns.stop - columns.start == demo_data.CROP


def test_held_out_images_appear_in_no_training_crop(written):
    for name in ("chelsea", "astronaut", "coffee", "stereo_motorcycle"):
        held_out = read(written / "test_img" / f"{name}_000.png")
        patch = held_out[60:68, 60:68]
        for path in (written / "train_img").glob(f"{name}_*.png"):
            windows = np.lib.stride_tricks.sliding_window_view(read(path), (8, 8, 3))[:, :, 0]
            assert not (windows == patch).all(axis=(2, 3, 4)).any()


def test_the_same_seed_writes_the_same_data(written, tmp_path):
    demo_data.write_demo_data(tmp_path, crops=16)
    paths = sorted(path.relative_to(written) for path in written.rglob("*.png"))
    assert len(paths) == 3 * (16 + 8)
    for path in paths:
        assert (written / path).read_bytes() == (tmp_path / path).read_bytes()


def test_the_demo_command_trains_and_writes_its_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS", 2)
    monkeypatch.setattr(demo, "_CROPS", 16)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--max-minutes", "1"]) == 0
    printed = capsys.readouterr().out
    for part in ("lower", "plain PyTorch", "results.png", "held-out", "without the perceptual loss"):
        assert part in printed
    image = Image.open(tmp_path / "demo" / "results.png")
    assert image.size == (6 * 162 + 2, 4 * 162 + 2 + 20)
    config, _ = parse_train(["--config", str(tmp_path / "demo" / "demo.yaml")])
    assert config.data.label_nc == demo_data.LABEL_NC
    checkpoint = tmp_path / "demo" / "run" / "checkpoints" / "last.ckpt"
    out = tmp_path / "out"
    assert (
        main(["generate", "--checkpoint", f"{checkpoint}", "--input", f"{config.data.dataroot}", "--output", f"{out}"])
        == 0
    )
    assert len(list(out.iterdir())) == 8


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_perceptual_demo_trains_with_the_vgg_loss_in_short_epochs(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(demo, "_CROPS", 4)
    monkeypatch.setattr(demo, "_BATCH", 2)
    monkeypatch.setattr(demo, "_FINER", 2)
    others = shutil.ignore_patterns("astronaut_*", "coffee_*", "stereo_*")  # one photograph, to save time
    monkeypatch.setattr(demo, "write_demo_data", lambda root, *_: shutil.copytree(written, root, ignore=others))
    monkeypatch.setattr(demo, "_savings", lambda module, config: None)
    monkeypatch.setattr(demo, "_describe_savings", str)
    vgg = tmp_path / "vgg19.pth"
    torch.save(load_vgg("random").state_dict(), vgg)
    out = tmp_path / "demo"
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", str(out), "--max-minutes", "2", "--perceptual", "vgg19.pth"]) == 0
    printed = capsys.readouterr().out
    assert f"up to 2 epochs of 2 crops on the CPU, with the perceptual loss (VGG19, {vgg})" in printed
    assert "real, of held-out crops, trained with the perceptual loss" in printed
    config, _ = parse_train(["--config", str(out / "demo.yaml")])
    assert (config.loss.vgg, config.loss.lambda_vgg) == (str(vgg), None)
    assert Image.open(out / "results.png").size == (6 * 162 + 2, 162 + 2 + 20)


def test_the_perceptual_demo_has_the_steps_of_the_plain_one():
    plain, perceptual = demo.demo_config(pathlib.Path("out"), 0), demo.demo_config(pathlib.Path("out"), 0, "a.pth")
    assert (plain.loss.lambda_vgg, plain.optimizer.niter, plain.optimizer.niter_decay) == (0.0, 8, 8)
    assert plain.trainer == {"accelerator": "cpu", "check_val_every_n_epoch": 4}
    assert perceptual.loss.vgg == "a.pth"
    epochs, steps = perceptual.optimizer.niter + perceptual.optimizer.niter_decay, 10
    assert (epochs, perceptual.run.save_epoch_freq) == (64, 64)
    assert perceptual.trainer == {"accelerator": "cpu", "check_val_every_n_epoch": 16, "limit_train_batches": steps}


@pytest.mark.parametrize("case", ["missing", "unknown user", "damaged", "other network", "offline"])
def test_a_perceptual_demo_without_weights_ends_before_anything_is_written(tmp_path, capsys, monkeypatch, case):
    path = tmp_path / "weights.pth"
    monkeypatch.chdir(tmp_path)
    given = {"unknown user": ["~no_such_user/weights.pth"], "offline": []}.get(case, [str(path)])
    if case == "damaged":
        path.write_bytes(b"no weights")
    elif case == "other network":
        torch.save({"conv1.weight": torch.zeros(1)}, path)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--perceptual", *given]) == 2
    error = capsys.readouterr().err
    assert not out.exists()
    message = {
        "missing": f"--perceptual: file {path} does not exist; pass the path of a state dict of VGG19, or --perceptual",
        "unknown user": f"--perceptual: file {tmp_path / '~no_such_user' / 'weights.pth'} does not exist",
        "damaged": f"--perceptual: {path} cannot be read as a state dict: it is damaged",
        "other network": f"--perceptual: {path} is not a VGG19 state dict",
        "offline": "or pass its path, --perceptual /path/to/vgg19-dcbb9e9d.pth.",
    }
    assert message[case] in error
    if case == "offline":
        assert "could not be downloaded: no network" in error
        assert f"{tmp_path / 'hub' / 'checkpoints' / 'vgg19-dcbb9e9d.pth'}" in error
    assert "VGGLoss" not in error


def test_a_demo_cut_short_reports_it_and_its_hint_can_be_pasted(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS", 20)
    monkeypatch.setattr(demo, "_CROPS", 16)
    monkeypatch.setattr(demo, "write_demo_data", lambda root, *_: shutil.copytree(written, root))
    monkeypatch.setattr(demo, "_savings", lambda module, config: None)
    monkeypatch.setattr(demo, "_describe_savings", str)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    out = tmp_path / "my demo"
    assert main(["demo", "--out", str(out), "--max-minutes", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\d+ of 40 steps.*--max-minutes [1-9]", printed)
    hint = re.search(r"again +(.*)", printed)[1]
    again = subprocess.run(f"{hint} --run.output '' --help", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"--config '{out}/demo.yaml'" in hint


def test_a_demo_stopped_within_an_epoch_names_the_minutes_to_finish():
    assert demo._shortened("max_time", 23, 640, 230.0) == (
        "stopped by the time limit after 23 of 640 steps; the images are unfinished; give it more time with "
        "--max-minutes 107"
    )
    assert demo._shortened(None, 640, 640, 230.0) == ""


def test_a_demo_with_numbers_out_of_range_writes_nothing(tmp_path, capsys):
    for option, value in (("--max-minutes", "nan"), ("--max-minutes", "inf"), ("--max-minutes", "0"), ("--seed", "-1")):
        assert main(["demo", "--out", str(tmp_path / "demo"), option, value]) == 2
        assert f"{option} must be " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_demo_deletes_nothing_but_an_earlier_demo(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "was not written by an earlier run of this command" in capsys.readouterr().err
    assert (tmp_path / "data" / "precious.txt").read_text() == "mine"


def test_colorize_gives_each_label_its_own_colour():
    label = torch.tensor([[0, 0, 1], [2, 2, 1]])
    image = colorize(label, 3)
    assert image.shape == (3, 2, 3)
    assert len({tuple(image[:, y, x].tolist()) for y in range(2) for x in range(3)}) == 3
    grid = image_grid([[image, image[:1], image]] * 2, rows_across=1)
    assert grid.shape == (3, 2 * 4 + 2, 3 * 5 + 2)
    assert with_titles(Image.new("RGB", (60, 20)), ["a", "b"]).size == (60, 40)


def test_plan_ends_in_time_and_keeps_the_learning_rate_schedule(monkeypatch):
    from types import SimpleNamespace

    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(demo, "time", clock)
    options = demo.OptimizerOptions(niter=8, niter_decay=8)
    plan = demo._FitSchedule(options, seconds=60)
    trainer = SimpleNamespace(current_epoch=0, should_stop=False)
    rates = []
    while not trainer.should_stop:
        rates.append(options.rate(trainer.current_epoch))
        clock.now += 10
        plan.on_train_epoch_end(trainer, None)
        trainer.current_epoch += 1
    assert clock.now == 60
    assert rates == [1, 1, 1, 1, pytest.approx(2 / 3), pytest.approx(1 / 3)]
