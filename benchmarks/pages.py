"""The documentation's figures: results put between markers, pictures beside them.

Covers: ``docs/benchmarks.md``, the figures of ``README.md`` beside that folder. Does not cover: the
text around them, which is written by hand.

A block begins with ``<!-- NAME -->`` and ends with ``<!-- /NAME -->``; what is between them is ours.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.data import ROOT
from benchmarks.results import Folder, write_whole

_HEADLINE = (
    "NiftiMasker, single, path",
    "NiftiMasker, parallel, path",
    "numpy, parallel, SharedMemory",
    "one NiftiMasker of the union",
    "SharedImage, shm",
    "extract",
)


def show_experiment(docs: Path, folder: Folder) -> None:
    """Table, pictures and machine into ``benchmarks.md``; a few rows, and the demo, into README."""
    facts = folder.facts
    made = _made_by(facts["command"], facts["machine"], facts["data"])
    _show_pictures(docs, folder.timeline, folder.bars)
    pictures = "\n\n".join(
        f"![{text}](images/{path.name})"
        for path, text in ((folder.timeline, "Memory over time, one panel per way."),
                           (folder.bars, "Time and memory of each way, with the limits."))
    )  # fmt: skip
    replace_block(docs / "benchmarks.md", "experiment", f"{made}\n{folder.table.read_text()}\n{pictures}\n")
    readme = docs.parent / "README.md"
    replace_block(readme, "experiment", _headline(facts["results"]))
    replace_block(readme, "demo", _demo())


def show_table(docs: Path, name: str, table: str, command: str, facts: dict[str, Any], given: str) -> None:
    """A plain table into the block of that name."""
    rows = table.rstrip().lstrip("\n")
    replace_block(docs / "benchmarks.md", name, f"{_made_by(command, facts, given)}\n```\n{rows}\n```\n")


def show_scaling(
    docs: Path, folder: Path, text: str, command: str, facts: dict[str, Any], given: str
) -> None:
    _show_pictures(docs, folder / "scaling.png")
    picture = "![Seconds as masks, voxels, volumes, jobs and images grow.](images/scaling.png)"
    replace_block(
        docs / "benchmarks.md", "scaling", f"{_made_by(command, facts, given)}\n{picture}\n\n{text}"
    )


def replace_block(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers of ``name``.

    Raises
    ------
    ValueError
        The page has no such block.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page} has no block from {begin} to {end}")
    write_whole(page, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")


def _made_by(command: str, facts: dict[str, Any], given: str) -> str:
    return f"```\n$ {command}\n{machine.described(facts)}\n{given}\n```\n"


def _show_pictures(docs: Path, *pictures: Path) -> None:
    (docs / "images").mkdir(exist_ok=True)
    for picture in pictures:
        shutil.copy(picture, docs / "images" / picture.name)


def _headline(results: Sequence[dict[str, Any]]) -> str:
    """The ways that README compares, and how often they fit."""
    rows = [
        result
        for result in results
        if result["name"].startswith(_HEADLINE[:2]) or result["name"] in _HEADLINE
    ]
    lines = ["| way | jobs | seconds | peak memory |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *map(_headline_row, rows)]) + "\n"


def _headline_row(result: dict[str, Any]) -> str:
    name = re.sub(r", \d+ jobs$", "", result["name"])
    if result["peak"] is None:
        return f"| {name} | {result['n_jobs']} | not run | needs {result['projected'] / 1e6:,.0f} MB |"
    seconds = "wrong" if result["seconds"] is None else f"{result['seconds']:.1f}"
    return f"| {name} | {result['n_jobs']} | {seconds} | {result['peak'] / 1e6:,.0f} MB |"


def _demo() -> str:
    command = [sys.executable, "-m", "sharedmask", "demo"]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    _, table = ran.stdout.split("\n\n", 1)  # after what it is about to do
    return f"```\n{table.rstrip()}\n```\n"
