"""Recycled memory under stress: threads that allocate, free, check and release at once, with frequent switches."""

import contextlib
import gc
import random
import sys
import threading
import types

import pytest
import torch

from pix2pixhd.ops import recycling
from tests.ops.pooled import MIB

pytestmark = pytest.mark.usefixtures("pool")

THREADS = 6
SIZES = (MIB, MIB, 2 * MIB, 3 * MIB // 2)  # few, so that threads compete for the same storages


class Unsynchronised:
    """A lock that excludes no thread, the deliberate fault."""

    def locked(self):
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@contextlib.contextmanager
def frequent_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def stress(pool, rounds):
    """Return what threads observe that use the pool at once: foreign values in their memory, and errors."""
    problems = []
    start = threading.Barrier(THREADS)

    def work(number):
        rng = random.Random(number)
        mark = torch.full((1,), number, dtype=torch.float32)
        start.wait()
        try:
            held = []
            for step in range(rounds):
                sizes = rng.choices(SIZES, k=rng.randint(1, 3))
                held.append(pool.empty([([size // 4], [1], torch.float32) for size in sizes]))
                for tensor in held[-1]:
                    tensor[::1024].copy_(mark.expand(-(-tensor.numel() // 1024)))
                if step % 16 == number:
                    pool.check()
                elif step % 32 == number:
                    pool.release()
                elif step % 64 == number:
                    gc.collect()
                for tensors in held:
                    if any((tensor[::1024] != number).any() for tensor in tensors):
                        problems.append(f"thread {number} found the values of another one")
                        return
                while len(held) > rng.randint(0, 2):
                    held.pop(0)
        except Exception as error:
            problems.append(f"thread {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    with frequent_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return problems


def test_threads_that_use_the_pool_at_once_never_share_memory(pool):
    assert stress(pool, rounds=60) == []
    gc.collect()
    in_use, _ = pool._scan()
    assert in_use == 0
    assert pool.release() >= 0
    assert pool.bytes_held == 0


def test_the_stress_detects_a_pool_without_its_lock(pool):
    pool._lock = Unsynchronised()
    assert any(stress(pool, rounds=100) for _ in range(5))


def test_memory_is_not_recycled_where_references_are_not_counted(monkeypatch):
    """A free-threaded Python has no exact reference counts, so recycling is off there."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(recycling, "_enabled", False)
    nothing = types.SimpleNamespace(define=lambda schema: None, impl=lambda *arguments: None)
    monkeypatch.setattr(recycling, "_library", nothing)
    recycling.register()
    assert not recycling._enabled
