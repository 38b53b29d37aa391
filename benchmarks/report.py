"""Results: rows with a bar, their verdict, the table and the JSON file."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["ok", "SHORT", "WRONG", "skipped", ""]


@dataclass(frozen=True)
class Bar:
    """What a ratio has to reach."""

    limit: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"

    def reached(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit


@dataclass(frozen=True)
class Row:
    """One comparison. Without a bar it is there to be read."""

    section: str
    what: str
    ours: float | None = None
    reference: float | None = None
    unit: str = "s"
    ratio: float | None = None
    bar: Bar | None = None
    wrong: bool = False
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.wrong:
            return "WRONG"
        if self.ours is None and self.reference is None:
            return "skipped"
        if self.bar is None or self.ratio is None:
            return ""
        return "ok" if self.bar.reached(self.ratio) else "SHORT"

    @property
    def failed(self) -> bool:
        return self.verdict in ("SHORT", "WRONG")


_TITLES = ("what", "ours", "reference", "ratio", "bar", "verdict")


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, one block per section, notes in the end of their lines."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(_TITLES, *cells, strict=True)]
    lines, section = [], ""
    for row, line in zip(rows, cells, strict=True):
        if row.section != section:
            section = row.section
            lines += ["", section, _aligned(_TITLES, widths)]
        lines.append(f"{_aligned(line, widths)}  {row.note}".rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    bar = "" if row.bar is None else str(row.bar)
    return (row.what, _amount(row.ours, row.unit), _amount(row.reference, row.unit), ratio, bar, row.verdict)


def _amount(number: float | None, unit: str) -> str:
    if number is None:
        return ""
    if unit != "s":
        return f"{number:,.0f} {unit}"
    return f"{number:.2f} s" if number >= 1 else f"{number * 1000:.1f} ms"


def _aligned(cells: Iterable[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def write_json(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """All rows with their verdicts, and ``facts``; the file gets its name when it is complete."""
    found = [{**asdict(row), "verdict": row.verdict} for row in rows]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
