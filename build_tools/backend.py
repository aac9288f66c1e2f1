"""setuptools' build backend, which also requires nvcc if CUDA kernels are to be built and the machine has none.

pip calls it in an isolated build environment, in which torch is installed already, so that torch's CUDA version is
known. With ``--no-build-isolation`` nothing is installed: ``python -m build_tools.backend`` prints the requirements.
"""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (all other hooks)

from build_tools import cuda_toolkit


def _nvcc() -> list[str]:
    try:
        import torch
    except ImportError:  # setup.py reports it, with the remedy
        return []
    return cuda_toolkit.missing_requirements(torch)


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_nvcc()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_nvcc()]


if __name__ == "__main__":
    print(*_nvcc())
