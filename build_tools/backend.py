"""setuptools' build backend, which also requires nvcc if CUDA kernels are to be built and the machine has none.

pip calls it in an isolated build environment, in which torch is installed already, so that torch's CUDA version is
known. With ``--no-build-isolation`` nothing is installed: ``python -m build_tools.backend`` prints the requirements.
"""

from __future__ import annotations

import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (all other hooks)

from build_tools import cuda_toolkit
from build_tools.messages import BuildError

OLDEST_SETUPTOOLS = 77  # as in pyproject.toml and in the message below; older ones do not know its license field


def check_setuptools(version: str) -> None:
    """Check the version, which pip does not do with ``--no-build-isolation``.

    Raises:
        BuildError: If setuptools is too old, for example that of a new virtual environment of Python 3.11.
    """
    if int(version.split(".")[0]) < OLDEST_SETUPTOOLS:
        raise BuildError(
            f"setuptools >= 77 is needed to build, found {version}. "
            "Run: pip install -U setuptools pybind11 ninja, or omit --no-build-isolation."
        )


check_setuptools(setuptools.__version__)


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
