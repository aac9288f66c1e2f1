"""Configurations and opt.txt files from others: no import, bounded memory, and output in the folder that they name."""

import sys

import pytest
import yaml

from pix2pixhd.cli.main import main
from pix2pixhd.config.nvidia import as_text
from pix2pixhd.config.parser import parse_train
from pix2pixhd.errors import InputError
from tests.helpers import fails


@pytest.fixture
def config(capsys, tmp_path):
    """Runs ``train`` with a configuration that is refused, and returns the message, one line."""

    def run(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        error = fails(capsys, ["train", "--config", path], str(path))
        assert error.count("\n") == 1
        return error

    return run


@pytest.mark.parametrize(
    "text",
    [
        "data:\n  class_path: imported_by_a_config.Options\n",
        "data: imported_by_a_config.Options\n",
        "data.class_path: imported_by_a_config.Options\n",
        "loss: {init_args: {vgg: random}, class_path: imported_by_a_config.Options}\n",
        "run:\n  loggers: [{class_path: imported_by_a_config.Options}]\n",
        "trainer:\n  profiler: {class_path: imported_by_a_config.Options}\n",
    ],
)
def test_a_configuration_imports_no_module(config, tmp_path, monkeypatch, text):
    (tmp_path / "imported_by_a_config.py").write_text("class Options:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config(text)
    assert "imported_by_a_config" not in sys.modules


def test_a_configuration_reads_no_other_configuration(config, tmp_path):
    (tmp_path / "other.yaml").write_text("model:\n  ngf: 8\n")
    assert "pass each file with --config" in config(f"config: {tmp_path / 'other.yaml'}\n")
    assert "expected options indented below it" in config(f"model: {tmp_path / 'other.yaml'}\n")


def test_aliases_that_describe_too_many_values_are_refused(config):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 5)]
    assert "more than 2000 values" in config("\n".join(lines))
    # A list in place of the sections would be printed.
    assert "more than 2000 values" in config("- " + "\n- ".join(line.partition(" ")[2] for line in lines))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: &a\n  loss: *a\n", "more than 2000 values"),
        ("data: " + "[" * 5000 + "]" * 5000, "more than 20 levels"),
        ("data: " + "{a: " * 30 + "1" + "}" * 30, "more than 20 levels"),
        ("# " + "x" * 2**20 + "\ndata: {}", "more than 1048576 bytes"),
        ("data: {a: [" + "1, " * 2001 + "]}", "more than 2000 values"),
        ("data:\n  dataroot: 2001-99-99\n", "month must be in 1..12"),
        ("data:\n  loadSize: " + "9" * 5000 + "\n", "digits"),
    ],
)
def test_a_configuration_that_cannot_be_represented_is_reported(config, text, reason):
    assert reason in config(text)


def test_python_objects_are_not_constructed(config):
    assert "not valid YAML" in config("data: !!python/object/apply:os.mkdir [executed]\n")


def test_aliases_can_be_used(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {ngf: &width 8, ndf: *width}\n")
    parsed, _ = parse_train(["--config", str(path)])
    assert (parsed.model.ngf, parsed.model.ndf) == (8, 8)


def opt_txt(folder, **changes):
    path = folder / "opt.txt"
    folder.mkdir(parents=True, exist_ok=True)
    options = {"netG": "global", "label_nc": 35, "ngf": 64, "name": "city", "checkpoints_dir": "./checkpoints"}
    path.write_text("\n".join(f"{name}: {value}" for name, value in (options | changes).items()))
    return path


@pytest.mark.parametrize("name", ["../../etc", "/etc/cron.d", "a/../../b", ".."])
def test_the_name_in_an_opt_txt_stays_in_its_folder(tmp_path, name):
    with pytest.raises(InputError, match=r"opt\.txt: name should be the name of a folder inside of checkpoints_dir"):
        as_text(opt_txt(tmp_path, name=name))
    assert yaml.safe_load(as_text(opt_txt(tmp_path, name="a/b")))["run"]["output"] == "checkpoints/a/b"


def test_the_place_of_an_opt_txt_adds_no_options(tmp_path):
    text = as_text(opt_txt(tmp_path / "a\nrun: {output: elsewhere}\n#"))
    assert yaml.safe_load(text)["run"]["output"] == "checkpoints/city"
    assert "\nrun: {output" not in text


def test_a_huge_opt_txt_is_not_read(tmp_path, capsys):
    path = opt_txt(tmp_path)
    with path.open("r+b") as file:
        file.truncate(2**40)  # a sparse file, which uses no disk space
    fails(capsys, ["migrate", path], "not an opt.txt")
    assert main(["migrate", str(opt_txt(tmp_path / "other"))]) == 0
