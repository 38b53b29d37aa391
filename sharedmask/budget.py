"""How much memory may be used, and refusing what would need more.

Covers: the limit that holds for this process (RAM, control groups, the user's own) and the check
before an operation. Does not cover: what operations take (each projects its own), where bytes go
(``segments``).
"""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedmask.errors import MemoryLimitError, ParameterError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that may be allocated from now on, and what sets that limit.

    Examples
    --------
    >>> budget = MemoryBudget(limit=2**30, reason="memory_limit")
    >>> budget.require("loading run.nii.gz", 2**20)
    """

    limit: int
    reason: str

    @classmethod
    def here(cls, memory_limit: int | float | str | None = None, held: int = 0) -> "MemoryBudget":
        """The strictest of: free RAM, the control groups of this process, ``memory_limit``.

        Parameters
        ----------
        memory_limit : int, float, str or None
            Bytes; a fraction of the RAM (a float up to 1); or a text such as ``"8G"``.
        held : int
            Bytes that already count towards ``memory_limit``.
        """
        limits = [(_ram().available, "free RAM"), *_cgroup_limits()]
        if memory_limit is not None:
            limits.append((parse_bytes(memory_limit) - held, f"memory_limit={memory_limit!r}"))
        return cls(*min(limits))

    def require(self, operation: str, needed: int) -> None:
        """Refuse ``operation`` if it needs more bytes than there are.

        Raises
        ------
        MemoryLimitError
            Naming the operation, what it needs, what there is and which limit that is.
        """
        if needed > self.limit:
            raise MemoryLimitError(
                f"{operation} needs {mib(needed)} and {mib(max(self.limit, 0))} may be used ({self.reason})"
            )


def _ram() -> Any:
    import psutil  # here, because an image that is never loaded need not wait for it

    return psutil.virtual_memory()


def mib(nbytes: float) -> str:
    """Bytes as text, in MiB."""
    return f"{nbytes / 2**20:,.0f} MiB"


def parse_bytes(amount: int | float | str) -> int:
    """Bytes of ``8_000_000``, ``"8G"``, ``"512 MiB"`` or ``0.5`` (of the RAM)."""
    nbytes = _of_text(amount) if isinstance(amount, str) else float(amount)
    if not math.isfinite(nbytes):
        raise ParameterError(f"memory_limit={amount!r} is no amount of memory")
    if isinstance(amount, float) and 0 < amount <= 1:
        nbytes *= _ram().total
    if nbytes < 1:
        raise ParameterError(f"memory_limit={amount!r} leaves no memory")
    return int(nbytes)


def _of_text(amount: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", amount, re.IGNORECASE)
    if not found:
        raise ParameterError(f"memory_limit={amount!r} is no amount of memory: write '8G' or '512M'")
    return float(found[1]) * _UNITS[found[2].upper()]


def _cgroup_limits() -> Iterator[tuple[int, str]]:
    """What each control group above this process leaves.

    Batch systems set the limit on an ancestor, while the process's own group says "max": the
    whole way up counts.
    """
    for base, limit_name, used_name in _cgroup_folders():
        with contextlib.suppress(OSError, ValueError):
            limit = int((base / limit_name).read_text())
            used = int((base / used_name).read_text()) - _reclaimable(base)
            yield max(limit - max(used, 0), 0), f"control group {base}"


def _cgroup_folders() -> Iterator[tuple[Path, str, str]]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = _CGROUPS, ("memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield folder, *names


def _reclaimable(folder: Path) -> int:
    """File pages of the group that the kernel drops before it refuses memory."""
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return 0
