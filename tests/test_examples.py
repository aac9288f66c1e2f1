"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
import warnings

import pytest
import torch

import pix2pixhd

MODULES = sorted(m.name for m in pkgutil.walk_packages(pix2pixhd.__path__, "pix2pixhd.") if "._" not in m.name)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = sum(bool(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name)))
    assert found > 20
