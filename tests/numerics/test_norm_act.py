"""Random cases of normalisation, activation and padding, compared with PyTorch and float64."""

import pytest

from .norm_act import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS, ids=[operator.name for operator in OPERATORS])
def test_random_cases_match_pytorch(operator, compare):
    compare(operator, 220)
