"""The bars: how fast and how small masking one run is, next to what it replaces.

Covers: which measurements are made, and what each has to reach. Does not cover: how something is
timed (``timing``), how memory is seen (``memory``), what is measured (``variants``, ``data``).

Memory comes first: as long as this process has not imported numpy, it shares no page of it with
the processes that are measured, and does not make them look smaller.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import data, machine, report, small


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=_positive, default=7, metavar="N", help="rounds (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the generated run is kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="3 rounds, and NiftiMasker's loop on 3 of the masks, scaled")  # fmt: skip
    parser.add_argument("--only", choices=("fast", "small"), help="half of it")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} rounds measure nothing")
    return number


def run(arguments: argparse.Namespace) -> int:
    dataset = data.prepare(arguments.data)
    facts = machine.facts()
    print(f"{machine.described(facts)}\n{dataset}", flush=True)
    n_rounds = 3 if arguments.quick else arguments.repeats
    rows: list[report.Row] = []
    if arguments.only != "fast":
        rows += small.measure(dataset)
    if arguments.only != "small":
        from benchmarks import fast  # and with it numpy

        rows += fast.measure(dataset, n_rounds, loop_masks=3 if arguments.quick else None)
    print(report.table(rows))
    if arguments.json:
        settings = {"repeats": n_rounds, "quick": arguments.quick, "data": str(dataset)}
        report.write_json(arguments.json, rows, {"machine": facts, **settings})
    failed = [row.what for row in rows if row.failed]
    print(f"\n{len(failed)} of {sum(row.bar is not None for row in rows)} bars missed", file=sys.stderr)
    return 1 if failed else 0
