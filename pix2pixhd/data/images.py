"""Reading and writing of label maps, instance maps and pictures."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from pix2pixhd.errors import InputError
from pix2pixhd.files import MARK, replacing

__all__ = [
    "ChannelStack",
    "Picture",
    "picture_path",
    "picture_to_tensor",
    "read_index_map",
    "read_picture",
    "save_picture",
    "save_png",
    "tensor_to_picture",
]

_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


@dataclasses.dataclass(frozen=True)
class ChannelStack:
    """A picture of any number of channels: a gray picture each, with the methods of Pillow's that geometry needs.

    Attributes:
        channels: One picture of mode ``"L"`` per channel, all of one size.

    Example:
        >>> ChannelStack((Image.new("L", (4, 2)),) * 5).size
        (4, 2)
    """

    channels: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.channels[0].size

    def _each(self, change: Callable[[Image.Image], Image.Image]) -> ChannelStack:
        return ChannelStack(tuple(change(channel) for channel in self.channels))

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> ChannelStack:
        """Every channel scaled."""
        return self._each(lambda channel: channel.resize(size, resample))

    def crop(self, box: tuple[int, int, int, int]) -> ChannelStack:
        """Every channel cropped."""
        return self._each(lambda channel: channel.crop(box))

    def transpose(self, method: Image.Transpose) -> ChannelStack:
        """Every channel mirrored or turned."""
        return self._each(lambda channel: channel.transpose(method))


Picture = Image.Image | ChannelStack


def _read_array(path: pathlib.Path, channels: int) -> ChannelStack:
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); the file is damaged or no .npy file, replace it") from None
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        raise InputError(
            f"{path}: must hold an array [height, width, {channels}] of uint8, got {list(array.shape)} of "
            f"{array.dtype}; save it anew, or set data.input_nc and data.output_nc to its channels"
        )
    return ChannelStack(tuple(Image.fromarray(np.ascontiguousarray(array[..., k])) for k in range(channels)))


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


def read_picture(path: pathlib.Path, channels: int = 3) -> Picture:
    """A picture of 8 bits per channel: in colour, gray, or with any number of channels.

    Args:
        path: Any format that Pillow reads, or an ``.npy`` file with an array ``[height, width, channels]`` of uint8.
        channels: 3 for RGB, 1 for gray; other numbers need ``.npy`` files.

    Raises:
        InputError: If the file cannot be read, has more than 8 bits per channel, is partly transparent, or has another
            number of channels than an ``.npy`` file is needed for.

    Example:
        >>> picture = read_picture(pathlib.Path("train_img/a.png"))  # doctest: +SKIP
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, channels)
    if channels not in (1, 3):
        raise InputError(
            f"{path}: pictures of {channels} channels must be .npy files [height, width, {channels}] of uint8"
        )
    image = _open(path)
    if image.mode in _DEEP_MODES:
        raise InputError(f"{path}: pictures must have 8 bits per channel, got mode {image.mode}; convert it to 8 bits")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{path}: the picture is partly transparent; save it without an alpha channel")
    return image.convert("RGB" if channels == 3 else "L")


def picture_to_tensor(image: Picture) -> Tensor:
    """A picture as ``[C, H, W]`` float32 in [−1, 1].

    Example:
        >>> picture_to_tensor(Image.new("RGB", (4, 2), (255, 0, 0)))[:, 0, 0]
        tensor([ 1., -1., -1.])
    """
    if isinstance(image, ChannelStack):
        return torch.cat([picture_to_tensor(channel) for channel in image.channels])
    array = np.array(image, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array)).div_(127.5).sub_(1.0)


def _to_bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``[C, H, W]`` in [−1, 1] as ``[H, W, C]`` in 0 … 255."""
    scaled = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())


def tensor_to_picture(tensor: Tensor) -> Image.Image:
    """``[C, H, W]`` in [−1, 1], C = 1 or 3, as an 8-bit picture; values outside are clipped.

    Example:
        >>> tensor_to_picture(torch.ones(3, 2, 4)).getpixel((0, 0))
        (255, 255, 255)
    """
    array = _to_bytes(tensor)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def save_png(image: Image.Image, path: pathlib.Path, *, force: bool = False) -> pathlib.Path:
    """Writes a PNG, whole or not at all, with a comment by which a later run recognises it as its own.

    Args:
        image: The image.
        path: The file.
        force: Whether a file that this package did not write may be replaced.

    Returns:
        The file written.

    Raises:
        InputError: If the file cannot be written, or if it exists and may not be replaced.

    Example:
        >>> save_png(Image.new("RGB", (4, 2)), pathlib.Path("black.png"))  # doctest: +SKIP
    """
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", MARK)
    with replacing(path, force=force) as part:
        image.save(part, format="PNG", pnginfo=comment)
    return path


def picture_path(path: pathlib.Path, channels: int) -> pathlib.Path:
    """The file that ``save_picture`` writes: ``.npy`` instead of ``.png`` for other channels than 1 and 3."""
    return path if channels in (1, 3) else path.with_suffix(".npy")


def save_picture(tensor: Tensor, path: pathlib.Path, *, force: bool = False) -> pathlib.Path:
    """Writes ``[C, H, W]`` in [−1, 1]: as a PNG, or for other channels than 1 and 3 as an ``.npy`` file beside it.

    Args:
        tensor: The image.
        path: The PNG file.
        force: Whether a file that this package did not write may be replaced.

    Returns:
        The file written.

    Raises:
        InputError: If the file cannot be written, or if it exists and may not be replaced.

    Example:
        >>> save_picture(torch.zeros(3, 8, 8), pathlib.Path("gray.png"))  # doctest: +SKIP
    """
    target = picture_path(path, tensor.shape[0])
    if target == path:
        return save_png(tensor_to_picture(tensor), path, force=force)
    with replacing(target, force=force) as part, part.open("wb") as file:
        np.save(file, _to_bytes(tensor))
    return target
