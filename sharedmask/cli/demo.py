"""``sharedmask demo``: a run, twenty regions, and the usual loop beside ours.

Covers: making a realistic run and regions, measuring two child processes, comparing what they
return. Does not cover: benchmarks, which compare more ways, more carefully.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import nibabel as nib
import numpy as np

from sharedmask.cli.base import commands
from sharedmask.errors import SharedMaskError
from sharedmask.frames import nifti
from sharedmask.records import dataclass
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source
from sharedmask.system import platform, usage
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import effective_n_jobs, n_cpus
from sharedmask.typing import Array, NDArray


@commands.command()
@click.argument("bold", required=False)
@click.option("-j", "--n-jobs", type=int, default=20, show_default=True, help="Workers of both ways.")
@click.option(
    "--volumes",
    type=click.IntRange(1),
    default=168,
    show_default=True,
    help="Length of the run that is made.",
)
@click.option("--full", is_flag=True, help="Run the whole loop, and project nothing.")
def demo(bold: str | None, n_jobs: int, volumes: int, full: bool) -> None:
    """Extract 20 regions from BOLD, or from a run made for this, beside a NiftiMasker loop.

    Of the loop as many regions are done as show what it takes; for all of them it is projected.
    """
    effective_n_jobs(n_jobs)  # or is refused
    what = bold or f"a run of {volumes} volumes made for this"
    click.echo(f"{N_REGIONS} regions of {what}; this takes less than a minute on two cores ...")
    found = compare(bold, n_jobs, volumes, full)
    click.echo(f"\n{'':<18}{'workers':>8}{'regions':>9}{'seconds':>9}{'peak memory':>14}")
    for name, way, said in found.ways:
        numbers = f"{way.n_jobs:>8}{way.n_regions:>9}{way.seconds:>9.1f}{way.peak / 2**20:>10,.0f} MiB"
        click.echo(f"{name:<18}{numbers}  {said}".rstrip())
    times, memory = found.loop.seconds / found.ours.seconds, found.loop.peak / found.ours.peak
    what = "PSS of all processes" if platform.has_proc() else "what all processes hold, shared pages in each"
    click.echo(f"\n{times:.1f} times faster, {memory:.1f} times less memory ({what})")
    if not found.same:
        raise SharedMaskError("the signals differ from NiftiMasker's")
    click.echo(f"the signals of {found.done.n_regions} regions are equal to NiftiMasker's, bit for bit")


N_REGIONS = 20
_SHAPE = (50, 59, 50)
_REGION_VOXELS = 1500
# What a worker of the loop takes: twice the image, and the imports (measured, nilearn 0.14).
_LOOP_IMPORT_BYTES = 250 * 2**20

_OURS = """
import sys, numpy as np
from sharedmask import SharedImage
bold, n_jobs, out, *masks = sys.argv[1:]
with SharedImage(bold) as image:
    signals = image.mask_parallel(masks, n_jobs=int(n_jobs), prefer={!r})
    np.savez(out, *signals)
"""

_LOOP = """
import sys, time, numpy as np
from joblib import Parallel, delayed
from nilearn.maskers import NiftiMasker

def extract(mask, bold):
    return NiftiMasker(mask_img=mask, standardize=None, reports=False).fit_transform(bold)

bold, n_jobs, out, *masks = sys.argv[1:]
start = time.perf_counter()
signals = Parallel(n_jobs=int(n_jobs))(delayed(extract)(mask, bold) for mask in masks)
np.savez(out, *signals, loop=time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Measured:
    """What one way took: wall seconds, and the peak memory (PSS) of all its processes in bytes."""

    n_jobs: int
    n_regions: int
    seconds: float
    peak: int
    signals: dict[str, NDArray[np.floating]]
    loop: float
    """Of the seconds, those in which workers worked."""
    caller: int
    """Of the peak, what the caller of the workers held."""

    def projected(self, n_jobs: int, n_regions: int) -> "Measured":
        """All cores were busy: more regions take longer in proportion, more workers more memory."""
        loop = self.loop * n_regions / self.n_regions
        peak = self.caller + int((self.peak - self.caller) * n_jobs / self.n_jobs)
        seconds = self.seconds - self.loop + loop
        return Measured(n_jobs, n_regions, seconds, peak, self.signals, loop, self.caller)


@dataclass(frozen=True)
class Comparison:
    """Both ways; of the loop what was done, and what all of it takes."""

    ours: Measured
    done: Measured
    loop: Measured

    @property
    def ways(self) -> list[tuple[str, Measured, str]]:
        """Name, figures, and where these are from."""
        done, ours = ("NiftiMasker loop", self.done, "measured"), ("sharedmask", self.ours, "measured")
        whole = [] if self.loop is self.done else [("NiftiMasker loop", self.loop, "projected")]
        return [done, *whole, ours]

    @property
    def same(self) -> bool:
        """Whether they returned the same numbers, as far as both did."""
        both = ((self.ours.signals[name], values) for name, values in self.done.signals.items())
        return bool(self.done.signals) and all(np.array_equal(*pair) for pair in both)


def make_run(path: Path, n_volumes: int) -> None:
    """Write a run with a head, voxel means around 1000, drifts and noise; volume by volume."""
    rng = np.random.default_rng(0)
    head = _ball(_SHAPE, np.array(_SHAPE) / 2, np.array(_SHAPE) * 0.38)
    mean = np.where(head, rng.normal(1000, 120, _SHAPE), 0).astype(np.float32)

    def volume(t: int) -> Array:
        noise = rng.standard_normal(_SHAPE, dtype=np.float32) * (8 + 4 * np.sin(t / 20))
        return np.asarray(np.round((mean + noise) * head, 1), np.float32)

    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    header = nifti.header_for(nib.Nifti1Header(), (*_SHAPE, n_volumes), np.dtype(np.float32), affine, 2.0)
    header.set_xyzt_units("mm", "sec")
    nifti.write(path, header, map(volume, range(n_volumes)), compress=True)


def make_regions(source: Source, folder: Path) -> list[Path]:
    """Balls of about 1500 voxels, or a hundredth of the head, that may overlap, as mask files."""
    first = np.empty(source.n_voxels, source.dtype)
    with source.volumes() as reader:
        reader.readinto(first)
    volume = first.reshape(source.shape[:3], order="F").astype(np.float64)
    head = volume > volume.mean()
    centres = np.argwhere(head)
    n_voxels = min(_REGION_VOXELS, max(1, len(centres) // 100))
    radius = np.full(3, (n_voxels * 3 / (4 * np.pi)) ** (1 / 3))
    chosen = np.random.default_rng(1).choice(len(centres), N_REGIONS, replace=len(centres) < N_REGIONS)
    paths = [folder / f"roi-{number:02d}_mask.nii.gz" for number in range(1, N_REGIONS + 1)]
    for path, centre in zip(paths, centres[chosen], strict=True):
        ball = _ball(source.shape[:3], centre, radius) & head
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), source.affine), path)
    return paths


def _ball(shape: tuple[int, ...], centre: Array, radius: Array) -> Array:
    places = np.moveaxis(np.indices(shape), 0, -1)
    return np.asarray((((places - centre) / radius) ** 2).sum(axis=-1) <= 1)


def compare(bold: str | None, n_jobs: int, n_volumes: int, full: bool = False) -> Comparison:
    """Extract regions both ways, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sharedmask-demo-") as name:
        folder = Path(name)
        if bold is None:
            bold = os.fspath(folder / "bold.nii.gz")
            make_run(Path(bold), n_volumes)
        source = open_source(bold)
        masks = [os.fspath(path) for path in make_regions(source, folder)]
        fitting = MemoryBudget.here().limit * 0.8 // (2 * _as_float(source) + _LOOP_IMPORT_BYTES)
        workers = "processes" if platform.can_share() else "threads"
        ours = _measure("sharedmask", _OURS.format(workers), bold, n_jobs, masks, folder / "ours.npz")
        # Two rounds on all cores: what more regions would take can be told from that.
        few = N_REGIONS if full else max(1, min(2 * n_cpus(), N_REGIONS))
        jobs = int(max(1, min(n_jobs, few, fitting)))
        done = _measure("NiftiMasker loop", _LOOP, bold, jobs, masks[:few], folder / "loop.npz")
        whole = few == N_REGIONS and (full or jobs == n_jobs)
        return Comparison(ours, done, done if whole else done.projected(n_jobs, N_REGIONS))


def _as_float(source: Source) -> int:
    itemsize = source.scaled_dtype.itemsize if source.scaled_dtype.kind == "f" else 4
    return source.n_voxels * source.n_timepoints * itemsize


def _measure(name: str, script: str, bold: str, n_jobs: int, masks: list[str], out: Path) -> Measured:
    start, peak, caller = time.perf_counter(), 0, 0
    command = [sys.executable, "-c", script, bold, str(n_jobs), os.fspath(out), *masks]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            held = usage.of_tree(child.pid)
            if held.total > peak:
                peak, caller = held.total, held.private.get(child.pid, 0)
            _tell(f"{name}, {len(masks)} regions: {time.perf_counter() - start:.0f} s")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        _tell("")
        if child.returncode:
            assert child.stderr is not None
            raise SharedMaskError((child.stderr.read().strip().splitlines() or ["no message"])[-1])
    with np.load(out) as arrays:
        signals = {key: arrays[key] for key in arrays.files if key != "loop"}
        loop = float(arrays["loop"]) if "loop" in arrays.files else seconds
        return Measured(n_jobs, len(masks), seconds, peak, signals, loop, caller)


def _tell(what: str) -> None:
    """On a terminal, over what was told last."""
    if sys.stderr.isatty():
        click.echo(f"\r{what:<50}" if what else f"\r{'':<50}\r", nl=False, err=True)
