"""The search for the largest image finds what trying every size finds, in few runs."""

import random

import pytest
from image_search import Run, Search

STEP = 64
HEIGHTS = range(STEP, 8192, STEP)


def random_memory(generator):
    """A peak as a function of the height: gradients of weights dominate small images, activations large ones."""
    base, gradients, per_pixel = generator.uniform(1e9, 3e9), generator.uniform(1e7, 2e9), generator.uniform(2e3, 2e4)
    return lambda height: int(base + max(gradients, per_pixel * height**2))


def search(memory, stopped_above=1.1, peaks_decide=True, overhead=1.0):
    calls = []

    def run(height, limit):
        calls.append(height)
        peak = memory(height)
        return Run(height, limit, peak * overhead <= limit, peak if peak <= limit * stopped_above else None)

    return Search(run, STEP, peaks_decide), calls


@pytest.mark.parametrize("seed", range(30))
def test_finds_the_largest_size_that_fits_each_limit(seed):
    generator = random.Random(seed)
    memory = random_memory(generator)
    found, calls = search(memory)
    limits = [int(size * 1e9) for size in (4, 8, 16, 24)]
    for limit in limits:
        expected = max((height for height in HEIGHTS if memory(height) <= limit), default=0)
        largest = found.largest(limit)
        assert (largest.height, largest.estimated) == (expected, False)
    assert len(calls) <= 9 * len(limits)


@pytest.mark.parametrize("seed", range(10))
def test_finds_the_largest_size_where_an_allocator_needs_more_than_the_peak(seed):
    memory = random_memory(random.Random(seed))
    found, _ = search(memory, stopped_above=1.0, peaks_decide=False, overhead=1.2)
    for limit in (5_000_000_000, 20_000_000_000):
        expected = max((height for height in HEIGHTS if memory(height) * 1.2 <= limit), default=0)
        assert found.largest(limit).height == expected


def test_no_size_fits_if_the_smallest_does_not():
    found, _ = search(lambda height: 3_000_000_000 + height)
    assert found.largest(1_000_000_000).height == 0


def test_limits_above_the_available_memory_are_estimated_from_smaller_runs():
    def memory(height):
        return 2_000_000_000 + 5_000 * height**2

    found, calls = search(memory)
    largest = found.largest(24_000_000_000, measurable=8_000_000_000)
    assert largest.estimated
    assert largest.height == max(height for height in HEIGHTS if memory(height) <= 24_000_000_000)
    assert memory(max(calls)) < 24_000_000_000


def test_runs_near_a_limit_suffice_to_estimate_a_larger_one():
    def memory(height):
        return 2_000_000_000 + 5_000 * height**2

    found, calls = search(memory)
    found.largest(16_000_000_000)
    runs = len(calls)
    largest = found.largest(24_000_000_000, measurable=20_000_000_000)
    assert largest.estimated
    assert largest.height == max(height for height in HEIGHTS if memory(height) <= 24_000_000_000)
    assert len(calls) == runs
