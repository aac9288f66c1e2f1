"""Starts `pix2pixhd` commands and waits for their end."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TIMEOUT = 600.0


@dataclasses.dataclass
class Ended:
    """How a command ended: its exit code, minus the signal that killed it, and what it printed."""

    code: int
    text: str
    timed_out: bool = False


def _send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_group(pid):
    """Kill the processes that a command has left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _default_interrupt():
    """Let Ctrl-C interrupt a command, also if this process ignores it because it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Commands:
    """Runs commands, by default in forked copies of one process, see ``server``.

    Args:
        folder: A folder for the commands' output and caches.
    """

    def __init__(self, folder):
        self._folder = folder
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.server"],
            cwd=ROOT,
            # With the user's cache folder, so that no library has to fill a new one.
            env=os.environ | self._environment | {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def run(self, arguments, fault=None, signal_after=None):
        """Run a command to its end.

        Args:
            arguments: The arguments of ``pix2pixhd``.
            fault: A fault inside the process, see ``faults``.
            signal_after: A signal to send to the process, and the seconds before it.
        """
        log = self._folder / "output.txt"
        log.write_text("")
        job = {
            "arguments": arguments,
            "environment": self._environment,
            "log": str(log),
            "fault": fault,
        }
        print(json.dumps(job), file=self._server.stdin, flush=True)
        pid = int(self._server.stdout.readline())
        late = threading.Event()

        def end():
            late.set()
            _send(pid, signal.SIGKILL)

        timers = [threading.Timer(_TIMEOUT, end)]
        if signal_after is not None:
            number, seconds = signal_after
            timers.append(threading.Timer(seconds, _send, (pid, number)))
        for timer in timers:
            timer.start()
        code = int(self._server.stdout.readline())
        for timer in timers:
            timer.cancel()
        _end_group(pid)
        return Ended(code, log.read_text(errors="replace"), late.is_set())

    def run_alone(self, arguments, signal_after):
        """Run a command in a new process, ``python -m pix2pixhd``, and send it a signal after some seconds."""
        number, seconds = signal_after
        log = self._folder / "output.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pix2pixhd", *arguments],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_default_interrupt,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                code = process.wait(_TIMEOUT)
        _end_group(process.pid)
        return Ended(code, log.read_text(errors="replace"))
