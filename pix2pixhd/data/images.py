"""Reading and writing of label maps, instance maps and pictures."""

from __future__ import annotations

import pathlib
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pix2pixhd.errors import InputError

__all__ = ["picture_to_tensor", "read_index_map", "read_picture", "save_picture", "tensor_to_picture"]

_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def _open(path: pathlib.Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            loaded: Image.Image = image
            return loaded
    except FileNotFoundError:
        raise InputError(f"{path}: the file is gone; put it back or remove its partners") from None
    # Pillow tells a broken file by many names: SyntaxError for a bad PNG chunk, struct.error, zlib.error, …
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({error}); the file is damaged or no picture, replace it") from None


def read_index_map(path: pathlib.Path, kind: Literal["label map", "instance map"] = "label map") -> Image.Image:
    """A label or instance map with its ids as they are stored, 32 bits wide.

    Args:
        path: A gray PNG of 8 or 16 bits, or a palette PNG, whose indices are the ids.
        kind: What it is, for messages.

    Returns:
        A picture of Pillow's mode ``"I"``: 16-bit ids above 32767 survive.

    Raises:
        InputError: If the file cannot be read or is a colour picture.

    Example:
        >>> ids = np.asarray(read_index_map(pathlib.Path("train_inst/a.png"), "instance map"))  # doctest: +SKIP
    """
    image = _open(path)
    if image.format == "JPEG":
        raise InputError(
            f"{path}: a {kind} saved as JPEG has lost its ids, which its compression blurs; save it anew as a PNG from "
            "where it was made"
        )
    if image.mode not in _INDEX_MODES:
        raise InputError(
            f"{path}: a {kind} must have one channel with an id per pixel, got a picture of mode {image.mode}; "
            "save it as a gray PNG of 8 or 16 bits (or a palette PNG)"
        )
    if image.mode == "1":
        return image.convert("L").point(lambda value: min(value, 1)).convert("I")
    return Image.fromarray(np.asarray(image).astype(np.int32))


def read_picture(path: pathlib.Path, channels: int = 3) -> Image.Image:
    """A picture of 8 bits per channel, in colour or gray.

    Args:
        path: Any format that Pillow reads.
        channels: 3 for RGB, 1 for gray.

    Raises:
        InputError: If the file cannot be read, has more than 8 bits per channel or is partly transparent.

    Example:
        >>> picture = read_picture(pathlib.Path("train_img/a.png"))  # doctest: +SKIP
    """
    image = _open(path)
    if image.mode in _DEEP_MODES:
        raise InputError(f"{path}: pictures must have 8 bits per channel, got mode {image.mode}; convert it to 8 bits")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{path}: the picture is partly transparent; save it without an alpha channel")
    return image.convert("RGB" if channels == 3 else "L")


def picture_to_tensor(image: Image.Image) -> Tensor:
    """A picture as ``[C, H, W]`` float32 in [−1, 1].

    Example:
        >>> picture_to_tensor(Image.new("RGB", (4, 2), (255, 0, 0)))[:, 0, 0]
        tensor([ 1., -1., -1.])
    """
    array = np.array(image, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array)).div_(127.5).sub_(1.0)


def tensor_to_picture(tensor: Tensor) -> Image.Image:
    """``[C, H, W]`` in [−1, 1], C = 1 or 3, as an 8-bit picture; values outside are clipped.

    Example:
        >>> tensor_to_picture(torch.ones(3, 2, 4)).getpixel((0, 0))
        (255, 255, 255)
    """
    scaled = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    array = scaled.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def save_picture(tensor: Tensor, path: pathlib.Path) -> None:
    """Writes ``[C, H, W]`` in [−1, 1] as a PNG.

    Raises:
        InputError: If the file cannot be written.

    Example:
        >>> save_picture(torch.zeros(3, 8, 8), pathlib.Path("gray.png"))  # doctest: +SKIP
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_to_picture(tensor).save(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
