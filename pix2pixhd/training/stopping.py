"""Stopping a run: by a signal, or at the end of its time."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pix2pixhd.training.distributed import world_size

__all__ = ["StopRequest", "StopRequests", "Stopped"]


class Stopped(SystemExit):
    """The run was asked to stop by a signal; the exit code is the shell's for that signal."""


class StopRequest(NamedTuple):
    """What asks all processes of a run to stop.

    Attributes:
        signal: The signal that any of them received; 0 for none.
        time_is_up: Whether the time of any of them is up.
    """

    signal: int
    time_is_up: bool


class StopRequests:
    """Receives SIGTERM and Ctrl-C, and watches the time.

    Ctrl-C a second time stops at once. With several processes each of them may get the signal; all stop after the same
    step.

    Args:
        deadline: Time on ``time.monotonic``'s clock at which the run is to stop; None for no limit.

    Attributes:
        received: The latest signal that this process received; 0 for none.

    Example:
        >>> StopRequests().current()
        StopRequest(signal=0, time_is_up=False)
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.received = 0
        self._group: Any = None
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Takes over the two signals from Lightning, whose handlers stop without a checkpoint."""
        if world_size() > 1:
            # Between CPUs, so that the exchange at every step does not wait for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)

    def end(self) -> None:
        """Restores the signal handlers, as Lightning does after an exception."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # The second Ctrl-C interrupts the program as usual.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.received = number
        again = "; Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: stopping after this step{again}", file=sys.stderr, flush=True)

    def current(self) -> StopRequest:
        """The requests so far, the same in all processes."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        flags = torch.tensor([self.received, int(late)])
        if self._group is not None:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return StopRequest(int(flags[0]), bool(flags[1]))
