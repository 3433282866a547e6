"""Several processes that train together without a launcher: each is told its rank by torch's environment variables."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

PRELOADED = ["tests.workers.tuning.runs"]
"""Imported once, by the server that the processes are copied from; torch and transformers take most of their time."""


def together(
    function: Callable[..., object], arguments: Sequence[object], *, num_processes: int, seconds: float
) -> None:
    """Call a function in several processes that torch.distributed connects; wait for all of them.

    Args:
        function: A module's; raises what fails.
        arguments: Its arguments, the same in all.
        num_processes: How many.
        seconds: They may take.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pipes = [context.Pipe() for _ in range(num_processes)]
    processes = [
        context.Process(target=_one, args=(pipe[1], rank, num_processes, port, function, arguments))
        for rank, pipe in enumerate(pipes)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
        failures = [pipe[0].recv() for pipe in pipes if pipe[0].poll()]
        assert not any(failures), "\n".join(filter(None, failures))
        codes = [process.exitcode for process in processes]
        assert codes == [0] * num_processes, f"exit codes {codes}"
    finally:
        for process in processes:
            process.kill()


def _one(
    pipe: Connection,
    rank: int,
    num_processes: int,
    port: int,
    function: Callable[..., object],
    arguments: Sequence[object],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    try:
        function(*arguments)
    except BaseException:
        pipe.send(traceback.format_exc())
        raise
    pipe.send("")
