"""Faults inside a training process, each at a point that does not depend on the time.

A fault is a dictionary: the name of an action, the action's arguments, and a point:

* ``{"step": s, "calls": c}``: the ``c``-th Python function call after the start of step ``s``. Step 0
  is the start of the command.
* ``{"file": n}``: before the ``n``-th time that the process creates, renames or removes a file in the run's folder.
* ``{"none": path}``: never; the number of these operations is written to a file.
* ``{"every": n}``: at the start of every ``n``-th step; for measurements.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import stat
import sys
import time

import torch

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def send(number, group=False):
    """Send a signal to this process, or to its group as Ctrl-C does."""
    if group:
        os.killpg(os.getpgid(0), number)
    else:
        os.kill(os.getpid(), number)


def end_at_size(size):
    """Let the kernel end this process as soon as it writes a file beyond a size: in the middle of a write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limit_size(size)


def limit_size(size):
    """Let writing beyond a size fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(path, left):
    """Fill the file system of a path up to some bytes."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(handle, bytes(4096))
    os.ftruncate(handle, max(0, os.fstat(handle).st_size - left))
    os.close(handle)


def set_writable(folder, writable):
    """Change the permissions of a folder and of everything in it."""
    for path in (pathlib.Path(folder), *pathlib.Path(folder).rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IWUSR if writable else mode & ~0o222)


def remove(path):
    """Remove a file."""
    os.unlink(path)


def truncate(path, size):
    """Cut a file off."""
    os.truncate(path, size)


def kill_worker():
    """Kill a process that loads images."""
    for process in multiprocessing.active_children()[:1]:
        os.kill(process.pid, signal.SIGKILL)


def move_clock(seconds):
    """Move the clock of this process."""
    real = time.time
    time.time = lambda: real() + seconds


def spoil_batch():
    """Make the images of the next batch NaN."""
    from pix2pixhd.training.module import Pix2PixHD

    images = Pix2PixHD._images

    def spoiled(module, batch):
        Pix2PixHD._images = images
        return torch.full_like(images(module, batch), float("nan"))

    Pix2PixHD._images = spoiled


def measure(path):
    """Append the peak memory of this process, in KiB, and the numbers of its open files and threads."""
    status = pathlib.Path("/proc/self/status").read_text()
    values = {
        "peak": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
    }
    with open(path, "a") as file:
        print(json.dumps(values), file=file)


_ACTIONS = {
    action.__name__: action
    for action in (
        *(send, end_at_size, limit_size, fill, set_writable, remove, truncate),
        *(kill_worker, move_clock, spoil_batch, measure),
    )
}


def install(fault):
    """Prepare a fault in this process."""
    process, point, done = os.getpid(), fault["point"], False

    def act():
        nonlocal done
        # Forked processes that load images inherit the hooks.
        if os.getpid() == process and not (done and "every" not in point):
            done = True
            pathlib.Path(fault["reached"]).touch()
            _ACTIONS[fault["action"]](**fault["arguments"])

    if "file" in point:
        _at_file(point["file"], fault["folder"], act)
    elif "none" in point:
        count = _at_file(0, fault["folder"], act)
        atexit.register(lambda: pathlib.Path(point["none"]).write_text(str(count())))
    elif "every" in point:
        _at_step(lambda step: step % point["every"] == 0, act)
    elif point["step"] == 0:
        _after_calls(point["calls"], act)
    else:
        _at_step(lambda step: step == point["step"], lambda: _after_calls(point["calls"], act))


def _at_file(number, folder, act):
    count = 0

    def changes(event, arguments):
        if event == "open":
            return isinstance(arguments[2], int) and arguments[2] & _WRITING
        return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

    def hook(event, arguments):
        nonlocal count
        if changes(event, arguments) and str(arguments[0]).startswith(folder):
            count += 1
            if count == number:
                act()

    sys.addaudithook(hook)
    return lambda: count


def _at_step(due, act):
    from pix2pixhd.training.module import Pix2PixHD

    training_step = Pix2PixHD.training_step
    count = 0

    def counted(*arguments):
        nonlocal count
        count += 1
        if due(count):
            act()
        return training_step(*arguments)

    Pix2PixHD.training_step = counted


def _after_calls(calls, act):
    left = calls

    def profile(frame, event, argument):
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                sys.setprofile(None)
                act()

    sys.setprofile(profile)
