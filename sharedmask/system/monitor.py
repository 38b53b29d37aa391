"""The monitor: memory over time, by phases.

Covers: sampling in a thread, peaks, the target and the pause threshold, timelines as files. Does
not cover: what counts as held (``usage``), refusing beforehand (``budget``).

A monitor that is open sees every operation of this process as a phase of its own: load, mask,
reduce, map, extract, network; of images that its workers extract one phase each.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from sharedmask.errors import MemoryLimitError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.system import settings, usage
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import atomic_write, write_text
from sharedmask.system.process import Event, Lock
from sharedmask.system.threads import start
from sharedmask.system.units import format_bytes, parse_bytes

_log = logging.getLogger("sharedmask.monitor")
_MOST_SAMPLES = 5_000


@dataclass(frozen=True)
class Sample:
    """What was held at one moment; bytes."""

    time: float
    held: int
    shared: int
    spilled: int
    children: dict[int, int]
    """Private memory of each descendant, by pid."""


@dataclass
class Phase:
    """A stretch of time with a name."""

    label: str
    first: Sample
    last: Sample
    peak: int

    def see(self, sample: Sample) -> None:
        self.last, self.peak = sample, max(self.peak, sample.held)


@dataclass(frozen=True)
class Snapshot:
    """Memory now, in bytes and per cent of the RAM."""

    total: int
    """RAM of the machine."""
    available: int
    """What may still be used, by the strictest limit."""
    reason: str
    """Which limit that is."""
    used: int
    percent: float
    process: int
    """Held by this process and its descendants, shared memory once."""
    process_percent: float
    shared: int
    spilled: int


@dataclass(frozen=True)
class MemoryReport:
    """Where the memory of an image and of its process is; bytes. As text, one line each."""

    image: int
    """In its store, once it is loaded."""
    loaded: bool
    store: str
    reason: str
    """Why that store."""
    held: int
    """By this process and its descendants, shared memory once."""
    shared: int
    """Of it, shared memory."""
    spilled: int
    """Files of images on disk that they use."""
    available: int
    """What may still be used."""
    limit: str
    """What sets that."""
    peaks: dict[str, int]
    """The most that was held in each kind of operation, while the setting ``monitor`` is on."""

    def __str__(self) -> str:
        state = "" if self.loaded else ", not loaded"
        lines = {
            "image": f"{format_bytes(self.image)} in {self.store} ({self.reason}){state}",
            "held by this process": f"{format_bytes(self.held)}, {format_bytes(self.shared)} of it shared",
            "on disk": format_bytes(self.spilled),
            "may be used": f"{format_bytes(self.available)} ({self.limit})",
            **{f"peak, {label}": format_bytes(peak) for label, peak in self.peaks.items()},
        }
        return "\n".join(f"{name:<22}{text}" for name, text in lines.items())


class MemoryMonitor:
    """Watches what this process and its descendants hold, while the ``with`` block lasts.

    Counted are proportional shares (PSS) of all processes' private pages, and shared memory once;
    files of the disk store apart from that. Never the sum of resident sizes, which counts a shared
    page once per process; nor pages of files, which the kernel drops when memory is short.

    Parameters
    ----------
    target : int, float or str, optional
        A warning tells when more than this is held: bytes, ``"8G"``, a fraction of the RAM.
    pause : int, float or str, optional
        While more than this is held, no operation begins (:meth:`admit`): batches of
        ``iter_masks`` and requests of other threads wait until memory was released.
    patience : float
        Seconds after which an operation that waits is refused instead.
    interval : float
        Seconds between samples.
    pid : int, optional
        The root of the tree; default: this process.
    operations : bool
        Whether each operation waits for ``pause`` and is a phase, whose begin and end are looked at; which
        takes some milliseconds each.

    Raises
    ------
    MemoryLimitError
        In an operation that waited for longer than ``patience``.

    Examples
    --------
    >>> with MemoryMonitor() as monitor:
    ...     with monitor.phase("work"):
    ...         block = bytes(2**20)
    >>> sorted(monitor.peaks)
    ['work']
    >>> monitor.peak >= monitor.peaks["work"]
    True
    """

    def __init__(
        self,
        *,
        target: int | float | str | None = None,
        pause: int | float | str | None = None,
        patience: float = 60.0,
        interval: float = 0.1,
        pid: int | None = None,
        operations: bool = True,
    ) -> None:
        self._target = None if target is None else parse_bytes(target, "target")
        self._pause = None if pause is None else parse_bytes(pause, "pause")
        self._patience = patience
        self._interval = interval
        self.operations = operations
        self._pid = os.getpid() if pid is None else pid
        self._lock = Lock()
        self._stopping = Event()
        self._open_phases: list[Phase] = []
        self._warned = False
        self.samples: list[Sample] = []
        self.phases: list[Phase] = []
        self.peak = 0

    def __enter__(self) -> "MemoryMonitor":
        self.sample()
        self._thread = threading.Thread(target=self._watch, name="sharedmask-monitor", daemon=True)
        start(self._thread)
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)
        self._stopping.set()
        self._thread.join()
        self.sample()
        self._tell()

    def _watch(self) -> None:
        while not self._stopping.wait(self._interval):
            self.sample()

    # --- looking ---

    def sample(self) -> Sample:
        """Look now, besides the regular samples.

        Returns
        -------
        Sample
            Bytes held, shared and on disk, and those of each descendant.
        """
        with self._lock:
            # A look takes a while: what it sees does not belong to a phase that begins meanwhile.
            phases = list(self._open_phases)
        held = usage.of_tree(self._pid)
        children = {pid: nbytes for pid, nbytes in held.private.items() if pid != self._pid}
        sample = Sample(time.time(), held.held, held.shared, held.spilled, children)
        with self._lock:
            self.samples.append(sample)
            self.peak = max(self.peak, sample.held)
            for phase in phases:
                phase.see(sample)
            if len(self.samples) > _MOST_SAMPLES:  # peaks are kept apart
                del self.samples[1::2]
                self._interval *= 2
        return sample

    @contextlib.contextmanager
    def phase(self, label: str) -> Iterator[Phase]:
        """Name what happens in the ``with`` block; phases may nest and repeat.

        Parameters
        ----------
        label : str
            Its name; those of one name are added to :attr:`peaks` together.

        Yields
        ------
        Phase
            With ``first``, ``last`` and ``peak``.
        """
        first = self.sample()
        phase = Phase(label, first, first, first.held)
        with self._lock:
            self.phases.append(phase)
            self._open_phases.append(phase)
        try:
            yield phase
        finally:
            self.sample()
            with self._lock:
                self._open_phases.remove(phase)
            self._tell()

    @property
    def peaks(self) -> dict[str, int]:
        """The most that was held in any phase of each label; bytes."""
        peaks: dict[str, int] = {}
        for phase in self.phases:
            peaks[phase.label] = max(phase.peak, peaks.get(phase.label, 0))
        return peaks

    def snapshot(self) -> Snapshot:
        """Memory now: of the machine, and of the tree that is watched.

        Returns
        -------
        Snapshot
            In bytes.
        """
        import psutil

        sample, ram, budget = self.sample(), psutil.virtual_memory(), MemoryBudget.here()
        return Snapshot(
            total=ram.total,
            available=max(budget.limit, 0),
            reason=budget.reason,
            used=ram.used,
            percent=ram.percent,
            process=sample.held,
            process_percent=100 * sample.held / ram.total,
            shared=sample.shared,
            spilled=sample.spilled,
        )

    # --- thresholds ---

    def _tell(self) -> None:
        """Warn of a passed target where the caller sees it, which is not the sampling thread."""
        if self._target is not None and self.peak > self._target and not self._warned:
            self._warned = True
            text = f"{format_bytes(self.peak)} were held, above the target of {format_bytes(self._target)}"
            warnings.warn(text, SharedMaskWarning, stacklevel=4)

    def admit(self, operation: str = "the next operation") -> None:
        """Return once no more than the pause threshold is held.

        Parameters
        ----------
        operation : str
            What waits, for messages.

        Raises
        ------
        MemoryLimitError
            That did not happen in time.
        """
        if self._pause is None:
            return
        deadline = time.monotonic() + self._patience
        while (held := self.sample().held) > self._pause:
            if time.monotonic() > deadline:
                raise MemoryLimitError(
                    f"{operation} waited for {self._patience:g} s: {format_bytes(held)} are held, "
                    f"and nothing begins above the pause threshold of {format_bytes(self._pause)}"
                )
            time.sleep(self._interval)

    # --- timelines ---

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline as ``mprof`` does: ``mprof plot PATH`` draws it.

        ``MEM`` is all that is held in MiB, ``CHLD`` the private memory of each descendant,
        ``FUNC`` a phase.

        Parameters
        ----------
        path : str or path
            A new file takes its place.
        """
        write_text(path, (f"{line}\n" for line in self._lines()))

    def _lines(self) -> Iterator[str]:
        yield "CMDLINE " + " ".join(argument.replace("\n", " ") for argument in sys.argv)
        for sample in self.samples:
            yield f"MEM {_number(sample.held)} {sample.time:.4f}"
            for pid, nbytes in sample.children.items():
                yield f"CHLD {pid} {_number(nbytes)} {sample.time:.4f}"
        for phase in self.phases:
            start, end = (f"{_number(at.held)} {at.time:.4f}" for at in (phase.first, phase.last))
            yield f"FUNC {'_'.join(phase.label.split())} {start} {end}"

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the timeline with its phases.

        Parameters
        ----------
        path : str or path
            Its ending is the format.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        start = self.samples[0].time
        times = [sample.time - start for sample in self.samples]
        axes = (figure := Figure(figsize=(8, 4), layout="constrained")).subplots()
        for label, name in (("held", "all memory"), ("shared", "shared memory"), ("spilled", "on disk")):
            axes.plot(times, [getattr(sample, label) / 2**20 for sample in self.samples], label=name)
        for number, phase in enumerate(self.phases):
            span = phase.first.time - start, phase.last.time - start
            axes.axvspan(*span, color=f"C{number % 10}", alpha=0.1)
            axes.annotate(phase.label, (span[0], phase.peak / 2**20), fontsize="small")
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        axes.legend()
        path = Path(path)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")


def _number(nbytes: int) -> str:
    return f"{nbytes / 2**20:.6f}"


# --- operations of this package ------------------------------------------------------------------

_watching: list[MemoryMonitor] = []
_peaks: dict[str, int] = {}


def peaks() -> dict[str, int]:
    """The most that was held in each kind of operation; while the setting ``monitor`` is on."""
    return dict(_peaks)


def report(loaded: bool, nbytes: int, store: tuple[str, str], budget: MemoryBudget) -> MemoryReport:
    """The report of an image of ``nbytes`` bytes."""
    now, available = usage.of_tree(), max(budget.limit, 0)
    return MemoryReport(
        nbytes, loaded, *store, now.held, now.shared, now.spilled, available, budget.reason, peaks()
    )


@contextlib.contextmanager
def operation(label: str, what: str, needed: int) -> Iterator[None]:
    """One operation, admitted, watched and logged as monitors and settings ask.

    ``needed`` is what it is projected to take; checking that is the budget's.
    """
    knobs = settings.current()
    with contextlib.ExitStack() as stack:
        watched = [monitor for monitor in _watching if monitor.operations]
        if knobs.monitor and not watched:
            watched = [stack.enter_context(MemoryMonitor(interval=0.02))]
        for monitor in watched:
            monitor.admit(what)
        phases = [stack.enter_context(monitor.phase(label)) for monitor in watched]
        yield
    for phase in phases:
        _peaks[label] = max(phase.peak, _peaks.get(label, 0))
    if knobs.log_memory:
        _log.info("%s", _line(what, needed, phases))


def _line(what: str, needed: int, phases: list[Phase]) -> str:
    now = usage.of_tree()
    peak = f", peak {format_bytes(max(phase.peak for phase in phases))}" if phases else ""
    shared = f"{format_bytes(now.shared)} of it shared"
    return f"{what}: projected {format_bytes(needed)}, in use {format_bytes(now.held)} ({shared}){peak}"
