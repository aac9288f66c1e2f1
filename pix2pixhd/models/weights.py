"""Weights of pretrained networks: torchvision's, and files that are read without executing code from them."""

from __future__ import annotations

import os
import pathlib
import pickle  # nosec B403 # only for its exception
import re
import warnings
import zipfile

import torch

__all__ = [
    "check_file",
    "download_weights",
    "imagenet_weights",
    "read_weights",
    "warn_of_random_weights",
    "weights_of_file",
]

_OFFLINE = """the ImageNet weights of {network} could not be downloaded: {error}
Put the file {name} ({size} MB, from {url}) at
    {path}
or pass its path, {caller}({argument}="/path/to/{name}"). For tests and demos only, {argument}="random" needs no \
file."""


def read_weights(path: pathlib.Path, mapped: bool = False) -> object:
    """Read a file written by ``torch.save``: tensors, numbers, strings and containers of them, never code.

    Args:
        path: The file, which is read once to verify its checksums. Files in torch's legacy format have none.
        mapped: Whether tensors are memory-mapped, so that only those that are used take up memory. Files in torch's
            legacy format do not support it.

    Raises:
        ValueError: If the file is damaged or contains anything else; the message is only the reason.
    """
    try:
        _check_archive(path)
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files fail in many ways: zip, pickle, struct, EOF
        raise ValueError(_failure(error)) from error
    return content


def _check_archive(path: pathlib.Path) -> None:
    """Check that reading an archive needs no more memory than its size, and verify the checksums of its entries.

    ``torch.save`` writes the checksums, but ``torch.load`` ignores them.

    Raises:
        RuntimeError: If entries are compressed, share their bytes or do not match their checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RuntimeError(
                "its entries are compressed, as in TorchScript archives; save the network's state_dict() instead"
            )
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RuntimeError("its entries overlap, which torch.save never writes; save the weights again")
        # torch.serialization.set_crc32_options(False) writes zeros.
        if any(entry.CRC for entry in entries) and (damaged := archive.testzip()) is not None:
            raise RuntimeError(f"it is damaged: {damaged} does not match its checksum")


def _failure(error: Exception) -> str:
    """Return the reason why ``torch.load(weights_only=True)`` failed, without its advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", text)
        if refused is None:
            return "it is damaged, or was not written by torch.save"
        return (
            f"it contains more than weights: a Python object of type {refused[1]}, and loading it could execute code; "
            "save the network's state_dict() instead"
        )
    if not isinstance(error, (OSError, RuntimeError)):  # the unpickler fails in other ways on text
        return "it is damaged, or was not written by torch.save"
    return text.splitlines()[0] if text else type(error).__name__


def imagenet_weights(network: str, caller: str, argument: str) -> object:
    """Return torchvision's ``IMAGENET1K_V1`` weights of a network, which torch.hub downloads once and caches.

    Args:
        network: Name of torchvision's function, such as ``vgg19``.
        caller: Name of the class that the error message recommends.
        argument: Name of its argument that takes a path.

    Raises:
        RuntimeError: If they cannot be downloaded; the message names the URL and the target path.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(network)["IMAGENET1K_V1"]
    name = pathlib.PurePosixPath(weights.url).name
    path = pathlib.Path(torch.hub.get_dir(), "checkpoints", name)
    try:
        if path.is_file():
            return read_weights(path)
        state: object = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise RuntimeError(
            _OFFLINE.format(
                network=network.upper(),
                error=f"{path} cannot be read: {error}" if isinstance(error, ValueError) else error,
                name=name,
                size=round(weights.meta["_file_size"]),
                url=weights.url,
                path=path,
                caller=caller,
                argument=argument,
            )
        ) from error
    return state


def download_weights(url: str) -> pathlib.Path:
    """Download weights into torch.hub's folder, unless they are there, and return the file.

    Its name ends with the first digits of its SHA-256, which a download must have. The file contains no code.

    Raises:
        OSError: If it cannot be downloaded.
        RuntimeError: If the download has another hash.
        ValueError: If the file contains anything but weights.

    Example:
        >>> download_weights("https://example.org/vgg19-dcbb9e9d.pth")  # doctest: +SKIP
        PosixPath('/home/me/.cache/torch/hub/checkpoints/vgg19-dcbb9e9d.pth')
    """
    name = pathlib.PurePosixPath(url).name
    digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if digits is None:
        raise ValueError(f"{url} cannot be verified, because the name of the file does not contain its hash")
    path = pathlib.Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits[1])
    try:
        read_weights(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return path


def check_file(
    path: str | os.PathLike[str],
    argument: str,
    remedy: str = "pass 'imagenet', 'random', a module, or the path of a state dict",
) -> None:
    """Check that a path that a user passed as ``argument`` is that of a file.

    Raises:
        FileNotFoundError: If it is not.
    """
    # Unlike `Path.is_file`, these functions raise no error for names that are too long.
    if not os.path.isfile(path):
        found = f"{path} is not a file" if os.path.exists(path) else f"file {path} does not exist"
        raise FileNotFoundError(f"{argument}: {found}; {remedy}")


def weights_of_file(path: pathlib.Path, argument: str) -> object:
    """Read a weight file that a user passed as ``argument``.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it cannot be read.
    """
    check_file(path, argument)
    try:
        return read_weights(path)
    except ValueError as error:
        raise ValueError(f"{argument}: {path} cannot be read as a state dict: {error}") from error


def warn_of_random_weights(network: str, argument: str) -> None:
    """Warn the caller of the class that loads the network."""
    warnings.warn(
        f"pix2pixhd: {network} has random weights ({argument}='random'). Use them for tests and demos only; for "
        f"training, use {argument}='imagenet' or the path of pretrained weights.",
        UserWarning,
        stacklevel=4,
    )
