"""One way to frames in a process of its own: prints one line of JSON, seconds and bytes.

Everything is imported, and used once on a small run, before the clock starts and the peak is reset.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # noqa: F401
import nibabel as nib
import numpy as np

from sharedmask import FrameDataset
from sharedmask.frames import convert

_ROUNDS = 25


def prepare(folder: Path, x: int, y: int, z: int, n_volumes: int) -> dict[str, float]:
    """The run as .nii, .nii.gz, .h5 and compressed .h5, if they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / name).exists() for name in ("run.nii", "run.nii.gz", "run.h5", "packed.h5")):
        print(f"generating {folder}", file=sys.stderr, flush=True)
        _write_run(folder / "run.nii", (x, y, z, n_volumes))
        convert.convert(folder / "run.nii", folder / "run.nii.gz")
        convert.convert(folder / "run.nii", folder / "run.h5")
        convert.convert(folder / "run.nii", folder / "packed.h5", compression="gzip", compression_opts=1)
    return {}


def _write_run(path: Path, shape: tuple[int, int, int, int]) -> None:
    header = nib.Nifti1Image(np.broadcast_to(np.float32(0), shape), np.eye(4)).header
    header.set_data_offset(352)
    still = np.random.default_rng(0).normal(1000, 50, shape[:3]).astype(np.float32).round()
    with open(path, "wb") as file:
        header.write_to(file)
        file.write(bytes(352 - file.tell()))
        for number in range(shape[3]):
            file.write((still + np.float32(number)).tobytes(order="F"))


# --- one frame -----------------------------------------------------------------------------------


def ours(path: Path, frame: int) -> Any:
    with FrameDataset(path) as ds:
        return np.array(ds[frame][0])


def pread(path: Path, frame: int) -> Any:
    image: Any = nib.load(path)
    nbytes = int(np.prod(image.shape[:3])) * image.get_data_dtype().itemsize
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, nbytes, image.dataobj.offset + frame * nbytes)
    finally:
        os.close(fd)


def numpy(path: Path, frame: int) -> Any:
    image: Any = nib.load(path)
    mapped = np.memmap(path, image.get_data_dtype(), "r", image.dataobj.offset, image.shape, "F")
    return np.array(mapped[..., frame])


def dataobj(path: Path, frame: int) -> Any:
    image: Any = nib.load(path)
    return np.array(image.dataobj[..., frame])


def eager(path: Path, frame: int) -> Any:
    image: Any = nib.load(path)
    return np.array(_whole(image)[..., frame])


def _whole(image: Any) -> Any:
    """The values in memory: nibabel's array of an uncompressed file is a map."""
    return np.asanyarray(image.dataobj).copy(order="F")


_WAYS: dict[str, Callable[[Path, int], Any]] = {
    way.__name__: way for way in (ours, pread, numpy, dataobj, eager)
}


def open_one(way: str, path: Path, frame: int) -> dict[str, float]:
    """Median times of this way and of ours, in turns, and of their ratio; the peak of the first time."""
    read = _WAYS[way]
    start = _forget_peak()
    read(path, frame)
    peak = _status("VmHWM") - start
    ours(path, frame)
    times = [
        (_seconds(lambda: ours(path, frame)), _seconds(lambda: read(path, frame)))
        for _ in range(3 if way == "eager" else _ROUNDS)
    ]
    us, them = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    return {"ours": us, "theirs": them, "ratio": ratio, "peak": peak}


# --- all frames ----------------------------------------------------------------------------------


def visit(path: Path, store: Any) -> dict[str, float]:
    """Load, and look at every value once."""

    def walk() -> None:
        with FrameDataset(path, store=store) as ds:
            for frame in ds.frames():
                frame.max()

    start = _forget_peak()
    seconds = _seconds(walk)
    return {"seconds": seconds, "peak": _status("VmHWM") - start, "anonymous": _status("RssAnon")}


def folds(way: str, path: Path) -> dict[str, float]:
    """All training sets, one of which is averaged; or one training array, as it was before."""
    start = _forget_peak()
    if way == "ours":
        with FrameDataset(path) as ds:
            kept = list(ds.leave_one_out())
            kept[0][2].mean()
    else:
        image: Any = nib.load(path)
        values = _whole(image)
        values[..., np.arange(values.shape[3]) != 0].mean(axis=3)
    return {"peak": _status("VmHWM") - start}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forget_peak() -> int:
    """Bytes that the process holds now, from where its peak counts again."""
    small = nib.Nifti1Image(np.ones((3, 3, 3, 2), np.float32), np.eye(4))
    with FrameDataset(small, store="memfd") as ds:
        ds[0][0].max()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main(what: str, *arguments: str) -> None:
    if what == "prepare":
        found = prepare(Path(arguments[0]), *map(int, arguments[1:]))
    elif what == "open":
        found = open_one(arguments[0], Path(arguments[1]), int(arguments[2]))
    elif what == "visit":
        found = visit(Path(arguments[0]), arguments[1])
    else:
        found = folds(arguments[0], Path(arguments[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
