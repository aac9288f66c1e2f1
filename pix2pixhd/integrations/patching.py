"""Reversible replacement of attributes in other packages."""

from __future__ import annotations

import contextlib
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["Patch"]


class Patch:
    """A record of what a ``patch`` function replaced. ``undo()``, or the end of a ``with`` block, restores it.

    Attributes:
        replaced: Qualified names of the replaced attributes, for example ``models.networks.GANLoss``.
    """

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self._originals = contextlib.ExitStack()

    def replace(self, owner: Any, name: str, value: object) -> None:
        """Set an attribute of a module or class, and record the original.

        An attribute that another patch has replaced by the same value stays as it is: that patch restores it.
        """
        if getattr(owner, name) is value:
            return
        self._originals.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)
        where = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__name__}"
        self.replaced.append(f"{where}.{name}")

    def undo(self) -> None:
        """Restore the originals. Models that were built in the meantime keep the fused losses."""
        self._originals.close()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
