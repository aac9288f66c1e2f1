"""Images with any number of channels, read from ``.npy`` files that are validated before memory is allocated."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image

__all__ = ["ArrayError", "ChannelStack", "load_array", "pixel_limit"]


def pixel_limit() -> float:
    """Maximum number of pixels of an image: Pillow's limit, twice ``Image.MAX_IMAGE_PIXELS``.

    Example:
        >>> pixel_limit() > 16384 * 8192
        True
    """
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


class ArrayError(ValueError):
    """An ``.npy`` file cannot be used. The message gives the reason and the remedy."""


@dataclasses.dataclass(frozen=True)
class ChannelStack:
    """An image with any number of channels and the geometric methods of Pillow's images.

    Attributes:
        channels: One image of mode ``"L"`` per channel, all of the same size.

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
        """Returns the scaled image."""
        return self._each(lambda channel: channel.resize(size, resample))

    def crop(self, box: tuple[int, int, int, int]) -> ChannelStack:
        """Returns the cropped image."""
        return self._each(lambda channel: channel.crop(box))

    def transpose(self, method: Image.Transpose) -> ChannelStack:
        """Returns the flipped or rotated image."""
        return self._each(lambda channel: channel.transpose(method))


def _readable(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads the shape and the dtype from the header. The file is then positioned at the first byte of the data."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        # Version 3 only differs in the names of structured dtypes, which images do not use.
        raise ArrayError(f"has the unsupported format version {version[0]}.{version[1]}; save it again")
    return shape, dtype


def _check_kind(path: pathlib.Path, file: IO[bytes]) -> None:
    """Rejects other kinds of files that are often named ``.npy``."""
    start = file.read(6)
    file.seek(0)
    if not start:
        raise ArrayError("is empty (0 bytes); replace it")
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:5])
        except (zipfile.BadZipFile, OSError):
            names = "unreadable contents"
        raise ArrayError(f"is an .npz archive ({names}), not an .npy file; save its array with numpy.save")
    if start != b"\x93NUMPY":
        raise ArrayError("is not an .npy file (its header is missing); save the array with numpy.save")


def load_array(path: pathlib.Path, channels: int) -> ChannelStack:
    """Reads an array ``[height, width, channels]`` (or ``[height, width]``) of uint8, in C or Fortran order.

    The header is first compared with the size of the file, so that a damaged header cannot cause an allocation larger
    than the file. Nothing is unpickled.

    Args:
        path: The ``.npy`` file.
        channels: Expected number of channels.

    Raises:
        ArrayError: If the file has other contents, or fewer data than its header specifies.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        _check_kind(path, file)
        try:
            shape, dtype = _header(file)
        except ArrayError:
            raise
        except Exception as error:  # a damaged header causes errors of numpy's tokenizer, struct or literal_eval
            raise ArrayError(f"has a damaged header ({str(error).splitlines()[0]}); save the array again") from None
        if dtype.hasobject:
            raise ArrayError("contains Python objects, which are never unpickled; save an array of uint8")
        expected = math.prod(shape) * dtype.itemsize
        found = os.fstat(file.fileno()).st_size - file.tell()
        if min(shape, default=1) < 0 or expected > found:
            raise ArrayError(
                f"its header specifies {list(shape)} of {dtype} ({_readable(expected)}), but only {_readable(found)} "
                "of data follow; the file is truncated or damaged, save the array again"
            )
        full = (*shape, 1) if len(shape) == 2 else shape
        if dtype != np.uint8 or len(full) != 3 or full[2] != channels or 0 in full:
            raise ArrayError(
                f"must contain an array [height, width, {channels}] of uint8, got {list(full)} of {dtype}; save it "
                "again, or set data.input_nc and data.output_nc to its number of channels"
            )
        if full[0] * full[1] > pixel_limit():
            raise ArrayError(f"has {full[1]}x{full[0]} pixels, more than the limit of {pixel_limit()}; scale it down")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False).reshape(full)
    return ChannelStack(tuple(Image.fromarray(np.ascontiguousarray(array[..., k])) for k in range(channels)))
