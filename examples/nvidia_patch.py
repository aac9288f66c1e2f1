"""Train with an unmodified checkout of NVIDIA's pix2pixHD or of SPADE, and the fused losses.

python examples/nvidia_patch.py /path/to/pix2pixHD --name label2city_512p [options of its train.py]
"""

from __future__ import annotations

import os
import pathlib
import runpy
import sys

from pix2pixhd.integrations import nvidia


def main(checkout: pathlib.Path, arguments: list[str]) -> list[str]:
    """Patches the checkout's losses, runs its train.py, and returns the names of what was replaced."""
    os.chdir(checkout)  # its scripts read and write relative to their folder
    sys.argv = ["train.py", *arguments]
    with nvidia.patch(".") as patch:
        print("replaced: " + ", ".join(patch.replaced))
        runpy.run_path("train.py", run_name="__main__")
        return patch.replaced


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
