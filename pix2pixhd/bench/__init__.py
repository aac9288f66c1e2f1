"""What ``pix2pixhd bench``, ``pix2pixhd doctor`` and the suites in ``benchmarks/`` share."""
