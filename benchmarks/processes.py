"""Measurements in child processes: resident memory, and running a script as a child."""

import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys

# glibc then maps and unmaps every tensor, and the package recycles no memory: exact resident memory, but slower.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "PIX2PIXHD_RECYCLE": "0"}


def resident(key="VmRSS"):
    """Resident bytes of this process, or with ``VmHWM`` their peak since ``reset_peak``."""
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def trim():
    """Return freed memory to the system, so that ``resident`` counts only what is alive."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class CpuMemory:
    """Resident memory of this process, in bytes."""

    def reset(self):
        reset_peak()

    def now(self):
        return resident()

    def peak(self):
        """The peak since ``reset``."""
        return resident("VmHWM")


class CudaMemory:
    """Memory that PyTorch's CUDA allocator has handed out, in bytes."""

    def reset(self):
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def now(self):
        import torch

        return torch.cuda.memory_allocated()

    def peak(self):
        """The peak since ``reset``."""
        import torch

        return torch.cuda.max_memory_allocated()


def memory_of(device):
    return CudaMemory() if device == "cuda" else CpuMemory()


def run_script(script, arguments, exact_memory=False):
    """Run a script in a child process and return the JSON of its last output line.

    Raises:
        SystemExit: If the child fails; it has printed its error.
    """
    environment = {**os.environ, **(EXACT_MEMORY if exact_memory else {})}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        what = f"{pathlib.Path(script).name} {' '.join(arguments)}"
        how = f"was stopped by signal {-done.returncode}" if done.returncode < 0 else "failed, see the error above"
        raise SystemExit(f"the child process {how}: {what}")
    return json.loads(done.stdout.splitlines()[-1])
