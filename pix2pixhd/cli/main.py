"""The ``pix2pixhd`` command."""

from __future__ import annotations

import argparse
import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import pix2pixhd
from pix2pixhd.errors import InputError

__all__ = ["main"]

_TRAIN_EXTRAS = {
    "lightning",
    "jinja2",
    "jsonargparse",
    "pytorch_lightning",
    "rich",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "tqdm",
    "yaml",
}
_COMMANDS = {
    "train": "train a generator: --config FILE.yaml, --resume, and any option of the file",
    "generate": "generate images from label maps or images with a trained generator",
    "features": "cluster the instance features of a dataset, for generators trained with features",
    "export": "write a trained generator as ONNX, as a torch.export program, or for NVIDIA's code",
    "migrate": "print the configuration that corresponds to an opt.txt of NVIDIA's code",
    "data": "check DIR: report all problems of a dataset",
    "demo": "train on photographs that scikit-image ships and write a sheet of results",
    "doctor": "report what was built, what loads, and what the fused losses save on this machine",
    "bench": "measure the fused losses against plain PyTorch and torch.compile",
}


# Each command imports what it needs: `pix2pixhd doctor` must work, and start fast, without Lightning.


def _train(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        from pix2pixhd.cli.train_help import short_help

        print(short_help())
        return 0
    from pix2pixhd.config.parser import parse_train

    config, resume = parse_train(argv)
    from torch._dynamo.exc import TorchDynamoException

    from pix2pixhd.training.callbacks.summary import closing_message
    from pix2pixhd.training.run import train

    try:
        trainer = train(config, resume=resume).trainer
    except TorchDynamoException as error:
        raise InputError(
            f"compute.compile: torch.compile failed ({str(error).splitlines()[0]}); install a C++ compiler, or set "
            "compute.compile: false"
        ) from error
    if trainer.is_global_zero:
        print(closing_message(trainer, pathlib.Path(config.run.output)))
    return 0


def _generate(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.generate import main as generate

    return generate(argv)


def _features(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.features import main as features

    return features(argv)


def _export(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.export import main as export

    return export(argv)


def _migrate(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd migrate",
        description="Prints the configuration that corresponds to an opt.txt of NVIDIA's code; save it to a file for "
        "`pix2pixhd train --config`.",
    )
    parser.add_argument("options", type=pathlib.Path, metavar="OPT.TXT", help="checkpoints/NAME/opt.txt")
    options = parser.parse_args(argv)
    from pix2pixhd.config.nvidia import as_text

    print(as_text(options.options))
    return 0


def _data(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.data import main as data

    return data(argv)


def _demo(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="pix2pixhd demo", description="Trains on photographs, without a download.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/demo"), help="folder for the results")
    parser.add_argument("--max-minutes", type=float, default=4.0, help="upper bound of the whole demo's duration")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    from pix2pixhd.demo.run import run_demo

    run_demo(options.out, options.max_minutes, options.seed)
    return 0


def _doctor(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.doctor import main as doctor

    return int(doctor(argv) or 0)


def _bench(argv: Sequence[str]) -> int:
    from pix2pixhd.cli.bench import main as bench

    return int(bench(argv) or 0)


_RUN: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "generate": _generate,
    "features": _features,
    "export": _export,
    "migrate": _migrate,
    "data": _data,
    "demo": _demo,
    "doctor": _doctor,
    "bench": _bench,
}


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<10}{purpose}" for name, purpose in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pix2pixhd",
        description=f"{pix2pixhd.__doc__}\n\ncommands:\n{listed}",
        epilog="`pix2pixhd COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pix2pixhd {pix2pixhd.__version__}")
    parser.add_argument("command", choices=list(_COMMANDS), metavar="COMMAND", help="one of the commands above")
    return parser


_LESS_MEMORY = {
    "train": "lower data.batchSize, data.loadSize or data.fineSize, or set compute.checkpoint_activations or "
    "trainer.precision: bf16-mixed",
    "generate": "lower --batch, scale the images down with --resize_or_crop scale_width --loadSize WIDTH, or use "
    "--device cpu",
    "features": "scale the images down with --resize_or_crop scale_width --loadSize WIDTH, or use --device cpu",
    "bench": "use --dtype bfloat16, or --device cpu",
}


def _message(error: Exception, command: str) -> str | None:
    """What to tell the user about an error that they can correct; None for any other."""
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    torch = sys.modules.get("torch")  # not imported here, as most errors come before it is needed
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        remedy = _LESS_MEMORY.get(command, "end other programs that use the GPU, or hide it: CUDA_VISIBLE_DEVICES=")
        return f"out of GPU memory ({str(error).partition(chr(10))[0]}); {remedy}"
    return str(error) if isinstance(error, InputError) else None


def _missing(error: ModuleNotFoundError) -> str | None:
    """Which extra to install, if the missing module belongs to one."""
    package = (error.name or "").split(".")[0]
    if package == "skimage":
        return "this command needs scikit-image: pip install 'pix2pixhd-fused[train,demo]'"
    if package in _TRAIN_EXTRAS:
        return f"this command needs {package}: pip install 'pix2pixhd-fused[train]'"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Errors that the user can correct end with one message on stderr and exit code 2; set ``PIX2PIXHD_TRACEBACK=1`` for
    the traceback.

    Args:
        argv: The arguments; those of the process when None.

    Returns:
        The exit code: 0, or 2 for input that cannot be used.

    Example:
        >>> main(["train", "--config", "missing.yaml"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments and (close := difflib.get_close_matches(arguments[0], _COMMANDS, n=1)) and close != arguments[:1]:
        parser.error(
            f"there is no command {arguments[0]!r}; did you mean {close[0]}? All commands: {', '.join(_COMMANDS)}"
        )
    options = parser.parse_args(arguments[:1])
    try:
        return _RUN[options.command](arguments[1:])
    except Exception as error:
        message = _message(error, options.command)
        if message is None or os.environ.get("PIX2PIXHD_TRACEBACK", "") not in ("", "0"):
            raise
        print(f"pix2pixhd {options.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
