"""Calls that once crashed, hung, returned a wrong result or raised an unclear error; each campaign begins with them."""

from __future__ import annotations

from typing import Any

from .calls import Call, D, T

_MAP = T(size=(2, 32, 7, 6), stride=(1344, 1, 192, 32))
_MASK = T("int32", (84,), values="bits", seed=1)
_IMAGES = T(size=(2, 5, 4, 6))
_NO_AFFINE = (None, None, None, None)


def _perceptual(**changes: Any) -> Call:
    """A call of the perceptual loss with some arguments changed."""
    arguments = {
        "fake": T(size=(2, 3, 7, 6)),
        "real": T(size=(2, 3, 7, 6), seed=1),
        "features": [],
        "weight_map": None,
        "weights": [T(size=(32, 3, 3, 3), seed=2), T(size=(64, 32, 3, 3), seed=3)],
        "biases": [T(size=(32,), seed=4), T(size=(64,), seed=5)],
        "layer_weights": [0.5, 1.0],
        "layer_kinds": "bt",
        "distance": "l1",
        "linear": [],
        "dtype": D("float32"),
        "memory_limit": None,
        "with_gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return Call("perceptual_loss", tuple({**arguments, **changes}.values()))


REGRESSIONS: list[Call] = [
    # A negative size of a tensor without gradient moved the signs of the next one in front of the buffer.
    Call(
        "multi_l1_backward",
        (T(), T("int32", (32,), values="bits"), [1.0, 1.0], [-512, 768], [], [1, 1], [6, 6], [1]),
    ),
    Call("multi_l1_backward", (T(), T("int32", (0,)), [1.0, 1.0], [0], [], [-1, 2], [6, 6], [0, 1])),
    # The padded height overflowed to a small one.
    Call("norm_act", (_IMAGES, *_NO_AFFINE, None, 0, 0.2, [0, 0, (1 << 63) - 1, (1 << 63) - 1], 0)),
    Call("norm_act", (_IMAGES, *_NO_AFFINE, None, 0, 0.2, [1 << 62, 1 << 62, 1 << 62, 1 << 62], 2)),
    # Loops over many images or rows without elements.
    Call("norm_statistics", (T(size=((1 << 31) + 32, 5, 0, 1 << 20), stride=(0, 24, 0, 0)), False, 1e-05)),
    Call("relu_pool", (T(size=(1 << 40, 32, 2, 0), stride=(0, 1, 0, 32)), None, True)),
    # Parameters of many channels without pixels: 24 GB.
    Call(
        "norm_act_backward",
        (
            *(T(size=(1 << 20, 1 << 10, 0, 0)),) * 2,
            *(False, *_NO_AFFINE, 0, 0.2, [0, 0, 0, 0], 0, False, True, False, False),
        ),
    ),
    # Written arguments that share memory with others.
    Call("relu_backward_", (_MAP, _MASK._replace(shares=0, shift=2))),
    Call("relu_mask_", (_MAP, T(size=(32,), shares=0, shift=1344), True)),
    Call("relu_distance_", (_MAP, _MAP._replace(shares=0), T(size=(32,)), None, False, False, True)),
    Call("relu_distance_", (_MAP, _MAP._replace(seed=1), None, T(size=(2, 7, 6), shares=1), True, False, True)),
    Call("relu_lpips_", (_MAP, _MAP._replace(seed=1), None, T(size=(32,), shares=0), None, False, 1.0, True)),
    Call(
        "relu_distance_backward_",
        (_MAP, _MASK, T("int32", (168,), values="bits"), T(size=(2, 7, 6), shares=0), False, 0.5),
    ),
    Call(
        "multi_l1_out", ([T(size=(512,))], [T(size=(512,), seed=1)], [1.0], [0], T("int32", (32,), shares=0, shift=480))
    ),
    Call(
        "multi_pointwise_backward_out",
        (
            T(),
            [T(size=(64,)), T(size=(64,), seed=1)],
            [1.0, 1.0],
            [1.0, 1.0],
            0,
            [T(size=(64,)), T(size=(64,), shares=3)],
        ),
    ),
    # None for a tensor, tensors without memory, views with a pending negation, sizes beyond all memory.
    Call("relu_lpips_", (None, _MAP, None, T(size=(32,)), None, False, 1.0, True)),
    Call("relu_backward_", (_MAP, None)),
    Call("multi_pointwise", ([T(size=(2, 3), kind="freed")], [1.0], [1.0], 0)),
    Call("multi_l1", ([T(size=(200,), kind="shrunk")], [T(size=(200,))], [1.0], [0])),
    Call("norm_statistics", (T(size=(2, 5, 40, 60), kind="freed"), True, 1e-05)),
    Call("relu_mask_", (T(size=(2, 32, 7, 6), stride=(1344, 1, 192, 32), kind="negative"), None, True)),
    Call("relu_backward_", (T(size=(2, 32, 7, 6), stride=(1344, 1, 192, 32), kind="negative"), _MASK)),
    Call("norm_statistics", (T("bfloat16", ((1 << 31) + 32, 5, 4, 6), (0, 1, 30, 5)), False, 1e-05)),
    Call("multi_l1_backward", (T(), T("int32", (80,), values="bits"), [1.0], [1 << 61, 3], [], [2], [6], [0])),
    Call("multi_l1_backward", (T(), T("int32", (16,), values="bits"), [1.0], [3], [], [1], [262], [0])),
    # Fake kernels.
    Call("norm_act", (_IMAGES._replace(kind="meta"), *_NO_AFFINE, None, 0, 0.2, [], 2)),
    Call("norm_statistics", (T(size=(3,), kind="meta"), True, 1e-05)),
    Call("multi_l1", ([T(size=(3,), kind="meta")], [T(size=(3,), kind="meta")], [1.0], [1])),
    Call("multi_l1_backward", (T(kind="meta"), T("int32", (16,), kind="meta"), [1.0], [3], [], [1], [262], [0])),
    # Arguments of the operators that are written in Python.
    _perceptual(distance="l2"),
    _perceptual(layer_kinds="b"),
    _perceptual(layer_weights=[1.0]),
    _perceptual(real=None),
    _perceptual(real=None, features=[_MAP]),
    _perceptual(fake=None),
    _perceptual(fake=T(size=(2, 3))),
    _perceptual(weight_map=T()),
    _perceptual(linear=[T(size=(32,))], distance="lpips"),
    _perceptual(fake=T(size=(2, 3, 7, 0)), real=T(size=(2, 3, 7, 0)), memory_limit=-1),
    Call("frozen_feature_loss", (T(size=(2, 3, 6, 5)), None, T(size=(2, 3, 6, 5)), [], T(), [], 1, None, False)),
]
