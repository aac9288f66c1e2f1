"""The training step equals NVIDIA's step in plain PyTorch, without redundant gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd.config.schema import OptimizerOptions
from pix2pixhd.data import one_hot

from .helpers import make_batch, make_module, plain_step, relative


@pytest.mark.parametrize("weights", [{}, {"lambda_gan": 1.0, "lambda_feat": 3.0}])
def test_the_step_equals_nvidias_step(weights):
    module, batch = make_module(**weights), make_batch()
    condition = module.encode(batch)
    terms, expected_G, expected_D = plain_step(module, condition, batch["image"], **weights)
    got = module.compute_gradients(condition, batch["image"])
    for name, value in terms.items():
        assert got[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert got["G_total"].item() == pytest.approx((terms["G_GAN"] + terms["G_GAN_Feat"]).item(), rel=1e-6)
    # Gradients of biases before an instance norm are only rounding errors, so whole networks are compared.
    for network, expected in ((module.netG, expected_G), (module.netD, expected_D)):
        flat = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert relative(flat, torch.cat([g.flatten() for g in expected])) < 1e-6


def test_gradients_equal_those_of_nvidias_step_in_float64():
    module, batch = make_module().double(), make_batch()
    condition, real = module.encode(batch).double(), batch["image"].double()
    _, expected_G, expected_D = plain_step(module, condition, real)
    module.compute_gradients(condition, real)
    for network, expected in ((module.netG, expected_G), (module.netD, expected_D)):
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_generator_backward_computes_no_gradient_of_D():
    module, batch = make_module(), make_batch()
    seen = []

    def spy(loss, **options):
        loss.backward(**options)
        seen.append(all(p.grad is None for p in module.netD.parameters()))

    module.manual_backward = spy
    module.compute_gradients(module.encode(batch), batch["image"])
    assert seen == [True, False]


def test_G_runs_once_and_D_twice_per_step():
    module, batch = make_module(), make_batch()
    calls = []
    module.netG.register_forward_hook(lambda *_: calls.append("G"))
    module.netD.register_forward_hook(lambda *_: calls.append("D"))
    module.compute_gradients(module.encode(batch), batch["image"])
    assert calls == ["G", "D", "D"]


def test_a_single_loss_term_trains_the_generator():
    for weights in ({"lambda_feat": 0.0}, {"lambda_gan": 0.0}):
        module, batch = make_module(**weights), make_batch()
        module.compute_gradients(module.encode(batch), batch["image"])
        assert any(p.grad.abs().max() > 0 for p in module.netG.parameters())


@pytest.mark.filterwarnings("ignore:.*random")
def test_random_vgg_contributes_to_the_gradient():
    plain, with_vgg = make_module(), make_module(lambda_vgg=10.0, vgg="random")
    with_vgg.netG.load_state_dict(plain.netG.state_dict())
    with_vgg.netD.load_state_dict(plain.netD.state_dict())
    batch = make_batch()
    terms = with_vgg.compute_gradients(with_vgg.encode(batch), batch["image"])
    plain.compute_gradients(plain.encode(batch), batch["image"])
    assert terms["G_VGG"] > 0
    first, second = (next(m.netG.parameters()).grad for m in (plain, with_vgg))
    assert relative(second, first) > 1e-3


@pytest.mark.filterwarnings("ignore:.*random")
def test_vgg_is_not_in_the_state_dict():
    module = make_module(lambda_vgg=10.0, vgg="random")
    state = module.state_dict()
    assert {name.split(".")[0] for name in state} == {"netG", "netD"}
    module.load_state_dict(state)
    state["netG.model.99.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*model.99"):
        module.load_state_dict(state)
    del state["netG.model.99.weight"], state["netD.scale0_layer0.0.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*scale0_layer0.0.bias"):
        module.load_state_dict(state)


def test_encode_returns_one_hot_labels_and_edges():
    module, batch = make_module(), make_batch()
    condition = module.encode(batch)
    assert condition.shape == (2, 5, 16, 24)
    torch.testing.assert_close(condition[:, :4], one_hot(batch["input"], 4))


def test_images_of_any_size_are_generated():
    module = make_module()
    assert module(torch.zeros(1, 5, 13, 30)).shape == (1, 3, 13, 30)
    assert module(torch.zeros(1, 5, 3, 5)).shape == (1, 3, 3, 5)


def test_the_learning_rate_is_constant_then_decays():
    options = OptimizerOptions(lr=1.0, niter=3, niter_decay=4)
    assert [options.rate(epoch) for epoch in range(7)] == [1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert OptimizerOptions(niter=2, niter_decay=0).rate(1) == 1


class ConvolutionBackwards(TorchDispatchMode):
    """Records which gradients (input, weight, bias) each convolution's backward computes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution_backward" in str(function):
            self.masks.append(tuple(args[-1]))
        return function(*args, **(kwargs or {}))


def test_no_redundant_gradient_is_computed():
    module, batch = make_module(), make_batch()
    condition = module.encode(batch)
    with ConvolutionBackwards() as recorded:
        module.compute_gradients(condition, batch["image"])
    masks = recorded.masks
    in_D = 2 * 4  # convolutions of both scales
    # Backward through D to the generated image: no gradients of weights.
    assert masks[:in_D] == [(True, False, False)] * in_D
    # Backward of D's loss: no gradients of the generated and real images, once per scale each.
    own = masks[in_D : 3 * in_D]
    assert own.count((False, True, True)) == 4
    assert own.count((True, True, True)) == 2 * in_D - 4
    # Backward through G: no gradient of the label map.
    in_G = len(masks) - 3 * in_D
    assert masks[3 * in_D :] == [(True, True, True)] * (in_G - 1) + [(False, True, True)]
