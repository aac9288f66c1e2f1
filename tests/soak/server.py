"""Runs `pix2pixhd` commands in forked copies of a process that has already imported everything.

A fork saves the seconds of the imports. Everything else is as in a process of its own: the signals, the exit code, the
handling of uncaught errors, and the interpreter's shutdown.

The server reads one job per line from stdin, as JSON, and answers with the process id and then with the exit code.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys

_PRELOADED = (
    *("torch.utils.tensorboard", "pix2pixhd.cli.main", "pix2pixhd.config.parser", "pix2pixhd.training.run"),
    "tests.soak.faults",
)
# Capabilities that let root ignore file permissions.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def respect_permissions():
    """Make file permissions apply to this process even if it runs as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    data[0] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def become(job):
    """Turn this process into the command of a job and run it."""
    # Of its own process group, as a shell starts it, so that Ctrl-C also reaches the processes that load images.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(job["environment"])
    respect_permissions()
    if job["fault"] is not None:
        from tests.soak import faults

        faults.install(job["fault"])
    from pix2pixhd.cli.main import main

    sys.argv = ["pix2pixhd", *job["arguments"]]
    sys.exit(main())


def serve():
    """Fork one process per job until stdin is closed."""
    for name in _PRELOADED:
        importlib.import_module(name)

    gc.freeze()  # so that collections in the forked processes do not copy its memory
    # Moved, since a command has stdin and stdout of its own.
    jobs, replies = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while line := os.read(jobs, 1 << 20):
        pid = os.fork()
        if pid == 0:
            os.close(jobs)
            os.close(replies)
            become(json.loads(line))
        os.write(replies, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # the program that sent the job has ended
            os.write(replies, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve()
