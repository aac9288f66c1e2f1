"""Range checks for the numeric options of a configuration."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

from pix2pixhd.errors import InputError

__all__ = ["FRACTION", "POSITIVE", "Range", "at_least", "check_ranges"]


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        without_low: Whether the lower bound itself is excluded.
        without_high: Whether the upper bound itself is excluded.

    Example:
        >>> 1 in Range(0, 1, without_high=True)
        False
    """

    low: float = 0
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        # Comparisons with NaN are false, so no range contains NaN.
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        text = f"{'above' if self.without_low else 'at least'} {self.low}"
        if self.high < math.inf:
            text += f" and {'below' if self.without_high else 'at most'} {self.high}"
        return text


POSITIVE = Range(0, without_low=True)
FRACTION = Range(0, 1, without_high=True)


def at_least(low: float, high: float = math.inf) -> Range:
    """Returns the closed interval from ``low`` to ``high``."""
    return Range(low, high)


def _remedy(default: object, other: str) -> str:
    """Recommends the default of an option, as it is written in YAML, or another value."""
    if default is None or isinstance(default, bool):
        default = "null" if default is None else str(default).lower()
    return f"set {other}" if default is dataclasses.MISSING else f"set {default} (the default), or {other}"


def check_ranges(section: str, options: Any, **ranges: Range) -> None:
    """Checks numeric fields of a dataclass and converts NumPy numbers to Python numbers.

    None is accepted if the field's type allows it.

    Args:
        section: Name of the configuration's section, for the message.
        options: The dataclass.
        **ranges: The range of each field.

    Raises:
        InputError: If a value is not a finite number within its range.

    Example:
        >>> check_ranges("run", RunOptions(), seed=at_least(0))  # doctest: +SKIP
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name, allowed in ranges.items():
        value, declared = getattr(options, name), str(fields[name].type)
        if value is None and "None" in declared:
            continue
        whole = "float" not in declared
        kind: Any = numbers.Integral if whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            expected = "an integer" if whole else "a number"
            raise InputError(
                f"{section}.{name} must be {expected}, got {value!r}; {_remedy(fields[name].default, expected)}"
            )
        if value not in allowed:
            finite = "" if math.isfinite(value) else "finite and "
            remedy = _remedy(fields[name].default, "a value in this range")
            raise InputError(f"{section}.{name} must be {finite}{allowed}, got {value}; {remedy}")
        setattr(options, name, int(value) if whole else float(value))
