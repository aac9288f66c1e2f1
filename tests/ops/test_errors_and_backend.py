"""Error messages for invalid arguments, and selection of the backend."""

import os
import runpy
import subprocess
import sys

import pytest
import torch

import pix2pixhd
from pix2pixhd.functional import hinge_loss, l1_loss, lsgan_loss, mean_loss, multi_l1_loss
from pix2pixhd.ops import backend, multi_l1

x = torch.zeros(3)
ops = torch.ops.pix2pixhd


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: multi_l1_loss(x, x), TypeError, r"inputs must be a list of tensors, got Tensor; wrap a single one"),
        (lambda: multi_l1_loss([], []), ValueError, "inputs is empty; pass at least one tensor"),
        (lambda: multi_l1_loss([x], []), ValueError, "targets is empty"),
        (lambda: multi_l1_loss([x, None], [x, x]), TypeError, r"inputs\[1\] must be a tensor, got NoneType"),
        (
            lambda: multi_l1_loss([x.long()], [x]),
            TypeError,
            r"inputs\[0\] must be float32, .* got torch.int64; convert",
        ),
        (lambda: multi_l1_loss([x], [x, x]), ValueError, "targets must have as many tensors as inputs, 1, got 2"),
        (
            lambda: multi_l1_loss([x], [x[:1]]),
            ValueError,
            r"targets\[0\] must have the shape of inputs\[0\], \(3,\), got",
        ),
        (lambda: multi_l1_loss([x], [x], [1.0, 2.0]), ValueError, "weights must have one number per tensor, 1, got 2"),
        (lambda: multi_l1_loss([x], [x.to("meta")]), ValueError, r"targets\[0\] is on meta and inputs\[0\] on cpu"),
        (
            lambda: multi_l1_loss([x, x.to("meta")], [x, x]),
            ValueError,
            r"inputs\[1\] is on meta and inputs\[0\] on cpu",
        ),
        (lambda: lsgan_loss([x], [1.0, 0.0]), ValueError, "target must have one number per tensor, 1, got 2"),
        (lambda: lsgan_loss([], 1.0), ValueError, "preds is empty"),
        (lambda: hinge_loss([x], [True, False]), ValueError, "target_is_real must have one bool per tensor"),
        (lambda: mean_loss([x, x.to_sparse()]), TypeError, r"preds\[1\] must be a dense .*sparse_coo; call .to_dense"),
        (lambda: lsgan_loss([x[None].to_sparse_csr()], 1.0), TypeError, r"preds\[0\] must be a dense .*sparse_csr"),
        (lambda: multi_l1_loss([x], [x.to_sparse()]), TypeError, r"targets\[0\] must be a dense tensor.*sparse_coo"),
        (lambda: multi_l1_loss([x.to_mkldnn()], [x]), TypeError, r"inputs\[0\] must be a dense tensor.*_mkldnn"),
        (
            lambda: multi_l1_loss([torch.nested.nested_tensor([x, x])], [x]),
            TypeError,
            r"inputs\[0\] must be a dense tensor, got a nested one",
        ),
        (
            lambda: hinge_loss([torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)], True),
            TypeError,
            r"preds\[0\] must be float32, .* got torch.qint8; convert it with .dequantize\(\)",
        ),
        (lambda: mean_loss(x), TypeError, "preds must be a list of tensors"),
        *(
            case
            for reduction in ("mean", "sum", "none")
            for case in (
                (lambda r=reduction: l1_loss([1.0], x, r), TypeError, "input must be a tensor, got list"),
                (lambda r=reduction: l1_loss(x, None, r), TypeError, "target must be a tensor, got NoneType"),
                (lambda r=reduction: l1_loss(x, x.long(), r), TypeError, "target must be float32, .* got torch.int64"),
                (
                    lambda r=reduction: l1_loss(x.view(3, 1), x.view(1, 3), r),
                    ValueError,
                    r"target must have the shape of input, \(3, 1\), got \(1, 3\)",
                ),
                (lambda r=reduction: l1_loss(x, x.to_sparse(), r), TypeError, "target must be a dense tensor"),
                (lambda r=reduction: l1_loss(x, x.to("meta"), r), ValueError, "target is on meta and input on cpu"),
            )
        ),
    ],
)
def test_invalid_arguments_are_named_in_the_error(backend, call, error, message):
    with pix2pixhd.backend(backend), pytest.raises(error, match=message):
        call()


def test_operators_check_their_arguments():
    _, signs = ops.multi_l1.default([x], [x], [1.0], [0])
    rest = ([1.0], *multi_l1.Layouts.of([x]), [0])
    one = torch.tensor(1.0)
    cases = [
        (
            lambda: ops.multi_l1([x], [x[:1]], [1.0], [0]),
            r"input\[0\] and target\[0\] must have the same shape, got \[3\]",
        ),
        (lambda: ops.multi_l1([x], [x, x], [1.0], [0]), "must have the same length, got 1, 2 and 1"),
        (
            lambda: ops.multi_l1([x.long()], [x], [1.0], [0]),
            r"input\[0\] must be float32, float64, float16 or bfloat16, got Long; convert it",
        ),
        (lambda: ops.multi_l1_backward(one, signs[:4], *rest), "signs must be the contiguous int32 tensor of 16 words"),
        (lambda: ops.multi_l1_backward(one, signs.float(), *rest), "signs must be the contiguous int32"),
        (lambda: ops.multi_l1_backward(x, signs, *rest), "grad must have one element, got 3"),
        (lambda: ops.multi_l1_backward(one, signs, [1.0], [3, 3], [1], [1], [6], [0]), "the sum of ndims"),
        (lambda: ops.multi_l1_backward(one, signs, [1.0], [3], [1, 1], [1], [6], [0]), "strides may be empty"),
        (
            lambda: ops.multi_l1_backward(one, signs, [1.0], [3], [1], [1], [3], [0]),
            "expected float32, float64, float16",
        ),
        (lambda: ops.multi_l1([x], [x], [1.0], [1]), r"wanted must hold ascending indices below 1, got 1"),
        (lambda: ops.multi_l1([x, x], [x, x], [1.0, 1.0], [1, 0]), "ascending indices below 2, got 0 after 1"),
        (lambda: ops.multi_l1_backward(one, signs, *rest[:-1], [-1]), "ascending indices below 1, got -1"),
        (lambda: ops.multi_pointwise([x], [1.0], [1.0], 4), r"kind must be one of Pointwise .*, 0 to 3, got 4"),
        (lambda: ops.multi_pointwise([x], [], [1.0], 0), "input, constant and weight must have the same length"),
    ]
    pointwise = one, [x], [1.0], [1.0], 0
    for out, message in (
        ([], "out must hold 1 tensors, got 0"),
        (
            [torch.empty(4)],
            r"out\[0\] must have the gradient's shape \[3\], strides, dtype and device, got .* \[4\]",
        ),
        ([torch.empty(3).double()], r"out\[0\] must have the gradient's shape"),
        ([torch.empty(6)[::2]], r"out\[0\] must have the gradient's shape"),
    ):
        cases.append((lambda out=out: ops.multi_l1_backward_out(one, signs, *rest, out), message))
        cases.append((lambda out=out: ops.multi_pointwise_backward_out(*pointwise, out), message))
    cases.append((lambda: ops.multi_l1_out([x], [x], [1.0], [0], signs[:4]), "signs must be the contiguous int32"))
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError, match="wanted must hold every pair of which a gradient is required"):
        ops.multi_l1([x.clone().requires_grad_()], [x], [1.0], [])


def test_the_backend_context_selects_and_restores_the_implementation():
    y = torch.ones(3, requires_grad=True)

    def node():
        return type(multi_l1_loss([y], [x]).grad_fn).__name__

    assert "MultiL1" in node()
    with pix2pixhd.backend("reference"):
        assert "MultiL1" not in node()
        with pix2pixhd.backend("fused"):
            assert "MultiL1" in node()
        assert "MultiL1" not in node()
    with pytest.raises(KeyError), pix2pixhd.backend("reference"):
        raise KeyError
    assert "MultiL1" in node()
    with (
        pytest.raises(ValueError, match="backend must be one of auto, fused, reference, got 'cuda'"),
        pix2pixhd.backend("cuda"),
    ):
        pass


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


NODE = """
import torch
from pix2pixhd.functional import multi_l1_loss
print(type(multi_l1_loss([torch.ones(2, requires_grad=True)], [torch.zeros(2)]).grad_fn).__name__)
"""


def test_a_new_process_selects_the_fused_operators_and_does_not_import_sympy_or_lightning():
    """SymPy takes almost a second to import, and only ``torch.compile`` needs it."""
    imports = """
import sys, torch
before = set(sys.modules)
import pix2pixhd.ops, pix2pixhd.losses, pix2pixhd.functional
added = set(sys.modules) - before
print([name for name in added if name.startswith(("sympy", "lightning", "pix2pixhd.training"))])
"""
    done = run(imports + NODE, PIX2PIXHD_BACKEND="")
    unneeded, node = done.stdout.splitlines()
    assert unneeded == "[]"
    assert "MultiL1" in node


def test_the_environment_variable_selects_the_backend(monkeypatch):
    node = run(NODE, PIX2PIXHD_BACKEND="reference").stdout
    assert node
    assert "MultiL1" not in node
    monkeypatch.setenv("PIX2PIXHD_BACKEND", "fast")
    with pytest.raises(ValueError, match="PIX2PIXHD_BACKEND must be one of auto, fused, reference, got 'fast'"):
        runpy.run_path(backend.__file__)


def test_without_kernels_plain_pytorch_runs_with_one_warning(monkeypatch):
    monkeypatch.setattr(backend, "_REASONS", {"cpu": "the reason; the remedy"})
    monkeypatch.setattr(backend, "_warned", set())
    with pytest.warns(RuntimeWarning, match="run in plain PyTorch, .*the reason; the remedy") as caught:
        losses = [multi_l1_loss([torch.ones(3)], [x]) for _ in range(3)]
    assert [loss.item() for loss in losses] == [1.0] * 3
    assert len(caught) == 1
    with (
        pix2pixhd.backend("fused"),
        pytest.raises(RuntimeError, match=r"backend\('fused'\) was requested, but the reason"),
    ):
        multi_l1_loss([x], [x])
