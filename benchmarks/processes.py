"""Measurements in child processes: resident memory, and running a script as a child."""

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


def run_script(script, arguments, exact_memory=False):
    """Run a script in a child process and return the JSON of its last output line."""
    environment = {**os.environ, **(EXACT_MEMORY if exact_memory else {})}
    command = [sys.executable, script, *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])
