"""``python -m pix2pixhd`` is the ``pix2pixhd`` command."""

import sys

from pix2pixhd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
