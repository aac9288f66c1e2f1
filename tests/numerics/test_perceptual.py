"""Random cases of the elementwise operators of the perceptual loss, compared with PyTorch and float64."""

import pytest

from .perceptual import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS, ids=[operator.name for operator in OPERATORS])
def test_random_cases_match_pytorch(operator, compare):
    compare(operator, 150)
