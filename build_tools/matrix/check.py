# Run by the Python that the package was installed for. Compares values and gradients of fused operators with plain
# PyTorch, and prints what was loaded. Needs only torch and numpy.
import json
import sys
import sysconfig
import warnings

warnings.simplefilter("error", RuntimeWarning)
import torch  # noqa: E402

import pix2pixhd  # noqa: E402
from pix2pixhd import _C  # noqa: E402
from pix2pixhd.functional import hinge_loss, multi_l1_loss  # noqa: E402
from pix2pixhd.ops import extension  # noqa: E402

# Importing a module that does not declare support of a Python without the global lock would have enabled the lock.
assert not sysconfig.get_config_var("Py_GIL_DISABLED") or not sys._is_gil_enabled(), "_C needs the global lock"

generator = torch.Generator().manual_seed(0)
shapes, weights = [(2, 3, 17, 19), (1, 5, 64, 65), (1, 1, 1, 1)], [1.0, 0.5, 0.25]
inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
targets = [torch.randn(shape, generator=generator) for shape in shapes]
losses = {
    "l1": (
        lambda: multi_l1_loss(inputs, targets, weights),
        lambda: sum(w * (x - y).abs().mean() for x, y, w in zip(inputs, targets, weights, strict=True)),
    ),
    "hinge": (
        lambda: hinge_loss(inputs, False, weights),
        lambda: sum(w * torch.relu(1 + x).mean() for x, w in zip(inputs, weights, strict=True)),
    ),
}
for fused, plain in losses.values():
    with pix2pixhd.backend("fused"):
        value = fused()
        gradients = torch.autograd.grad(value, inputs)
    assert type(value.grad_fn).__name__ not in ("AddBackward0", "MulBackward0"), value.grad_fn
    expected = plain()
    for ours, theirs in zip([value, *gradients], [expected, *torch.autograd.grad(expected, inputs)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
# An error of an operator, thrown in C++ and caught in torch, keeps its text: both use one C++ library.
try:
    torch.ops.pix2pixhd.select_cpu_instruction_set("no such instruction set")
except RuntimeError as error:
    assert "no such instruction set" in str(error), error  # noqa: PT017
else:
    raise AssertionError("an unknown instruction set was accepted")
facts = {key: getattr(_C, key) for key in dir(_C) if not key.startswith("_")}
print(
    json.dumps(
        {
            **facts,
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "file": pix2pixhd.__file__,
            "package": pix2pixhd.__version__,
            "cpu": extension.cpu().loaded,
            "cuda": extension.cuda().loaded,
            "cuda_reason": extension.cuda().reason,
        }
    )
)
