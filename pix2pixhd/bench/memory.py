"""Memory of a process or a GPU, and measurements in child processes. Without torch, as ``step_setup``."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = [
    "EXACT_MEMORY",
    "ChildError",
    "DeviceMemory",
    "is_measurable",
    "memory_of",
    "reset_peak",
    "resident",
    "run_child",
    "trim",
]

# glibc then maps and unmaps every tensor, and the package recycles no memory: exact resident memory, but slower.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "PIX2PIXHD_RECYCLE": "0"}

_GRACE = 2.0  # seconds for a child process to end


class ChildError(SystemExit):
    """Raised if a child process fails. A script that does not catch it ends with the message."""


def resident(key: str = "VmRSS") -> int:
    """Returns the resident bytes of this process, or with ``VmHWM`` their peak since ``reset_peak``."""
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Lets the peak of ``resident`` begin at the present value."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Returns freed memory to the system, so that ``resident`` counts only what is alive."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def is_measurable(device: str) -> bool:
    """Whether this system reports memory: CUDA does, and Linux does for processes."""
    return device == "cuda" or pathlib.Path("/proc/self/clear_refs").exists()


class DeviceMemory(Protocol):
    """Memory in use, in bytes."""

    def reset(self) -> None:
        """Lets the peak begin at the present value."""

    def now(self) -> int:
        """Returns the memory in use."""

    def peak(self) -> int:
        """Returns the peak since ``reset``."""


class _CpuMemory:
    """Resident memory of this process, in bytes."""

    def reset(self) -> None:
        reset_peak()

    def now(self) -> int:
        return resident()

    def peak(self) -> int:
        return resident("VmHWM")


class _CudaMemory:
    """Memory that PyTorch's CUDA allocator has handed out, in bytes."""

    def reset(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        import torch

        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated()


def memory_of(device: str) -> DeviceMemory:
    """Returns the memory of the process for ``cpu``, or of the current GPU for ``cuda``."""
    return _CudaMemory() if device == "cuda" else _CpuMemory()


def run_child(arguments: Sequence[str | os.PathLike[str]], exact_memory: bool = False) -> Any:
    """Runs Python in a child process.

    Args:
        arguments: The arguments of the interpreter: a script and its arguments, or ``-m`` and a module.
        exact_memory: Whether resident memory must be exact, at the cost of speed.

    Returns:
        The JSON of the last line that the child prints.

    Raises:
        ChildError: If the child fails; it has printed its error.
    """
    environment = {**os.environ, **(EXACT_MEMORY if exact_memory else {})}
    command = [sys.executable, *arguments]
    # In a session of its own: Ctrl-C reaches the parent alone, which ends the child and what the child has started.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output = process.communicate()[0]
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        names = [os.path.basename(argument) for argument in arguments if argument != "-m"]
        code = process.returncode
        how = f"was stopped by signal {-code}" if code < 0 else "failed, see the error above"
        raise ChildError(f"the child process {how}: {' '.join(names)}")
    return json.loads(output.splitlines()[-1])


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started: compilers first by a signal on which they remove temporary files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        if number == signal.SIGTERM:
            time.sleep(0.1)  # for compilers, which are not waited for
