"""Invalid data are reported in one message with the file, the value and the remedy."""

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


def test_valid_data_pass(root):
    check(root)


def test_a_label_id_outside_label_nc_is_reported(root):
    path = root / "train_label" / "b.png"
    label = np.asarray(Image.open(path)).copy()
    label[3, 3] = 12
    Image.fromarray(label).save(path)
    message = fails(root, str(path), "label id 12", "data.label_nc=4", "0 to 3", "at least 13")
    assert "\n" not in message


def test_a_file_without_a_partner_is_reported(root):
    (root / "train_img" / "b.png").unlink()
    fails(root, "train_label/b.png has no partner b.*", "train_img")
    (root / "train_img" / "z.png").write_bytes((root / "train_img" / "a.png").read_bytes())
    message = fails(root, "z.png", "train_label")
    assert message.count("no partner") == 3  # b has no image, z no label map and no instance map


def test_files_are_matched_by_name_not_by_position(tmp_path, make_data):
    make_data(tmp_path, names=("a", "b"))
    (tmp_path / "train_img" / "a.png").rename(tmp_path / "train_img" / "c.png")
    fails(tmp_path, "c.png has no partner", "a.png has no partner")


def test_suffixes_of_cityscapes_are_ignored_in_matching(tmp_path, make_data):
    make_data(tmp_path, names=("x",))
    for kind, suffix in (("label", "gtFine_labelIds"), ("inst", "gtFine_instanceIds"), ("img", "leftImg8bit")):
        folder = tmp_path / f"train_{kind}"
        (folder / "x.png").rename(folder / f"aachen_000000_000019_{suffix}.png")
    options = DataOptions(dataroot=str(tmp_path), label_nc=4)
    (pair,) = find_pairs(options, "train")
    assert pair.name == "aachen_000000_000019"
    assert pair.instance.name.endswith("instanceIds.png")


def test_extensions_are_ignored_in_matching(root):
    path = root / "train_img" / "a.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    fails(root, "have the same name 'a'")
    path.unlink()
    check(root)


def test_truncated_files_are_reported(root):
    for folder in ("train_label", "train_inst", "train_img"):
        path = root / folder / "a.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails(root, str(path), "cannot be read", "replace it")
        path.write_bytes(whole)
    check(root)


def test_a_file_that_is_not_an_image_is_reported(root):
    (root / "train_img" / "a.png").write_text("hello")
    fails(root, "train_img/a.png", "cannot be read")


def test_an_image_of_another_size_than_its_label_map_is_reported(root):
    path = root / "train_img" / "a.png"
    Image.open(path).resize((30, 24)).save(path)
    fails(root, str(path), "30x24", "32x24", "resize or replace")


def test_missing_and_empty_folders_are_reported(root, tmp_path):
    fails(tmp_path / "nowhere", "there is no folder", "nowhere")
    with pytest.raises(InputError, match="dataroot is not set"):
        find_pairs(DataOptions(), "train")
    for path in (root / "train_inst").iterdir():
        path.unlink()
    fails(root, "train_inst", "contains no images", "no_instance")
    (root / "train_inst").rmdir()
    fails(root, "train_inst", "there is no folder")
    check(root, no_instance=True)


def test_a_colour_label_map_is_reported(root):
    path = root / "train_label" / "a.png"
    Image.open(path).convert("RGB").save(path)
    fails(root, str(path), "one channel", "mode RGB", "grayscale PNG")


def test_16_bit_and_transparent_images_are_reported(root):
    path = root / "train_img" / "a.png"
    rgb = Image.open(path).convert("RGB")
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(path)
    fails(root, str(path), "8 bits per channel")
    rgba = rgb.convert("RGBA")
    rgba.save(path)
    check(root)  # an opaque alpha channel contains no information
    rgba.putalpha(100)
    rgba.save(path)
    fails(root, str(path), "transparent")


def test_sizes_that_the_generator_does_not_support_are_reported(root):
    fails(root, "a.png", "100x75", "multiples of 8", "loadSize", resize_or_crop="scale_width", loadSize=100)
    fails(root, "32x24", "smaller than the crop", "fineSize=64", resize_or_crop="crop", fineSize=64)
    fails(root, "8x8", "at least 16", resize_or_crop="crop", fineSize=8)


def test_different_sizes_in_a_batch_are_reported(root, make_data):
    make_data(root, names=("d",), size=(48, 32))
    check(root)
    fails(root, "batchSize=2", "32x24", "32x48", batchSize=2)
    check(root, batchSize=2, resize_or_crop="crop", fineSize=16)


def test_all_problems_are_reported_in_one_error(tmp_path, make_data):
    make_data(tmp_path, names=tuple("abcdefgh"))
    message = fails(tmp_path, "8 problems", label_nc=2)
    assert message.count("label id 3") == 8


def test_options_out_of_range_are_rejected():
    for change, message in (
        ({"label_nc": -1}, "label_nc"),
        ({"input_nc": 0}, "input_nc must be at least 1"),
        ({"batchSize": 0}, "batchSize must be at least 1"),
        ({"nThreads": -1}, "nThreads"),
    ):
        with pytest.raises(InputError, match=message):
            DataOptions(**change)


def test_find_inputs_matches_instance_maps(root):
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
