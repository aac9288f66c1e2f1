"""The image pool: the discriminator is also shown pictures that the generator made some steps ago."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

__all__ = ["ImagePool"]


class ImagePool:
    """Keeps the discriminator's latest generated inputs, and gives back some of them (arXiv 1612.07828, section 2.3).

    As NVIDIA's ``util.image_pool.ImagePool``: until it is full, it keeps what comes and gives it back; then, for each
    picture with probability one half, it gives back one of those it keeps and keeps the new one in its place.

    Args:
        size: How many pictures it keeps; 0 gives back what comes.
        seed: Of its choices; every process has its own.

    Raises:
        ValueError: For a negative size.

    Example:
        >>> pool = ImagePool(2)
        >>> pool.query(torch.zeros(1, 6, 8, 8)).shape
        torch.Size([1, 6, 8, 8])
    """

    def __init__(self, size: int, seed: str = "0") -> None:
        if size < 0:
            raise ValueError(f"size must be at least 0, got {size}")
        self.size = size
        self._random = random.Random(f"pool:{seed}")
        self._kept: list[Tensor] = []

    def query(self, inputs: Tensor) -> Tensor:
        """The pictures that the discriminator is to be shown for these.

        Args:
            inputs: Condition and generated picture, ``[N, C, H, W]``; detached.

        Returns:
            As many, of the same shape; pictures of another size are not given back for them.
        """
        if self.size == 0:
            return inputs
        return torch.stack([self._exchange(picture) for picture in inputs.detach()])

    def _exchange(self, picture: Tensor) -> Tensor:
        if len(self._kept) < self.size:
            self._kept.append(picture.clone())
            return picture
        chosen = self._random.randrange(self.size)
        if self._random.random() < 0.5 or self._kept[chosen].shape != picture.shape:
            return picture
        kept, self._kept[chosen] = self._kept[chosen], picture.clone()
        return kept.to(picture)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as tensors and numbers."""
        version, numbers, following = self._random.getstate()
        return {"kept": list(self._kept), "random": [version, list(numbers), following]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken; of a larger pool the latest pictures stay."""
        version, numbers, following = state["random"]
        self._random.setstate((version, tuple(numbers), following))
        self._kept = list(state["kept"])[-self.size :] if self.size else []
