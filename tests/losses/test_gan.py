"""GANLoss: every mode compared with its formula, and compatibility with NVIDIA's and SPADE's signatures."""

import pytest
import torch

from pix2pixhd.losses import GANLoss

from .conftest import predictions


def formula(mode, x, real, for_discriminator=True):
    x = x.double()
    if mode == "lsgan":
        return ((x - (1.0 if real else 0.0)) ** 2).mean()
    if mode == "vanilla":
        p = 1 / (1 + torch.exp(-x))
        return -(torch.log(p) if real else torch.log(1 - p)).mean()
    if mode == "wgan" or not for_discriminator:
        return -x.mean() if real else x.mean()
    return torch.clamp(1 - x if real else 1 + x, min=0).mean()


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=1e-9)


@pytest.mark.usefixtures("any_backend")
@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "hinge", "wgan"])
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_value_and_gradient_of_every_mode_match_the_formula(mode, real, reduction):
    pred = predictions(num_D=3, requires_grad=True)
    last = [layers[-1] for layers in pred]
    loss = GANLoss(mode=mode, reduction=reduction)(pred, real)
    expected = sum(formula(mode, x, real) for x in last) / (3 if reduction == "mean" else 1)
    close(loss, expected)
    assert loss.shape == ()
    got = torch.autograd.grad(2.5 * loss, last)
    for a, b in zip(got, torch.autograd.grad(2.5 * expected, last), strict=True):
        close(a, b.double(), 1e-5)


def test_generator_hinge_loss_matches_the_formula():
    pred = predictions()
    criterion = GANLoss("hinge", tensor=torch.FloatTensor)
    close(criterion(pred, True, for_discriminator=False), sum(-s[-1].double().mean() for s in pred) / 2)
    with pytest.raises(ValueError, match="target_is_real must be True"):
        criterion(pred, False, for_discriminator=False)


def test_custom_labels_replace_one_and_zero():
    x = torch.randn(3, 1, 4, 4)
    criterion = GANLoss(target_real_label=0.9, target_fake_label=0.1)
    close(criterion(x, True), ((x.double() - 0.9) ** 2).mean())
    close(criterion(x, False), ((x.double() - 0.1) ** 2).mean())
    smooth = GANLoss(mode="vanilla", target_real_label=0.9)(x, True)
    close(smooth, 0.9 * formula("vanilla", x, True) + 0.1 * formula("vanilla", x, False))


def test_nvidias_arguments_and_structures_are_accepted():
    pred = predictions()
    criterion = GANLoss(use_lsgan=True, tensor=torch.FloatTensor)
    close(criterion(pred, True), sum(formula("lsgan", s[-1], True) for s in pred))
    close(criterion(pred[0], False), formula("lsgan", pred[0][-1], False))  # a single scale is a list over layers
    close(criterion(pred[0][-1], False), formula("lsgan", pred[0][-1], False))
    close(criterion(tuple(tuple(s) for s in pred), True), sum(formula("lsgan", s[-1], True) for s in pred))
    assert GANLoss(use_lsgan=False, tensor=torch.FloatTensor).mode == "vanilla"


@pytest.mark.parametrize(
    ("name", "mode"), [("ls", "lsgan"), ("original", "vanilla"), ("hinge", "hinge"), ("w", "wgan")]
)
def test_spade_signature_averages_over_scales(name, mode):
    pred = predictions(num_D=2)
    criterion = GANLoss(name, 1.0, 0.0, torch.FloatTensor, None)
    assert (criterion.mode, criterion.reduction) == (mode, "mean")
    close(criterion(pred, False, for_discriminator=True), sum(formula(mode, s[-1], False) for s in pred) / 2)
    flat = [s[-1] for s in pred]  # SPADE without intermediate features returns a list over scales
    close(criterion(flat, True), sum(formula(mode, x, True) for x in flat) / 2)
    assert GANLoss(gan_mode=name).mode == mode


@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "hinge", "wgan"])
def test_target_is_real_accepts_one_and_zero(mode):
    pred, criterion = predictions(), GANLoss(mode=mode)
    assert torch.equal(criterion(pred, 1), criterion(pred, True))
    assert torch.equal(criterion(pred, 0), criterion(pred, False))


def test_all_scales_use_one_operator_call(monkeypatch):
    calls = []
    from pix2pixhd.losses import adversarial as gan

    for mode, name in [("lsgan", "lsgan_loss"), ("vanilla", "logistic_loss"), ("hinge", "hinge_loss")]:
        calls.clear()
        monkeypatch.setattr(gan, name, lambda *a: calls.append(a) or torch.zeros(()))
        GANLoss(mode=mode)(predictions(num_D=3), True)
        assert len(calls) == 1
        assert len(calls[0][0]) == 3


def test_loss_is_float32_under_autocast_and_half_precision_without():
    x = torch.randn(2, 1, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    assert GANLoss()(x, True).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = GANLoss()(x, True)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "ls"}, "mode must be one of lsgan, vanilla, hinge, wgan, got 'ls'"),
        ({"gan_mode": "lsgan"}, "gan_mode must be one of ls, original, hinge, w, got 'lsgan'"),
        ({"use_lsgan": "rals"}, "gan_mode must be one of"),
        ({"use_lsgan": "vanilla"}, "got 'vanilla'; for pix2pixHD's meaning write mode='vanilla'"),
        ({"use_lsgan": "hinge", "mode": "wgan"}, "give either mode or gan_mode"),
        ({"reduction": "none"}, "reduction must be one of sum, mean, got 'none'"),
    ],
)
def test_unknown_options_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        GANLoss(**arguments)


@pytest.mark.parametrize(
    ("pred", "error", "message"),
    [
        ([], ValueError, "input is an empty list"),
        ([[]], ValueError, r"input\[0\] is an empty list"),
        ({"a": 1}, TypeError, "input must be a tensor or a list, got dict"),
        ([[torch.zeros(1), None]], TypeError, r"input\[0\]\[1\] must be a tensor, got NoneType"),
        ([["x"]], TypeError, r"input\[0\]\[0\] must be a tensor, got str"),
    ],
)
def test_invalid_predictions_are_rejected(pred, error, message):
    with pytest.raises(error, match=message):
        GANLoss()(pred, True)
