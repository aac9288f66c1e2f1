"""Fixtures of the operator tests."""

import gc
import time
import types

import pytest
import torch

from pix2pixhd.ops import recycling


@pytest.fixture
def select_instruction_set():
    """A function that selects the CPU instruction set by name; the automatic choice is restored after the test."""
    yield torch.ops.pix2pixhd.select_cpu_instruction_set
    torch.ops.pix2pixhd.select_cpu_instruction_set("auto")


@pytest.fixture
def pool(monkeypatch):
    """An empty memory pool."""
    gc.collect()
    torch.ops.pix2pixhd.release_cpu_memory()
    monkeypatch.setattr(recycling, "_pool", recycling.Pool(recycling._idle))
    yield recycling._pool
    torch.ops.pix2pixhd.release_cpu_memory()


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock. It advances only when a test adds seconds to ``now``."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(recycling, "time", types.SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))
    return clock
