"""Random cases of the operators on lists of tensors, compared with PyTorch and float64."""

import pytest

from .multi_tensor import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS, ids=[operator.name for operator in OPERATORS])
def test_random_cases_match_pytorch(operator, compare):
    compare(operator, 700)
