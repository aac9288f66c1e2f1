"""Unchanged files are decoded only once, and every change is detected."""

import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, check_pairs, find_pairs, survey
from pix2pixhd.data import facts as facts_module
from pix2pixhd.data import images as images_module


@pytest.fixture
def decoded(monkeypatch):
    """List of the files decoded so far."""
    paths = []
    original = images_module._open

    def recorded(path):
        paths.append(path.parent.name + "/" + path.name)
        return original(path)

    monkeypatch.setattr(images_module, "_open", recorded)
    monkeypatch.setattr(facts_module, "_SETTLED_NS", 0)
    return paths


def check(root, **changes):
    options = DataOptions(**{"dataroot": str(root), "label_nc": 4, "resize_or_crop": "none", **changes})
    return check_pairs(find_pairs(options, "train"), options, multiple=8)


def test_a_second_check_decodes_no_files_and_has_the_same_result(tmp_path, make_data, decoded):
    make_data(tmp_path)
    first = check(tmp_path)
    assert len(decoded) == 9
    assert check(tmp_path) == first
    assert len(decoded) == 9
    assert first.label_ids == {0: 3, 1: 3, 2: 3, 3: 3}
    assert first.sizes == {(32, 24): 3}
    low, high = first.instance_ids
    assert 40000 <= low < high < 65536


def test_only_changed_files_are_decoded_again(tmp_path, make_data, decoded):
    make_data(tmp_path)
    label = tmp_path / "train_label" / "b.png"
    ids = np.zeros((24, 32), np.uint8)
    Image.fromarray(ids).save(label, compress_level=0)
    assert check(tmp_path).label_ids[3] == 2
    decoded.clear()
    make_data(tmp_path, names=("d",))
    before = label.stat()
    # Change an id, but not the size and the modification time. Only the change time differs.
    ids[0, 0] = 3
    Image.fromarray(ids).save(label, compress_level=0)
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = label.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert check(tmp_path).label_ids[3] == 4
    assert sorted(decoded) == ["train_img/d.png", "train_inst/d.png", "train_label/b.png", "train_label/d.png"]


def test_new_contents_are_detected(tmp_path, make_data, decoded):
    make_data(tmp_path)
    check(tmp_path)
    path = tmp_path / "train_label" / "b.png"
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(path)
    with pytest.raises(DataError, match="label id 9"):
        check(tmp_path)
    path = shutil.copy2(tmp_path / "train_label" / "a.png", path)  # keeps the older modification time
    assert check(tmp_path).count == 3


def test_changed_options_are_applied_to_cached_facts(tmp_path, make_data, decoded):
    make_data(tmp_path)
    check(tmp_path)
    decoded.clear()
    for changes, message in (
        ({"label_nc": 3}, "label id 3"),
        ({"resize_or_crop": "crop", "fineSize": 64}, "smaller than the crop"),
        ({"resize_or_crop": "scale_width", "loadSize": 100}, "multiples of 8"),
    ):
        with pytest.raises(DataError, match=message):
            check(tmp_path, **changes)
    assert not decoded
    check(tmp_path, output_nc=1)  # another way of reading the same files
    assert sorted(decoded) == [f"train_img/{name}.png" for name in "abc"]


def test_invalid_files_are_not_cached(tmp_path, make_data, decoded):
    make_data(tmp_path)
    (tmp_path / "train_img" / "a.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match="is empty"):
            check(tmp_path)
    assert decoded.count("train_img/a.png") == 2


def test_recently_changed_files_are_decoded_again(tmp_path, make_data, decoded, monkeypatch):
    """Another change might have the same time stamp."""
    monkeypatch.setattr(facts_module, "_SETTLED_NS", 3600 * 10**9)
    make_data(tmp_path)
    check(tmp_path)
    check(tmp_path)
    assert len(decoded) == 18


@pytest.mark.parametrize("damage", ["truncated", "edited", "garbage", "old version"])
def test_a_damaged_or_older_cache_is_ignored(tmp_path, make_data, decoded, damage, monkeypatch):
    make_data(tmp_path)
    expected = check(tmp_path)
    decoded.clear()
    files = list(facts_module._cache_folder().iterdir())
    assert len(files) == 3
    for file in files:
        text = file.read_text()
        if damage == "truncated":
            file.write_text(text[: len(text) // 2])
        elif damage == "edited":
            file.write_text(text.replace("[32,24]", "[32,16]"))
        elif damage == "garbage":
            file.write_bytes(os.urandom(300))
    if damage == "old version":
        monkeypatch.setattr(facts_module, "_FORMAT", -1)
    assert check(tmp_path) == expected
    assert len(decoded) == 9
    assert check(tmp_path) == expected
    assert len(decoded) == 9


@pytest.mark.parametrize("obstacle", ["a file in its place", "no home"])
def test_failure_to_write_the_cache_is_not_an_error(tmp_path, make_data, decoded, obstacle, monkeypatch):
    make_data(tmp_path / "data")
    if obstacle == "no home":
        monkeypatch.setattr(facts_module, "_cache_folder", lambda: None)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check(tmp_path / "data") == check(tmp_path / "data")
    assert len(decoded) == 18


def test_concurrent_checks_agree(tmp_path, make_data, decoded):
    make_data(tmp_path)
    options = DataOptions(dataroot=str(tmp_path), label_nc=4, resize_or_crop="none")
    pairs = find_pairs(options, "train")
    found = []
    threads = [threading.Thread(target=lambda: found.append(survey(pairs, options, 8))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    assert not [path for path in facts_module._cache_folder().iterdir() if path.name.startswith(".")]
    decoded.clear()
    assert check(tmp_path) == found[0]
    assert not decoded


def test_checking_a_subset_keeps_other_entries_and_removes_those_of_missing_files(tmp_path, make_data, decoded):
    make_data(tmp_path)
    check(tmp_path)
    decoded.clear()
    (tmp_path / "train_label" / "a.png").touch()
    check(tmp_path, max_dataset_size=1)
    assert decoded == ["train_label/a.png"]
    check(tmp_path)
    assert decoded == ["train_label/a.png"]
    for folder in ("train_label", "train_inst", "train_img"):
        (tmp_path / folder / "c.png").unlink()
    (tmp_path / "train_label" / "a.png").touch()
    check(tmp_path)
    texts = [path.read_text() for path in facts_module._cache_folder().iterdir()]
    assert sum("c.png" in text for text in texts) == 2  # only caches with new entries were written


def test_maps_with_many_ids_only_store_the_smallest_and_the_largest(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60)).save(path)
    found = facts_module.FileFacts.read(path, "instance map")
    assert (found.low, found.high, found.count, found.ids) == (0, 2999, 3000, None)
    assert facts_module.FileFacts.from_json(found.as_json()) == found
    wide = np.array([[-(2**30), 5, 2**30]], np.int32)
    np.testing.assert_array_equal(facts_module._distinct(wide), np.unique(wide))
    near = np.array([[-7, 3, 3, 2]], np.int32)
    np.testing.assert_array_equal(facts_module._distinct(near), np.unique(near))
