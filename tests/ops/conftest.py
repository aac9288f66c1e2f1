"""Fixtures of the operators' tests."""

import gc
import time
import types

import pytest
import torch

from pix2pixhd.ops import recycling


@pytest.fixture
def pool(monkeypatch):
    """An empty pool."""
    gc.collect()
    torch.ops.pix2pixhd.release_cpu_memory()
    monkeypatch.setattr(recycling, "_pool", recycling.Pool(recycling._idle))
    yield recycling._pool
    torch.ops.pix2pixhd.release_cpu_memory()


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock, which stands still until a test adds seconds to ``now``."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(recycling, "time", types.SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))
    return clock
