"""Progress bars of the commands."""

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

# A check of the data that is done within this many seconds shows no progress bar.
_PATIENCE = 2.0


def shows_progress() -> bool:
    """Whether stderr is a terminal, where a progress bar makes sense."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(what: str, total: int, shown: bool, patience: float = 0.0) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr that disappears when the block ends.

    Args:
        what: What is done, in a word or two.
        total: Number of steps.
        shown: Whether to show it.
        patience: Seconds before it appears; a block that ends earlier shows nothing.

    Yields:
        A function to call after each step; it may be called from several threads.

    Example:
        >>> with progress_bar("generating", 2, shown=False) as advance:
        ...     advance()
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total)
    begun, lock = time.monotonic(), threading.Lock()

    def start() -> None:
        with lock:
            if shown and not progress.live.is_started and time.monotonic() - begun >= patience:
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
    """The progress bar of a check of the data, on a terminal and when it takes more than a few seconds.

    Args:
        phase: The phase that is checked.
        count: Number of samples.

    Example:
        >>> with check_progress("train", 1) as advance:
        ...     advance()
    """
    return progress_bar(f"checking {phase}", count, shows_progress(), _PATIENCE)
