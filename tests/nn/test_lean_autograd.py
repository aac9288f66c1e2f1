"""Lean networks with everything that plain networks allow."""

import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pix2pixhd.models import define_D, define_G
from pix2pixhd.models.layers import ResnetBlock
from pix2pixhd.nn import InstanceNorm2d, lean

from .helpers import ACTIVATIONS, NORMS, chain, differentiate, error, images, kept_bytes, plain_and_lean, randomised


def chain_and_block(norm="instance"):
    """A chain of layers and a residual block."""
    return randomised(nn.Sequential(*chain(norm), ResnetBlock(6, "reflect", NORMS[norm]))).double()


@pytest.fixture
def pair():
    """The same network, plain and lean."""
    return plain_and_lean(chain_and_block())


@pytest.fixture
def x():
    return images(2, 3, 16, 12)


@pytest.mark.parametrize("activation", ["leaky", "leaky out of place", "other"])
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_are_those_of_plain_layers(norm, activation):
    conv = nn.Conv2d(3, 4, 3)
    layers = [conv, NORMS[norm](4), ACTIVATIONS[activation](), nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3)]
    layers = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    network = randomised(nn.Sequential(*layers, NORMS[norm](3), ACTIVATIONS[activation](), nn.Conv2d(3, 2, 2)))
    results = []
    for each in plain_and_lean(network.double()):
        x = images(2, 3, 6, 7).requires_grad_()
        y = each(x)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        penalty = first.square().sum((1, 2, 3)).sqrt().sub(1).square().sum()  # as in WGAN-GP
        second = torch.autograd.grad(penalty, [x, *each.parameters()], create_graph=True, allow_unused=True)
        second = [torch.zeros(1) if g is None else g for g in second]  # of biases
        results.append([first.detach(), *(g.detach() for g in second)])
    biases = [k for k, g in enumerate(results[0]) if g.numel() == 1]
    plain, ours = ([g for k, g in enumerate(each) if k not in biases] for each in results)
    assert error(ours, plain) < 1e-10


def test_discriminators_take_a_gradient_penalty():
    plain, ours = plain_and_lean(randomised(define_D(3, 4, 2, num_D=2, getIntermFeat=True)).double())
    results = []
    for network in (plain, ours):
        x = images(2, 3, 16, 16).requires_grad_()
        scores = sum(scale[-1].sum() for scale in network(x))
        (gradient,) = torch.autograd.grad(scores, x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert error(results[1], results[0]) < 1e-11


@pytest.mark.parametrize("activation", ["leaky", "leaky out of place"])
def test_numeric_derivatives_confirm_both_orders(activation):
    layers = [nn.Conv2d(1, 2, 2), InstanceNorm2d(2), ACTIVATIONS[activation](), nn.ReplicationPad2d(1)]
    network = lean(randomised(nn.Sequential(*layers, nn.Conv2d(2, 1, 2))).double())
    x = images(1, 1, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,))
    assert torch.autograd.gradgradcheck(network, (x,))


def test_backward_runs_twice_with_different_gradients(pair, x):
    results = []
    for network in pair:
        y = network(x)
        parameters = list(network.parameters())
        first = torch.autograd.grad(y, parameters, images(*y.shape, seed=3), retain_graph=True)
        results.append([*first, *torch.autograd.grad(y, parameters, images(*y.shape, seed=4))])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(y.sum(), parameters)
    assert error(results[1], results[0]) < 1e-12


def test_only_requested_gradients_are_computed(pair, x):
    """As the training step does: first the gradient of the image alone, then those of the weights alone."""
    results = []
    for network in pair:
        leaf = x.clone().requires_grad_()
        y = network(leaf).square().sum()
        y.backward(inputs=[leaf], retain_graph=True)
        assert all(p.grad is None for p in network.parameters())
        image_gradient, leaf.grad = leaf.grad, None
        y.backward(inputs=list(network.parameters()))
        assert leaf.grad is None
        results.append([image_gradient, *(p.grad for p in network.parameters())])
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("frozen", ["weights", "biases", "norms", "first half", "all"])
def test_frozen_parameters_get_no_gradient(frozen, x):
    network = chain("instance affine").double()
    for name, p in network.named_parameters():
        chosen = {"weights": p.dim() == 4, "biases": name.endswith("bias"), "norms": p.dim() == 1, "all": True}
        p.requires_grad_(not chosen.get(frozen, int(name.split(".")[0]) < 8))
    results = []
    for each in plain_and_lean(network):
        leaf = x.clone().requires_grad_()
        each(leaf).square().sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in each.parameters())
        results.append([leaf.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert error(results[1], results[0]) < 1e-12


def test_a_frozen_network_saves_no_inputs_of_convolutions(x):
    network = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU(True)).double().requires_grad_(False)
    leaf = x.clone().requires_grad_()
    assert kept_bytes(lambda: lean(network)(leaf)) == network(leaf).nbytes


def test_a_modified_input_is_reported_with_the_switch():
    network = lean(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3)))
    x = torch.randn(1, 3, 8, 8)
    y = network(x)
    x += 1
    with pytest.raises(RuntimeError, match=r"inplace operation.*lean\(module, enabled=False\).*compute\.lean: false"):
        y.sum().backward()


def test_results_may_be_modified_in_place():
    """As with plain layers, where neither a norm nor a leaky ReLU out of place saves its output."""
    for layers in ([nn.InstanceNorm2d(3)], [nn.InstanceNorm2d(3), nn.LeakyReLU(0.2)]):
        plain, ours = plain_and_lean(randomised(nn.Sequential(nn.Conv2d(3, 3, 3), *layers)).double())
        results = []
        for network in (plain, ours):
            y = network(images(1, 3, 8, 8))
            y *= 2
            results.append(torch.autograd.grad(y, list(network.parameters()), images(1, 3, 6, 6)))
        assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints_work(pair, x, reentrant):
    results = []
    for network in pair:
        leaf = x.clone().requires_grad_()
        checkpoint(network, leaf, use_reentrant=reentrant).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in network.parameters())])
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("input_gradient", [True, False])
def test_chains_within_checkpointed_chains_save_the_same_in_both_forwards(input_gradient, x):
    """The norm's input, which the inner convolution could be rebuilt from, is alive in the second forward only."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    network = nn.Sequential(nn.InstanceNorm2d(3), nn.BatchNorm2d(3), inner).double()
    results = []
    for each in plain_and_lean(network):
        leaf = x.clone().requires_grad_(input_gradient)
        checkpoint(each, leaf, use_reentrant=False).sin().sum().backward()
        results.append([p.grad for p in [leaf, *each.parameters()] if p.grad is not None])
    assert error(results[1], results[0]) < 1e-12


def test_the_generators_own_checkpoints_work():
    network = define_G(3, 3, 4, "global", 2, 2)
    results = []
    for each in plain_and_lean(randomised(network).double()):
        each.checkpoint_activations = True
        results.append(differentiate(each, images(1, 3, 16, 16)))
    assert error(results[1][1], results[0][1]) < 1e-12


def test_saved_tensors_may_be_moved(pair, x):
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    expected = differentiate(pair[0], x)[1]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: packed[k].clone()):
        found = differentiate(pair[1], x)[1]
    assert packed
    assert error(found, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_loss_scaling_work(dtype):
    results = []
    for network in plain_and_lean(chain()):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with torch.autocast("cpu", dtype=dtype):
            y = network(images(2, 3, 16, 16).float())
        assert y.dtype == dtype
        scaler.scale(y.float().square().mean()).backward()
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
        scaler.step(optimizer)
        scaler.update()
        results.append([p.detach() for p in network.parameters()])
    assert error(results[1], results[0]) < 1e-2


def test_float64_is_not_converted_under_autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lean(chain().double())(x).dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_compiled_networks_have_the_plain_gradients(norm):
    plain, ours = plain_and_lean(chain_and_block(norm))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 16, 12)
    expected, found = differentiate(plain, x), differentiate(compiled, x)
    assert error(found[1], expected[1]) < 1e-12
    ours.compile(fullgraph=True, backend="aot_eager")
    assert error(differentiate(ours, x)[1], expected[1]) < 1e-12


def test_functional_transforms_and_forward_mode_work(pair):
    x, direction = images(1, 3, 8, 8), images(1, 3, 8, 8, seed=2)
    results = []
    for network in pair:
        values = dict(network.named_parameters())

        def loss(parameters, x, network=network):
            return torch.func.functional_call(network, parameters, (x,)).square().sum()

        gradients = torch.func.grad(loss)(values, x)
        _, tangent = torch.func.jvp(network, (x,), (direction,))
        batched = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, torch.stack([x, direction]))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(network(forward_ad.make_dual(x, direction))).tangent
        results.append([tangent, dual, *gradients.values(), *batched.values()])
    assert error(results[1], results[0]) < 1e-12


def test_batched_gradients_work(pair, x):
    results = []
    for network in pair:
        y = network(x)
        upstream = torch.stack([images(*y.shape, seed=k) for k in range(2)])
        results.append(torch.autograd.grad(y, list(network.parameters()), upstream, is_grads_batched=True))
    assert error(results[1], results[0]) < 1e-12


def test_functional_call_with_other_parameters_works(pair, x):
    other = {name: p.detach() * 2 for name, p in pair[0].named_parameters()}
    found, expected = (torch.func.functional_call(network, other, (x,)) for network in reversed(pair))
    assert error([found], [expected]) < 1e-12


def test_inference_mode_works(pair, x):
    with torch.inference_mode():
        assert torch.equal(pair[0](x), pair[1](x))
        inside = x * 1
    found, expected = (torch.autograd.grad(n(inside).square().sum(), list(n.parameters())) for n in reversed(pair))
    assert error(found, expected) < 1e-12


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_export_and_tracing_give_the_plain_network(pair, x):
    plain, ours = pair
    expected = plain(x)
    exported = torch.export.export(ours, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    traced = torch.jit.trace(ours, (x,))
    assert "PythonOp" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_scripting_and_symbolic_tracing_give_the_plain_network(x):
    plain, ours = plain_and_lean(chain_and_block("torch's instance"))
    torch.testing.assert_close(torch.fx.symbolic_trace(ours)(x), plain(x))
    torch.testing.assert_close(torch.jit.script(ours)(x), plain(x))


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
def test_onnx_export_works(x):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = lean(chain())
    file = io.BytesIO()
    torch.onnx.export(network, (x.float(),), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x.float()), rtol=1e-4, atol=1e-4)


def test_distributed_data_parallel_works(pair, x, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ours = DistributedDataParallel(pair[1])
        for _ in range(2):
            ours.zero_grad()
            ours(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    pair[0](x).square().sum().backward()
    found, expected = ([p.grad for p in network.parameters()] for network in (pair[1], pair[0]))
    assert error(found, expected) < 1e-12


def test_many_threads_may_use_one_network(pair, x):
    from concurrent.futures import ThreadPoolExecutor

    def gradients(network):
        return torch.autograd.grad(network(x).square().sum(), list(network.parameters()))

    expected = gradients(pair[0])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(gradients, [pair[1]] * 8):
            assert error(found, expected) < 1e-12
