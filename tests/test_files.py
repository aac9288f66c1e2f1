"""Files are written atomically, and neither inputs nor files of other programs are replaced."""

import fcntl
import os
import pathlib
import stat

import pytest

from pix2pixhd.errors import InputError
from pix2pixhd.files import (
    MARK,
    Record,
    check_apart,
    check_replaceable,
    check_writable,
    is_own,
    replacing,
    replacing_all,
    write_text,
)


def test_a_complete_file_appears_with_the_permissions_of_the_umask(tmp_path):
    path = tmp_path / "new" / "a.txt"
    before = os.umask(0o027)
    try:
        with replacing(path) as part:
            part.write_text("text")
            assert part.suffix == ".txt"
            assert not path.exists()
    finally:
        os.umask(before)
    assert path.read_text() == "text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failure_leaves_old_files_unchanged_and_no_temporary_files(tmp_path, failure):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("old")
    expected = InputError if isinstance(failure, OSError) else type(failure)

    def write():
        with replacing_all(paths, force=True) as parts:
            for part in parts:
                part.write_text("new")
            raise failure

    with pytest.raises(expected) as caught:
        write()
    if expected is InputError:
        assert "cannot be written (No space left on device); free some space" in str(caught.value)
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_files_are_flushed_through_a_descriptor_that_can_write(tmp_path, monkeypatch):
    """Windows and some network file systems require this."""
    flushed, original = [], os.fsync

    def fsync(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            flushed.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "text")
    assert flushed == [os.O_RDWR]


def test_only_own_files_are_replaced_without_force(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a\.txt: exists and was not written by pix2pixhd, so it is kept"):
        write_text(path, "new")
    with pytest.raises(InputError, match=r"--out: .*a\.txt would be replaced; .*--force"):
        check_replaceable([path], option="--out")
    assert path.read_text() == "mine"
    write_text(path, f"# {MARK}\n", force=True)
    assert is_own(path)
    write_text(path, "second")
    assert path.read_text() == "second"
    with pytest.raises(InputError, match="is a folder"):
        check_replaceable([tmp_path], force=True)


def test_a_file_that_appears_while_writing_is_kept(tmp_path):
    path = tmp_path / "a.txt"

    def write():
        with replacing(path) as part:
            part.write_text("new")
            path.write_text("mine")

    with pytest.raises(InputError, match="was not written by pix2pixhd"):
        write()
    assert path.read_text() == "mine"


def test_symbolic_links_are_followed_and_devices_are_not_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(InputError, match="was not written by pix2pixhd"):
        write_text(link, "new")
    write_text(link, "new", force=True)
    assert link.is_symlink()
    assert target.read_text() == "new"
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    write_text(device, "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert device.is_symlink()


def test_folders_that_cannot_be_written_to_are_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output: cannot write to .*file/out"):
        check_writable(tmp_path / "file" / "out", "--output")
    with pytest.raises(InputError, match=r"file/out: cannot be written"):
        write_text(tmp_path / "file" / "out", "text")
    probe = tmp_path / ".pix2pixhd-probe"
    probe.write_text("mine")
    check_writable(tmp_path, "--output")
    assert probe.read_text() == "mine"


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "data" / "labels"
    folder.mkdir(parents=True)
    (folder / "a.png").write_text("mine")
    return folder


def test_outputs_outside_the_inputs_are_accepted(labels, tmp_path):
    outside = [tmp_path / "out", tmp_path / "data" / "labels2" / "a.png", tmp_path / "data" / "a.png"]
    check_apart(outside, {"--input": [labels, None, tmp_path / "missing"]})


@pytest.mark.parametrize("kind", ["same", "inside", "relative", "link", "link of parent", "file", "hard link"])
def test_outputs_that_are_or_lie_inside_inputs_are_rejected(labels, tmp_path, monkeypatch, kind):
    output, read = labels, [labels]
    if kind == "inside":
        output = labels / "new" / "out"
    if kind == "relative":
        monkeypatch.chdir(tmp_path / "data")
        output = pathlib.Path("..") / "data" / "labels" / "." / "a.png"
    if kind.startswith("link"):
        link = tmp_path / "link"
        link.symlink_to(labels if kind == "link" else labels.parent)
        output = link / "x.png" if kind == "link" else link / "labels" / "x.png"
    if kind == "file":
        output, read = labels / "a.png", [labels / "a.png"]
    if kind == "hard link":
        output, read = tmp_path / "b.png", [labels / "a.png"]
        output.hardlink_to(labels / "a.png")
    with pytest.raises(InputError, match=r"--output: .* (is|lies inside) .*, which is read \(--input\)"):
        check_apart([tmp_path / "other", output], {"--input": read})


def test_a_record_only_removes_its_own_files(tmp_path):
    record = Record(tmp_path, ["data", "run", "grid.png"])
    record.clear("--out")  # the folder is empty
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a").write_text("a")
    (tmp_path / "grid.png").write_text("b")
    (tmp_path / "elsewhere").write_text("mine")
    record.save()
    (tmp_path / "data" / "note").write_text("mine")
    with pytest.raises(InputError, match=r"--out: .*data/note would be replaced"):
        Record(tmp_path, record.parts).clear("--out")
    (tmp_path / "data" / "note").unlink()
    (tmp_path / "grid.png").write_text("changed")
    with pytest.raises(InputError, match=r"grid\.png would be replaced"):
        record.clear("--out")
    assert (tmp_path / "data" / "deep" / "a").read_text() == "a"
    record.save()
    record.clear("--out")
    assert sorted(os.listdir(tmp_path)) == [".pix2pixhd-files.json", "elsewhere"]


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": {"../outside": [4, 0]}}'])
def test_an_invalid_record_removes_nothing(tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "outside").write_text("mine")
    (folder / "data").write_text("mine")
    record = Record(folder, ["data"])
    record.path.write_text(content)
    with pytest.raises(InputError, match="would be replaced"):
        record.clear("--out")
    assert (tmp_path / "outside").read_text() == (folder / "data").read_text() == "mine"
