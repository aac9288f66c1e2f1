"""Files with unexpected contents cause one message each, without allocating the sizes in their headers."""

import io
import os
import pathlib
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, check_pairs, find_pairs, read_image, read_index_map


def fails(call, *parts):
    with pytest.raises(DataError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def npy(shape, dtype="|u1", data=b"", fortran=False):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (npy((1_000_000, 1_000_000, 3), data=b"1234"), ["specifies [1000000, 1000000, 3]", "3 TB", "4 bytes"]),
        (npy((10**30, 3, 3)), ["specifies"]),
        (npy((-1, 4, 3), data=b"1234"), ["specifies"]),
        (npy((4, 4, 3), data=bytes(47)), ["specifies", "48 bytes", "47 bytes", "truncated"]),
        (npy((4, 4, 5), data=bytes(80)), ["[height, width, 3]", "[4, 4, 5]"]),
        (npy((4, 4, 3), "<f4", bytes(192)), ["uint8", "float32"]),
        (npy((2, 2, 3), "|O", pickle.dumps([1])), ["Python objects"]),
        (npy((0, 4, 3)), ["[0, 4, 3]"]),
        (b"", ["empty (0 bytes)"]),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': oops}\n", ["damaged header"]),
        (b"\x93NUMPY\x01\x00", ["damaged header"]),
        (b"\x93NUMPY\x09\x00\x10\x00", ["save"]),
        (b"hello, world", ["not an .npy file", "numpy.save"]),
    ],
)
def test_invalid_npy_files_are_reported(tmp_path, content, parts):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    fails(lambda: read_image(path, 3), str(path), *parts)


def test_an_npz_archive_named_npy_is_reported(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.savez(file, left=np.zeros((4, 4, 3), np.uint8), right=np.zeros(1))
    fails(lambda: read_image(path, 3), str(path), ".npz archive (left, right)", "numpy.save")


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[[print]]]), allow_pickle=True)
    fails(lambda: read_image(path, 1), "Python objects")


def test_an_array_that_is_truncated_while_being_read_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((400, 400, 3), np.uint8))
    original = np.lib.format.read_array

    def truncated(file, **options):
        os.truncate(path, 1000)
        return original(file, **options)

    monkeypatch.setattr(np.lib.format, "read_array", truncated)
    fails(lambda: read_image(path, 3), str(path), "cannot be read")


def test_arrays_in_c_and_fortran_order_and_with_two_dimensions_are_read(tmp_path):
    path = tmp_path / "a.npy"
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for saved in (array, np.asfortranarray(array)):
        np.save(path, saved)
        channels = read_image(path, 4).channels
        np.testing.assert_array_equal(np.stack([np.asarray(channel) for channel in channels], axis=2), array)
    np.save(path, array[..., 0])
    np.testing.assert_array_equal(np.asarray(read_image(path, 1).channels[0]), array[..., 0])


def test_a_label_map_in_an_npy_file_is_reported(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), np.uint8))
    fails(lambda: read_index_map(tmp_path / "a.npy"), "a.npy: a label map must be an image file, not .npy")


def test_a_decompression_bomb_is_reported(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    fails(lambda: read_image(path), str(path), "has more than", "scale it down")
    wide = tmp_path / "a.npy"
    with wide.open("wb") as file:
        file.write(npy((100_000, 100_000, 1)))
        file.truncate(10**10 + 1000)  # a sparse file, which uses no disk space
    fails(lambda: read_image(wide, 1), str(wide), "100000x100000 pixels", "scale it down")


@pytest.fixture
def root(tmp_path, make_data):
    return make_data(tmp_path)


def check(root):
    options = DataOptions(dataroot=str(root), label_nc=4, resize_or_crop="none")
    check_pairs(find_pairs(options, "train"), options, multiple=8)


def test_an_empty_file_is_reported(root):
    (root / "train_inst" / "b.png").write_bytes(b"")
    fails(lambda: check(root), "train_inst/b.png: is empty (0 bytes)", "replace")


def test_a_folder_with_an_image_extension_is_reported(root):
    path = root / "train_img" / "b.png"
    path.unlink()
    path.mkdir()
    fails(lambda: check(root), "train_img/b.png: is a folder, not an image")
    fails(lambda: read_image(path), "is a folder, not an image")


def test_a_broken_link_is_reported(root):
    path = root / "train_img" / "b.png"
    path.unlink()
    path.symlink_to(root / "moved" / "b.png")
    fails(lambda: check(root), "train_img/b.png: the symbolic link points to", "moved/b.png, which does not exist")
    fails(lambda: read_image(path), "the symbolic link points to")


def test_a_circular_link_and_a_pipe_are_reported(root):
    (root / "train_img" / "x.png").symlink_to("x.png")
    os.mkfifo(root / "train_label" / "y.png")
    fails(lambda: check(root), "x.png: the symbolic link", "y.png: is not a regular file")


def test_linked_folders_are_searched_once(root):
    (root / "train_img").rename(root / "elsewhere")
    (root / "train_img").mkdir()
    (root / "train_img" / "city").symlink_to(root / "elsewhere")
    (root / "elsewhere" / "again").symlink_to(root / "elsewhere")
    for folder in ("train_label", "train_inst"):
        (root / folder).rename(root / "moved")
        (root / folder).mkdir()
        (root / "moved").rename(root / folder / "city")
    check(root)


def test_hidden_folders_are_ignored(root):
    (root / "train_img" / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (32, 24)).save(root / "train_img" / ".ipynb_checkpoints" / "a-checkpoint.png")
    check(root)


def test_missing_permissions_are_reported(root, monkeypatch):
    """The errors are simulated, since permissions have no effect if the tests run as the superuser."""
    secret = root / "train_img" / "b.png"
    original = pathlib.Path.open

    def guarded(file, *arguments, **options):
        if str(file) == str(secret):
            raise PermissionError(13, "Permission denied", str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", guarded)
    fails(lambda: check(root), "train_img/b.png: permission denied", "chmod u+r")
    monkeypatch.undo()
    scan = os.scandir

    def refusing(path):
        if pathlib.Path(path).name == "train_inst":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    fails(lambda: check(root), "train_inst: the folder cannot be read (Permission denied)", "chmod u+rx")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_not_utf8_are_reported(root, capsys, tmp_path):
    path = os.fsencode(root / "train_img") + b"/caf\xe9.png"
    Image.new("RGB", (32, 24)).save(os.fsdecode(path))
    fails(lambda: check(root), "train_img/caf\\xe9.png: the file name is not valid UTF-8; rename it")
    assert main(["data", "check", str(root), "--label-nc=4", "--json", str(tmp_path / "report.json")]) == 1
    assert "caf\\xe9.png" in capsys.readouterr().out
    assert "caf" in (tmp_path / "report.json").read_text()


def test_a_file_in_place_of_a_folder_is_reported(root):
    (root / "train_inst").rename(root / "x")
    (root / "train_inst").write_text("")
    fails(lambda: check(root), "there is a file instead of the folder", "train_inst")


def test_a_missing_label_folder_with_input_images_causes_a_hint(tmp_path, make_data):
    make_data(tmp_path, label_nc=0)
    fails(
        lambda: check(tmp_path), "there is no folder", "train_label", "set data.label_nc: 0 for the images in train_A"
    )


def test_all_problems_with_folders_are_reported_at_once(root):
    (root / "train_inst" / "a.png").unlink()
    (root / "train_img" / "b.jpg").write_bytes(b"")
    (root / "train_img" / "x.png").mkdir()
    fails(lambda: check(root), "a.png has no partner", "have the same name 'b'", "x.png: is a folder")
