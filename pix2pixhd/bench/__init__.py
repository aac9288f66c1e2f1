"""Benchmark cases and timing for ``pix2pixhd bench``, ``pix2pixhd doctor`` and the suites in ``benchmarks/``."""
