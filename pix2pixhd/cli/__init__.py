"""Command-line interface of ``pix2pixhd``."""
