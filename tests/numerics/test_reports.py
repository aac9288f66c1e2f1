"""A wrong operator is found, its case is shrunk, and the report is a test that fails for the same reason."""

import dataclasses

import pytest
import torch

from . import conftest, multi_tensor, norm_act
from .fuzz import run


def wrong_at_ties(tensors, options):
    """L1 whose gradient at ties is not 0."""
    pairs = zip(tensors["xs"], tensors["ys"], tensors.get("ws") or options["weights"], strict=True)
    return [sum(w * torch.where(x >= y, x - y, y - x).mean() for x, y, w in pairs)]


def that_writes(tensors, options):
    for x in tensors["xs"]:
        x.detach().mul_(2.0)
    return multi_tensor.our_mean(tensors, options)


def that_ignores_padding(tensors, options):
    return norm_act.our_layer(tensors, {**options, "padding": (0, 0, 0, 0)})


WRONG = {
    "gradient": dataclasses.replace(multi_tensor.L1, ours=wrong_at_ties),
    "modified": dataclasses.replace(
        multi_tensor.MEAN, ours=that_writes, sources=(*multi_tensor.MEAN.sources, multi_tensor.our_mean)
    ),
    "shape": dataclasses.replace(
        norm_act.LAYER, ours=that_ignores_padding, sources=(*norm_act.LAYER.sources, norm_act.our_layer)
    ),
}


def fails_with(report, kind):
    """Whether the test in a report raises a mismatch of this kind."""
    source = report.replace("multi_tensor.our_mean", "our_mean").replace("norm_act.our_layer", "our_layer")
    names = {"__name__": "pasted"}
    exec(compile(source, "pasted.py", "exec"), names)
    (test,) = [value for name, value in names.items() if name.startswith("test_")]
    with pytest.raises(names["Mismatch"]) as raised:
        test()
    return raised.value.kind == kind


@pytest.mark.parametrize("kind", WRONG)
def test_the_fuzzer_reports_a_wrong_operator_as_a_small_test_that_fails(kind):
    messages = []
    assert run([WRONG[kind]], seed=1, seconds=0.5, say=messages.append, reports=1)
    assert messages[0] == "seed 1"
    assert messages[-1].endswith("failures, seed 1")
    reports = [text for text in messages if text.startswith("#") and f"# {kind}:" in text]
    assert reports
    assert fails_with(reports[0], kind)
    assert reports[0].count("place(torch.tensor") <= 4, "the case is shrunk to a few tensors"


def test_a_run_of_the_suite_reports_a_wrong_operator_as_a_test_that_fails(compare):
    with pytest.raises(pytest.fail.Exception) as raised:
        compare(WRONG["gradient"], 300)
    assert f"seed {conftest.SEED}" in str(raised.value)
    assert fails_with(str(raised.value), "gradient")


def test_correct_operators_have_no_failures():
    messages = []
    assert run([multi_tensor.L1, multi_tensor.HINGE], seed=2, seconds=0.5, say=messages.append) == {}
    assert "multi_l1_loss" in messages[1]
    assert " 0 failures" in messages[-1]
