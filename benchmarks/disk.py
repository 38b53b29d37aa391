"""The disk store: writing it next to writing the same bytes in order, and what a cold region reads.

Covers: creation from a plain and from a compressed run, bytes read by the second region after the
page cache was emptied. Does not cover: stores in memory (``core``, ``sharing``).

Every write ends when the bytes are on the disk (fdatasync), ours and the one it is compared with.
What a process reads is the kernel's account of it (``read_bytes`` in /proc/self/io).
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import data, machine, report
from benchmarks.timing import Contender, Times, take_turns

_PIECE_BYTES = 16 * 2**20
_WRITING = report.Bar(1 / 0.6, at_most=True)
_READING = report.Bar(2, at_most=True)

# A process of its own: its account of what was read begins at 0, and it maps nothing yet.
_SECOND_REGION = """
import json, sys
from sharedmask import SharedImage

def read_bytes():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))

run, first, second = sys.argv[1:]
with SharedImage(run, store="disk") as image:
    image.mask(first)
    before = read_bytes()
    signals = image.mask(second)
    print(json.dumps([read_bytes() - before, signals.nbytes]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the run and the rows are kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--memory-limit", default="256M", metavar="SIZE",
                        help="that the rows are made under (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    dataset = data.prepare(arguments.data)
    facts = machine.facts()
    print(f"{machine.described(facts)}\n{dataset}", flush=True)
    plain = _decompressed(dataset.run)
    spill = arguments.data.resolve() / "rows"
    spill.mkdir(exist_ok=True)
    os.environ["SHAREDMASK_TMPDIR"] = str(spill)
    try:
        rows = _creation(dataset.run, plain, spill, arguments)
        rows += _reading(plain, dataset.masks, spill)
    finally:
        shutil.rmtree(spill)
    print(report.table(rows))
    if arguments.json:
        settings = {"repeats": arguments.repeats, "memory_limit": arguments.memory_limit}
        report.write_json(arguments.json, rows, {"machine": facts, **settings, "data": str(dataset)})
    return 1 if any(row.failed for row in rows) else 0


def _decompressed(run: Path) -> Path:
    plain = run.with_name("run.nii")
    if not plain.exists():
        partial = plain.with_name(f".{plain.name}.{os.getpid()}")
        with gzip.open(run) as packed, open(partial, "wb") as file:
            shutil.copyfileobj(packed, file, _PIECE_BYTES)
        partial.replace(plain)
    return plain


# --- creation ------------------------------------------------------------------------------------


def _creation(packed: Path, plain: Path, spill: Path, arguments: argparse.Namespace) -> list[report.Row]:
    copied = spill / "in-order"
    times = Times()
    contenders = [
        Contender("in order", lambda: _write_in_order(copied, plain), before=_emptying(spill)),
        Contender("plain", lambda: _create(plain, arguments.memory_limit), before=_emptying(spill)),
        Contender("compressed", lambda: _create(packed, arguments.memory_limit), before=_emptying(spill)),
        Contender("decompress", lambda: _decompress(packed)),
    ]
    take_turns(contenders, arguments.repeats, times)
    _emptying(spill)()
    section = f"creation under {arguments.memory_limit}, {plain.stat().st_size / 1e6:.0f} MB"
    order = times.median("in order")

    def row(what: str, name: str, bar: report.Bar | None, note: str = "") -> report.Row:
        ratio = times.ratio(name, "in order")
        return report.Row(section, what, times.median(name), order, "s", ratio, bar, note=note)

    decompression = f"decompression alone: {times.median('decompress'):.2f} s"
    return [
        row("rows of a .nii / writing in order", "plain", _WRITING),
        row("rows of a .nii.gz / writing in order", "compressed", None, decompression),
    ]


def _emptying(spill: Path) -> Callable[[], None]:
    def empty() -> None:
        from sharedmask.storage import disk

        disk.remove_unused()
        (spill / "in-order").unlink(missing_ok=True)

    return empty


def _write_in_order(target: Path, plain: Path) -> None:
    piece = bytearray(_PIECE_BYTES)
    with open(plain, "rb", buffering=0) as source, open(target, "wb", buffering=0) as file:
        while got := source.readinto(piece):
            file.write(memoryview(piece)[:got])
        os.fdatasync(file.fileno())


def _create(run: Path, memory_limit: str) -> None:
    from sharedmask import SharedImage

    with SharedImage(run, store="disk", memory_limit=memory_limit) as image:
        image.load()


def _decompress(packed: Path) -> None:
    from sharedmask.sources import loader
    from sharedmask.sources.opening import open_source

    source = open_source(packed)
    with loader.blocks(source, None, 16) as blocks:
        for _ in blocks:
            pass


# --- reading -------------------------------------------------------------------------------------


def _reading(plain: Path, masks: tuple[Path, ...], spill: Path) -> list[report.Row]:
    _create(plain, "1G")
    scattered = _scattered(plain, spill / "scattered.nii.gz")
    rows = [_second_region("compact", plain, masks[0], mask, _READING) for mask in masks[1:4]]
    rows.append(_second_region("scattered", plain, masks[0], scattered, None))
    return rows


def _second_region(kind: str, plain: Path, first: Path, second: Path, bar: report.Bar | None) -> report.Row:
    _empty_page_cache()
    command = [sys.executable, "-c", _SECOND_REGION, str(plain), str(first), str(second)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    read, asked = json.loads(done.stdout)
    what = f"{kind} region {second.name.split('.')[0]}: read / asked for"
    return report.Row("second region, cold", what, read / 1e6, asked / 1e6, "MB", read / asked, bar)


def _empty_page_cache() -> None:
    """Of the rows: what is written and not mapped can be dropped without rights."""
    from sharedmask.storage import disk

    for entry in disk.entries():
        fd = os.open(disk.directory() / entry.name, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _scattered(plain: Path, path: Path) -> Path:
    """As many single voxels, none beside another: the worst that can be asked for."""
    import nibabel as nib
    import numpy as np

    run = nib.load(plain)
    voxels = np.zeros(run.shape[:3], np.uint8)
    voxels[::7, ::5, ::4] = 1
    nib.save(nib.Nifti1Image(voxels, run.affine), path)
    return path
