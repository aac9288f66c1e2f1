"""The ``pix2pixhd`` command, which dispatches to its subcommands."""

from __future__ import annotations

import argparse
import difflib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import pix2pixhd
from pix2pixhd.errors import InputError, install_command, out_of_memory

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
    "train": "train a generator: --config FILE.yaml, --resume, and any option of the configuration",
    "generate": "generate images from label maps or images with a trained generator",
    "features": "cluster the instance features of a dataset, for generators trained with features",
    "export": "write a trained generator as ONNX, as a torch.export program, or for NVIDIA's code",
    "migrate": "print the configuration that corresponds to an opt.txt of NVIDIA's code",
    "data": "check DIR: report all problems of a dataset",
    "demo": "train on photographs shipped with scikit-image and write an image grid of results",
    "doctor": "report the state of the installation, test the operators and measure the speed-up",
    "bench": "benchmark the fused losses, plain PyTorch and torch.compile",
}


# Each command imports its own dependencies, so that `pix2pixhd doctor` works without Lightning and starts fast.


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
        description="Print the configuration that corresponds to an opt.txt of NVIDIA's code. Save it to a file for "
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
    parser = argparse.ArgumentParser(prog="pix2pixhd demo", description="Train on photographs, without a download.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/demo"), help="folder for the results")
    parser.add_argument("--max-minutes", type=float, default=4.0, help="maximum duration (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the training (default: 0)")
    parser.add_argument(
        "--perceptual",
        nargs="?",
        const="imagenet",
        metavar="PATH",
        help="also train with the perceptual loss, with VGG19's weights from this file; without PATH, from torch.hub's "
        "cache or a download of 550 MB",
    )
    options = parser.parse_args(argv)
    from pix2pixhd.demo.run import run_demo

    run_demo(options.out, options.max_minutes, options.seed, options.perceptual)
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
    commands = "\n".join(f"  {name:<10}{purpose}" for name, purpose in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pix2pixhd",
        description=f"{pix2pixhd.__doc__}\n\ncommands:\n{commands}",
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
    "bench": "lower --size, --batch or --num-d, or use --dtype bfloat16 or --device cpu",
}


def _message(error: Exception, command: str) -> str | None:
    """Returns the message for an error that the user can correct; None for other errors."""
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    reason = out_of_memory(error)
    if reason is not None and "GPU" in reason:
        other = "end other programs that use the GPU, or hide it: CUDA_VISIBLE_DEVICES="
        return f"{reason}; {_LESS_MEMORY.get(command, other)}"
    if reason is not None:
        return f"{reason}; {re.sub(r',? or (use )?--device cpu$', '', _LESS_MEMORY.get(command, 'end other programs'))}"
    return str(error) if isinstance(error, InputError) else None


def _missing(error: ModuleNotFoundError) -> str | None:
    """Returns the extra to install, if the missing module belongs to one."""
    package = (error.name or "").split(".")[0]
    if package == "skimage":
        return f"this command needs scikit-image: {install_command('train,demo')}"
    if package in _TRAIN_EXTRAS:
        return f"this command needs {package}: {install_command('train')}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    For errors that the user can correct, the command prints a message to stderr and returns exit code 2. Set
    ``PIX2PIXHD_TRACEBACK=1`` for the traceback.

    Args:
        argv: The arguments. None uses the arguments of the process.

    Returns:
        The command's exit code; 2 for invalid input, 130 for an interrupt.

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
    # PyTorch reads this at its first allocation. On Linux, tensors of 2 MiB and more are then backed by huge pages, so
    # that touching new memory costs much less: a float32 step on two cores takes 4 % less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
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
