"""Limits: the memory and the CPUs that this machine, control groups, a batch job and the kernel allow.

Covers: each limit, how much of it is left; in words those on files and processes. Does not cover:
which of them a request is held to and what is kept free (``budget``).
"""

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from sharedmask.records import dataclass
from sharedmask.system import platform
from sharedmask.system.platform import resource

_CGROUPS = Path("/sys/fs/cgroup")
_MIB = 2**20
_NO_LIMIT = 2**62  # version 1 writes the largest number of pages where version 2 writes "max"


@dataclass(frozen=True)
class Limit:
    """Bytes in all, bytes left, and what sets them."""

    total: int
    left: int
    reason: str


def all_limits(held: int = 0) -> list[Limit]:
    """All limits of this process; ``held`` bytes of shared memory are its own, touched or not."""
    if not held and (known := _known.get()):
        return list(known)
    return [Limit(*ram(), "free RAM"), *_cgroups(), *_slurm(held), *_process_limits()]


_known: ContextVar[Sequence[Limit]] = ContextVar("known", default=())


@contextlib.contextmanager
def looked_up() -> Iterator[None]:
    """What the limits are now holds for all that is asked meanwhile: for work that takes hardly longer."""
    before = _known.set(all_limits())
    try:
        yield
    finally:
        _known.reset(before)


def capacity() -> int:
    """What this process could use if nothing were in use."""
    return min(limit.total for limit in all_limits())


def descriptors_left() -> int:
    """How many files this process may still open (``ulimit -n``)."""
    try:
        files = _most_files()
        return _NO_LIMIT if files is None else files - len(platform.open_descriptors())
    except OSError as error:
        return 0 if error.errno == errno.EMFILE else _NO_LIMIT


def _most_files() -> int | None:
    return None if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def explained(error: OSError) -> str:
    """What the system said, and the limit behind it where there is one."""
    files = _most_files()
    behind = {
        errno.EMFILE: f"a process may have {files} open: `ulimit -n`",
        errno.EFBIG: "files and shared memory are limited: `ulimit -f`",
        errno.EAGAIN: "processes and threads are limited: `ulimit -u`, or pids.max of a control group",
    }
    hint = behind.get(error.errno or 0)
    return f"{error.strerror or error}" + (f" ({hint})" if hint else "")


def ram() -> tuple[int, int]:
    """Bytes that the machine has, and that are available; on Linux without psutil, slow to import."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
        facts = {name: int(value.split()[0]) * 1024 for name, _, value in lines}
        if facts["MemAvailable"] <= facts["MemTotal"]:  # in containers it may be the host's
            return facts["MemTotal"], facts["MemAvailable"]
    import psutil

    found = psutil.virtual_memory()
    return found.total, found.available


# --- control groups ------------------------------------------------------------------------------


def _cgroups() -> Iterator[Limit]:
    """What each control group above this process leaves.

    Batch systems set the limit on an ancestor, while the process's own group says "max": the
    whole way up counts.
    """
    with contextlib.suppress(OSError):
        for base, most, in_use in _cgroup_files(Path("/proc/self/cgroup").read_text(), _CGROUPS):
            with contextlib.suppress(OSError, ValueError):
                limit = int(most.read_text())
                if limit < _NO_LIMIT:
                    used = int(in_use.read_text()) - _reclaimable(base)
                    yield Limit(limit, max(limit - max(used, 0), 0), f"control group {base}")


def cpu_quota() -> float | None:
    """CPUs' worth of time that the control groups above this process leave it; None: all of it."""
    quotas: list[float] = []
    with contextlib.suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text()
        for _, quota, period in _cgroup_files(groups, _CGROUPS, "cpu"):
            # Version 2 has both numbers in one file, and "max" for no quota; version 1 says -1.
            with contextlib.suppress(OSError, ValueError):
                words = quota.read_text().split()
                words += period.read_text().split() if len(words) == 1 else []
                if (allowed := int(words[0])) > 0:
                    quotas.append(allowed / int(words[1]))
    return min(quotas, default=None)


_FILES = {
    "memory": (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    "cpu": (("cpu.max", "cpu.max"), ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
}


@functools.cache
def _cgroup_files(groups: str, mounted: Path, controller: str = "memory") -> list[tuple[Path, Path, Path]]:
    """The folders of the groups of a controller in ``/proc/self/cgroup``, and the two files that tell."""
    found, (unified, separate) = [], _FILES[controller]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mounted, unified
        elif controller in controllers.split(","):
            root, names = mounted / controller, separate
        else:
            continue
        own = root / path.lstrip("/")
        above = [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
        found += [(folder, folder / names[0], folder / names[1]) for folder in above]
    return found


def _reclaimable(folder: Path) -> int:
    """File pages of the group that the kernel drops before it refuses memory."""
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return 0


# --- a batch job ---------------------------------------------------------------------------------


def _slurm(held: int) -> Iterator[Limit]:
    """This task's part of the job's memory on this node; what the other tasks use cannot be seen."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    for nbytes, source in _slurm_memory():
        # srun starts the tasks of a step side by side; a batch script has the node to itself.
        tasks = _count("SLURM_STEP_TASKS_PER_NODE") or 1
        status = _status()
        used = status["RssAnon"] + max(status["RssShmem"], held)
        yield Limit(nbytes // tasks, nbytes // tasks - used, f"the job's {source}")


def _slurm_memory() -> Iterator[tuple[int, str]]:
    """The job's bytes on this node, and the variable that tells; 0 there means all of the node."""
    per_node, per_cpu = _count("SLURM_MEM_PER_NODE"), _count("SLURM_MEM_PER_CPU")
    if per_node:
        yield per_node * _MIB, "SLURM_MEM_PER_NODE"
    elif per_cpu:
        own_cpus = (_count("SLURM_CPUS_PER_TASK") or 1) * slurm_tasks_per_node()
        yield per_cpu * _MIB * (_count("SLURM_CPUS_ON_NODE") or own_cpus), "SLURM_MEM_PER_CPU"


def slurm_tasks_per_node() -> int:
    """Tasks of the job on each node, as far as the job says."""
    return _count("SLURM_NTASKS_PER_NODE") or _count("SLURM_TASKS_PER_NODE") or 1


def _count(variable: str) -> int:
    """The number that a variable starts with: ``2(x3),1`` stands for nodes with 2, 2, 2 and 1."""
    found = re.match(r"\d+", os.environ.get(variable, ""))
    return int(found[0]) if found else 0


# --- the kernel's, per process -------------------------------------------------------------------


def _process_limits() -> Iterator[Limit]:
    """``ulimit -v`` and ``ulimit -d``, less what this process has mapped already."""
    if resource is None:
        return
    for kind, mapped, name in (
        (resource.RLIMIT_AS, "VmSize", "address space (RLIMIT_AS)"),
        (resource.RLIMIT_DATA, "VmData", "private memory (RLIMIT_DATA)"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield Limit(limit, limit - _status()[mapped], name)


def _status() -> dict[str, int]:
    """Bytes of this process, by the kernel's names; 0 where it does not tell."""
    found = dict.fromkeys(("VmSize", "VmData", "RssAnon", "RssShmem"), 0)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return found
