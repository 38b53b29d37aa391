"""The bars: how fast and how small masking one run is, next to what it replaces.

Covers: which measurements are made, and what each has to reach. Does not cover: how something is
timed (``timing``), how memory is seen (``memory``), what is measured (``variants``, ``data``).

Memory comes first: as long as this process has not imported numpy, it shares no page of it with
the processes that are measured, and does not make them look smaller.
"""

import argparse
from pathlib import Path

from benchmarks import data, machine, report, small


def add_arguments(
    parser: argparse.ArgumentParser,
    only: tuple[str, ...] = ("fast", "small"),
    quick: str = "3 rounds, and NiftiMasker's loop on 3 of the masks, scaled",
) -> None:
    parser.add_argument("--repeats", type=_positive, default=7, metavar="N", help="rounds (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the generated run is kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--only", choices=only, help="one part of it")


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
    settings = {"repeats": n_rounds, "quick": arguments.quick, "data": str(dataset)}
    return report.conclude(rows, arguments.json, {"machine": facts, **settings})
