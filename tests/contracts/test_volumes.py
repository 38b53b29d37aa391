"""The contract of volumes, held by every class that has some."""

import ast
import gzip
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import bare
import cifti_files
import networks
import nibabel as nib
import numpy as np
import pytest
from contracts.volumes import VolumesContract
from gzip_files import bgzf
from images import AFFINE, bold, niimg, save, truth
from nfdh5_files import nifreezes

import sharedmask
from sharedmask.frames.nfdh5 import open_nfdh5
from sharedmask.network.subject import subjects_in
from sharedmask.sources import rechunk
from sharedmask.sources.excerpt import with_volumes
from sharedmask.sources.opening import open_source
from sharedmask.sources.transform import resampled, smoothed
from sharedmask.spaces.grid import Grid
from sharedmask.storage import rows
from sharedmask.system.budget import MemoryBudget

T = 7


def by_volume(values):
    """(n_timepoints, n_voxels), x fastest."""
    values = np.atleast_3d(values)
    values = values if values.ndim == 4 else values[..., None]
    values = values.reshape(-1, values.shape[3], order="F").T
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def data(dtype="int16"):
    return bold((5, 4, 3, T), dtype)


def of_path(path):
    return open_source(path), by_volume(truth(path))


# --- the implementers: each gives its volumes and their values ---


def file_source(name, dtype="int16", kind=nib.Nifti1Image):
    return lambda folder: nullcontext(of_path(save(folder / name, data(dtype), kind=kind)))


def nested_compression(folder):
    """Two members, as bgzip and concatenation make them."""
    plain = save(folder / "plain.nii", data()).read_bytes()
    path = folder / "run.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
    return nullcontext((open_source(path), by_volume(data())))


def dense(name, dtype="f4", compress=False, by_row=True):
    """CIFTI-2, an element's values together or not."""

    def make(folder):
        path = cifti_files.dtseries(folder / name, T, dtype=dtype, by_row=by_row)
        true = cifti_files.truth(path)
        if compress:
            plain, path = path, folder / f"{name}.gz"
            path.write_bytes(gzip.compress(plain.read_bytes()))
        return nullcontext((open_source(path), np.ascontiguousarray(true, true.dtype.newbyteorder("="))))

    return make


def far_apart(folder):
    """Two volumes of a file in which decoding can begin anywhere."""
    values = bold((5, 4, 3, 40), "int16")
    path = folder / "run.nii.gz"
    path.write_bytes(bgzf(save(folder / "run.nii", values).read_bytes(), size=500))
    source, numbers = with_volumes(open_source(path), np.array([3, 38]))
    assert numbers.tolist() == [3, 38]
    return nullcontext((source, by_volume(values)[numbers]))


def one_volume(folder):
    return nullcontext(of_path(save(folder / "mean.nii.gz", data()[..., 0])))


def in_memory(dtype, order):
    return lambda folder: nullcontext((open_source(niimg(data(dtype).copy(order))), by_volume(data(dtype))))


def series(slopes):
    """3D files, stored alike or not."""

    def make(folder):
        paths = [
            save(folder / f"{number}.nii", data()[..., number], slope=slope)
            for number, slope in enumerate(slopes)
        ]
        stored = len(set(slopes)) == 1
        values = data() if stored else np.stack([truth(path) for path in paths], axis=3)
        return nullcontext((open_source([str(path) for path in paths]), by_volume(values)))

    return make


@contextmanager
def held(folder, store, narrowed=False):
    source = open_source(save(folder / "run.nii", data()))
    owned, series = rows.load(source, None, "run", MemoryBudget.here(), store)
    try:
        if narrowed:
            found, numbers = series.narrowed(np.array([17, 9, 30]))
            assert numbers.tolist() == [8, 0, 21]
            yield found, np.ascontiguousarray(by_volume(data())[:, 9:31])
        else:
            yield rows.as_source(series), by_volume(data())
        del series
    finally:
        rows.release(owned, None)


def step(make, dtype):
    """A transform: its values are those that it gives at once."""

    def made(folder):
        source = make(open_source(save(folder / "run.nii.gz", data(dtype))))
        return nullcontext((source, by_volume(source.read())))

    return made


def shifted(source):
    affine = AFFINE.copy()
    affine[:3, 3] += 1
    return resampled(source, Grid((4, 4, 3), affine))


def subject(dtype, **storage):
    @contextmanager
    def make(folder):
        values = networks.series(3, T, 20).astype(dtype)
        path = networks.write(folder / "c.h5", values, inside=np.ones((5, 2, 2), bool), **storage)
        with subjects_in(path, 0, 3) as subjects:
            one = values[1].astype(values.dtype.newbyteorder("="))
            offset = one[0].astype("f8") if one.dtype.itemsize > 4 or one.dtype.kind == "i" else 0
            yield subjects[1], (one - offset).astype("f4")

    return make


@contextmanager
def part(folder, name, voxels):
    """A band of voxels of a file, or of the copy that is made where it cannot be read as it is."""
    source = open_source(save(folder / name, data()))
    with rechunk._volumes_in_a_file(source, voxels, folder) as file:
        found, select = file.part(slice(2, 8))
        values = by_volume(data()) if voxels is None or select is not None else by_volume(data())[:, voxels]
        first = 2 if select is None else int(voxels[2])
        yield found, np.ascontiguousarray(values[:, first : first + found.n_voxels])


def of_frames(version, **options):
    def make(folder):
        path = nifreezes(folder / "run.h5", data(), version=version, options=options)
        return nullcontext((open_nfdh5(path), by_volume(data())))

    return make


SPREAD = np.array([0, 3, 5, 9, 17, 18, 30, 31, 44])

IMPLEMENTERS = {
    "FileSource": file_source("run.nii"),
    "FileSource-gz": file_source("run.nii.gz", "float32"),
    "FileSource-bz2": file_source("run.nii.bz2"),
    "FileSource-members": nested_compression,
    "FileSource-foreign": file_source("run.nii", ">f4"),
    "FileSource-pair": file_source("run.img", kind=nib.Nifti1Pair),
    "FileSource-nifti2": file_source("run.nii.gz", "float64", kind=nib.Nifti2Image),
    "FileSource-3D": one_volume,
    "Scattered": far_apart,
    "ArraySource-F": in_memory("int16", "F"),
    "ArraySource-C": in_memory("float64", "C"),
    "ArraySource-of-rows": lambda folder: held(folder, "memfd"),
    "SeriesSource-alike": series([None] * T),
    "SeriesSource-scaled": series([None, 0.5, 2.0, None, 3.0, 0.25, 1.0]),
    "RowSource": dense("a.dtseries.nii"),
    "RowSource-gz": dense("a.dtseries.nii", ">i2", compress=True),
    "FileSource-dense": dense("a.dtseries.nii", by_row=False),
    "MappedVolumes": lambda folder: held(folder, "file"),
    "Span-of-map": lambda folder: held(folder, "file", narrowed=True),
    "Smoothed": step(lambda source: smoothed(source, 6.0), "int16"),
    "Resampled": step(shifted, "float32"),
    "Resampled-smoothed": step(lambda source: shifted(smoothed(source, 6.0)), "int16"),
    "Subject-chunk-each": subject("f4"),
    "Subject-foreign": subject(">f4"),
    "Subject-wide": subject("f8"),
    "Subject-integers": subject("i2"),
    "Subject-contiguous": subject("f4", chunks=None, compression=None, compression_opts=None),
    "Subject-shared-chunks": subject("f4", chunks=(2, T, 20)),
    "Nfdh5Source-interleaved": of_frames(1),
    "Nfdh5Source-chunks": of_frames(1, chunks=(5, 4, 1, 2), compression="gzip"),
    "Nfdh5Source-side-by-side": of_frames(1, chunks="last axis", compression="gzip"),
    "Nfdh5Source-plain": of_frames(2),
    "Nfdh5Source-deflated": of_frames(2, chunks=(1, 5, 4, 3), compression="gzip"),
    "Span-of-file": lambda folder: part(folder, "run.nii", None),
    "Span-of-voxels": lambda folder: part(folder, "run.nii", SPREAD),
    "Span-of-copy": lambda folder: part(folder, "run.nii.gz", SPREAD),
}


class TestVolumes(VolumesContract):
    @pytest.fixture(params=bare.cases(IMPLEMENTERS, "ArraySource-of-rows"))
    def it(self, request, tmp_path):
        it = SimpleNamespace()
        with IMPLEMENTERS[request.param](tmp_path) as (it.volumes, it.values):
            yield it
            vars(it).clear()  # pytest keeps it until what is left open has been looked for


def _is_a_pass(one):
    named = isinstance(one, ast.FunctionDef) and one.name in ("volumes", "_volumes")
    return named and any("contextmanager" in ast.unparse(decorator) for decorator in one.decorator_list)


def test_every_class_with_volumes_is_held_to_it():
    found = {
        kind.name
        for path in Path(sharedmask.__file__).parent.rglob("*.py")
        for kind in ast.walk(ast.parse(path.read_text()))
        if isinstance(kind, ast.ClassDef) and any(_is_a_pass(one) for one in kind.body)
    }
    assert found - {"Source", "Step"} <= {name.partition("-")[0] for name in IMPLEMENTERS}
