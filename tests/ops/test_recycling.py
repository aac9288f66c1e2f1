"""Recycled memory of large CPU outputs: bounded, given back, never shared by two tensors, safe across fork."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from pix2pixhd.functional import lsgan_loss, multi_l1_loss
from pix2pixhd.ops import recycling

MIB = 1 << 20


def gradient(mib, seed=0):
    """The float32 gradient of an L1 loss, of this many MiB."""
    x = torch.full((int(mib * MIB / 4),), float(seed % 3 - 1), requires_grad=True)
    (grad,) = torch.autograd.grad(multi_l1_loss([x], [torch.zeros(1).expand_as(x)]), x)
    return grad


def held():
    return recycling._pool.bytes_held / MIB


def small_calls(count):
    x = torch.zeros(4)
    for _ in range(count):
        lsgan_loss([x], 1.0)


def run(script, **environment):
    """Runs a script with the helpers of this file, and rss() in MiB, in a fresh process; returns what it prints."""
    prelude = """
        import os, sys, threading, torch
        from pix2pixhd.functional import lsgan_loss, multi_l1_loss
        from pix2pixhd.ops import recycling
        from tests.ops.test_recycling import MIB, gradient, held, small_calls

        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def _empty_pool():
    gc.collect()
    torch.ops.pix2pixhd.release_cpu_memory()
    recycling._pool.__init__(recycling._pool.operators, recycling._pool.idle)
    yield
    torch.ops.pix2pixhd.release_cpu_memory()


@pytest.mark.parametrize("mib", [0.01, 4])
def test_storages_of_gradients_can_be_resized(mib):
    for _ in range(2):  # the second one may be recycled
        grad = gradient(mib)
        size = grad.untyped_storage().nbytes()
        grad.untyped_storage().resize_(0)
        assert grad.untyped_storage().nbytes() == 0
        grad.untyped_storage().resize_(size)
        grad.fill_(1.0)
        grad.resize_(2 * grad.numel()).fill_(1.0)
        assert grad.sum() == grad.numel()
        del grad
    assert gradient(mib).abs().max() > 0


def test_freed_memory_serves_the_next_call_of_about_the_same_size():
    pointer = gradient(4).data_ptr()
    assert gradient(4).data_ptr() == pointer
    smaller = gradient(3.5)
    assert smaller.data_ptr() == pointer
    assert gradient(4).data_ptr() != pointer, "it is in use"
    del smaller
    assert gradient(2).data_ptr() != pointer, "half of it would be wasted"


@pytest.mark.parametrize("keep", [lambda g: g.view(2, -1)[1], lambda g: g.untyped_storage(), lambda g: g.numpy()])
def test_memory_that_anything_refers_to_is_not_handed_out(keep):
    grad = gradient(4)
    pointer, kept = grad.data_ptr(), keep(grad)
    del grad
    assert gradient(4).data_ptr() != pointer
    del kept


@pytest.mark.parametrize("change", [lambda g: g.share_memory_(), lambda g: g.numpy(), lambda g: g.resize_(2 * MIB)])
def test_a_storage_that_its_user_changed_is_forgotten(change):
    grad = gradient(4)
    change(grad)
    pointer = grad.data_ptr()
    del grad
    other = gradient(4)
    assert not other.is_shared()
    assert other.untyped_storage().resizable()
    assert held() == 4
    del pointer


def test_varied_sizes_hold_no_more_than_the_largest_step():
    largest = 0
    for step in range(40):
        sizes = [1 + step * 7 % 40 / 8, 2 + step * 11 % 40 / 5, 1.5]
        alive = [gradient(size) for size in sizes]
        largest = max(largest, recycling._pool._scan()[0] / MIB)
        del alive
        assert held() <= largest + 8  # the signs of the last loss
    assert largest < 16


def test_many_small_gradients_take_their_own_size_and_are_given_back():
    alive = [gradient(1) for _ in range(100)]
    assert 100 <= held() <= 101
    del alive
    assert held() <= 101
    small_calls(2 * recycling.PERIOD_CALLS + 1)
    assert held() == 0


def test_a_large_gradient_is_given_back_although_only_small_calls_follow():
    gradient(32)
    assert held() >= 32
    small_calls(recycling.PERIOD_CALLS // 2)
    assert held() >= 32, "a training step may ask for it again"
    small_calls(2 * recycling.PERIOD_CALLS)
    assert held() == 0


def test_memory_that_every_step_uses_stays():
    pointer = gradient(4).data_ptr()
    for _ in range(5):
        small_calls(recycling.PERIOD_CALLS - 10)
        assert gradient(4).data_ptr() == pointer


@pytest.mark.parametrize("trigger", [lambda: small_calls(1), gc.collect])
def test_a_large_gradient_is_given_back_after_a_while(monkeypatch, trigger):
    monkeypatch.setattr(recycling, "PERIOD_SECONDS", 0.02)
    gradient(8)
    for _ in range(3):
        time.sleep(0.03)
        trigger()
    assert held() == 0


def test_idle_memory_is_reclaimable_while_it_is_kept():
    gradient(8)
    small_calls(recycling.PERIOD_CALLS)
    assert [block.reclaimable for block in recycling._pool._blocks] == [True] * len(recycling._pool._blocks)
    assert held() >= 8
    torch.testing.assert_close(gradient(8, seed=2), torch.full((2 * MIB,), 1 / (2 * MIB)))
    assert not recycling._pool._blocks[-1].reclaimable


def test_idle_memory_is_given_up_when_an_allocation_fails(monkeypatch):
    gradient(4)
    sizes = []

    class Exhausted(recycling._Block):
        def __init__(self, nbytes):
            sizes.append((nbytes, held()))
            if held() > 0:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            super().__init__(nbytes)

    monkeypatch.setattr(recycling, "_Block", Exhausted)
    recycling._pool._peaks[1] = 64 * MIB
    assert recycling._pool.empty([2 * MIB], [1], torch.float32).numel() == 2 * MIB
    assert [before > 0 for _, before in sizes] == [True, False]


def test_threads_never_share_memory():
    failures = []

    def work(seed):
        for _ in range(40):
            grad = gradient(1.5, seed)
            first = grad.clone()
            time.sleep(0)
            if not torch.equal(grad, first) or grad[0] * grad.numel() != seed - 1:
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_default_device_does_not_move_outputs():
    with torch.device("meta"):
        x = torch.ones(MIB, device="cpu", requires_grad=True)
        multi_l1_loss([x], [torch.zeros(1, device="cpu").expand_as(x)]).backward()
    assert x.grad.device.type == "cpu"
    assert x.grad.sum() == pytest.approx(1.0)


def test_compile_does_not_trace_the_pool():
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    @torch.compile(backend="eager")
    def broken(x, y):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            loss = multi_l1_loss([x], [y])
            torch._dynamo.graph_break()
            loss.backward()

    x, y = torch.ones(MIB, requires_grad=True), torch.zeros(MIB)
    for _ in range(2):
        broken(x, y)
    torch.testing.assert_close(x.grad, torch.full((MIB,), 2 / MIB))
    for function in (recycling._recycled_empty, recycling.Pool.empty, recycling._Block.references):
        assert _debug_get_cache_entry_list(function.__code__) == []


def test_the_process_neither_grows_with_varied_sizes_nor_keeps_a_large_gradient():
    out = run("""
        def step(mib):
            alive = [gradient(part) for part in (mib, mib / 2, mib / 4)]

        step(24)
        before = rss()
        for k in range(40):
            step(4 + k * 13 % 40 / 2)
        grown = rss() - before
        gradient(192)
        small_calls(2 * recycling.PERIOD_CALLS + 1)
        print(grown, rss() - before)
    """)
    varied, large = map(float, out.split())
    assert varied < 64, "the largest step takes 42 MiB of gradients and 24 MiB of input"
    assert large < 64


def test_recycling_can_be_turned_off():
    assert float(run("gradient(8); print(held())", PIX2PIXHD_RECYCLE="0")) == 0


def test_children_forked_while_another_thread_runs_backward_run_one_themselves():
    out = run("""
        import signal, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forking with threads
        torch.set_num_threads(1)
        live, expected = gradient(2, seed=2), 1 / (2 * MIB // 4)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                gradient(1)

        thread = threading.Thread(target=work)
        thread.start()
        failed = 0
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                fresh = held() == 0
                good = all((gradient(2, seed=2) == expected).all() for _ in range(2)) and (live == expected).all()
                os._exit(0 if fresh and good else 1)
            failed += os.waitpid(pid, 0)[1] != 0
        stop.set()
        thread.join()

        with recycling._pool._lock:  # as a thread in the middle of a call holds it
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                os._exit(0 if (gradient(2, seed=2) == expected).all() and held() > 0 else 1)
            failed += os.waitpid(pid, 0)[1] != 0
        print(failed, bool((live == expected).all()))
    """)
    assert out.split() == ["0", "True"]
