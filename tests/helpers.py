"""Helpers of tests in several folders."""

import os
import socket
import sys

import torch
import torch.multiprocessing as mp

from pix2pixhd.cli.main import main


def run_two_processes(work, *arguments):
    """Calls ``work(rank, *arguments)`` in two processes."""
    # A spawned process imports everything again, for ten seconds. With a GPU, autograd has threads that forbid a fork.
    method = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(work, args=arguments, nprocs=2, start_method=method)


def _command(rank, folder, port, arguments):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_WORLD_SIZE="1"
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    output = os.open(folder / f"process_{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        sys.exit(main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_command_under_torchrun(folder, arguments):
    """Run the command line in two processes with torchrun's environment, but without its slow start.

    Returns:
        The exit codes, and what both processes printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    context = mp.get_context("spawn" if torch.cuda.is_available() else "fork")
    words = [str(argument) for argument in arguments]
    processes = [context.Process(target=_command, args=(rank, folder, port, words)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        process.kill()  # no effect after the end
    codes = [process.exitcode for process in processes]
    return codes, "".join((folder / f"process_{rank}.txt").read_text() for rank in (0, 1))


def fails(capsys, arguments, *parts):
    """Run a command that reports an error without a traceback. The message contains the parts; it is returned."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in parts:
        assert part in error
    return error
