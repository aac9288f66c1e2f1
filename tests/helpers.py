"""Helpers of tests in several folders."""

import torch
import torch.multiprocessing as mp


def run_two_processes(work, *arguments):
    """Calls ``work(rank, *arguments)`` in two processes."""
    # A spawned process imports everything again, for ten seconds. With a GPU, autograd has threads that forbid a fork.
    method = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(work, args=arguments, nprocs=2, start_method=method)
