"""Makes the run and its masks: ``python -m benchmarks.generate FOLDER SPEC``.

The run resembles a preprocessed one of 4 mm voxels:

- the brain is an ellipsoid, 85 % of the box along each axis (47,428 of 147,500 voxels); 0 outside;
- voxel means vary smoothly between 800 and 1650;
- the noise has a standard deviation of 1.5 % of the mean, an autocorrelation of 0.4 from one
  volume to the next, and a slow drift common to all voxels;
- values are multiples of 1/1024, float32: gzip at level 1 makes 354 MB about 100 MB.

Masks are the brain voxels nearest to centres drawn in the brain: compact, and they overlap. The
regions of the atlas part the brain in the same way. Confounds are random walks.
"""

import gzip
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Spec

_EXTENT = 0.85
_NOISE = 0.015
_AUTOCORRELATION = 0.4
_QUANTUM = 1 / 1024
_N_CONFOUNDS = 6
_AFFINE = np.array([[4.0, 0, 0, -96], [0, 4.0, 0, -132], [0, 0, 4.0, -78], [0, 0, 0, 1]])
_DATA_OFFSET = 352

Array = NDArray[Any]


def generate(home: Path, spec: Spec) -> None:
    """Write the run, the masks and, last, the facts that say they are complete."""
    rng = np.random.default_rng(spec.seed)
    grid = _unit_grid(spec.shape[:3])
    brain = (grid**2).sum(axis=0) < _EXTENT**2
    masks = list(_masks(brain, spec, rng))
    with _replacing(home / "run.nii.gz") as raw:
        _write_run(raw, _volumes(grid, brain, spec.shape[3], rng), spec.shape)
    for i, mask in enumerate(masks):
        _write_mask(home / f"mask-{i:02d}.nii.gz", mask)
    _write_mask(home / "brain.nii.gz", brain.astype(np.uint8))
    _write_mask(home / "atlas.nii.gz", _atlas(brain, spec))
    _write_confounds(home / "confounds.tsv", spec)
    facts = {
        "brain_voxels": int(brain.sum()),
        "union_voxels": int(np.any(masks, axis=0).sum()),
        "mask_voxels": [int(mask.sum()) for mask in masks],
    }
    with _replacing(home / "facts.json") as raw:
        raw.write(json.dumps(facts).encode())


def _unit_grid(shape: tuple[int, ...]) -> Array:
    """Coordinates from -1 to 1 along each axis, shape (3, x, y, z)."""
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _masks(brain: Array, spec: Spec, rng: np.random.Generator) -> Iterator[Array]:
    inside = np.argwhere(brain)
    for centre in rng.choice(inside, spec.n_masks, replace=False):
        nearest = np.argsort(((inside - centre) ** 2).sum(axis=1), kind="stable")[: spec.mask_voxels]
        mask = np.zeros(brain.shape, np.uint8)
        mask[tuple(inside[nearest].T)] = 1
        yield mask


def _atlas(brain: Array, spec: Spec) -> Array:
    """Each voxel of the brain belongs to the centre that is nearest."""
    from scipy.spatial import cKDTree

    inside = np.argwhere(brain)
    centres = np.random.default_rng(spec.seed).choice(inside, spec.n_regions, replace=False)
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = 1 + cKDTree(centres).query(inside)[1]
    return labels


def _volumes(grid: Array, brain: Array, n_timepoints: int, rng: np.random.Generator) -> Iterator[Array]:
    """Volumes one after the other, (x, y, z) float32."""
    x, y, z = grid[:, brain]
    means = 1200 + 300 * np.sin(5 * x) * np.cos(4 * y) + 150 * np.cos(3 * z)
    noise = rng.standard_normal(len(means))
    fresh = np.sqrt(1 - _AUTOCORRELATION**2)
    for t in range(n_timepoints):
        noise = _AUTOCORRELATION * noise + fresh * rng.standard_normal(len(means))
        drift = 0.5 * np.sin(2 * np.pi * t / 300)
        values = means * (1 + _NOISE * (noise + drift))
        volume = np.zeros(brain.shape, np.float32)
        volume[brain] = np.round(values / _QUANTUM) * _QUANTUM
        yield volume


def _write_run(raw: IO[bytes], volumes: Iterator[Array], shape: tuple[int, ...]) -> None:
    """One volume in memory at a time."""
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        file.write(_header(shape).binaryblock.ljust(_DATA_OFFSET, b"\0"))
        for volume in volumes:
            file.write(volume.tobytes(order="F"))


def _header(shape: tuple[int, ...]) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_dtype("<f4")
    header.set_data_shape(shape)
    header.set_sform(_AFFINE, code=2)
    header.set_qform(_AFFINE, code=2)
    header["pixdim"][4] = 2.0
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = _DATA_OFFSET
    header["magic"] = b"n+1"
    return header


def _write_mask(path: Path, mask: Array) -> None:
    with _replacing(path) as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        file.write(nib.Nifti1Image(mask, _AFFINE).to_bytes())


def _write_confounds(path: Path, spec: Spec) -> None:
    steps = np.random.default_rng(spec.seed).standard_normal((spec.shape[3], _N_CONFOUNDS))
    names = "\t".join(f"motion_{i}" for i in range(_N_CONFOUNDS))
    with _replacing(path) as raw:
        np.savetxt(raw, steps.cumsum(axis=0), fmt="%.6f", delimiter="\t", header=names, comments="")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    generate(Path(sys.argv[1]), Spec(**{**given, "shape": tuple(given["shape"])}))
