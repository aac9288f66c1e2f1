"""Errors of operators that write a view with a pending negation or conjugation, such as ``torch.imag(x.conj())``.

PyTorch materialises such views for operators that only read them. For an operator that writes one and returns something
else, this fails with an internal assertion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("pix2pixhd", "FRAGMENT")  # type: ignore[no-untyped-call]
_WRITING = (
    *("multi_l1_out", "multi_l1_backward_out", "multi_pointwise_backward_out"),
    *("relu_mask_", "relu_backward_", "relu_distance_", "relu_distance_backward_", "relu_lpips_"),
)


def _refusal(name: str, change: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError(
            f"pix2pixhd::{name} modifies its arguments and takes no view with a pending {change} (of x.conj()); pass "
            "ordinary tensors, from .resolve_conj() and .resolve_neg()"
        )

    return refuse


def register() -> None:
    """Register the errors. Called once, after the library has been loaded."""
    for name in _WRITING:
        for key, change in (("Negative", "negation"), ("Conjugate", "conjugation")):
            _library.impl(name, _refusal(name, change), key)  # type: ignore[no-untyped-call]
