"""The command-line options of the benchmarks of training steps, and steps ready to run."""

import argparse
import contextlib
import dataclasses
import os

from arguments import image_size, positive

from pix2pixhd.bench.step_setup import StepSetup

# Huge pages for large tensors, as the package's commands request them, for both implementations.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

IMPLEMENTATIONS = ["original", "ours"]
DTYPES = ["float32", "bfloat16"]


@dataclasses.dataclass
class Setup(StepSetup):
    """Networks and image of a step, and whether its convolutions are computed; all of it from the command line."""

    empty_convolutions: bool = False

    def arguments(self):
        """The command line from which ``read`` returns this setup."""
        found = []
        for name, value in dataclasses.asdict(self).items():
            option = f"--{name.replace('_', '-')}"
            found += ([option] if value else []) if isinstance(value, bool) else [option, str(value)]
        return found

    @classmethod
    def add_arguments(cls, parser, **defaults):
        """Add one option per field; ``defaults`` replace those of the class."""
        for field in dataclasses.fields(cls):
            if isinstance(field.default, bool):
                continue
            default = defaults.get(field.name, field.default)
            help_text = "width x height" if field.name == "size" else None
            choices = ["global", "local"] if field.name == "network" else None
            option = f"--{field.name.replace('_', '-')}"
            kind = image_size if field.name == "size" else positive(int) if isinstance(field.default, int) else str
            parser.add_argument(option, type=kind, default=default, choices=choices, help=help_text)

    @staticmethod
    def add_empty_convolutions(parser):
        """Add the option of the commands that measure memory alone."""
        text = "leave out the convolutions' computation and workspaces; see benchmarks/empty_convolutions.py"
        parser.add_argument("--empty-convolutions", action="store_true", help=text)

    @classmethod
    def read(cls, options: argparse.Namespace):
        return cls(**{name: value for name, value in vars(options).items() if name in cls.__dataclass_fields__})


@contextlib.contextmanager
def prepared(implementation, dtype, setup, device="cpu"):
    """Yield a step that runs in ``dtype`` with the implementation's operators, and its inputs."""
    import torch
    from empty_convolutions import empty_convolutions

    import pix2pixhd
    from pix2pixhd.bench.steps import batch, make_step

    half = torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    convolutions = empty_convolutions(device) if setup.empty_convolutions else contextlib.nullcontext()
    with convolutions, pix2pixhd.backend("reference" if implementation == "original" else "fused"):
        # channels-last under autocast, as in the training package
        step = make_step(implementation, setup, device, channels_last=dtype == "bfloat16")

        def run(condition, real):
            with half:
                return step(condition, real)

        yield step, run, batch(setup, device)
