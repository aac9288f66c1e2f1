"""What the benchmarks that measure in fresh processes share."""

import json
import os
import pathlib
import subprocess
import sys

# With these glibc maps and unmaps every tensor, which is exact and slow; and nothing is kept for the next step.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "PIX2PIXHD_RECYCLE": "0"}


def resident(key="VmRSS"):
    """Bytes of memory this process has; ``VmHWM`` for the most since ``reset_peak``."""
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def run_script(script, arguments, exact_memory=False):
    """Runs a benchmark's own script as a child; returns what the JSON of its last line says."""
    environment = {**os.environ, **(EXACT_MEMORY if exact_memory else {})}
    command = [sys.executable, script, *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])
