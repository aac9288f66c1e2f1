"""VGGLoss: value, gradient, loading of the VGG weights, and error messages."""

import copy
import io
import urllib.error

import pytest
import torch
from torchvision.models import VGG19_Weights, vgg16, vgg19

from pix2pixhd.losses import VGGLoss
from pix2pixhd.models.vgg import FrozenVGG, load_vgg

from .helpers import WEIGHTS, plain_feature_maps, random_images


def plain_loss(state, fake, real):
    pairs = zip(WEIGHTS, plain_feature_maps(state, fake), plain_feature_maps(state, real.detach()), strict=True)
    return sum(w * (x - y).abs().mean() for w, x, y in pairs)


@pytest.mark.usefixtures("any_backend")
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 16, 35)])
def test_value_and_gradient_match_the_formula(vgg, shape):
    fake, real = random_images(*shape).requires_grad_(), random_images(*shape, seed=1).requires_grad_()
    loss = VGGLoss(vgg=vgg)(fake, real)
    wide = fake.detach().double().requires_grad_()
    expected = plain_loss(vgg.state_dict(), wide, real.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (2.0 * loss).backward()
    (gradient,) = torch.autograd.grad(2.0 * expected, wide)
    # In float32, rounding at near ties of ReLU, pooling or sign changes single gradient values.
    # test_vgg_options.py compares the gradient in float64.
    assert (fake.grad.double() - gradient).norm() / gradient.norm() < 0.02
    assert real.grad is None
    assert all(p.grad is None and not p.requires_grad for p in vgg.parameters())


def test_identical_images_give_zero_loss_and_gradient(vgg):
    fake = random_images(1, 3, 32, 32).requires_grad_()
    loss = VGGLoss(vgg=vgg)(fake, fake.detach())
    loss.backward()
    assert loss == 0
    assert (fake.grad == 0).all()


@pytest.mark.parametrize(("network", "build"), [("vgg19", vgg19), ("vgg16", vgg16)])
def test_layer_names_match_torchvision_layers(network, build):
    """The names count layers: relu3_2 is the second ReLU after the second pooling layer."""
    whole = build(weights=None).features
    block, number, names = 1, 0, {}
    for index, layer in enumerate(whole):
        if isinstance(layer, torch.nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(layer, torch.nn.ReLU):
            number += 1
            names[f"relu{block}_{number}"] = index
    layers = list(names)
    with pytest.warns(UserWarning, match="random weights"):
        vgg = load_vgg("random", network, layers)
    state = {name.removeprefix("features."): value for name, value in vgg.state_dict().items()}
    assert list(state) == list(whole.state_dict())
    whole.load_state_dict(state)
    x = random_images(1, 3, 35, 32)
    maps, expected = vgg(x), []
    for layer in whole:
        x = layer(x).clone()
        if isinstance(layer, torch.nn.ReLU):
            expected.append(x)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


def test_imagenet_normalization_of_grayscale_images_matches_the_formula(vgg):
    fake, real = random_images(1, 1, 32, 32), random_images(1, 1, 32, 32, seed=1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    a, b = ((((x.repeat(1, 3, 1, 1) + 1) / 2 - mean) / std).double() for x in (fake, real))
    expected = plain_loss(vgg.state_dict(), a, b)
    loss = VGGLoss(vgg=vgg, normalize="imagenet")(fake, real)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)


def test_random_weights_warn_are_seeded_and_preserve_the_rng_state():
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="random weights"):
        first = load_vgg("random")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.warns(UserWarning, match="random weights"):
        second = VGGLoss(vgg="random").vgg
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("error")
def test_known_state_dict_layouts_are_loaded(vgg, vgg_file, tmp_path):
    expected = vgg.state_dict()
    slices = {0: 1, 2: 2, 5: 2, 7: 3, 10: 3, 12: 4, 14: 4, 16: 4, 19: 4, 21: 5, 23: 5, 25: 5, 28: 5}
    nvidia = {}
    for name, value in expected.items():
        _, index, kind = name.split(".")
        nvidia[f"slice{slices[int(index)]}.{index}.{kind}"] = value
    torch.save(nvidia, tmp_path / "nvidia.pth")
    for path in (vgg_file, str(vgg_file), tmp_path / "nvidia.pth"):
        loaded = load_vgg(path).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_unsuitable_weight_files_are_rejected(vgg, tmp_path):
    state = vgg.state_dict()
    with pytest.raises(FileNotFoundError, match=r"file .*absent\.pth does not exist; pass 'imagenet', 'random'"):
        load_vgg(tmp_path / "absent.pth")
    (tmp_path / "garbage.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"garbage\.pth cannot be read as a state dict"):
        load_vgg(tmp_path / "garbage.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="contains a list, expected a state dict"):
        load_vgg(tmp_path / "list.pth")
    torch.save({n: v for n, v in state.items() if n != "features.5.bias"}, tmp_path / "missing.pth")
    with pytest.raises(ValueError, match=r"1 of 26 entries are missing, the first is features\.5\.bias"):
        load_vgg(tmp_path / "missing.pth")
    torch.save({**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"features\.0\.weight must have shape \(64, 3, 3, 3\), got \(64, 1, 3, 3\)"):
        load_vgg(tmp_path / "shape.pth")


def damaged_files():
    """Yields truncated and corrupted ``torch.save`` files, in the zip and in the legacy format."""
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"features.0.weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=zipped)
        whole = buffer.getvalue()
        for k in range(0, len(whole), 89):
            yield whole[:k]
            yield whole[:k] + b"\xff\x00(c" + whole[k + 4 :]


def test_damaged_weight_files_are_rejected(tmp_path, monkeypatch):
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"  # torchvision's file name
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("accessed the network"))
    for content in damaged_files():
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"dcbb9e9d\.pth( cannot be read as a state dict:| is no|.* must have shape)"
        ):
            load_vgg(path, layers=["relu1_1"])
        with pytest.raises(
            (ValueError, RuntimeError), match=r"cannot be read: |IMAGENET1K_V1( is no|.* must have shape)"
        ):
            load_vgg("imagenet", layers=["relu1_1"])


def test_failed_download_reports_url_and_target_path(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(RuntimeError) as caught:
        VGGLoss()
    message = str(caught.value)
    assert "no route to host" in message
    assert str(tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth") in message
    assert VGG19_Weights.IMAGENET1K_V1.url in message
    assert 'VGGLoss(vgg="' in message


def test_pretrained_file_in_the_torch_hub_folder_is_loaded_offline(monkeypatch, tmp_path, vgg, vgg_file):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg19-dcbb9e9d.pth").symlink_to(vgg_file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("accessed the network"))
    criterion = VGGLoss([0])  # as NVIDIA's code calls it; must work without a GPU too
    assert torch.equal(criterion.vgg.features[28].weight.cpu(), vgg.features[28].weight)


def test_any_module_that_returns_feature_maps_can_replace_the_vgg():
    class Two(torch.nn.Module):
        def forward(self, x):
            return [x, x * 2]

    fake, real = random_images(1, 3, 16, 16), random_images(1, 3, 16, 16, seed=1)
    loss = VGGLoss(vgg=Two(), weights=[1.0, 0.5])(fake, real)
    torch.testing.assert_close(loss, 2 * (fake - real).abs().mean())
    with pytest.raises(ValueError, match="weights must have one number per feature map of vgg, 2, got 5"):
        VGGLoss(vgg=Two())(fake, real)


@pytest.mark.usefixtures("any_backend")
def test_autocast_float64_and_channels_last_give_the_same_loss(vgg):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    expected = VGGLoss(vgg=vgg)(fake, real).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = VGGLoss(vgg=vgg)(fake.bfloat16(), real)  # half-precision generator output and float32 real image
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    (gradient,) = torch.autograd.grad(loss, fake)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    double = VGGLoss(vgg=copy.deepcopy(vgg)).double()(fake.double(), real.double())
    torch.testing.assert_close(double.float(), expected, rtol=2e-6, atol=0)
    channels_last = VGGLoss(vgg=vgg)(fake.contiguous(memory_format=torch.channels_last), real)
    torch.testing.assert_close(channels_last, expected, rtol=2e-6, atol=0)


def test_all_layers_use_one_operator_call_and_real_features_have_no_graph(monkeypatch, vgg):
    calls = []
    from pix2pixhd.losses import perceptual as module

    monkeypatch.setattr(module, "multi_l1_loss", lambda *a: calls.append(a) or torch.zeros(()))
    criterion = VGGLoss(vgg=vgg, keep_activations=True)
    criterion(random_images(1, 3, 16, 16).requires_grad_(), random_images(1, 3, 16, 16).requires_grad_())
    assert len(calls) == 1
    fake_maps, real_maps, weights = calls[0]
    assert weights == WEIGHTS
    assert [x.requires_grad for x in fake_maps] == [True] * 5
    assert [y.requires_grad for y in real_maps] == [False] * 5


def test_state_dict_of_a_parent_module_excludes_the_vgg(vgg):
    class Training(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.netG = torch.nn.Conv2d(3, 3, 1)
            self.criterion = VGGLoss(vgg=vgg)

    saved = Training().state_dict()
    assert list(saved) == ["netG.weight", "netG.bias"]
    Training().load_state_dict(saved)  # strict loading
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Training().load_state_dict({**saved, "criterion.vgg.features.99.weight": torch.zeros(1)})
    assert list(copy.deepcopy(VGGLoss(vgg=vgg)).state_dict()) == []


def test_damaged_download_is_rejected(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def damaged(url, destination, hash_prefix=None, progress=True):
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "00000000")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", damaged)
    with pytest.raises(RuntimeError, match=r'could not be downloaded: invalid hash value \(expected "dcbb9e9d"'):
        VGGLoss()


def test_mismatched_dtypes_are_rejected(vgg):
    half = random_images(1, 3, 16, 16).half()
    message = r"real is torch.float16 and the VGG torch.float32; convert the images, convert the loss"
    with pytest.raises(TypeError, match=message):
        VGGLoss(vgg=vgg)(half.float(), half)
    with pytest.raises(TypeError, match=r"real must be float32.*, got torch\.uint8; convert it with \.float\(\)"):
        VGGLoss(vgg=vgg)(half.float(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(TypeError, match="gpu_ids must be a list of GPU numbers, got 'random'; did you mean vgg='rand"):
        VGGLoss("random")


def test_vgg_stays_in_evaluation_mode(vgg):
    assert not VGGLoss(vgg=vgg).train().vgg.training


@pytest.mark.parametrize(
    ("fake", "real", "message"),
    [
        ((1, 3, 32, 32), (1, 3, 32, 31), r"real must have the shape of fake, \(1, 3, 32, 32\), got \(1, 3, 32, 31\)"),
        ((3, 32, 32), (3, 32, 32), r"must be images \[N, 3, H, W\]"),
        ((1, 4, 32, 32), (1, 4, 32, 32), r"must be images \[N, 3, H, W\]"),
        ((1, 3, 15, 32), (1, 3, 15, 32), "must be at least 16x16, got 15x32"),
    ],
)
def test_invalid_images_are_rejected(vgg, fake, real, message):
    with pytest.raises(ValueError, match=message):
        VGGLoss(vgg=vgg)(torch.zeros(fake), torch.zeros(real))


def test_images_on_another_device_are_rejected(vgg):
    x = torch.zeros(1, 3, 16, 16, device="meta")
    with pytest.raises(ValueError, match=r"is on meta and the VGG on cpu; move the loss"):
        VGGLoss(vgg=vgg)(x, x)


def test_frozen_vgg_has_no_trainable_parameters():
    assert not any(p.requires_grad for p in FrozenVGG().parameters())


def test_unknown_normalization_is_rejected():
    with pytest.raises(ValueError, match="normalize must be none or imagenet, got 'vgg'"):
        VGGLoss(vgg=torch.nn.Identity(), normalize="vgg")
