"""The EXIF orientation is applied wherever an image or its size is read."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, PairedDataset, check_pairs, find_pairs, read_image, read_index_map
from pix2pixhd.data.images import image_to_tensor

_ORIENTATION = 0x0112


def tagged(orientation):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def upright(array, orientation):
    """Applies one of the eight orientations, as defined by the EXIF specification."""
    return {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }[orientation]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_to_images_and_index_maps(tmp_path, orientation, suffix):
    """This includes uncompressed TIFFs, which Pillow can memory-map."""
    image_file, ids_file = tmp_path / f"a{suffix}", tmp_path / f"ids{suffix}"
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(image_file, exif=tagged(orientation))
    np.testing.assert_array_equal(np.asarray(read_image(image_file)), upright(photograph, orientation))
    Image.fromarray(photograph[..., 0]).save(image_file, exif=tagged(orientation))
    np.testing.assert_array_equal(np.asarray(read_image(image_file, 1)), upright(photograph[..., 0], orientation))
    for dtype in (np.uint8, np.uint16):
        ids = rng.integers(0, np.iinfo(dtype).max, (6, 9), dtype=dtype)
        Image.fromarray(ids).save(ids_file, exif=tagged(orientation))
        np.testing.assert_array_equal(np.asarray(read_index_map(ids_file)), upright(ids, orientation))


def test_a_rotated_photograph_matches_its_label_map(tmp_path, make_data):
    make_data(tmp_path, names="a", size=(32, 24))
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    path = tmp_path / "train_img" / "a.jpg"
    photograph.save(path, exif=tagged(6), quality=95)
    (tmp_path / "train_img" / "a.png").unlink()
    options = DataOptions(dataroot=str(tmp_path), label_nc=4, resize_or_crop="none")
    pairs = find_pairs(options, "train")
    check_pairs(pairs, options, multiple=8)
    with Image.open(path) as image:
        expected = image_to_tensor(ImageOps.exif_transpose(image))
    sample = PairedDataset(pairs, options, multiple=8, augment=False)[0]
    assert sample["image"].shape[1:] == sample["input"].shape == (32, 24)
    np.testing.assert_array_equal(sample["image"], expected)
    photograph.save(path, exif=tagged(1))
    with pytest.raises(DataError, match=r"a.jpg is 32x24 .* is 24x32"):
        check_pairs(pairs, options, multiple=8)


def test_inputs_and_targets_are_rotated(tmp_path, make_data):
    make_data(tmp_path, names="a", label_nc=0, instances=False)
    for side, orientation in (("A", 6), ("B", 8)):
        path = tmp_path / f"train_{side}" / "a.png"
        with Image.open(path) as image:
            image.save(path, exif=tagged(orientation))
    options = DataOptions(dataroot=str(tmp_path), label_nc=0, no_instance=True, resize_or_crop="none")
    pairs = find_pairs(options, "train")
    assert check_pairs(pairs, options, multiple=8).sizes == {(24, 32): 1}
    sample = PairedDataset(pairs, options, multiple=8, augment=False)[0]
    assert sample["input"].shape == sample["image"].shape == (3, 32, 24)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_data_are_ignored(tmp_path):
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    photograph.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff nonsense")
    assert read_image(tmp_path / "a.jpg").size == (9, 6)
    photograph.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense")
    assert read_image(tmp_path / "a.jpg").size == (9, 6)
