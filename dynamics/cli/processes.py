"""Which process of how many this is."""

import contextlib
import os
from collections.abc import Iterator

import jax

from dynamics.ensemble.plan import share


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def which(index: int | None, count: int | None, coordinator: str | None = None):
    """(index, count) of this process: as given, else of a SLURM array job, else of a SLURM step, else (0, 1).

    With `coordinator` (host:port) the second value, a context, joins the processes through `jax.distributed` and leaves it
    at the end; each still runs its own chunks on its own devices.
    """
    if (index is None) != (count is None):
        raise ValueError("--process-index and --process-count must be given together")
    process = share(_slurm() if index is None or count is None else (index, count))
    if coordinator is None:
        return process, contextlib.nullcontext()
    return process, _distributed(coordinator, process)


def _slurm() -> tuple[int, int]:
    for index, count, least in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
        ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ):
        if index in os.environ and count in os.environ:
            return int(os.environ[index]) - int(os.environ.get(least, 0)), int(os.environ[count])
    return 0, 1


@contextlib.contextmanager
def _distributed(coordinator: str, process: tuple[int, int]) -> Iterator[None]:
    index, count = process
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index, initialization_timeout=60)
    try:
        yield
    finally:
        jax.distributed.shutdown()
