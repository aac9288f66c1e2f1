"""Progress bars of the commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar", "shows_progress"]


def shows_progress() -> bool:
    """Whether stderr is a terminal, where a progress bar makes sense."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(what: str, total: int, shown: bool) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr that disappears when the block ends.

    Args:
        what: What is done, in a word or two.
        total: Number of steps.
        shown: Whether to show it.

    Yields:
        A function to call after each step.

    Example:
        >>> with progress_bar("generating", 2, shown=False) as advance:
        ...     advance()
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
