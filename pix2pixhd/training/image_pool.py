"""Image pool: the discriminator also trains on images that were generated some steps earlier."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

__all__ = ["ImagePool"]


class ImagePool:
    """Stores generated inputs of the discriminator and returns some of them later (arXiv 1612.07828, section 2.3).

    Works like NVIDIA's ``util.image_pool.ImagePool``. Until the pool is full, it stores and returns every image. Then,
    for each image with probability one half, it returns a stored image and stores the new one in its place.

    Args:
        size: Number of stored images; with 0, ``query`` returns its input.
        seed: Seed of the random choices, different in every process.

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
        self._random = random.Random(f"pool:{seed}")  # nosec B311 # a choice of images
        self._stored: list[Tensor] = []

    def query(self, inputs: Tensor) -> Tensor:
        """Returns the images that the discriminator trains on in place of the given ones.

        Args:
            inputs: Condition and generated image, ``[N, C, H, W]``. They are detached.

        Returns:
            A tensor of the same shape. A stored image of another size is not returned.
        """
        if self.size == 0:
            return inputs
        return torch.stack([self._exchange(image) for image in inputs.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self._stored) < self.size:
            self._stored.append(image.clone())
            return image
        chosen = self._random.randrange(self.size)
        if self._random.random() < 0.5 or self._stored[chosen].shape != image.shape:
            return image
        stored, self._stored[chosen] = self._stored[chosen], image.clone()
        return stored.to(image)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as tensors and numbers."""
        version, numbers, following = self._random.getstate()
        return {"kept": list(self._stored), "random": [version, list(numbers), following]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state; only the latest images of a larger pool are kept."""
        version, numbers, following = state["random"]
        self._random.setstate((version, tuple(numbers), following))
        self._stored = list(state["kept"])[-self.size :] if self.size else []
