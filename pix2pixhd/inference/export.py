"""``pix2pixhd export``: export of trained generators to ``torch.export``, ONNX and NVIDIA's format."""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pix2pixhd.checkpoints.atomic import save_torch
from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.checkpoints.generators import LoadedGenerator, generator_of
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import encode_input
from pix2pixhd.errors import InputError, install_command
from pix2pixhd.files import check_replaceable, replacing, replacing_all

__all__ = ["ExportedGenerator", "export_nvidia", "export_onnx", "export_program"]

# Other runtimes use other convolution algorithms and orders of addition. The differences stay far below one grey level,
# which is 7.8e-3 in [−1, 1].
_TOLERANCE = 2e-3


class ExportedGenerator(nn.Module):
    """A generator with the encoding of its inputs: it takes label ids and returns images.

    Args:
        generator: The generator, from ``load_generator``.

    Example:
        >>> exported = ExportedGenerator(load_generator("last.ckpt"))  # doctest: +SKIP
    """

    def __init__(self, generator: LoadedGenerator) -> None:
        super().__init__()
        self.network = generator.network
        self.label_nc = generator.data.label_nc
        self.has_instance = not generator.data.no_instance
        self.has_features = generator.model.has_features

    @property
    def names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [
            "label" if self.label_nc else "image",
            *(["instance"] if self.has_instance else []),
            *(["features"] if self.has_features else []),
        ]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Generates images.

        Args:
            inputs: Label ids ``[N, H, W]`` int32 or images ``[N, C, H, W]`` float32 in [−1, 1]. If the generator was
                trained with them, followed by instance ids ``[N, H, W]`` int32 and features ``[N, F, H, W]`` float32.

        Returns:
            Images ``[N, C, H, W]`` in [−1, 1].
        """
        rest = list(inputs[1:])
        condition = encode_input(inputs[0], rest.pop(0) if self.has_instance else None, self.label_nc)
        if self.has_features:
            condition = torch.cat([condition, rest.pop(0)], dim=1)
        image: Tensor = self.network(condition)
        return image


def _example(generator: LoadedGenerator, size: tuple[int, int]) -> tuple[Tensor, ...]:
    width, height = size
    data, draw = generator.data, torch.Generator().manual_seed(0)

    def ids(count: int) -> Tensor:
        return torch.randint(count, (1, height, width), generator=draw, dtype=torch.int32)

    def values(channels: int) -> Tensor:
        return torch.rand(1, channels, height, width, generator=draw) * 2 - 1

    return (
        ids(data.label_nc) if data.label_nc else values(data.input_nc),
        *([] if data.no_instance else [ids(20)]),
        *([values(generator.model.feat_num)] if generator.model.has_features else []),
    )


def _check_size(generator: LoadedGenerator, size: tuple[int, int]) -> None:
    multiple = generator.model.multiple
    if any(length % multiple or length < 2 * multiple for length in size):
        raise InputError(
            f"--size: width and height must be multiples of {multiple} and at least {2 * multiple} for this generator, "
            f"got {size[0]}x{size[1]}"
        )


def _check_agreement(found: Tensor, expected: Tensor) -> float:
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE:
        raise InputError(
            f"the images of the exported generator differ from those of the original by {difference:.2g} (in [−1, 1]), "
            "so no file was written; try another version of torch"
        )
    return difference


@torch.no_grad()
def export_program(
    generator: LoadedGenerator, path: pathlib.Path, size: tuple[int, int], *, force: bool = False
) -> float:
    """Writes a ``torch.export`` program, which ``torch.export.load(path).module()`` runs without this package.

    The file is written under a temporary name. It is renamed after its output was compared with the original's.

    Args:
        generator: The generator, from ``load_generator``, on the CPU.
        path: The ``.pt2`` file to write.
        size: Width and height of the images.
        force: Whether an existing file may be replaced.

    Returns:
        The largest absolute difference between the images of the program and of the original, for random inputs.

    Raises:
        InputError: If the generator does not support the size, if the file exists or cannot be written, or if the
            images differ from the original's.

    Example:
        >>> export_program(load_generator("last.ckpt"), pathlib.Path("city.pt2"), (1024, 512))  # doctest: +SKIP
    """
    _check_size(generator, size)
    check_replaceable([path], force)
    module, inputs = ExportedGenerator(generator).eval(), _example(generator, size)
    # Save to memory first: torch's archive writer aborts the process if writing fails, for example on a full disk.
    archive = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs), archive)
    with replacing(path, force=force) as part:
        part.write_bytes(archive.getbuffer())
        return _check_agreement(torch.export.load(part).module()(*inputs), module(*inputs))


@torch.no_grad()
def export_onnx(generator: LoadedGenerator, path: pathlib.Path, size: tuple[int, int], *, force: bool = False) -> float:
    """Writes an ONNX model that contains the weights, and runs it once with onnxruntime.

    Args:
        generator: The generator, from ``load_generator``, on the CPU.
        path: The ``.onnx`` file to write.
        size: Width and height of the images.
        force: Whether an existing file may be replaced.

    Returns:
        The largest absolute difference between the images of the model and of the original, for random inputs.

    Raises:
        InputError: As for ``export_program``, and if onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> export_onnx(load_generator("last.ckpt"), pathlib.Path("city.onnx"), (1024, 512))  # doctest: +SKIP
    """
    _check_size(generator, size)
    check_replaceable([path], force)
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs {error.name}: {install_command('export')}") from None
    module, inputs = ExportedGenerator(generator).eval(), _example(generator, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's warnings about its own implementation
        program = torch.onnx.export(
            module, inputs, input_names=module.names, output_names=["generated"], dynamo=True, verbose=False
        )
    assert program is not None
    with replacing(path, force=force) as part:
        program.save(part, external_data=False)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        fed = {name: value.numpy() for name, value in zip(module.names, inputs, strict=True)}
        return _check_agreement(torch.from_numpy(session.run(None, fed)[0]), module(*inputs))


_OPT = """------------ Options -------------
{lines}
-------------- End ----------------
"""


def export_nvidia(
    checkpoint: pathlib.Path, folder: pathlib.Path, averaged: bool = True, *, force: bool = False
) -> list[pathlib.Path]:
    """Writes ``latest_net_G.pth``, ``latest_net_D.pth`` and, with an encoder, ``latest_net_E.pth`` for NVIDIA's code.

    An ``opt.txt`` beside them lists the options with which NVIDIA's scripts load them. Either all files are written, or
    none.

    Args:
        checkpoint: A ``.ckpt`` file.
        folder: The folder to write, ``checkpoints/NAME`` in NVIDIA's code.
        averaged: Whether to use the moving average of the generator's weights, if the checkpoint has one.
        force: Whether existing files may be replaced.

    Returns:
        The files with weights.

    Raises:
        InputError: If the checkpoint cannot be read, or if the files exist or cannot be written.

    Example:
        >>> export_nvidia(pathlib.Path("last.ckpt"), pathlib.Path("checkpoints/city"))  # doctest: +SKIP
    """
    check_replaceable([folder / f"latest_net_{net}.pth" for net in "GDE"] + [folder / "opt.txt"], force)
    content = read_checkpoint(checkpoint)
    generator = generator_of(content, averaged)
    nets: dict[str, dict[str, Any]] = {"G": dict(generator.network.state_dict()), "D": content.network("netD")}
    if generator.encoder is not None:
        nets["E"] = dict(generator.encoder.state_dict())
    options = {**vars(content.model), **_nvidia_data(content.data), "name": folder.resolve().name}
    lines = "\n".join(f"{name}: {value}" for name, value in sorted(options.items()))
    files = [folder / f"latest_net_{net}.pth" for net in nets]
    with replacing_all([*files, folder / "opt.txt"], force=force) as (*parts, opt_txt):
        for part, weights in zip(parts, nets.values(), strict=True):
            save_torch(weights, part)
        opt_txt.write_text(_OPT.format(lines=lines), encoding="utf-8")
    return files


def _nvidia_data(data: DataOptions) -> dict[str, Any]:
    names = ("label_nc", "input_nc", "output_nc", "no_instance", "resize_or_crop", "loadSize", "fineSize", "no_flip")
    return {name: getattr(data, name) for name in names}
