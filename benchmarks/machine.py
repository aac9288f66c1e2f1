"""What a file of results records of its origin. Without torch until ``described`` is called."""

import datetime
import pathlib
import shlex
import sys


def described(device="cpu"):
    """The machine, the versions, the date and the command of this process, as in the files of ``pix2pixhd bench``."""
    import torch

    from pix2pixhd.cli.bench import machine

    return {**machine(torch.device(device)), "date": f"{datetime.date.today()}", "command": command(sys.argv)}


def command(argv):
    """The command line without the files that it writes."""
    from pix2pixhd.cli.bench import measuring

    script, *arguments = argv
    return shlex.join(["python", f"benchmarks/{pathlib.Path(script).name}", *measuring(arguments)])
