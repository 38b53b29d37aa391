"""``sharedmask doctor``: a live test of this machine: what is there, and whether sharing works.

Covers: stores, room, attaching from another process, limits, what ``auto`` would choose. Does not
cover: repairing anything (``registry.reap`` cleans up).
"""

import os
import subprocess
import sys

import click
import numpy as np

from sharedmask.cli.base import commands
from sharedmask.errors import SharedMaskError
from sharedmask.records import dataclass
from sharedmask.storage import memory, registry
from sharedmask.storage.registry import OwnedSegment
from sharedmask.system import platform, process
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.units import format_bytes


@commands.command()
def doctor() -> None:
    """Test what this machine can do: stores, attaching, limits."""
    findings = examine()
    for finding in findings:
        click.echo(f"{'ok ' if finding.ok else 'NO '} {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings if finding.needed):
        raise SharedMaskError("this machine cannot share images")


_READER = """
import sys
from sharedmask.storage.segment import Handle, attach
print(int(attach(Handle.from_json(sys.argv[1])).arrays["rows"].sum()))
"""
_VALUES = np.arange(1000, dtype=np.int16).reshape(10, 100)


@dataclass(frozen=True)
class Finding:
    """One thing that was tried, and how it went; without a ``needed`` one nothing works."""

    what: str
    ok: bool
    detail: str
    needed: bool = False


def examine() -> list[Finding]:
    """Try everything; nothing is left behind."""
    if not platform.can_share():
        return [Finding("shared memory", False, platform.NOT_SHARED), _limit()]
    return [_registry(), _room(), _memfd(), *map(_sharing, memory.KINDS), _choice(), _limit()]


def _registry() -> Finding:
    try:
        n_images = len(registry.entries())
    except (SharedMaskError, OSError) as error:
        return Finding("registry", False, str(error), needed=True)
    return Finding("registry", True, f"{registry.directory()}, {n_images} images", needed=True)


def _room() -> Finding:
    free = memory.free_bytes()
    if free is None or not os.access(memory.SHM, os.W_OK | os.X_OK):
        return Finding("named shared memory", False, f"nothing can be made in {memory.SHM}")
    room = f"{memory.SHM} has room for {format_bytes(free)}"
    return Finding("named shared memory", free > 64 * 2**20, room)


def _memfd() -> Finding:
    there = platform.has_memfd()
    return Finding("anonymous memory", there, "sealed memfd" if there else "not on this system")


def _sharing(kind: str) -> Finding:
    what = f"attaching from another process ({kind})"
    needed = kind == memory.choose("auto", 2**20)[0]
    try:
        total = _read_elsewhere(kind)
    except (SharedMaskError, OSError, subprocess.SubprocessError, ValueError) as error:
        return Finding(what, False, " ".join(str(error).split()), needed)
    right = total == int(_VALUES.sum())
    return Finding(what, right, "the same numbers arrive" if right else "other numbers arrive", needed)


def _read_elsewhere(kind: str) -> int:
    with OwnedSegment("doctor", {"rows": (_VALUES.shape, _VALUES.dtype)}, kind) as owned:
        owned.segment.array("rows")[:] = _VALUES
        command = [sys.executable, "-c", _READER, owned.share({}).to_json()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise SharedMaskError((done.stderr.strip().splitlines() or ["no message"])[-1])
        return int(done.stdout)


def _choice() -> Finding:
    small = "{} ({})".format(*memory.choose("auto", 2**20))
    return Finding('store="auto"', True, f"{small} for an image of 1 MiB")


def _limit() -> Finding:
    budget = MemoryBudget.here()
    cpus = process.n_cpus()
    return Finding("limits", True, f"{format_bytes(budget.limit)} ({budget.reason}), {cpus} CPUs")
