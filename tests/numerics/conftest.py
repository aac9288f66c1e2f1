"""Runs a number of cases of an operator with a fixed seed."""

import warnings

import pytest

from .check import Mismatch
from .report import explain

SEED = 20  # of `make test`; `make fuzz` draws another one


@pytest.fixture
def compare():
    """A function that draws cases of an operator, and fails with the first mismatch as a test to paste."""

    def run(operator, cases):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index in range(cases):
                case = operator.case(SEED, index)
                try:
                    operator.verify(case)
                except Mismatch as mismatch:
                    report = explain(operator, case, mismatch, f"seed {SEED}, case {index}")
                    pytest.fail(report, pytrace=False)

    return run
