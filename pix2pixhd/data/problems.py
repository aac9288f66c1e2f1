"""Problems in a dataset, and their report: grouped by kind, with the first few problems of each kind."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from pix2pixhd.errors import InputError

__all__ = ["DataError", "Problem", "display", "grouped", "raise_problems"]

# Number of problems of each kind that are listed. Further problems are only counted.
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem with one file.

    Attributes:
        kind: Name of this kind of problem, in the plural.
        message: The file, the expected and the actual value, and the remedy.
        file: The file or folder, as in the message; empty for a problem with several files.
    """

    kind: str
    message: str
    file: str = ""


class DataError(InputError):
    """Raised for invalid data.

    Attributes:
        problems: All problems. The message lists the first ten of each kind.

    Args:
        problems: At least one problem.
        everything: Hint on how to list all problems, which is added if the message does not.

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
    """Converts a path to text that can be printed anywhere.

    Bytes that are not valid UTF-8 and control characters, which terminals execute, become ``\\xNN``.

    Example:
        >>> display(os.fsdecode(b"caf\\xe9.png"))
        'caf\\\\xe9.png'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def grouped(problems: Sequence[Problem], everything: str = "") -> list[str]:
    """Lists problems by kind: a heading with the count, the first ten problems, and the number of further problems.

    Args:
        problems: Any number of problems.
        everything: Last line, which is added if problems were omitted.

    Returns:
        The lines of the list.
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
    """Raises one error for all problems, if there are any.

    Args:
        problems: Any number of problems.
        everything: Hint on how to list all problems, which is added if the message does not.

    Raises:
        DataError: If there are problems.
    """
    if problems:
        raise DataError(problems, everything)
