"""``python -m benchmarks decode``: one .nii.gz decoded, with and without an index, on 1, 2, 4 and more cores.

Covers: seconds, CPU seconds and memory of decoders that throw the bytes away, and of what sharedmask makes of
them. Does not cover: how something is timed (``timing``), other limits (``limits``).

CPU seconds tell what a decoder costs those who have other work for the cores. Memory is what a process of its
own grows by.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import data, machine, variants
from benchmarks.data import Dataset
from benchmarks.timing import Contender, Times, take_turns

_PIECE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="put the table into benchmarks.md there")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where generated runs are kept (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    dataset, facts = data.prepare(arguments.data), machine.facts()
    print(f"{machine.described(facts)}\n{dataset}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        table = _table(dataset, Path(place), arguments.repeats)
    print(table)
    if arguments.docs:
        from benchmarks import pages

        command = f"python -m benchmarks decode --repeats {arguments.repeats}"
        pages.show_table(arguments.docs.resolve(), "decode", table, command, facts, str(dataset))
    return 0


def _cores() -> list[int]:
    """1, 2, 4 and so on, and all."""
    n_all = len(os.sched_getaffinity(0))
    return sorted({2**k for k in range(n_all.bit_length()) if 2**k <= n_all} | {n_all})


@dataclass
class _Decoder:
    """A way to decode, and what it took."""

    name: str
    call: Callable[[], Any]
    cpu: list[float] = field(default_factory=list)

    def timed(self) -> None:
        before = time.process_time()
        self.call()
        self.cpu.append(time.process_time() - before)

    def memory(self) -> int:
        """Bytes by which a process of its own grows."""
        with get_context("spawn").Pool(1) as pool:
            return pool.apply(_grown, (self.call,))


def _grown(call: Callable[[], Any]) -> int:
    import numpy  # noqa: F401

    import sharedmask.image.extraction  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    call()
    return _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _decoders(dataset: Dataset, place: Path) -> Iterator[_Decoder]:
    run = str(dataset.run)
    yield _Decoder("isal, forward", partial(variants.decompress, dataset.run))
    yield _Decoder("extract, means, no index", partial(_extract, dataset, 1, place / "none"))
    yield _Decoder("load, no index", partial(_load, dataset, 1, place / "none"))
    for n_cores in _cores():
        cores = f"{n_cores} core{'s' if n_cores > 1 else ''}"
        yield _Decoder(f"rapidgzip, no index, {cores}", partial(_rapidgzip, run, n_cores))
        yield _Decoder(f"rapidgzip, index, {cores}", partial(_rapidgzip, run, n_cores, str(place / "gz")))
        yield _Decoder(f"sharedmask, index, {cores}", partial(_pieces, run, n_cores, place))
        yield _Decoder(f"extract, means, index, {cores}", partial(_extract, dataset, n_cores, place))
        yield _Decoder(f"load, index, {cores}", partial(_load, dataset, n_cores, place))


def _rapidgzip(run: str, n_cores: int, index: str | None = None) -> None:
    import rapidgzip

    piece = bytearray(4 * _PIECE)
    with rapidgzip.open(run, parallelization=n_cores) as file:
        if index is not None:
            file.import_index(index)
        while file.readinto(piece):
            pass


def _pieces(run: str, n_cores: int, place: Path) -> None:
    from sharedmask.decoding import parallel

    source, piece = _opened(run, place), memoryview(bytearray(_PIECE))
    with parallel.open_indexed(run, run, source.points, 0, n_cores) as stream:
        while stream.readinto(piece):
            pass


def _opened(run: str, place: Path) -> Any:
    from sharedmask.sources.opening import open_source
    from sharedmask.storage.indexes import indexed

    os.environ["XDG_CACHE_HOME"] = str(place)
    return indexed(open_source(run))


def _extract(dataset: Dataset, n_cores: int, place: Path) -> None:
    from sharedmask import extract
    from sharedmask.system import settings

    os.environ["XDG_CACHE_HOME"] = str(place)
    with settings.using(decoders=n_cores):
        extract(dataset.run, dataset.atlas, strategy="mean")


def _load(dataset: Dataset, n_cores: int, place: Path) -> None:
    from sharedmask import SharedImage
    from sharedmask.system import settings

    os.environ["XDG_CACHE_HOME"] = str(place)
    with settings.using(decoders=n_cores), SharedImage(dataset.run) as image:
        image.load()


def _table(dataset: Dataset, place: Path, n_rounds: int) -> str:
    import rapidgzip

    from sharedmask.sources.opening import open_source
    from sharedmask.storage import indexes

    started = time.process_time()
    indexes.make(open_source(dataset.run))
    making = time.process_time() - started
    with rapidgzip.open(str(dataset.run), parallelization=0) as file:
        file.export_index(str(place / "gz"))
    decoders = list(_decoders(dataset, place))
    times = Times()
    take_turns([Contender(one.name, one.timed) for one in decoders], n_rounds, times)
    first = decoders[0].name
    lines = [f"{'':34} {'s':>7} {'/ isal':>7} {'CPU s':>7} {'MB':>7}"]
    for one in decoders:
        seconds, cpu = times.median(one.name), statistics.median(one.cpu[1:])
        ratio, grown = times.ratio(one.name, first), one.memory() / 1e6
        lines.append(f"{one.name:34} {seconds:7.3f} {ratio:7.2f} {cpu:7.3f} {grown:7.0f}")
    return "\n".join([*lines, f"{'making the index':34} {'':7} {'':7} {making:7.3f}"])
