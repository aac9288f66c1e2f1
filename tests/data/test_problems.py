"""All commands group problems by kind and list the first ten; the JSON report contains all of them."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, Problem, check_pairs, find_inputs, find_pairs
from pix2pixhd.data.problems import display, grouped


def test_a_single_problem_is_reported_on_its_own():
    assert str(DataError([Problem("a kind", "a.png: is broken")])) == "a.png: is broken"


def test_ten_problems_of_each_kind_and_their_number_are_listed():
    problems = [Problem("one kind", f"one {k}") for k in range(13)] + [Problem("other kind", "other 0")]
    lines = grouped(problems, "everything: there")
    assert lines[0] == "  one kind: 13"
    assert [line.strip() for line in lines[1:11]] == [f"one {k}" for k in range(10)]
    assert lines[11:] == ["    … and 3 more", "  other kind: 1", "    other 0", "  everything: there"]
    assert "everything: there" not in grouped(problems[3:], "everything: there")


def test_errors_survive_pickling():
    error = DataError([Problem("a kind", f"{k}") for k in range(20)], "everything: there")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.problems == error.problems


@pytest.fixture
def unmatched(tmp_path):
    """40 input images and 40 targets without any matching names."""
    for folder, prefix in (("train_A", "a"), ("train_B", "b")):
        (tmp_path / folder).mkdir()
        for k in range(40):
            Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{prefix}{k:02}.png")
    return tmp_path


def test_many_unmatched_files_cause_a_short_message(capsys, unmatched, tmp_path):
    arguments = ["--data.dataroot", str(unmatched), "--data.label_nc=0", "--data.no_instance=true"]
    assert main(["train", *arguments, "--run.output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 14
    assert "80 problems in the data" in error
    assert "files without a partner: 80" in error
    assert "… and 70 more" in error
    assert f"pix2pixhd data check {unmatched} --json FILE" in error
    assert main(["data", "check", str(unmatched), "--label-nc=0", "--no-instance"]) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 14
    assert "… and 70 more" in out


def test_the_json_report_is_complete_and_replaces_no_file_without_force(capsys, unmatched, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["data", "check", str(unmatched), "--label-nc=0", "--no-instance", "--json", str(report)]
    assert main(arguments) == 1
    problems = json.loads(report.read_text())["train"]["problems"]
    assert len(problems) == 80
    assert {problem["kind"] for problem in problems} == {"files without a partner"}
    report.write_text("mine")
    assert main(arguments) == 2
    assert report.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 1
    assert len(json.loads(report.read_text())["train"]["problems"]) == 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "train_A", "train_B"]
    assert main([*arguments[:-1], str(tmp_path / "no" / "folder.json")]) == 2


def test_problems_with_inputs_for_generation_are_grouped(tmp_path, make_data):
    make_data(tmp_path, names=[f"{k:02}" for k in range(20)])
    for path in (tmp_path / "train_inst").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(DataError) as caught:
        find_inputs(tmp_path / "train_label", DataOptions(label_nc=4))
    assert len(caught.value.problems) == 20
    assert "… and 10 more" in str(caught.value)
    assert str(caught.value).count("\n") == 12


def test_problems_with_contents_are_grouped(tmp_path, make_data):
    make_data(tmp_path, names=[f"{k:02}" for k in range(15)])
    (tmp_path / "train_img" / "00.png").write_bytes(b"")
    options = DataOptions(dataroot=str(tmp_path), label_nc=2, resize_or_crop="none")
    with pytest.raises(DataError) as caught:
        check_pairs(find_pairs(options, "train"), options, multiple=8)
    text = str(caught.value)
    assert "16 problems" in text
    assert "label ids outside data.label_nc: 15" in text
    assert "unreadable files: 1" in text
    assert "… and 5 more" in text


def test_the_message_about_id_255_explains_ignored_pixels(tmp_path, make_data):
    make_data(tmp_path, names="a")
    label = np.zeros((24, 32), np.uint8)
    label[0] = 255
    Image.fromarray(label).save(tmp_path / "train_label" / "a.png")
    options = DataOptions(dataroot=str(tmp_path), label_nc=4, resize_or_crop="none")
    with pytest.raises(DataError, match=r"255 often marks pixels to ignore.*change them to 4.*label_nc to 5"):
        check_pairs(find_pairs(options, "train"), options, multiple=8)


def test_paths_that_are_not_utf8_can_be_displayed():
    assert display(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
