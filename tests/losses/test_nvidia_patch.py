"""Patching of NVIDIA's repositories, tested on stand-ins with the same modules, names and calls."""

import functools
import sys
import textwrap
import types

import pytest
import torch

from pix2pixhd.integrations import nvidia
from pix2pixhd.losses import GANLoss, L1Loss, VGGLoss

from .conftest import predictions

NETWORKS = """
    import torch

    class GANLoss(torch.nn.Module):
        def __init__(self, use_lsgan=True, target_real_label=1.0, target_fake_label=0.0, tensor=torch.FloatTensor):
            raise AssertionError("the original was called")

    class VGGLoss(torch.nn.Module):
        def __init__(self, gpu_ids):
            raise AssertionError("the original was called")

    def define_D(input_nc, ndf, n_layers_D, norm="instance", use_sigmoid=False, num_D=1, getIntermFeat=False,
                 gpu_ids=[]):
        last = [torch.nn.Sigmoid()] if use_sigmoid else []
        return torch.nn.Sequential(torch.nn.Conv2d(input_nc, 1, 1), *last)
"""
MODEL = """
    import torch
    from . import networks

    class Pix2PixHDModel(torch.nn.Module):
        def initialize(self, opt):
            self.opt = opt
            self.netD = networks.define_D(3, 8, 3, "instance", opt.no_lsgan, opt.num_D, True, gpu_ids=[])
            self.criterionGAN = networks.GANLoss(use_lsgan=not opt.no_lsgan, tensor=torch.FloatTensor)
            self.criterionFeat = torch.nn.L1Loss()
            if not opt.no_vgg_loss:
                self.criterionVGG = networks.VGGLoss([0])
            return "initialised"

        def losses(self, pred_fake, pred_real):
            feat = 0
            for i in range(self.opt.num_D):
                for j in range(len(pred_fake[i]) - 1):
                    feat += 1.0 / self.opt.num_D * self.criterionFeat(pred_fake[i][j], pred_real[i][j].detach())
            return self.criterionGAN(pred_fake, True), feat
"""
SPADE_MODEL = """
    import torch
    import models.networks as networks

    class Pix2PixModel(torch.nn.Module):
        def __init__(self, opt):
            super().__init__()
            self.criterionGAN = networks.GANLoss(opt.gan_mode, tensor=torch.FloatTensor, opt=opt)
            self.criterionFeat = torch.nn.L1Loss()
"""


def options(**given):
    return types.SimpleNamespace(**{"no_lsgan": False, "num_D": 2, "no_vgg_loss": True, "gan_mode": "hinge", **given})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Folder of a stand-in for NVIDIA's repository. Its modules are unloaded after the test."""
    models = tmp_path / "repository" / "models"
    models.mkdir(parents=True)
    (models / "__init__.py").touch()
    (models / "networks.py").write_text(textwrap.dedent(NETWORKS))
    (models / "pix2pixHD_model.py").write_text(textwrap.dedent(MODEL))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield models.parent
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        del sys.modules[name]


def test_patch_replaces_the_losses_and_undo_restores_them(checkout):
    patched = nvidia.patch(checkout)
    networks, model = sys.modules["models.networks"], sys.modules["models.pix2pixHD_model"]
    assert patched.replaced == [
        "models.networks.GANLoss",
        "models.networks.VGGLoss",
        "models.networks.define_D",
        "models.pix2pixHD_model.Pix2PixHDModel.initialize",
    ]
    ours = model.Pix2PixHDModel()
    assert ours.initialize(options()) == "initialised"
    assert isinstance(ours.criterionGAN, GANLoss)
    assert isinstance(ours.criterionFeat, L1Loss)
    fake, real = predictions(2), predictions(2, seed=1)
    gan, feat = ours.losses(fake, real)
    torch.testing.assert_close(gan, sum(((s[-1] - 1) ** 2).mean() for s in fake))
    pairs = [(x, y) for f, r in zip(fake, real, strict=True) for x, y in zip(f[:-1], r[:-1], strict=True)]
    torch.testing.assert_close(feat, sum((x - y).abs().mean() for x, y in pairs) / 2)

    patched.undo()
    assert networks.GANLoss is not GANLoss
    assert "use_sigmoid" in networks.define_D.__code__.co_varnames
    with pytest.raises(AssertionError, match="the original was called"):
        model.Pix2PixHDModel().initialize(options())


def test_vgg_weights_are_loaded_from_a_file(checkout, vgg_file, vgg):
    with nvidia.patch(str(checkout), vgg=vgg_file):
        model = sys.modules["models.pix2pixHD_model"].Pix2PixHDModel()
        model.initialize(options(no_vgg_loss=False))
    assert isinstance(model.criterionVGG, VGGLoss)
    assert torch.equal(model.criterionVGG.vgg.features[0].weight.cpu(), vgg.features[0].weight)
    assert not any(p.requires_grad for p in model.criterionVGG.parameters())


def test_discriminator_returns_logits_without_lsgan(checkout):
    with nvidia.patch(checkout):
        model = sys.modules["models.pix2pixHD_model"].Pix2PixHDModel()
        model.initialize(options(no_lsgan=True))
    assert model.criterionGAN.mode == "vanilla"
    assert not any(isinstance(layer, torch.nn.Sigmoid) for layer in model.netD)


def test_spade_repository_is_patched(checkout):
    networks = textwrap.dedent(NETWORKS).partition("def define_D")[0] + "def define_D(opt):\n    return None\n"
    (checkout / "models" / "networks.py").write_text(networks)
    (checkout / "models" / "pix2pixHD_model.py").unlink()
    (checkout / "models" / "pix2pix_model.py").write_text(textwrap.dedent(SPADE_MODEL))
    with nvidia.patch(checkout) as patched:
        model = sys.modules["models.pix2pix_model"].Pix2PixModel(options())
    assert patched.replaced[2:] == ["models.pix2pix_model.Pix2PixModel.__init__"]
    assert (model.criterionGAN.mode, model.criterionGAN.reduction) == ("hinge", "mean")
    assert isinstance(model.criterionFeat, L1Loss)


def test_single_module_is_patched():
    networks = types.ModuleType("networks")
    networks.GANLoss = networks.VGGLoss = object
    with nvidia.patch(networks, vgg="/some/file.pth") as patched:
        assert networks.GANLoss is GANLoss
        assert isinstance(networks.VGGLoss, functools.partial)
        assert patched.replaced == ["networks.GANLoss", "networks.VGGLoss"]
    assert networks.GANLoss is networks.VGGLoss is object


def test_checkout_with_import_errors_is_not_patched(checkout):
    (checkout / "models" / "pix2pixHD_model.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        nvidia.patch(checkout)
    assert sys.modules["models.networks"].GANLoss is not GANLoss


def test_invalid_checkouts_are_rejected(checkout, tmp_path):
    with pytest.raises(FileNotFoundError, match=r".* has no models/networks; pass the folder of a pix2pixHD"):
        nvidia.patch(tmp_path)
    with pytest.raises(AttributeError, match="module math has no GANLoss and no VGGLoss; pass models"):
        nvidia.patch(__import__("math"))
    with pytest.raises(TypeError, match="networks must be a module or the path of a checkout, got int"):
        nvidia.patch(3)
    sys.modules["models"] = types.ModuleType("models")
    sys.modules["models.networks"] = types.ModuleType("models.networks")
    with pytest.raises(ImportError, match=r"models\.networks comes from elsewhere, not from"):
        nvidia.patch(checkout)
