"""This process and this machine: identities that cannot be mistaken, and CPUs.

Covers: boot, process ids and their start times, how many workers are meant by ``n_jobs``.
Does not cover: memory (``limits``, ``usage``).
"""

import contextlib
import os
from functools import cache
from operator import index
from pathlib import Path

from sharedmask.errors import ParameterError

# --- this machine, this process ------------------------------------------------------------------


@cache
def boot_id() -> str:
    """What changes when this machine restarts."""
    with contextlib.suppress(FileNotFoundError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def pid_namespace() -> int:
    """In which process ids mean what they mean here."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot; 0 where that cannot be told.

    A pid is used again, a pid with its start time is not.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The second field, the command's name, may contain spaces and parentheses.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def n_cpus() -> int:
    """CPUs that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def effective_n_jobs(n_jobs: int | None) -> int:
    """joblib's convention: None is 1, -1 every CPU this process may use, -2 all but one."""
    try:
        asked = 1 if n_jobs is None else index(n_jobs)
    except TypeError:
        asked = 0
    if asked == 0:
        raise ParameterError(f"n_jobs={n_jobs!r} has no meaning: give a number of jobs, or -1 for all CPUs")
    return asked if asked > 0 else max(1, n_cpus() + 1 + asked)
