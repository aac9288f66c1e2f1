"""Random cases of the losses on lists of tensors, compared with PyTorch and float64."""

import pytest

from .losses import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS, ids=[operator.name for operator in OPERATORS])
def test_random_cases_match_pytorch(operator, compare):
    compare(operator, 240)
