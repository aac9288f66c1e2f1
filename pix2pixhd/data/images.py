"""Reading and writing of label maps, instance maps and images."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from pix2pixhd.data.arrays import ArrayError, ChannelStack, load_array, pixel_limit
from pix2pixhd.data.problems import DataError, Problem, display
from pix2pixhd.files import MARK, replacing

__all__ = [
    "UNREADABLE",
    "ChannelStack",
    "LoadedImage",
    "image_path",
    "image_to_tensor",
    "read_image",
    "read_index_map",
    "save_image",
    "save_png",
    "tensor_to_image",
]

# Pillow's formats of the supported extensions. Pillow selects the format by a file's contents, whatever its name, and
# would start Ghostscript for the program in an EPS file named .png.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")

# Pillow's modes of label and instance maps, and of images with more than 8 bits per channel.
_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


LoadedImage = Image.Image | ChannelStack

UNREADABLE = "unreadable files"
_WRONG_FORMAT = "files in a wrong format"


def _refused(path: pathlib.Path, what: str, kind: str = UNREADABLE) -> DataError:
    return DataError([Problem(kind, f"{display(path)}: {what}", display(path))])


def _access_problem(path: pathlib.Path, error: OSError) -> str | None:
    """Explains why a file cannot be opened. Returns None if the reason is its contents."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return (
                f"the symbolic link points to {display(os.readlink(path))}, which does not exist; restore or remove it"
            )
        return "the file no longer exists; restore it, or remove its partners"
    if isinstance(error, PermissionError):
        return "permission denied; make the file and its folders readable (chmod u+r)"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image; rename or remove it"
    # Errors of the operating system have a number. Pillow's errors about the contents have none.
    return None if error.errno is None else f"cannot be read ({error.strerror}); check the disk or the network share"


def _read_array(path: pathlib.Path, channels: int) -> ChannelStack:
    try:
        return load_array(path, channels)
    except ArrayError as error:
        raise _refused(path, str(error)) from None
    except OSError as error:
        raise _refused(path, _access_problem(path, error) or f"cannot be read ({error}); replace it") from None
    except (ValueError, EOFError, MemoryError) as error:  # truncated after its size was compared with its header
        raise _refused(path, f"cannot be read ({error}); the file is damaged, replace it") from None


def _apply_orientation(image: Image.Image) -> None:
    """Applies the EXIF orientation as viewers and annotation tools do, so that images match their label maps."""
    # Viewers ignore EXIF data that cannot be parsed.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _open(path: pathlib.Path) -> Image.Image:
    try:
        # Given a file name, Pillow memory-maps uncompressed images. For TIFFs with an EXIF orientation it then uses the
        # width after rotation as the row length, which scrambles the pixels. An open file avoids this.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            image.load()
            _apply_orientation(image)
            loaded: Image.Image = image
    except Image.DecompressionBombError:
        raise _refused(
            path,
            f"has more than {pixel_limit()} pixels according to its header, the limit; replace it or scale it down",
        ) from None
    # Pillow raises many kinds of errors for damaged files: SyntaxError for a bad PNG chunk, struct.error, zlib.error, …
    except Exception as error:
        access = _access_problem(path, error) if isinstance(error, OSError) else None
        if access is None and isinstance(error, OSError) and path.is_file() and path.stat().st_size == 0:
            access = "is empty (0 bytes); replace it"
        what = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            what = "not a PNG, JPEG, BMP, PPM, TIFF or WebP image"
        reason = f"cannot be read ({what}); the file is damaged or not an image, replace it"
        raise _refused(path, access or reason) from None
    if 0 in loaded.size:
        raise _refused(path, f"has no pixels ({loaded.width}x{loaded.height}); replace it")
    return loaded


def read_index_map(path: pathlib.Path, kind: Literal["label map", "instance map"] = "label map") -> Image.Image:
    """Reads a label map or an instance map, with unchanged ids.

    Args:
        path: A grayscale PNG of 8 or 16 bits, or a palette PNG, whose indices are the ids.
        kind: The kind of map, for messages.

    Returns:
        An image of Pillow's 32-bit mode ``"I"``, which also represents 16-bit ids above 32767.

    Raises:
        InputError: If the file cannot be read or is a colour image.

    Example:
        >>> ids = np.asarray(read_index_map(pathlib.Path("train_inst/a.png"), "instance map"))  # doctest: +SKIP
    """
    if path.suffix.lower() == ".npy":
        raise _refused(path, f"a {kind} must be an image file, not .npy; save it as a grayscale PNG", _WRONG_FORMAT)
    image = _open(path)
    if image.format in ("JPEG", "MPO"):
        raise _refused(
            path,
            f"a {kind} must not be a JPEG file, since lossy compression changes ids; export it again as a PNG",
            _WRONG_FORMAT,
        )
    if image.mode not in _INDEX_MODES:
        raise _refused(
            path,
            f"a {kind} must have one channel with an id per pixel, got an image of mode {image.mode}; "
            "save it as a grayscale PNG of 8 or 16 bits (or a palette PNG)",
            _WRONG_FORMAT,
        )
    if image.mode == "1":
        return image.convert("L").point(lambda value: min(value, 1)).convert("I")
    return Image.fromarray(np.asarray(image).astype(np.int32))


def read_image(path: pathlib.Path, channels: int = 3) -> LoadedImage:
    """Reads an image with 8 bits per channel.

    Args:
        path: A file in any format that Pillow reads, or an ``.npy`` file with an array ``[height, width, channels]`` of
            uint8.
        channels: Number of channels: 3 for RGB, 1 for grayscale. Other numbers require ``.npy`` files.

    Returns:
        The image. A Pillow image is converted to RGB or grayscale.

    Raises:
        InputError: If the file cannot be read, has more than 8 bits per channel or is partly transparent, or if
            ``channels`` requires an ``.npy`` file.

    Example:
        >>> image = read_image(pathlib.Path("train_img/a.png"))  # doctest: +SKIP
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, channels)
    if channels not in (1, 3):
        raise _refused(
            path,
            f"images with {channels} channels must be .npy files [height, width, {channels}] of uint8",
            _WRONG_FORMAT,
        )
    image = _open(path)
    if image.mode in _DEEP_MODES:
        raise _refused(
            path, f"images must have 8 bits per channel, got mode {image.mode}; convert it to 8 bits", _WRONG_FORMAT
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise _refused(path, "the image is partly transparent; save it without an alpha channel", _WRONG_FORMAT)
    return image.convert("RGB" if channels == 3 else "L")


def image_to_tensor(image: LoadedImage) -> Tensor:
    """Converts an image to a float32 tensor ``[C, H, W]`` in [−1, 1].

    Example:
        >>> image_to_tensor(Image.new("RGB", (4, 2), (255, 0, 0)))[:, 0, 0]
        tensor([ 1., -1., -1.])
    """
    if isinstance(image, ChannelStack):
        return torch.cat([image_to_tensor(channel) for channel in image.channels])
    array = np.array(image, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array)).div_(127.5).sub_(1.0)


def _to_bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Converts ``[C, H, W]`` in [−1, 1] to ``[H, W, C]`` in 0 … 255."""
    scaled = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """Converts ``[C, H, W]`` in [−1, 1], with C = 1 or 3, to an 8-bit image. Values outside the range are clipped.

    Example:
        >>> tensor_to_image(torch.ones(3, 2, 4)).getpixel((0, 0))
        (255, 255, 255)
    """
    array = _to_bytes(tensor)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def save_png(image: Image.Image, path: pathlib.Path, *, force: bool = False) -> pathlib.Path:
    """Atomically writes a PNG with a comment that marks it as written by this package.

    Args:
        image: The image.
        path: The file to write.
        force: Whether a file that this package did not write may be replaced.

    Returns:
        The path of the file.

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


def image_path(path: pathlib.Path, channels: int) -> pathlib.Path:
    """Returns the path that ``save_image`` writes: ``.npy`` replaces ``.png`` unless there are 1 or 3 channels."""
    return path if channels in (1, 3) else path.with_suffix(".npy")


def save_image(tensor: Tensor, path: pathlib.Path, *, force: bool = False) -> pathlib.Path:
    """Writes an image as a PNG, or as an ``.npy`` file if it does not have 1 or 3 channels.

    Args:
        tensor: The image ``[C, H, W]`` in [−1, 1].
        path: The PNG file; an ``.npy`` file has the same name with another suffix.
        force: Whether a file that this package did not write may be replaced.

    Returns:
        The path of the file.

    Raises:
        InputError: If the file cannot be written, or if it exists and may not be replaced.

    Example:
        >>> save_image(torch.zeros(3, 8, 8), pathlib.Path("gray.png"))  # doctest: +SKIP
    """
    target = image_path(path, tensor.shape[0])
    if target == path:
        return save_png(tensor_to_image(tensor), path, force=force)
    with replacing(target, force=force) as part, part.open("wb") as file:
        np.save(file, _to_bytes(tensor))
    return target
