"""Training with the fused operators stays as close to plain PyTorch as plain PyTorch to itself after one rounding."""

import pytest

from . import trajectories


@pytest.fixture(scope="module")
def comparisons():
    return [(row, trajectories.compare(row)) for row in trajectories.rows()]


def test_losses_of_fused_training_grow_apart_from_plain_training_like_rounding_errors(comparisons):
    allowed = trajectories.tolerance([found for _, found in comparisons])
    for row, found in comparisons:
        assert found.excess.max() < allowed, row


def test_the_combinations_contain_every_value(comparisons):
    for name, values in trajectories.OPTIONS.items():
        assert {row[name] for row, _ in comparisons} == set(values)


def test_a_wrong_loss_weight_would_be_noticed(comparisons):
    """In float32 a term that is wrong by one in a thousand differs at the first step by far more than rounding."""
    row, found = next((row, found) for row, found in comparisons if row["precision"] == "32-true")
    plain = trajectories.train(row, fused=False)
    wrong = trajectories.growth(plain * 1.001, plain)
    changed = trajectories.Comparison(wrong, found.rounded)
    assert changed.excess.max() > trajectories.tolerance([found for _, found in comparisons])
