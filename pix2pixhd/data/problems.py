"""Problems found in a dataset, and how they are reported: grouped by kind, each group cut to its first few."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from pix2pixhd.errors import InputError

__all__ = ["DataError", "Problem", "display", "grouped", "raise_problems"]

# More of one kind than this are counted instead of listed.
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem with one file.

    Attributes:
        kind: What the group of such problems is called, in the plural.
        message: The file, what was expected, what was found and the remedy.
        file: The file or folder alone, as in the message; empty for a problem of several files.
    """

    kind: str
    message: str
    file: str = ""


class DataError(InputError):
    """Data that cannot be used.

    Attributes:
        problems: Every problem; the message lists the first ten of each kind.

    Args:
        problems: At least one problem.
        everything: Where the rest is found when the message does not list all problems.

    Example:
        >>> str(DataError([Problem("unreadable files", "a.png: is empty")]))
        'a.png: is empty'
    """

    def __init__(self, problems: Sequence[Problem], everything: str = "") -> None:
        self.problems = tuple(problems)
        self.everything = everything
        if len(self.problems) == 1:
            text = self.problems[0].message
        else:
            text = f"{len(self.problems)} problems in the data:\n" + "\n".join(grouped(self.problems, everything))
        super().__init__(text)

    def __reduce__(self) -> tuple[type[DataError], tuple[tuple[Problem, ...], str]]:
        return DataError, (self.problems, self.everything)


def display(path: os.PathLike[str] | str) -> str:
    """A path as text that every terminal and file takes: bytes that are not UTF-8 become ``\\xNN``.

    Example:
        >>> display(os.fsdecode(b"caf\\xe9.png"))
        'caf\\\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def grouped(problems: Sequence[Problem], everything: str = "") -> list[str]:
    """Lines that list the problems by kind: a heading with the count, the first ten, and how many more there are.

    Args:
        problems: Any number of problems.
        everything: Appended as a last line when problems were left out.
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.message)
    lines = []
    for kind, messages in kinds.items():
        lines.append(f"  {kind}: {len(messages)}")
        lines += [f"    {message}" for message in messages[:_LISTED]]
        if len(messages) > _LISTED:
            lines.append(f"    … and {len(messages) - _LISTED} more")
    if everything and any(len(messages) > _LISTED for messages in kinds.values()):
        lines.append(f"  {everything}")
    return lines


def raise_problems(problems: Sequence[Problem], everything: str = "") -> None:
    """Raises one error for all problems; returns when there are none.

    Args:
        problems: Any number of problems.
        everything: Where the rest is found when the message does not list all of them.

    Raises:
        DataError: If there are problems.
    """
    if problems:
        raise DataError(problems, everything)
