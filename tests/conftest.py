"""Shares the machine's cores between the processes that run the tests."""

import os

import torch


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the programs that tests start
        torch.set_num_threads(threads)
