"""Configuration files: options override them, and the shipped ones parse and are found by name."""

import pathlib

import pytest
import yaml

from pix2pixhd import config
from pix2pixhd.config.parser import config_text, parse_train
from pix2pixhd.errors import InputError

SHIPPED = pathlib.Path(config.__file__).parent / "shipped"


def test_command_line_options_override_the_config_file(make_config, tmp_path):
    config = make_config()
    path = tmp_path / "config.yaml"
    path.write_text(config_text(config))
    parsed, resume = parse_train(["--config", str(path), "--model.num_D", "3", "--resume"])
    assert resume
    assert parsed.model.num_D == 3
    parsed.model.num_D = 2
    for section in ("data", "model", "loss", "optimizer", "run"):
        assert getattr(parsed, section) == getattr(config, section)
    assert parsed.trainer["accelerator"] == "cpu"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")))
def test_shipped_configs_parse(path):
    parsed, _ = parse_train(["--config", str(path)])
    text = yaml.safe_load(path.read_text())
    for section, values in text.items():
        if section != "trainer":
            for name, value in values.items():
                assert getattr(getattr(parsed, section), name) == value


def test_shipped_configs_go_by_name(tmp_path, monkeypatch):
    for arguments in (["--config", "pairs"], ["--config=pairs.yaml"]):
        parsed, _ = parse_train(arguments)
        assert parsed.data.label_nc == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.yaml").write_text("data:\n  label_nc: 7\n")
    assert parse_train(["--config", "pairs.yaml"])[0].data.label_nc == 7  # a file of that name wins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data:\n  label_nc: 3\n  fineSize: 64\n  label_nc: 4\n",
            r"data\.label_nc is given twice, in lines 2 and 4; remove",
        ),
        ("run:\n  output: a\ndata: {}\nrun:\n  output: b\n", "run is given twice, in lines 1 and 4; remove one"),
        ("loss: {lambda_gan: 1, lambda_gan: 2}", r"loss\.lambda_gan is given twice, in lines 1 and 1"),
    ],
)
def test_an_option_that_is_given_twice_is_rejected(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse_train(["--config", str(path)])
    assert str(caught.value).count("--config") == 1
    assert "cannot be read" not in str(caught.value)


def test_aliases_do_not_give_an_option_twice(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {dataroot: &place somewhere}\nrun: {output: *place, loggers: &l [csv]}\n")
    parsed, _ = parse_train(["--config", str(path)])
    assert parsed.run.output == parsed.data.dataroot == "somewhere"
