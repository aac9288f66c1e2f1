"""``pix2pixhd generate``: a folder of label maps or pictures in, a folder of pictures out."""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from torch import Tensor

from pix2pixhd.data import InputError, PairedDataset, check_pairs, encode_input, find_inputs, save_picture
from pix2pixhd.training.checkpoint import Generator
from pix2pixhd.training.padding import generate_padded

__all__ = ["check_writable", "generate_folder", "generate_picture"]


def check_writable(folder: pathlib.Path, name: str) -> None:
    """Makes a folder and a file in it, so that a run does not end with results it cannot keep.

    Raises:
        InputError: If that fails; names the option, the folder and the reason.
    """
    probe = folder / ".pix2pixhd-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{name}: cannot write into {folder} ({error.strerror}); choose another folder") from None


@torch.inference_mode()
def generate_picture(generator: Generator, input: Tensor, instance: Tensor | None = None) -> Tensor:
    """One picture.

    Args:
        generator: From ``load_generator``.
        input: Label ids ``[H, W]``, or a picture ``[C, H, W]`` in [−1, 1].
        instance: Instance ids ``[H, W]`` where the generator was trained with them.

    Returns:
        ``[C, H, W]`` in [−1, 1], of the input's size, whatever that is.

    Example:
        >>> picture = generate_picture(generator, ids)  # doctest: +SKIP
    """
    device = next(generator.network.parameters()).device
    batched = None if instance is None else instance[None].to(device)
    condition = encode_input(input[None].to(device), batched, generator.data.label_nc)
    return generate_padded(generator.network, condition, generator.model.multiple)[0]


def generate_folder(
    generator: Generator,
    source: pathlib.Path,
    target: pathlib.Path,
    instances: pathlib.Path | None = None,
    keep_size: bool = False,
) -> list[pathlib.Path]:
    """Generates a PNG of the same name for every label map or picture of a folder.

    Inputs are scaled as in training (``resize_or_crop`` without its crop), so that things have the size that the
    generator knows.

    Args:
        generator: From ``load_generator``.
        source: Label maps or pictures, or the root of a data set with ``test_label`` or ``test_A``.
        target: Where the pictures go.
        instances: Instance maps; beside ``source`` when None.
        keep_size: Whether to leave the inputs' size as it is.

    Returns:
        The files written.

    Raises:
        InputError: For folders or files that cannot be used; names file, value and remedy.

    Example:
        >>> files = generate_folder(generator, pathlib.Path("test_label"), pathlib.Path("out"))  # doctest: +SKIP
    """
    if not source.is_dir():
        raise InputError(f"--input: there is no folder {source}")
    check_writable(target, "--output")
    data = dataclasses.replace(generator.data, resize_or_crop="crop") if keep_size else generator.data
    pairs = find_inputs(source, data, instances)
    check_pairs(pairs, data, generator.model.multiple, training=False)
    dataset = PairedDataset(pairs, data, generator.model.multiple, augment=False)
    written = []
    for i in range(len(dataset)):
        sample = dataset[i]
        picture = generate_picture(generator, sample["input"], sample.get("instance"))
        path = target / f"{sample['name']}.png"
        save_picture(picture, path)
        written.append(path)
    return written
