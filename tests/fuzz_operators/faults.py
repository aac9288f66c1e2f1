"""Operators with deliberate faults, each of which the fuzzer must report."""

from __future__ import annotations

import ctypes
import os
import time

import torch
from torch import Tensor

NAMESPACE = "pix2pixhd_faults"


def _beyond(x: Tensor) -> Tensor:
    ctypes.memset(x.data_ptr() + x.numel() * x.element_size(), 1, 1)
    return x.clone()


def _beyond_result(x: Tensor) -> Tensor:
    result = x.clone()
    ctypes.memset(result.data_ptr() + result.numel() * 4, 1, 1)
    return result


def _read_beyond(x: Tensor) -> Tensor:
    ctypes.string_at(x.data_ptr() + x.numel() * 4, 1)
    return x.clone()


def _write(x: Tensor) -> Tensor:
    if x.numel() > 0:
        x.detach().reshape(-1)[:1].view(torch.uint8).bitwise_not_()
    return x.clone()


def _uninitialised(x: Tensor) -> Tensor:
    return torch.empty(x.shape)


def _crash(x: Tensor) -> Tensor:
    if x.numel() == 0:
        os.kill(os.getpid(), 11)
    return x.clone()


def _hang(x: Tensor) -> Tensor:
    while x.dim() > 2:
        time.process_time()
    return x.clone()


def _unclear(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise RuntimeError("INTERNAL ASSERT FAILED")
    return x.clone()


def _key_error(x: Tensor) -> Tensor:
    return {torch.float32: x.clone()}[x.dtype]


def _layout(x: Tensor) -> Tensor:
    """Ignores strides."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), x.storage_offset(), (x.numel(),), (1,)).clone()


def _fake(x: Tensor) -> Tensor:
    return x.clone().reshape(-1)


# What the fuzzer must report about each.
FAULTS = {
    "beyond": (_beyond, "ends the process|outside of an argument|GUARD"),
    "beyond_result": (_beyond_result, "ends the process|GUARD"),
    "read_beyond": (_read_beyond, "ends the process"),
    "write": (_write, "modified an argument"),
    "uninitialised": (_uninitialised, "not the same with ordinary tensors"),
    "crash": (_crash, "ends the process"),
    "hang": (_hang, "hangs"),
    "unclear": (_unclear, "INTERNAL ASSERT"),
    "key_error": (_key_error, "raised KeyError"),
    "fake": (_fake, "the fake kernel's result"),
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, (_function, _) in FAULTS.items():
    _library.define(f"{_name}(Tensor x) -> Tensor")
    _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", lambda x: torch.empty_like(x))
