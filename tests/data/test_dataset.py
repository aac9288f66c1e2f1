import random

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import EpochSampler, PairedDataset, find_pairs, read_index_map
from pix2pixhd.data.images import image_to_tensor, tensor_to_image
from pix2pixhd.data.transforms import draw_geometry, output_size, scaled_size


def options(root, **changes):
    return DataOptions(**{"dataroot": str(root), "label_nc": 4, "resize_or_crop": "none", **changes})


def raw(root, folder, name="a"):
    return np.asarray(Image.open(root / folder / f"{name}.png"))


def test_samples_contain_the_stored_values(tmp_path, make_data):
    make_data(tmp_path)
    o = options(tmp_path)
    sample = PairedDataset(find_pairs(o, "train"), o, multiple=8, augment=False)[0]
    assert sample["name"] == "a"
    np.testing.assert_array_equal(sample["input"], raw(tmp_path, "train_label"))
    np.testing.assert_array_equal(sample["instance"], raw(tmp_path, "train_inst").astype(np.int32))
    assert sample["instance"].min() >= 40000  # ids above 32767 are preserved
    expected = raw(tmp_path, "train_img").transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(sample["image"], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["scale_width", "scale_width_and_crop", "crop", "resize_and_crop", "none"])
def test_label_map_instance_map_and_image_stay_aligned(tmp_path, mode):
    """All three files contain the same pattern, which must agree pixel by pixel after any transform."""
    ids = np.kron(np.arange(12).reshape(3, 4), np.ones((16, 16), dtype=int)).astype(np.uint8)
    for folder, array in (
        ("label", ids),
        ("inst", ids.astype(np.uint16) * 5000),
        ("img", np.repeat(ids[..., None] * 20, 3, 2)),
    ):
        (tmp_path / f"train_{folder}").mkdir()
        Image.fromarray(array).save(tmp_path / f"train_{folder}" / "a.png")
    load = 128 if mode != "resize_and_crop" else 64
    o = options(tmp_path, label_nc=12, resize_or_crop=mode, loadSize=load, fineSize=32)
    dataset = PairedDataset(find_pairs(o, "train"), o, multiple=16, augment=True)
    crops = set()
    for key in range(8):
        sample = dataset[key]
        label = sample["input"].numpy()
        np.testing.assert_array_equal(sample["instance"].numpy(), label * 5000)
        shown = (sample["image"][0].numpy() + 1) * 127.5 / 20
        assert np.median(np.abs(shown - label)) < 0.1  # bicubic interpolation only differs near borders
        crops.add(label.tobytes())
        assert label.shape[::-1] == output_size((64, 48), o, 16)
    assert len(crops) > 1  # flips and crops vary


@pytest.mark.parametrize(
    ("mode", "scaled", "final"),
    [
        ("scale_width", (96, 48), (96, 48)),
        ("scale_width_and_crop", (96, 48), (40, 40)),
        ("resize_and_crop", (96, 96), (40, 40)),
        ("crop", (200, 100), (40, 40)),
        ("none", (192, 96), (192, 96)),
    ],
)
def test_sizes_after_scaling_and_cropping(mode, scaled, final):
    o = DataOptions(resize_or_crop=mode, loadSize=96, fineSize=40)
    assert scaled_size((200, 100), o, 16) == scaled
    assert output_size((200, 100), o, 16) == final
    geometry = draw_geometry((200, 100), o, 16, random.Random(1))
    assert geometry.apply(Image.new("RGB", (200, 100)), smooth=True).size == final


def test_half_of_the_samples_are_flipped_unless_disabled():
    o = DataOptions(resize_or_crop="none")
    flips = [draw_geometry((32, 32), o, 16, random.Random(f"0:{k}")).flip for k in range(400)]
    assert 150 < sum(flips) < 250
    o.no_flip = True
    assert not any(draw_geometry((32, 32), o, 16, random.Random(k)).flip for k in range(20))


def test_augmentation_only_depends_on_seed_and_index(tmp_path, make_data):
    make_data(tmp_path)
    o = options(tmp_path, resize_or_crop="crop", fineSize=16)
    pairs = find_pairs(o, "train")

    def images(seed, keys):
        dataset = PairedDataset(pairs, o, 8, augment=True, seed=seed)
        return [dataset[key]["image"] for key in keys]

    first, again = images(0, [0, 1, 2, 3]), images(0, [3, 2, 1, 0])[::-1]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(first[0], first[3])  # the same sample, one epoch later
    assert not torch.equal(first[0], images(1, [0])[0])


def test_the_order_only_depends_on_seed_and_epoch():
    sampler = EpochSampler(50, shuffle=True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == list(range(50 * epoch, 50 * epoch + 50))
        orders.append([key % 50 for key in keys])
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == 50


def test_images_can_be_the_input(tmp_path, make_data):
    make_data(tmp_path, label_nc=0, instances=False)
    o = options(tmp_path, label_nc=0, no_instance=True)
    sample = PairedDataset(find_pairs(o, "train"), o, 8, augment=False)[0]
    assert sample["input"].shape == sample["image"].shape == (3, 24, 32)
    assert "instance" not in sample
    gray = options(tmp_path, label_nc=0, no_instance=True, input_nc=1, output_nc=1)
    sample = PairedDataset(find_pairs(gray, "train"), gray, 8, augment=False)[0]
    assert sample["input"].shape == sample["image"].shape == (1, 24, 32)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_index_maps_of_every_mode_keep_their_ids(tmp_path, mode):
    ids = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.frombytes("P", (2, 2), ids.tobytes())
        image.putpalette([9, 8, 7, 200, 100, 50])
    elif mode == "1":
        image = Image.fromarray(ids.astype(bool))
    elif mode == "I;16":
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(ids)
    image.save(path)
    np.testing.assert_array_equal(np.asarray(read_index_map(path)), ids)


def test_conversion_to_a_tensor_and_back_is_lossless():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = image_to_tensor(Image.fromarray(array))
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    np.testing.assert_array_equal(np.asarray(tensor_to_image(tensor)), array)
    assert tensor_to_image(torch.full((1, 2, 2), 3.0)).getpixel((0, 0)) == 255


def test_processes_divide_the_samples_among_them():
    shares = [list(EpochSampler(7, shuffle=True, seed=1, rank=rank, processes=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert set().union(*shares) == set(range(7))
    whole = list(EpochSampler(7, shuffle=True, seed=1))
    assert [share[0] for share in shares] == whole[:3]  # the processes' first samples are the first of the common order
