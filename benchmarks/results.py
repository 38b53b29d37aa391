"""What the experiment found, and the folder that it is written to.

Covers: a result, the table as Markdown and CSV, all of it as JSON. Does not cover: pictures
(``pictures``), the documentation (``pages``).
"""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.watching import Sample, Watched

State = Literal["ok", "wrong", "skipped", "failed"]

_TITLES = ("way", "jobs", "wall s", "CPU s", "peak MB", "mprof peak MB", "on disk MB", "")


@dataclass(frozen=True)
class Limits:
    """What no way can do without: seconds and bytes."""

    decompress: float
    copy: float
    """Of the signals, once."""
    image: int
    signals: int


@dataclass(frozen=True)
class Result:
    """One way; bytes and seconds. What was not measured is None."""

    name: str
    n_jobs: int
    ours: bool
    projected: float
    state: State = "ok"
    note: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    n_runs: int = 0
    """That were timed undisturbed; 0: the time is that of the watched run."""
    n_processes: int = 0
    peak: int | None = None
    mprof_peak: float | None = None
    spilled: int | None = None
    samples: list[Sample] = field(default_factory=list)
    mprof: list[tuple[float, float]] = field(default_factory=list)

    def seen(self, found: Watched) -> "Result":
        return replace(
            self,
            seconds=found.seconds,
            cpu_seconds=found.cpu_seconds,
            n_processes=found.n_processes,
            peak=found.peak,
            mprof_peak=found.mprof_peak,
            spilled=found.peak_spilled,
            samples=found.samples,
            mprof=found.mprof,
        )

    @property
    def verdict(self) -> str:
        if self.state == "skipped":
            return f"not run: {self.note}"
        if self.state != "ok":
            return f"{self.state.upper()}: {self.note}"
        return "" if self.n_runs else "timed while watched"

    @property
    def cells(self) -> tuple[str, ...]:
        times = [_number(value, 2) for value in (self.seconds, self.cpu_seconds)]
        bytes_ = [_megabytes(value) for value in (self.peak, self.mprof_peak, self.spilled)]
        return (self.name, str(self.n_jobs), *times, *bytes_, self.verdict)


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _megabytes(nbytes: float | None) -> str:
    return _number(None if nbytes is None else nbytes / 1e6, 0)


def markdown(results: Sequence[Result]) -> str:
    rows = [_TITLES, ("---", *["---:"] * (len(_TITLES) - 2), "---"), *(result.cells for result in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


class Folder:
    """Where one experiment goes."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.table = path / "table.md"
        self.json = path / "results.json"
        self.timeline = path / "timeline.png"
        self.bars = path / "bars.png"

    def dat(self, name: str) -> Path:
        """mprof's file of one way."""
        return self.path / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.dat"

    def write(self, results: Sequence[Result], limits: Limits, facts: dict[str, Any]) -> None:
        """Tables, JSON and pictures."""
        from benchmarks import pictures

        write_whole(self.table, markdown(results) + f"\n{_legend(limits)}\n")
        write_whole(self.path / "table.csv", _comma_separated(results))
        found = {**facts, "limits": asdict(limits), "results": [asdict(result) for result in results]}
        write_whole(self.json, json.dumps(found, indent=1) + "\n")
        pictures.timeline(results, self.timeline)
        pictures.bars(results, limits, self.bars)

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.json.read_text())
        return found


def _legend(limits: Limits) -> str:
    return (
        f"Limits: decompressing the run takes {limits.decompress:.2f} s, copying the signals "
        f"{limits.copy:.3f} s; the run is {limits.image / 1e6:,.0f} MB, the signals are "
        f"{limits.signals / 1e6:,.0f} MB. "
        "Peak: PSS of all processes and shared memory once, an interpreter and its libraries "
        "included. mprof peak: resident sizes, summed."
    )


def _comma_separated(results: Sequence[Result]) -> str:
    text = io.StringIO()
    names = ("name", "n_jobs", "ours", "state", "seconds", "cpu_seconds", "n_runs", "n_processes",
             "peak", "mprof_peak", "spilled", "projected", "note")  # fmt: skip
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([getattr(result, name) for name in names] for result in results)
    return text.getvalue()


def write_whole(path: Path, text: str) -> None:
    """The file gets its name when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
