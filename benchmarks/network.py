"""``python -m benchmarks network``: lesions on a connectome, beside the prior system's approach.

Covers: speed of the correlation alone, against the prior approach and against bare matrix products;
the whole way from the file to the maps; memory at 10 and at 500 lesions. Does not cover: whether the
numbers are right (the tests do; here both ways are compared with each other).

The prior approach is a transcription of its formulas into numpy: one file is read whole, the mean
course of all lesions is correlated with all subjects at once, sums are kept per lesion.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.data import ROOT
from benchmarks.report import Bar, Row

_SPEED = "SPEED: one run; the prior approach takes so many times as long"
_PRODUCTS = "PRODUCTS: bare sgemm takes so much of our time"
_MEMORY = "MEMORY: peak above the imports, of the block"
_MB = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--timepoints", type=int, default=200)
    parser.add_argument("--voxels", type=int, default=30_000)
    parser.add_argument("--lesions", type=int, default=20)
    parser.add_argument("--lesion-voxels", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--n-jobs", type=int, default=-1)
    parser.add_argument("--only", choices=("speed", "memory"), help="half of it")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; 1 if a bar is missed."""
    print(machine.described(machine.facts()), flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sharedmask-network-") as folder:
        given = [str(Path(folder)), json.dumps(vars(arguments))]
        _child("make", *given)
        if arguments.only != "memory":
            rows += _speed(_child("speed", *given))
        if arguments.only != "speed":
            rows += _memory(given)
    print(report.table(rows))
    return int(any(row.failed for row in rows))


def _child(task: str, *given: str) -> Any:
    """What a task says, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.network_tasks", task, *given]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _speed(found: dict[str, Any]) -> list[Row]:
    seconds, largest = found["seconds"], found["largest_difference"]
    at_least = Bar(8, at_most=False)
    rows = [
        Row(_SPEED, "correlation", seconds["ours"], seconds["prior"], ratio=found["speed"], bar=at_least,
            wrong=largest > 1e-6, note=f"largest difference of z {largest:.1e}"),
        Row(_SPEED, "file to maps", seconds["ours, whole"], seconds["prior, whole"],
            ratio=found["speed, whole"], note="with decompression, t, p and FDR"),
    ]  # fmt: skip
    for threads, ratio in found["of_products"].items():
        ours, bare = seconds[f"ours, {threads}"], seconds[f"sgemm, {threads}"]
        rows.append(Row(_PRODUCTS, threads, ours, bare, ratio=ratio, bar=Bar(0.6, at_most=False)))
    least, bare = seconds["least, one core"], seconds["sgemm, one core"]
    rows.append(Row(_PRODUCTS, "(products, z and its sums)", least, bare, ratio=found["least"],
                    note="the fewest passes of NumPy, one core"))  # fmt: skip
    return rows


def _memory(given: list[str]) -> list[Row]:
    rows, peaks = [], {}
    for n_lesions in (10, 500):
        found = _child("memory", *given, "ours", str(n_lesions))
        peaks[n_lesions] = found["peak"]
        rows.append(
            Row(_MEMORY, f"{n_lesions} lesions", found["peak"] / _MB, found["block"] / _MB, unit="MB",
                ratio=found["peak"] / found["block"], bar=Bar(1.3, at_most=True),
                note=f"{found['seconds']:.1f} s, batches of {found['batch_size']}")
        )  # fmt: skip
    growth = Row(_MEMORY, "500 lesions of 10", peaks[500] / _MB, peaks[10] / _MB, unit="MB",
                 ratio=peaks[500] / peaks[10], bar=Bar(1.05, at_most=True))  # fmt: skip
    prior = []
    for n_lesions in (10, 40):
        found = _child("memory", *given, "prior", str(n_lesions))
        prior.append(
            Row(_MEMORY, f"(prior approach, {n_lesions} lesions)", found["peak"] / _MB, found["block"] / _MB,
                unit="MB", ratio=found["peak"] / found["block"], note=f"{found['seconds']:.1f} s")
        )  # fmt: skip
    return [*rows, growth, *prior]
