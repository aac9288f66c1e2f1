"""Every kind of bad data ends in one message with file, value and remedy."""

import numpy as np
import pytest
from PIL import Image

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import check_pairs, find_inputs, find_pairs
from pix2pixhd.errors import InputError


def check(root, multiple=8, **changes):
    options = DataOptions(**{"dataroot": str(root), "label_nc": 4, "resize_or_crop": "none", **changes})
    check_pairs(find_pairs(options, "train"), options, multiple)


def fails(root, *parts, **changes):
    with pytest.raises(InputError) as caught:
        check(root, **changes)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path, make_data):
    return make_data(tmp_path)


def test_good_data_pass(root):
    check(root)


def test_label_outside(root):
    path = root / "train_label" / "b.png"
    label = np.asarray(Image.open(path)).copy()
    label[3, 3] = 12
    Image.fromarray(label).save(path)
    message = fails(root, str(path), "label id 12", "data.label_nc=4", "0 to 3", "at least 13")
    assert "\n" not in message


def test_missing_pair(root):
    (root / "train_img" / "b.png").unlink()
    fails(root, "train_label/b.png has no partner b.*", "train_img")
    (root / "train_img" / "z.png").write_bytes((root / "train_img" / "a.png").read_bytes())
    message = fails(root, "z.png", "train_label")
    assert message.count("no partner") == 3  # b lacks its picture, z its label and instance map


def test_pairs_go_by_name_not_position(tmp_path, make_data):
    make_data(tmp_path, names=("a", "b"))
    (tmp_path / "train_img" / "a.png").rename(tmp_path / "train_img" / "c.png")
    fails(tmp_path, "c.png has no partner", "a.png has no partner")


def test_cityscapes_names_match(tmp_path, make_data):
    make_data(tmp_path, names=("x",))
    for kind, suffix in (("label", "gtFine_labelIds"), ("inst", "gtFine_instanceIds"), ("img", "leftImg8bit")):
        folder = tmp_path / f"train_{kind}"
        (folder / "x.png").rename(folder / f"aachen_000000_000019_{suffix}.png")
    options = DataOptions(dataroot=str(tmp_path), label_nc=4)
    (pair,) = find_pairs(options, "train")
    assert pair.name == "aachen_000000_000019"
    assert pair.instance.name.endswith("instanceIds.png")


def test_other_extensions_match(root):
    path = root / "train_img" / "a.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    fails(root, "have the same name 'a'")
    path.unlink()
    check(root)


def test_truncated(root):
    for folder in ("train_label", "train_inst", "train_img"):
        path = root / folder / "a.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails(root, str(path), "cannot be read", "replace it")
        path.write_bytes(whole)
    check(root)


def test_not_a_picture(root):
    (root / "train_img" / "a.png").write_text("hello")
    fails(root, "train_img/a.png", "cannot be read")


def test_mismatched_size(root):
    path = root / "train_img" / "a.png"
    Image.open(path).resize((30, 24)).save(path)
    fails(root, str(path), "30x24", "32x24", "resize or replace")


def test_missing_and_empty_folders(root, tmp_path):
    fails(tmp_path / "nowhere", "there is no folder", "nowhere")
    with pytest.raises(InputError, match="dataroot is not set"):
        find_pairs(DataOptions(), "train")
    for path in (root / "train_inst").iterdir():
        path.unlink()
    fails(root, "train_inst", "contains no images", "no_instance")
    (root / "train_inst").rmdir()
    fails(root, "train_inst", "there is no folder")
    check(root, no_instance=True)


def test_colour_label_map(root):
    path = root / "train_label" / "a.png"
    Image.open(path).convert("RGB").save(path)
    fails(root, str(path), "one channel", "mode RGB", "grayscale PNG")


def test_deep_and_transparent_pictures(root):
    path = root / "train_img" / "a.png"
    rgb = Image.open(path).convert("RGB")
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(path)
    fails(root, str(path), "8 bits per channel")
    rgba = rgb.convert("RGBA")
    rgba.save(path)
    check(root)  # opaque all over: nothing is lost
    rgba.putalpha(100)
    rgba.save(path)
    fails(root, str(path), "transparent")


def test_size_the_generator_cannot_take(root):
    fails(root, "a.png", "100x75", "multiples of 8", "loadSize", resize_or_crop="scale_width", loadSize=100)
    fails(root, "32x24", "smaller than the crop", "fineSize=64", resize_or_crop="crop", fineSize=64)
    fails(root, "8x8", "at least 16", resize_or_crop="crop", fineSize=8)


def test_batches_of_several_sizes(root, make_data):
    make_data(root, names=("d",), size=(48, 32))
    check(root)
    fails(root, "batchSize=2", "32x24", "32x48", batchSize=2)
    check(root, batchSize=2, resize_or_crop="crop", fineSize=16)


def test_all_problems_are_told(tmp_path, make_data):
    make_data(tmp_path, names=tuple("abcdefgh"))
    message = fails(tmp_path, "8 problems", label_nc=2)
    assert message.count("label id 3") == 8


def test_options_out_of_range():
    for change, message in (
        ({"label_nc": -1}, "label_nc"),
        ({"input_nc": 0}, "input_nc must be at least 1"),
        ({"batchSize": 0}, "batchSize must be at least 1"),
        ({"nThreads": -1}, "nThreads"),
    ):
        with pytest.raises(InputError, match=message):
            DataOptions(**change)


def test_inputs_to_generate_from(root):
    options = DataOptions(label_nc=4)
    pairs = find_inputs(root / "train_label", options)
    assert [pair.name for pair in pairs] == ["a", "b", "c"]
    assert pairs[0].instance == root / "train_inst" / "a.png"
    (root / "train_inst" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b.png has no instance map"):
        find_inputs(root / "train_label", options)
    (root / "train_inst").rename(root / "elsewhere")
    with pytest.raises(InputError, match="--instances"):
        find_inputs(root / "train_label", options)
    assert len(find_inputs(root / "train_label", DataOptions(label_nc=4, no_instance=True))) == 3
