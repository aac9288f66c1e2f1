"""setuptools' build backend, which also asks for nvcc where CUDA kernels are wanted and the machine has none.

pip calls it in a build environment of its own, where torch is installed by then, so that torch's CUDA is known. With
``--no-build-isolation`` it asks for nothing: ``python -m build_tools.backend`` prints what to install beforehand.
"""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (all the other hooks)

from build_tools import cuda_toolkit


def _nvcc() -> list[str]:
    try:
        import torch
    except ImportError:  # setup.py says so, with the way out
        return []
    return cuda_toolkit.missing_requirements(torch)


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_nvcc()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_nvcc()]


if __name__ == "__main__":
    print(*_nvcc())
