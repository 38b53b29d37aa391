"""The budget: how much memory may be used from now on, and refusing what would need more.

Covers: the limit that holds for this process and for a call, what is kept free of it, and the check
before an operation. Does not cover: the single limits (``limits``), what operations take (``plan``), where
bytes go (``segment``).
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import field, replace

from sharedmask.errors import MemoryLimitError
from sharedmask.records import dataclass
from sharedmask.system import limits, settings
from sharedmask.system.limits import Limit
from sharedmask.system.settings import Settings
from sharedmask.system.units import format_bytes, parse_bytes

_of_call: ContextVar[int | float | str | None] = ContextVar("memory_limit", default=None)


@contextlib.contextmanager
def within(memory_limit: int | float | str | None) -> Iterator[None]:
    """Hold all that is read meanwhile to the ``memory_limit`` of a call; None changes nothing."""
    before = _of_call.set(_of_call.get() if memory_limit is None else memory_limit)
    try:
        yield
    finally:
        _of_call.reset(before)


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that may be allocated from now on, and what sets that limit.

    Parameters
    ----------
    limit : int
        Bytes.
    reason : str
        What sets the limit, for messages.
    settings : Settings, optional
        As they were when the budget was made: a call reads them once.

    Examples
    --------
    >>> budget = MemoryBudget(limit=2**30, reason="memory_limit")
    >>> budget.require("loading run.nii.gz", 2**20)
    """

    limit: int
    reason: str
    settings: Settings = field(default_factory=settings.current, repr=False, compare=False)
    """As they were when the budget was made: a call reads them once."""

    @classmethod
    def here(
        cls,
        memory_limit: int | float | str | None = None,
        held: int = 0,
        knobs: Settings | None = None,
    ) -> "MemoryBudget":
        """The strictest of all limits, less the fraction that is to stay free.

        They are: free RAM, the control groups of this process, a SLURM job's memory, the kernel's
        limits of this process (``ulimit -v``, ``-d``) and ``memory_limit``.

        Parameters
        ----------
        memory_limit : int, float, str or None
            Bytes; a fraction of the RAM (a float up to 1); or a text such as ``"8G"``. None: that of the
            call, else what the settings say.
        held : int
            Bytes that already count towards ``memory_limit``.
        knobs : Settings, optional
            Where they have been read already.

        Raises
        ------
        ParameterError
            An amount or a setting makes no sense.
        """
        found = limits.all_limits(held)
        knobs = knobs or settings.current()
        memory_limit = _of_call.get() if memory_limit is None else memory_limit
        memory_limit = knobs.memory_limit if memory_limit is None else memory_limit
        if memory_limit is not None:
            total = parse_bytes(memory_limit)
            found.append(Limit(total, total - held, f"memory_limit={memory_limit!r}"))
        left, reason = min(
            (limit.left - int(knobs.memory_buffer * limit.total), limit.reason) for limit in found
        )
        buffer = f", {knobs.memory_buffer:.0%} kept free" if knobs.memory_buffer else ""
        return cls(left, reason + buffer, knobs)

    def less(self, nbytes: int) -> "MemoryBudget":
        """What is left once some of it is taken.

        Parameters
        ----------
        nbytes : int
            What is taken.

        Returns
        -------
        MemoryBudget
            With the same reason.
        """
        return replace(self, limit=self.limit - nbytes)

    from_environment = here

    def why_on_disk(self, held: int, needed: int) -> str:
        """Why an image goes to the disk.

        Parameters
        ----------
        held : int
            Bytes that it takes.
        needed : int
            Bytes that it takes while it is loaded.

        Returns
        -------
        str
            Empty if it goes to memory, or has to.
        """
        knobs = self.settings
        if not knobs.use_disk:
            return ""
        if knobs.disk_threshold is not None and held > knobs.disk_threshold:
            return f"{format_bytes(held)} are more than disk_threshold, {format_bytes(knobs.disk_threshold)}"
        if needed > self.limit:
            may = format_bytes(max(self.limit, 0))
            return f"{format_bytes(needed)} are more than the {may} that may be used ({self.reason})"
        return ""

    def require(self, operation: str, needed: int, hint: str = "") -> None:
        """Refuse ``operation`` if it needs more bytes than there are.

        Parameters
        ----------
        operation : str
            What is to be done, and to which file.
        needed : int
            Bytes it will take at its peak.
        hint : str
            What would fit instead.

        Raises
        ------
        MemoryLimitError
            Naming the operation, what it needs, what there is, which limit that is, and ``hint``.
        """
        if needed > self.limit:
            there_is = format_bytes(max(self.limit, 0))
            raise MemoryLimitError(
                f"{operation} needs {format_bytes(needed)} and {there_is} may be used ({self.reason})"
                + (f": {hint}" if hint else "")
            )
