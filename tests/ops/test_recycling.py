"""Recycled memory of large CPU outputs: bounded, released, never shared by two tensors."""

import gc

import pytest
import torch

from pix2pixhd.functional import lsgan_loss, mean_loss, multi_l1_loss
from pix2pixhd.ops import recycling
from tests.ops.pooled import MIB, gradient, held, run, small_calls

pytestmark = pytest.mark.usefixtures("pool")


def pass_periods(clock, count=1):
    for _ in range(count):
        clock.now += recycling.PERIOD_SECONDS
        small_calls(1)


@pytest.mark.parametrize("mib", [0.01, 4])
def test_storages_of_gradients_can_be_resized(mib):
    for _ in range(2):  # the second one may use recycled memory
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


def test_freed_memory_is_reused_by_the_next_call_of_the_same_size():
    pointer = gradient(4).data_ptr()
    live = gradient(4)
    assert live.data_ptr() == pointer
    assert gradient(4).data_ptr() != pointer, "it is in use"


def test_the_storage_of_a_recycled_gradient_has_exactly_its_size():
    gradient(4)
    smaller = gradient(3.5)
    assert smaller.untyped_storage().nbytes() == smaller.nbytes


@pytest.mark.parametrize("loss", [lambda xs: multi_l1_loss(xs, [torch.zeros_like(x) for x in xs]), mean_loss])
def test_many_outputs_are_recycled_with_few_reference_checks(monkeypatch, loss):
    xs = [torch.ones(MIB // 4 + k % 3, requires_grad=True) for k in range(24)]
    first = {g.data_ptr() for g in torch.autograd.grad(loss(xs), xs)}
    checks = []
    references = recycling._Block.references
    monkeypatch.setattr(recycling._Block, "references", lambda block: checks.append(block) or references(block))
    gradients = torch.autograd.grad(loss(xs), xs)
    assert {g.data_ptr() for g in gradients} == first
    assert len(first) == 24
    assert len(checks) <= 3 * 24
    for x, own in zip(xs, gradients, strict=True):
        torch.testing.assert_close(own, torch.full_like(x, 1 / x.numel()))


@pytest.mark.parametrize("refer", [lambda g: g.view(2, -1)[1], lambda g: g.untyped_storage(), lambda g: g.numpy()])
def test_memory_with_any_reference_is_not_reused(refer):
    grad = gradient(4)
    pointer, reference = grad.data_ptr(), refer(grad)
    del grad
    assert gradient(4).data_ptr() != pointer
    del reference


@pytest.mark.parametrize("change", [lambda g: g.share_memory_(), lambda g: g.numpy(), lambda g: g.resize_(2 * MIB)])
def test_a_storage_modified_by_its_user_leaves_the_pool(change):
    grad = gradient(4)
    change(grad)
    pointer = grad.data_ptr()
    del grad
    other = gradient(4)
    assert not other.is_shared()
    assert other.untyped_storage().resizable()
    assert held() == 4
    del pointer


def test_varying_sizes_hold_no_more_memory_than_the_largest_step():
    largest = 0
    for step in range(40):
        sizes = [1 + step * 7 % 40 / 8, 2 + step * 11 % 40 / 5, 1.5]
        live = [gradient(size) for size in sizes]
        largest = max(largest, recycling._pool._scan()[0] / MIB)
        del live
        assert held() <= largest + 8  # the signs of the last loss
    assert largest < 16


def test_many_small_gradients_hold_only_their_size_and_are_released(clock):
    live = [gradient(1) for _ in range(100)]
    assert 100 <= held() <= 101
    del live
    assert held() <= 101
    pass_periods(clock, 2)
    assert held() == 0


def small_backward():
    x = torch.zeros(4, requires_grad=True)
    lsgan_loss([x], 1.0).backward()


@pytest.mark.parametrize("trigger", [lambda: small_calls(1), small_backward, gc.collect])
def test_a_large_gradient_is_released_even_if_no_large_one_follows(clock, trigger):
    gradient(32)
    trigger()
    clock.now += recycling.PERIOD_SECONDS
    trigger()
    assert held() >= 32, "a training step may need it again"
    clock.now += recycling.PERIOD_SECONDS
    trigger()
    assert held() == 0


def test_memory_used_in_every_step_stays_in_the_pool(clock):
    pointer = gradient(4).data_ptr()
    for _ in range(5):
        pass_periods(clock)
        assert gradient(4).data_ptr() == pointer


def test_many_operator_calls_in_a_step_free_nothing(clock):
    pointer = gradient(4).data_ptr()
    small_calls(2000)
    assert gradient(4).data_ptr() == pointer


def test_one_unusual_size_does_not_displace_the_memory_of_every_step(clock, monkeypatch):
    new = []

    class Counted(recycling._Block):
        def __init__(self, nbytes):
            new.append(nbytes / MIB)
            super().__init__(nbytes)

    def step():
        return [gradient(size) for size in (4, 3, 2)]

    monkeypatch.setattr(recycling, "_Block", Counted)
    step()
    for _ in range(3):
        pass_periods(clock)
        step()
    assert new == [4, 3, 2]
    gradient(1.5)
    step()
    step()
    assert new == [4, 3, 2, 1.5, 2], "9 MiB were in use at once: one of the three makes room for 1.5 MiB"


def test_a_check_is_repeated_if_the_pool_was_locked(clock, pool):
    gradient(8)
    for _ in range(2):
        clock.now += recycling.PERIOD_SECONDS
        with pool._lock:
            small_calls(1)
            gc.collect()
        assert held() >= 8
        small_calls(1)
    assert held() == 0


def test_idle_memory_in_the_pool_is_marked_reclaimable(clock):
    gradient(8)
    pass_periods(clock)
    assert [block.reclaimable for block in recycling._pool._blocks] == [True] * len(recycling._pool._blocks)
    assert held() >= 8
    torch.testing.assert_close(gradient(8, seed=2), torch.full((2 * MIB,), 1 / (2 * MIB)))
    assert not list(recycling._pool._blocks)[-1].reclaimable


def test_process_memory_does_not_grow_with_varying_sizes_nor_retain_a_large_gradient():
    out = run("""
        def step(mib):
            live = [gradient(part) for part in (mib, mib / 2, mib / 4)]

        step(24)
        before = rss()
        for k in range(40):
            step(4 + k * 13 % 40 / 2)
        grown = rss() - before
        gradient(192)
        for _ in range(2):
            recycling._pool.check()
        print(grown, rss() - before)
    """)
    varied, large = map(float, out.split())
    assert varied < 64, "the largest step takes 42 MiB of gradients and 24 MiB of input"
    assert large < 64


def test_recycling_can_be_turned_off():
    assert float(run("gradient(8); print(held())", PIX2PIXHD_RECYCLE="0")) == 0
