"""No command destroys a file that it did not create: a table of every command and every file that it writes."""

import errno
import json
import os
import shlex

import pytest

from pix2pixhd import files
from pix2pixhd.cli import main as cli
from pix2pixhd.config.schema import ModelOptions

FEATURES = {"ngf": 4, "n_downsample_global": 2, "n_blocks_global": 1, "ndf": 4, "n_layers_D": 2, "num_D": 1}
FEATURES |= {"instance_feat": True, "feat_num": 2, "nef": 4, "n_downsample_E": 2}
MINE = b"mine, and never to be lost"

# Command line (in tmp_path) and the files that it writes. "{...}" is filled in.
WRITING = {
    "generate": ("generate --checkpoint {ckpt} --input {data} --output out", ["out/x.png", "out/y.png"]),
    "generate --html": (
        "generate --checkpoint {ckpt} --input {data} --output out --html --real {data}/test_img",
        ["out/x.png", "out/index.html"]
        + [f"out/images/{column}/{name}.png" for column in ("input", "generated", "real") for name in "xy"],
    ),
    "generate .npy": ("generate --checkpoint {five} --input {data} --output out", ["out/x.npy", "out/y.npy"]),
    "features": ("features --checkpoint {styles} --output out/styles.npz", ["out/styles.npz"]),
    "export .onnx": ("export --checkpoint {ckpt} --output out/a.onnx --size 16x16", ["out/a.onnx"]),
    "export .pt2": ("export --checkpoint {ckpt} --output out/a.pt2 --size 16x16", ["out/a.pt2"]),
    "export folder": (
        "export --checkpoint {styles} --output out",
        [f"out/latest_net_{net}.pth" for net in "GDE"] + ["out/opt.txt"],
    ),
    "bench": (
        "bench --case 'LSGAN, generator' --rounds 1 --no-compile --no-memory --json out/b.json --plot out/b.svg",
        ["out/b.json", "out/b.svg"],
    ),
    "data check": ("data check {data} --label-nc 4 --json out/found.json", ["out/found.json"]),
}
# They have no --force: their folders hold what belongs together.
REFUSING = {
    "train": (
        "{train}",
        [
            "out/checkpoints/last.ckpt",
            "out/checkpoints/epoch_0000.ckpt",
            "out/samples/step_000002.png",
            "out/results/index.html",
            "out/results/images/generated/a.png",
            "out/loggers.json",
        ],
    ),
    "demo": ("demo --out out", ["out/demo.yaml", "out/results.png", "out/data/train_img/a.png", "out/run/logs/a"]),
}
PRINTING = {
    "migrate": "migrate nvidia/opt.txt",
    "data": "data check {data} --label-nc 4",
    "doctor": "doctor",
}


def test_every_command_is_in_the_table():
    named = {name.split()[0] for name in (*WRITING, *REFUSING, *PRINTING)}
    assert named == set(cli._COMMANDS)


@pytest.fixture
def run(tmp_path, data_root, make_checkpoint, command_line, monkeypatch, capsys):
    """Runs a command of the table; returns the exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    made = {}

    def checkpoint(name):
        if name not in made:
            options = {"styles": {"model": ModelOptions(**FEATURES)}, "five": {"output_nc": 5}, "ckpt": {}}[name]
            made[name] = make_checkpoint(f"{name}.ckpt", **options)
        return made[name]

    def run(line, *more):
        if line == "{train}":
            arguments = command_line(output="out")
        else:
            given = {name: checkpoint(name) for name in ("styles", "five", "ckpt") if f"{{{name}}}" in line}
            arguments = shlex.split(line.format(data=data_root, **given))
        code = cli.main([*arguments, *more])
        return code, capsys.readouterr().err

    return run


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(MINE)


@pytest.mark.parametrize("command", [*WRITING, *REFUSING])
def test_foreign_files_are_kept(run, tmp_path, command):
    line, paths = (WRITING | REFUSING)[command]
    for name in paths:
        plant(tmp_path, name)
        code, error = run(line)
        assert code == 2, name
        assert (tmp_path / name).name in error
        if command in WRITING:
            assert "--force" in error
        assert tree(tmp_path / "out") == {name.removeprefix("out/"): MINE}
        (tmp_path / name).unlink()


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(path):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", WRITING)
def test_failures_leave_the_old_file_and_no_partial_file(run, tmp_path, monkeypatch, command):
    """A full disk and Ctrl-C while the last file of the command's first block is written; then it succeeds."""
    line, paths = WRITING[command]
    for name in paths:
        plant(tmp_path, name)
    before = tree(tmp_path / "out")
    for failure, expected, message in ((full, 2, "No space left on device"), (interrupted, 130, "interrupted")):
        with monkeypatch.context() as patch:
            patch.setattr(files, "_sync", failure)
            code, error = run(line, "--force")
        assert (code, tree(tmp_path / "out")) == (expected, before)
        assert message in error
        if command == "export .onnx":
            return  # the rest is as for .pt2, and the export slow
    assert run(line, "--force")[0] == 0
    after = tree(tmp_path / "out")
    assert set(after) >= {name.removeprefix("out/") for name in paths}
    assert MINE not in after.values()
    assert not [name for name in after if name.startswith(".pix2pixhd")]


@pytest.mark.parametrize("command", ["generate", "generate .npy", "features", "export .pt2", "export folder"])
def test_a_full_disk_is_reported(run, tmp_path, full_disk, command):
    line, paths = WRITING[command]
    for name in paths:
        plant(tmp_path, name)
    before = tree(tmp_path / "out")
    run("export --checkpoint {ckpt} --output nothing.tflite")  # writes the checkpoints first
    run("export --checkpoint {styles} --output nothing.tflite")
    run("export --checkpoint {five} --output nothing.tflite")
    with full_disk(100):
        code, error = run(line, "--force")
    assert code == 2
    assert "cannot be written" in error
    assert "Traceback" not in error
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("command", PRINTING)
def test_commands_that_only_print_write_no_files(run, tmp_path, monkeypatch, data_root, command):
    from pix2pixhd.cli import doctor

    monkeypatch.setattr(doctor, "_speed_up", lambda device: "")
    if command == "migrate":
        assert run("export --checkpoint {ckpt} --output nvidia")[0] == 0
    before = tree(tmp_path)
    assert run(PRINTING[command])[0] == 0
    assert tree(tmp_path) == before


def test_own_files_are_replaced_without_being_asked(run, tmp_path):
    line, _ = WRITING["generate --html"]
    assert run(line)[0] == 0
    first = tree(tmp_path / "out")
    assert run(line)[0] == 0
    assert tree(tmp_path / "out") == first


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("output", ["{data}/test_label", "{data}/test_label/deep/out", "link", "{data}/test_inst"])
def test_generate_keeps_its_input(run, tmp_path, data_root, output, force):
    (tmp_path / "link").symlink_to(data_root / "test_label")
    before = tree(data_root)
    output = output.format(data=data_root)
    code, error = run(
        f"generate --checkpoint {{ckpt}} --input {data_root}/test_label --instances {data_root}/test_inst "
        f"--output {output}",
        *force,
    )
    assert code == 2
    assert "which is read (--in" in error
    assert tree(data_root) == before


def test_generate_keeps_the_instance_maps_that_it_finds_beside_the_input(run, data_root):
    """Under Cityscapes' names the images would be written beside the instance maps, not replace them."""
    for kind, suffix in (("label", "labelIds"), ("inst", "instanceIds")):
        for path in (data_root / f"test_{kind}").iterdir():
            path.rename(path.with_stem(f"{path.stem}_gtFine_{suffix}"))
    before = tree(data_root)
    line = "generate --checkpoint {ckpt} --input {data}/test_label --output {data}/test_inst"
    for more in ("", "/new"):
        code, error = run(line + more)
        assert code == 2
        assert "which is read (--instances)" in error
    assert tree(data_root) == before


@pytest.mark.parametrize("option", ["--real", "--encode"])
def test_generate_keeps_the_images_it_compares_with(run, data_root, option):
    before = tree(data_root)
    checkpoint, more = ("ckpt", "--html") if option == "--real" else ("styles", "")
    code, error = run(
        f"generate --checkpoint {{{checkpoint}}} --input {data_root} --output {data_root}/test_img {option} "
        f"{data_root}/test_img --force {more}"
    )
    assert code == 2
    assert f"which is read ({option})" in error
    assert tree(data_root) == before


def test_generate_keeps_inputs_inside_its_output(run, tmp_path, data_root):
    """Input out/x/x/a.png has the name x/a, whose image would be out/x/a.png, inside the input."""
    inside = tmp_path / "out" / "x"
    for kind, folder in (("label", inside), ("inst", tmp_path / "inst")):
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "a.png").write_bytes((data_root / f"test_{kind}" / "x.png").read_bytes())
    before = tree(tmp_path / "out")
    line = "generate --checkpoint {ckpt} --input out/x --instances inst --output out --force"
    code, error = run(line)
    assert code == 2
    assert "lies inside out/x" in error
    assert tree(tmp_path / "out") == before


def test_generate_keeps_hard_links_to_its_input(run, tmp_path, data_root):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.png").hardlink_to(data_root / "test_label" / "x.png")
    before = tree(data_root)
    code, error = run("generate --checkpoint {ckpt} --input {data} --output out --force")
    assert code == 2
    assert "out/x.png is" in error
    assert tree(data_root) == before


def test_two_images_with_the_same_name_are_rejected(run, tmp_path, data_root):
    for kind in ("label", "inst"):
        folder = data_root / f"test_{kind}" / "images" / "generated"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes((data_root / f"test_{kind}" / "x.png").read_bytes())
    code, error = run("generate --checkpoint {ckpt} --input {data} --output out --html")
    assert code == 2
    assert "two images would be written to out/images/generated/x.png" in error
    assert not (tmp_path / "out").exists()


def test_training_does_not_write_among_its_data(run, make_config, data_root):
    from pix2pixhd.errors import InputError
    from pix2pixhd.training.run import train

    config = make_config()
    config.run.output = str(data_root / "train_label" / "run")
    with pytest.raises(InputError, match=r"run\.output: .* lies inside .*train_label, which is read"):
        train(config)


FOLDERS = ["checkpoints", "logs", "samples", "results"]
FILES = ["config.yaml", "loggers.json", "results/index.html"]


@pytest.mark.parametrize("name", ["", *FOLDERS, *FILES])
def test_a_file_in_the_place_of_a_folder_is_refused_before_training(run, tmp_path, monkeypatch, name):
    """And a folder in the place of a file."""
    from pix2pixhd.training.module import Pix2PixHD

    monkeypatch.setattr(Pix2PixHD, "training_step", lambda *_: pytest.fail("trained"))
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if name in FILES:
        path.mkdir()
    else:
        path.write_bytes(MINE)
    before = tree(tmp_path / "out")
    code, error = run("{train}")
    assert code == 2
    assert "run.output: " in error
    assert str(path) in error
    assert tree(tmp_path / "out") == before


def test_a_config_of_other_origin_is_kept_under_another_name(run, tmp_path):
    plant(tmp_path, "out/config.yaml")
    assert run("{train}")[0] == 0
    assert (tmp_path / "out" / "config_1.yaml").read_bytes() == MINE


def test_the_demo_replaces_its_own_files_only(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    from pix2pixhd.demo import run as demo
    from pix2pixhd.errors import InputError

    def small(out, max_minutes, seed, vgg):
        for name in ("data/train_img/a.png", "run/logs/run_0/metrics.csv", "demo.yaml", "results.png"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(f"{seed}")
        if seed == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run", small)
    demo.run_demo(tmp_path, seed=0)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path, seed=1)
    demo.run_demo(tmp_path, seed=2)
    assert (tmp_path / "results.png").read_text() == "2"
    plant(tmp_path, "run/logs/run_1/metrics.csv")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"run_1/metrics\.csv would be replaced"):
        demo.run_demo(tmp_path, seed=3)
    assert tree(tmp_path) == before


def test_bench_writes_json_to_a_pipe(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("bench --case 'LSGAN, generator' --rounds 1 --no-compile --no-memory --json pipe")[0] == 0
        [case] = json.loads(os.read(reader, 100000))["cases"]
        assert len(case["seconds"]["fused"]) == 1
    finally:
        os.close(reader)
