"""Progress bars for the commands."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["check_progress", "progress_bar", "shows_progress"]

# Delay in seconds before the progress bar of the data check appears.
_CHECK_DELAY = 2.0


def shows_progress() -> bool:
    """Returns whether stderr is a terminal, so that a progress bar can be shown."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(description: str, total: int, shown: bool, delay: float = 0.0) -> Iterator[Callable[[], object]]:
    """Shows a progress bar on stderr until the block ends.

    Args:
        description: One or two words in front of the bar.
        total: Number of steps.
        shown: Whether to show the bar.
        delay: Seconds before the bar appears. A block that ends earlier shows nothing.

    Yields:
        A function to call after each step. It is thread-safe.

    Example:
        >>> with progress_bar("generating", 2, shown=False) as advance:
        ...     advance()
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(description, total=total)
    begun, lock = time.monotonic(), threading.Lock()

    def start() -> None:
        with lock:
            if shown and not progress.live.is_started and time.monotonic() - begun >= delay:
                progress.start()

    def advance() -> None:
        progress.advance(task)
        start()

    start()
    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def check_progress(phase: str, count: int) -> AbstractContextManager[Callable[[], object]]:
    """Shows the progress bar of a data check on a terminal, if the check takes more than two seconds.

    Args:
        phase: The phase that is checked.
        count: Number of samples.

    Returns:
        The context manager of ``progress_bar``.

    Example:
        >>> with check_progress("train", 1) as advance:
        ...     advance()
    """
    return progress_bar(f"checking {phase}", count, shows_progress(), _CHECK_DELAY)
