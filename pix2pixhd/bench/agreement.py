"""Errors against float64, and whether rounding explains them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Agreement", "Result", "agreements"]

# The loss and the gradients.
Result = tuple[Tensor, ...]

_UNIT = torch.finfo(torch.float32).eps / 2  # the unit roundoff of float32, in which all losses are accumulated
# The largest error that is accepted in float32, whatever plain PyTorch's is. It is above what rounding costs at the
# usual sizes, and below an error of 1 % in the gradient.
_LARGEST = 8e-3
# No more draws than these, none after so many seconds, and how many more draws must disagree than agree for a "no".
_DRAWS, _SECONDS, _LEAD = 20, 30.0, 6
_PART = 1 << 20  # elements


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Relative errors against float64 as 2-norms: of the value or of all gradients together, whichever is worse.

    Attributes:
        error: That of the implementation.
        plain: The larger one of plain PyTorch, on the same inputs in the same precision.
        rounding: The error that the rounding of sums and of the result explains even where plain PyTorch has none.
        largest: The largest error that agrees in any case.
    """

    error: float
    plain: float
    rounding: float = 8 * _UNIT
    largest: float | None = None

    @property
    def _explained(self) -> float:
        return 2 * self.plain + self.rounding

    @property
    def tolerance(self) -> float:
        """The largest error that agrees: twice plain PyTorch's and that of rounding, but at most ``largest``."""
        return self._explained if self.largest is None else min(self._explained, self.largest)

    @property
    def agrees(self) -> bool:
        """Whether the error is at most ``tolerance``."""
        return self.error <= self.tolerance

    @property
    def unclear(self) -> bool:
        """Whether plain PyTorch's error is so large that this one, also if it had another reason, would be no more."""
        return self.tolerance < self.error <= self._explained


class _Errors(NamedTuple):
    value: float
    gradients: float


def agreements(
    exact: Result,
    result_of: Callable[[str], Result],
    names: Sequence[str],
    redraw: Callable[[int], Result],
    precision: str,
) -> dict[str, Agreement]:
    """Compares the results of plain PyTorch and of implementations, one after another, with those in float64.

    The gradient of an L1 distance is a sign, that of a ReLU a mask, that of a maximum a choice. Near a border rounding
    decides, in each implementation differently. One such sign in a small image changes the gradient by some per cent,
    and another implementation may have no such error: one comparison proves nothing. An implementation with the same
    rounding exceeds twice plain PyTorch's error on at most about a quarter of the inputs, a wrong one on most of them.
    If the first inputs disagree, others are drawn until more of them agree than disagree, or six more disagree than
    agree. With a probability of a quarter, the latter happens by chance in one of 1000 comparisons (Feller, An
    Introduction to Probability Theory, volume 1, chapter XIV: the gambler's ruin). Inputs for which plain PyTorch's
    own error is too large in float32 count neither way.

    Args:
        exact: The result in float64.
        result_of: Computes the result of an implementation for the present inputs.
        names: The implementations.
        redraw: Replaces the inputs by the draw of this number, and returns the new result in float64.
        precision: The dtype as on the command line.

    Returns:
        By implementation, the errors for the last inputs that led to the answer.
    """
    largest = _LARGEST if precision == "float32" else None
    plain = _errors(result_of("plain"), exact)
    found = {"plain": Agreement(max(plain), max(plain))}
    draws = {name: _Draws() for name in names if name != "plain"}
    begin, draw = time.monotonic(), 1
    while True:
        for name, own in draws.items():
            if not own.decided:
                own.add(_agreement(result_of(name), exact, plain, largest))
        over = draw == _DRAWS or time.monotonic() - begin > _SECONDS
        if over or all(own.decided for own in draws.values()):
            return {**found, **{name: own.verdict for name, own in draws.items()}}
        exact = redraw(draw)
        plain = _errors(result_of("plain"), exact)
        draw += 1


class _Draws:
    """The errors of one implementation for the inputs that were drawn."""

    def __init__(self) -> None:
        self.agreeing: list[Agreement] = []
        self.disagreeing: list[Agreement] = []
        self.unclear: list[Agreement] = []

    def add(self, found: Agreement) -> None:
        """Adds the errors for further inputs."""
        kind = self.agreeing if found.agrees else self.unclear if found.unclear else self.disagreeing
        kind.append(found)

    @property
    def _lead(self) -> int:
        return len(self.disagreeing) - len(self.agreeing)

    @property
    def decided(self) -> bool:
        """Whether no further inputs are needed."""
        return self._lead < 0 or self._lead >= _LEAD

    @property
    def verdict(self) -> Agreement:
        """The errors for the last inputs that led to the answer."""
        if self.unclear and not self.decided:
            return self.unclear[-1]
        return self.disagreeing[-1] if self._lead > 0 else self.agreeing[-1]


def _agreement(result: Result, exact: Result, plain: _Errors, largest: float | None) -> Agreement:
    """Returns the errors of the value or of the gradients, whichever are worse compared with their tolerance."""
    terms = sum(x.numel() for x in exact)
    parts = [
        Agreement(error, max(plain), _rounding(part, terms), largest)
        for error, part in zip(_errors(result, exact), (result[:1], result[1:]), strict=True)
    ]
    return max(parts, key=lambda part: part.error / part.tolerance)


def _rounding(tensors: Result, terms: int) -> float:
    """Returns the relative error, as a 2-norm, by which two correctly computed results may differ.

    A result is rounded to its dtype: by half of its machine epsilon, in two implementations another way. In the norm of
    many elements these errors are nearly the same for all, and plain PyTorch's error contains them; their difference
    decreases with the square root of the number of elements. A sum of n terms, added pairwise in float32, has an
    error of up to log2(n) unit roundoffs (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2).

    Args:
        tensors: The value, or the gradients.
        terms: The number of terms of the sum, which is that of the elements of all inputs.
    """
    count = max(1, sum(x.numel() for x in tensors))
    epsilon = max((torch.finfo(x.dtype).eps for x in tensors), default=0.0)
    return epsilon / math.sqrt(count) + (1 + math.log2(terms)) * _UNIT


def _errors(found: Result, exact: Result) -> _Errors:
    """Returns the relative errors of the value and of all gradients together; infinite if they are not finite.

    Gradients that are zero, such as those of biases before a norm, would have no relative error of their own.
    """

    def distance(tensors: Result, others: Result) -> float:
        difference = math.hypot(*(_norm_of_difference(x, y) for x, y in zip(tensors, others, strict=True)))
        size = math.hypot(*(float(y.norm()) for y in others))
        error = difference / size if size > 0 else difference
        return error if math.isfinite(error) else math.inf

    return _Errors(distance(found[:1], exact[:1]), distance(found[1:], exact[1:]))


def _norm_of_difference(x: Tensor, y: Tensor) -> float:
    """Returns the 2-norm of ``x − y`` in float64, in parts: most of the time would be the first use of new memory."""
    parts = zip(torch.split(x.flatten(), _PART), torch.split(y.flatten(), _PART), strict=True)
    return math.hypot(*(float((a.double() - b).norm()) for a, b in parts))
