"""Graceful shutdown: stops a run on a signal or at its time limit, after the current step."""

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

__all__ = ["GracefulShutdown", "RunStopped", "StopRequest"]


class RunStopped(SystemExit):
    """Raised when a signal has stopped the run. The exit code is the one that shells report for that signal."""


class StopRequest(NamedTuple):
    """A request to all processes of a run to stop.

    Attributes:
        signal: The signal that any process received; 0 for none.
        time_is_up: Whether any process has reached the time limit.
    """

    signal: int
    time_is_up: bool


class GracefulShutdown:
    """Handles SIGTERM and Ctrl-C, and watches the time limit.

    A second Ctrl-C stops at once. If several processes train together, each of them may receive the signal; all stop
    after the same step.

    Args:
        deadline: Time on the clock of ``time.monotonic`` at which the run has to stop; None for no limit.

    Attributes:
        received: The latest signal that this process received; 0 for none.

    Example:
        >>> GracefulShutdown().request()
        StopRequest(signal=0, time_is_up=False)
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.received = 0
        self._group: Any = None
        self._previous_handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Installs the signal handlers in place of Lightning's, which stop without a checkpoint."""
        if world_size() > 1:
            # On the CPU, so that the exchange at every step does not wait for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Restores the previous signal handlers, as Lightning does after an exception."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # The second Ctrl-C interrupts the program as usual.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.received = number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: stopping after this step{again}", file=sys.stderr, flush=True)

    def request(self) -> StopRequest:
        """Returns the requests so far, which are the same in all processes."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        flags = torch.tensor([self.received, int(late)])
        if self._group is not None:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return StopRequest(int(flags[0]), bool(flags[1]))
