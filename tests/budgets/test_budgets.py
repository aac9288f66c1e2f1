"""The losses and the training step keep to the committed budgets of calls, operators and allocated bytes.

A regression of these counts costs time or memory on every machine, and no timing is needed to notice it. ``counts.py``
documents what is counted.
"""

import pytest
import torch

from pix2pixhd.ops import extension

from . import counts

UPDATE = "run `python -m tests.budgets.counts --update` and commit budgets.json"


def allowed(budget):
    """The training step has one call more or less with some versions of Python and torch, the losses have not."""
    return budget + budget // 200


def problems(found, budgets):
    """Compares the counts of a case with its budgets."""
    if found.keys() != budgets.keys():
        return [f"budgets are {sorted(budgets)}, counted are {sorted(found)}; {UPDATE}"]
    return [
        f"{what}: {value} exceeds the budget of {budget}; reduce it, or, if the increase is worth it, {UPDATE}"
        if value > budget
        else f"{what}: {value} is clearly below the budget of {budget}; to keep the gain, {UPDATE}"
        for what, value in found.items()
        for budget in [budgets[what]]
        if value > allowed(budget) or value < 0.95 * budget
    ]


@pytest.mark.skipif(not extension.cpu().loaded, reason="plain PyTorch runs without the extension")
@pytest.mark.parametrize("name", counts.CASES)
def test_counts_keep_to_their_budgets(name):
    found = problems(counts.count(name), counts.read().get(name, {}))
    assert not found, f"{name}: " + "; ".join(found)


def test_every_budget_has_a_case():
    assert counts.read().keys() == counts.CASES.keys()


def test_exceeded_and_generous_budgets_are_reported():
    assert problems({"calls": 100}, {"calls": 100}) == []
    assert "exceeds the budget of 99" in problems({"calls": 100}, {"calls": 99})[0]
    assert "clearly below the budget of 106" in problems({"calls": 100}, {"calls": 106})[0]
    assert "counted are ['calls']" in problems({"calls": 100}, {})[0]


def test_operators_and_allocated_bytes_are_counted_without_views_and_results_in_place():
    x = torch.zeros(8)
    assert counts.count_operators(lambda: x.mul(2).add_(1)[2:].view(2, 3)) == (2, 32)
