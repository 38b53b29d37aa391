"""Functions in worker processes."""

from sharedmask.workers.pool import run_processes


def in_worker(function, *arguments):
    """What it gives in one."""
    (answer,) = run_processes(function, (), [arguments], 1)
    return answer
