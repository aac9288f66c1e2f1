"""Encoding of label and instance maps for the networks, as one-hot channels and an edge channel."""

from __future__ import annotations

import torch
from torch import Tensor

from pix2pixhd.config.schema import ModelOptions
from pix2pixhd.data.dataset import Sample

__all__ = ["encode_input", "feature_region", "instance_edges", "one_hot"]


def one_hot(label: Tensor, label_nc: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot encodes a label map.

    This is a single comparison on the device, without a copy to the host. ``torch.nn.functional.one_hot`` copies to the
    host to check the ids, which are checked before training here.

    Args:
        label: Integer ids ``[N, H, W]`` in 0 … ``label_nc − 1``. Other ids are encoded as zeros.
        label_nc: Number of classes.
        dtype: Dtype of the result.

    Returns:
        ``[N, label_nc, H, W]``.

    Example:
        >>> one_hot(torch.tensor([[[0, 2]]]), 3)[0, :, 0]
        tensor([[1., 0.],
                [0., 0.],
                [0., 1.]])
    """
    # int32, because ids that a narrower dtype cannot represent would wrap around in the comparison.
    classes = torch.arange(label_nc, device=label.device, dtype=torch.int32).view(1, -1, 1, 1)
    return (label.unsqueeze(1) == classes).to(dtype)


def instance_edges(instance: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Computes the boundary map of instances (arXiv 1711.11585, section 3.3).

    A pixel is 1 if its id differs from the id of any of its four neighbours, and 0 otherwise.

    Args:
        instance: Integer ids ``[N, H, W]``.
        dtype: Dtype of the result.

    Returns:
        ``[N, 1, H, W]``.

    Example:
        >>> instance_edges(torch.tensor([[[7, 7, 9, 9]]]))[0, 0]
        tensor([[0., 1., 1., 0.]])
    """
    edges = torch.zeros_like(instance, dtype=torch.bool)
    across = instance[:, :, 1:] != instance[:, :, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    down = instance[:, 1:, :] != instance[:, :-1, :]
    edges[:, 1:, :] |= down
    edges[:, :-1, :] |= down
    return edges.unsqueeze(1).to(dtype)


def encode_input(input: Tensor, instance: Tensor | None, label_nc: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Encodes a batch for the networks: one-hot labels or images, and the edge map if there are instance ids.

    Args:
        input: Label ids ``[N, H, W]``, or images ``[N, C, H, W]`` in [−1, 1] if ``label_nc`` is 0.
        instance: Instance ids ``[N, H, W]``. None for no edge channel.
        label_nc: Number of classes; 0 for images.
        dtype: Dtype of the result.

    Returns:
        ``[N, C, H, W]`` with ``DataOptions.input_channels`` channels.

    Example:
        >>> ids = torch.zeros(1, 8, 8, dtype=torch.int32)
        >>> encode_input(ids, ids, label_nc=4).shape
        torch.Size([1, 5, 8, 8])
    """
    encoded = one_hot(input, label_nc, dtype) if label_nc else input.to(dtype)
    if instance is None:
        return encoded
    return torch.cat([encoded, instance_edges(instance, dtype)], dim=1)


def feature_region(sample: Sample, model: ModelOptions) -> Tensor:
    """Returns the ids of the regions over which the encoder averages its features.

    Args:
        sample: One sample, or a batch.
        model: The ``model`` section. Regions are classes with ``label_feat``, and instances with ``instance_feat``.

    Returns:
        Label ids or instance ids, ``[H, W]`` or ``[N, H, W]``.

    Example:
        >>> feature_region(sample, ModelOptions(label_feat=True)) is sample["input"]  # doctest: +SKIP
        True
    """
    return sample["input"] if model.label_feat else sample["instance"]
