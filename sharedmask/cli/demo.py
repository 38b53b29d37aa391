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
from numpy.typing import NDArray

from sharedmask.cli.base import commands
from sharedmask.errors import SharedMaskError
from sharedmask.records import dataclass
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source
from sharedmask.system import usage
from sharedmask.system.budget import MemoryBudget


@commands.command()
@click.argument("bold", required=False)
@click.option("-j", "--n-jobs", type=int, default=20, show_default=True, help="Workers of both ways.")
@click.option("--volumes", type=int, default=168, show_default=True, help="Length of the run that is made.")
def demo(bold: str | None, n_jobs: int, volumes: int) -> None:
    """Extract 20 regions from BOLD, or from a run made for this, beside a NiftiMasker loop."""

    what = bold or f"a run of {volumes} volumes made for this"
    click.echo(f"{N_REGIONS} regions of {what}; this takes a minute ...")
    found = compare(bold, n_jobs, volumes)
    ways = [("NiftiMasker loop", found.loop), ("sharedmask", found.ours)]
    click.echo(f"\n{'':<18}{'workers':>8}{'seconds':>10}{'peak memory':>14}")
    for name, way in ways:
        click.echo(f"{name:<18}{way.n_jobs:>8}{way.seconds:>10.1f}{way.peak / 2**20:>10,.0f} MiB")
    times, memory = found.loop.seconds / found.ours.seconds, found.loop.peak / found.ours.peak
    click.echo(f"\n{times:.1f} times faster, {memory:.1f} times less memory (PSS of all processes)")
    if not found.same:
        raise SharedMaskError("the signals differ from NiftiMasker's")
    click.echo("all signals are equal to NiftiMasker's, bit for bit")


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
    signals = image.mask_parallel(masks, n_jobs=int(n_jobs), prefer="processes")
    np.savez(out, *signals)
"""

_LOOP = """
import sys, numpy as np
from joblib import Parallel, delayed
from nilearn.maskers import NiftiMasker

def extract(mask, bold):
    return NiftiMasker(mask_img=mask, standardize=None, reports=False).fit_transform(bold)

bold, n_jobs, out, *masks = sys.argv[1:]
np.savez(out, *Parallel(n_jobs=int(n_jobs))(delayed(extract)(mask, bold) for mask in masks))
"""


@dataclass(frozen=True)
class Measured:
    """What one way took: wall seconds, and the peak memory (PSS) of all its processes in bytes."""

    n_jobs: int
    seconds: float
    peak: int
    signals: tuple[NDArray[np.floating], ...]


@dataclass(frozen=True)
class Comparison:
    """Both ways, and whether they returned the same numbers."""

    ours: Measured
    loop: Measured

    @property
    def same(self) -> bool:
        return all(map(np.array_equal, self.ours.signals, self.loop.signals)) and bool(self.ours.signals)


def make_run(path: Path, n_volumes: int, seed: int = 0) -> None:
    """Write a run with a head, voxel means around 1000, drifts and noise; volume by volume."""
    from isal import igzip

    rng = np.random.default_rng(seed)
    head = _ball(_SHAPE, np.array(_SHAPE) / 2, np.array(_SHAPE) * 0.38)
    mean = np.where(head, rng.normal(1000, 120, _SHAPE), 0).astype(np.float32)
    header = nib.Nifti1Header()
    header.set_data_shape((*_SHAPE, n_volumes))
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm", "sec")
    header.set_zooms((4, 4, 4, 2.0))
    header.set_sform(np.diag([4.0, 4.0, 4.0, 1.0]), "scanner")
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for t in range(n_volumes):
            noise = rng.standard_normal(_SHAPE, dtype=np.float32) * (8 + 4 * np.sin(t / 20))
            file.write(np.round((mean + noise) * head, 1).tobytes(order="F"))


def make_regions(source: Source, folder: Path, count: int = N_REGIONS, seed: int = 1) -> list[Path]:
    """Balls of about 1500 voxels, or a hundredth of the head, that may overlap, as mask files."""
    first = np.empty(source.n_voxels, source.dtype)
    with source.volumes() as reader:
        reader.readinto(first)
    volume = first.reshape(source.shape[:3], order="F").astype(np.float64)
    head = volume > volume.mean()
    centres = np.argwhere(head)
    n_voxels = min(_REGION_VOXELS, max(1, len(centres) // 100))
    radius = np.full(3, (n_voxels * 3 / (4 * np.pi)) ** (1 / 3))
    chosen = np.random.default_rng(seed).choice(len(centres), count, replace=len(centres) < count)
    paths = [folder / f"roi-{number:02d}_mask.nii.gz" for number in range(1, count + 1)]
    for path, centre in zip(paths, centres[chosen], strict=True):
        ball = _ball(source.shape[:3], centre, radius) & head
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), source.affine), path)
    return paths


def _ball(
    shape: tuple[int, ...], centre: NDArray[np.floating], radius: NDArray[np.floating]
) -> NDArray[np.bool_]:
    grid = np.indices(shape).reshape(3, -1).T
    inside = (((grid - centre) / radius) ** 2).sum(axis=1) <= 1
    return np.asarray(inside.reshape(shape))


def compare(bold: str | None, n_jobs: int, n_volumes: int) -> Comparison:
    """Extract twenty regions both ways, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sharedmask-demo-") as name:
        folder = Path(name)
        if bold is None:
            bold = os.fspath(folder / "bold.nii.gz")
            make_run(Path(bold), n_volumes)
        source = open_source(bold)
        masks = [os.fspath(path) for path in make_regions(source, folder)]
        fitting = MemoryBudget.here().limit * 0.8 // (2 * _as_float(source) + _LOOP_IMPORT_BYTES)
        loop_jobs = int(max(1, min(n_jobs, fitting)))
        ours = _measure(_OURS, bold, n_jobs, masks, folder / "ours.npz")
        loop = _measure(_LOOP, bold, loop_jobs, masks, folder / "loop.npz")
        return Comparison(ours, loop)


def _as_float(source: Source) -> int:
    itemsize = source.scaled_dtype.itemsize if source.scaled_dtype.kind == "f" else 4
    return source.n_voxels * source.n_timepoints * itemsize


def _measure(script: str, bold: str, n_jobs: int, masks: list[str], out: Path) -> Measured:
    start, peak = time.perf_counter(), 0
    arguments = [bold, str(n_jobs), os.fspath(out), *masks]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None:
            peak = max(peak, usage.of_tree(child.pid).total)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if child.returncode:
            assert child.stderr is not None
            raise SharedMaskError((child.stderr.read().strip().splitlines() or ["no message"])[-1])
    with np.load(out) as arrays:
        return Measured(n_jobs, seconds, peak, tuple(arrays[name] for name in arrays.files))
