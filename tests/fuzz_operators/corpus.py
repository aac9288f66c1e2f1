"""Valid calls of every operator, recorded from the library's own use of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss
from pix2pixhd.losses import FrozenFeatureLoss
from pix2pixhd.ops import norm_act, perceptual, recycling
from pix2pixhd.ops.conv_stack import ConvStack, channels_last
from pix2pixhd.ops.perceptual_distance import Comparison
from pix2pixhd.ops.perceptual_engine import TilePass, run_tile
from pix2pixhd.ops.perceptual_tiling import plan_tiles

from .calls import Call, T, describe

_network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).requires_grad_(False)
frozen_loss = FrozenFeatureLoss(_network, taps=["0"])  # its handle is an argument, so it must exist


def operators(namespace: str) -> list[str]:
    """The names of all operators of a namespace that are loaded."""
    prefix = f"{namespace}::"
    return sorted(
        name.removeprefix(prefix) for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)
    )


def schema(namespace: str, operator: str) -> Any:
    return overload(namespace, operator)._schema


def overload(namespace: str, operator: str) -> Any:
    return getattr(getattr(torch.ops, namespace), operator).default


class _Recorder(TorchDispatchMode):
    """Records the operators of the namespace that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "pix2pixhd":
            values = [*args, *(kwargs or {}).values()]
            arguments = tuple(describe(value, 100 * k) for k, value in enumerate(values))
            self.calls.append(Call(function._schema.name.split("::")[1], arguments))
        return function(*args, **(kwargs or {}))


def _losses() -> None:
    shapes = [(2, 3, 5, 4), (7,), (), (0, 3), (300,)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        xs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
        ys = [torch.randn(shape).to(dtype) for shape in shapes]
        for loss in (multi_l1_loss(xs, ys, weights=[0.5, 1.0, 2.0, 3.0, -1.0]), lsgan_loss(xs[:2], 1.0)):
            loss.backward()
    x = torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    for loss in (multi_l1_loss([x], [x.detach() + 1]), hinge_loss([x], True), mean_loss([x]), logistic_loss([x], 0.9)):
        loss.backward()
    with torch.no_grad():
        multi_l1_loss([x, x], [x, x])
        long = torch.randn(70_000)
        multi_l1_loss([long], [long])


def _norm_act() -> None:
    for channels_last_, per_image, dtype in ((False, True, torch.float32), (True, False, torch.bfloat16)):
        x = torch.randn(2, 5, 4, 6).to(dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last_ else x
        mean, rstd, _ = norm_act.norm_statistics(x, per_image)
        weight, bias = torch.ones(5), torch.zeros(5, dtype=dtype)
        for activation, padding, mode in ((1, (1, 2, 0, 1), 1), (2, (0, 0, 0, 0), 0), (0, (3, 0, 1, 2), 2)):
            arguments = (mean, rstd, weight, bias)
            y = norm_act.norm_act(x, *arguments, x, activation, 0.2, padding, mode)
            rest = (activation, 0.2, padding, mode, True, True, True, True)
            norm_act.norm_act_backward(y, x, False, *arguments, *rest)
        norm_act.norm_act(x)
        norm_act.norm_act_backward(x, x, True, mean, rstd, activation=2)


def _perceptual() -> None:
    stack = ConvStack(
        [torch.randn(32, 3, 3, 3), torch.randn(32, 32, 3, 3), torch.randn(64, 32, 3, 3)],
        [torch.randn(32), torch.randn(32), torch.randn(64)],
        "rbt",
    )
    fake, real = torch.randn(2, 3, 7, 6), torch.randn(2, 3, 7, 6)
    pixels = torch.rand(2, 1, 7, 6)
    linear = [torch.rand(32), torch.rand(64)]
    for distance, weight_map in (("l1", None), ("mse", pixels), ("lpips", pixels)):
        own = linear if distance == "lpips" else []
        comparison = Comparison([0.5, 1.0], distance, own)
        (tile,) = plan_tiles(stack.layer_kinds, stack.channels, fake.shape, 4, True, 2, None)
        run_tile(TilePass(stack.to(torch.float32), comparison, tile, True), fake, real, [], weight_map, torch.float32)
        for x in (fake, fake.detach().requires_grad_()):
            loss = perceptual.perceptual_loss(
                x, real, stack, [0.5, 1.0], weight_map=weight_map, distance=distance, linear=own
            )
            assert loss.shape == (2,)
    features = [channels_last(torch.rand(2, 32, 7, 6)), channels_last(torch.rand(2, 64, 3, 3))]
    perceptual.perceptual_loss(fake, None, stack, [1.0, 1.0], features=features, memory_limit=1 << 14)
    half = fake.to(torch.bfloat16)
    perceptual.perceptual_loss(half, half, stack, [1.0, 1.0], dtype=torch.bfloat16)


def _frozen() -> None:
    x = torch.randn(2, 3, 6, 5)
    frozen_loss(x.requires_grad_(), x.detach())
    frozen_loss(x.detach(), x.detach())


_EXAMPLES = {
    "Tensor": T(size=(2, 3)),
    "List[Tensor]": [T(size=(2, 3)), T(size=(4,), seed=1)],
    "int": 1,
    "List[int]": [1, 0],
    "float": 0.5,
    "List[float]": [0.5, 1.0],
    "bool": True,
    "str": "auto",
}


def from_schema(namespace: str, operator: str) -> Call:
    """A call that fits the types of a schema; None for optional arguments."""
    return Call(operator, tuple(_EXAMPLES.get(str(own.type)) for own in schema(namespace, operator).arguments))


@contextlib.contextmanager
def _recycled() -> Iterator[None]:
    """Run the operators that write into recycled memory, although a dispatch mode is active."""
    with mock.patch.object(recycling, "worthwhile", return_value=True):
        yield


def record(namespace: str = "pix2pixhd") -> dict[str, list[Call]]:
    """Return distinct valid calls of every operator; for those that nothing here runs, one from the schema."""
    calls: dict[str, list[Call]] = {name: [] for name in operators(namespace)}
    if namespace == "pix2pixhd":
        torch.manual_seed(0)
        recorder = _Recorder()
        with recorder:
            for use in (_losses, _norm_act, _perceptual, _frozen):
                use()
            with _recycled():
                _losses()
        for call in recorder.calls:
            if call not in calls[call.operator]:
                calls[call.operator].append(call)
    for name, own in calls.items():
        if not own:
            own.append(from_schema(namespace, name))
    return calls
