"""Every encoding by every path: nibabel's bits, nilearn's numbers."""

import bz2
import glob
import gzip
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import AFFINE, SHAPE, bold, niimg, random_masks, same_bits, save

from sharedmask import SharedImage, extract
from sharedmask.compute import plan
from sharedmask.sources import rechunk
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.opening import open_source

NIBABEL_DATA = Path(nib.__file__).parent / "tests/data"
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
STRATEGIES = ("mean", "median", "sum", "minimum", "maximum", "variance", "standard_deviation")


# ---- what others make of an image


def read(image):
    """What nibabel reads, with time as the fourth axis."""
    if isinstance(image, str) and "*" in image:
        image = sorted(glob.glob(image))
    if isinstance(image, list):
        return np.stack([read(one) for one in image], axis=-1)
    loaded = nib.load(image) if isinstance(image, str | Path) else image
    values = np.asanyarray(loaded.dataobj)
    return values.reshape(*values.shape[:3], -1) if values.ndim > 4 else values


def affine_of(image):
    first = sorted(glob.glob(image))[0] if isinstance(image, str) else image
    first = first[0] if isinstance(first, list) else first
    return (nib.load(first) if isinstance(first, str | Path) else first).affine


def by_nibabel(image, mask):
    return read(image)[mask].T


@contextmanager
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@silence()
def by_nilearn(image, mask):
    from nilearn.maskers import NiftiMasker

    mask_img = nib.Nifti1Image(mask.astype("u1"), affine_of(image))
    return np.atleast_1d(NiftiMasker(mask_img=mask_img, standardize=None).fit_transform(image))


@silence()
def labels_by_nilearn(image, labels, strategy):
    from nilearn.maskers import NiftiLabelsMasker

    labels_img = nib.Nifti1Image(labels, affine_of(image))
    masker = NiftiLabelsMasker(labels_img, strategy=strategy, standardize=None, resampling_target=None)
    return masker.fit_transform(image)


def eigenvariate(signals):
    """SPM's, by a singular value decomposition."""
    centred = signals.astype(float) - signals.mean(axis=0, dtype=float)
    courses, scales, weights = np.linalg.svd(centred, full_matrices=False)
    sign = 1 if weights[0].sum() > 0 else -1
    return sign * courses[:, 0] * scales[0] / np.sqrt(signals.shape[1])


@pytest.fixture(scope="session")
def kept_rows(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(autouse=True)
def _each_image_goes_to_disk_once(registry_dir, kept_rows, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(kept_rows))


# ---- encodings: each writes a run and says how it is given


@dataclass(frozen=True)
class Encoding:
    name: str
    write: Callable[[Path], Any]
    nilearn: bool = True


def full_range(dtype, shape=(*SHAPE, 12)):
    bits = np.iinfo(dtype)
    return np.random.default_rng(5).integers(bits.min, bits.max, shape, dtype, endpoint=True)


def values_of(dtype):
    return full_range(dtype) if np.dtype(dtype).kind in "iu" else bold(dtype=dtype)


def plain(folder, dtype="int16", name="run.nii", order="=", **how):
    return save(folder / name, values_of(dtype).astype(np.dtype(dtype).newbyteorder(order)), **how)


def of_shape(folder, shape, name="run.nii.gz", dtype="int16"):
    return save(folder / name, bold(shape, dtype))


def nifti(data, kind=nib.Nifti1Image, order="<", **fields):
    """A whole file, with fields of the header as they are, past nibabel's checks."""
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_data_offset(header.single_vox_offset)
    for name, value in fields.items():
        header[name] = value
    start = header.binaryblock.ljust(header.single_vox_offset, b"\0")
    return start + data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")


def packed(folder, name, content):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".nii": bytes}[Path(name).suffix]
    (folder / name).write_bytes(pack(content))
    return folder / name


def with_header(folder, name="run.nii", dtype="int16", **fields):
    return packed(folder, name, nifti(values_of(dtype), **fields))


def with_extension(folder, name):
    image = niimg(bold())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nib.save(image, folder / name)
    return folder / name


def rewritten(folder, change, name):
    """The bytes of an uncompressed file, changed."""
    content = plain(folder).read_bytes()
    (folder / name).write_bytes(change(content))
    return folder / name


def in_members(content, size=4000):
    return b"".join(gzip.compress(content[i : i + size]) for i in range(0, len(content), size))


def pair(folder, suffix, kind=nib.Nifti1Pair, given=None, **how):
    save(folder / f"run{suffix}", bold(), kind=kind, **how)
    return folder / f"run{given or suffix}"


def analyze(folder, kind=nib.AnalyzeImage, **how):
    return pair(folder, ".img", kind, **how)


def foreign_analyze(folder):
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.AnalyzeImage(bold(), AFFINE, header), folder / "run.img")
    return folder / "run.hdr"


def not_finite(folder, dtype, **how):
    values = bold(dtype=dtype)
    spots = np.random.default_rng(3).random(values.shape)
    values[spots < 0.05], values[spots > 0.97], values[(spots > 0.5) & (spots < 0.52)] = (
        np.nan,
        np.inf,
        -np.inf,
    )
    return save(folder / "run.nii.gz", values, **how)


def odd_floats(folder, dtype):
    """Finite values whose sum is not, zeros of both signs and the smallest numbers."""
    facts = np.finfo(dtype)
    chosen = np.array([facts.max, -facts.max, 0.0, -0.0, facts.smallest_subnormal, facts.tiny], dtype)
    return save(folder / "run.nii.gz", np.random.default_rng(4).choice(chosen, (*SHAPE, 12)))


def volumes(folder, n=5, suffix=".nii.gz", slopes=(None,)):
    run = bold()
    for t in range(n):
        save(folder / f"vol{t}{suffix}", run[..., t], slope=slopes[t % len(slopes)], inter=t)
    return [folder / f"vol{t}{suffix}" for t in range(n)]


def pattern(folder):
    volumes(folder)
    return str(folder / "vol*.nii.gz")


def in_memory(folder, change=lambda data: data, dtype="int16"):
    return niimg(change(bold(dtype=dtype)))


def opened(folder, change=lambda image: image):
    return change(nib.load(plain(folder, name="run.nii.gz", slope=0.5, inter=3)))


def read_already(image):
    image.get_fdata()
    return image


ENCODINGS = [
    *(Encoding(dtype, partial(plain, dtype=dtype)) for dtype in [*INTEGERS, "float32", "float64"]),
    *(
        Encoding(f"big-endian {dtype}", partial(plain, dtype=dtype, order=">", name="run.nii.gz"))
        for dtype in [*INTEGERS[1:4], *INTEGERS[5:], "float32", "float64"]
    ),
    Encoding("nifti-2", partial(plain, kind=nib.Nifti2Image, name="run.nii.gz")),
    Encoding("big-endian nifti-2", partial(plain, kind=nib.Nifti2Image, order=">", dtype="float32")),
    Encoding("gzip", partial(plain, name="run.nii.gz")),
    Encoding("bzip2", partial(plain, name="run.nii.bz2")),
    Encoding("header extension", partial(with_extension, name="run.nii")),
    Encoding("header extension, gzip", partial(with_extension, name="run.nii.gz")),
    Encoding("gzip members", partial(rewritten, change=in_members, name="members.nii.gz")),
    Encoding("bytes after the data", partial(rewritten, change=lambda c: c + b"more" * 99, name="long.nii")),
    Encoding(
        "zeros after gzip",
        partial(rewritten, change=lambda c: gzip.compress(c) + bytes(999), name="padded.nii.gz"),
    ),
    Encoding(
        "bytes after gzip",
        partial(rewritten, change=lambda c: gzip.compress(c) + b"more" * 99, name="long.nii.gz"),
    ),
    Encoding("bzip2 by another", partial(rewritten, change=bz2.compress, name="other.nii.bz2")),
    Encoding("scaled", partial(with_header, scl_slope=0.25, scl_inter=-100.0)),
    Encoding("scaled uint8, gzip", partial(with_header, dtype="u1", scl_slope=-3.7, name="scaled.nii.gz")),
    Encoding("scaled int64", partial(with_header, dtype="i8", scl_slope=0.1, scl_inter=7.0)),
    Encoding("scaled float32", partial(with_header, dtype="f4", scl_slope=1.1, scl_inter=0.3)),
    Encoding("scaled float64", partial(with_header, dtype="f8", scl_slope=1.1)),
    Encoding("intercept only", partial(with_header, scl_slope=1.0, scl_inter=0.1)),
    Encoding("slope 0", partial(with_header, scl_slope=0.0, scl_inter=5.0)),
    Encoding("slope NaN", partial(with_header, scl_slope=np.nan, scl_inter=5.0)),
    Encoding("slope inf", partial(with_header, scl_slope=np.inf, scl_inter=5.0)),
    Encoding("pair by .hdr", partial(pair, suffix=".img", given=".hdr"), nilearn=False),
    Encoding("pair by .img", partial(pair, suffix=".img", slope=0.5, inter=2), nilearn=False),
    Encoding("pair by .img.gz", partial(pair, suffix=".img.gz"), nilearn=False),
    Encoding(
        "Analyze by .hdr", partial(pair, suffix=".img", kind=nib.AnalyzeImage, given=".hdr"), nilearn=False
    ),
    Encoding("Analyze by .img", analyze, nilearn=False),
    Encoding("big-endian Analyze", foreign_analyze, nilearn=False),
    Encoding(
        "SPM Analyze", partial(pair, suffix=".img", kind=nib.Spm2AnalyzeImage, slope=0.5), nilearn=False
    ),
    Encoding("3D", partial(of_shape, shape=SHAPE)),
    Encoding("3D float64", partial(of_shape, shape=SHAPE, dtype="f8", name="one.nii")),
    Encoding("one volume", partial(of_shape, shape=(*SHAPE, 1))),
    Encoding("five axes", partial(of_shape, shape=(*SHAPE, 1, 9)), nilearn=False),
    Encoding("130 volumes", partial(of_shape, shape=(*SHAPE, 130), dtype="f4")),
    Encoding("more voxels than a tile", partial(of_shape, shape=(13, 11, 9, 17), name="run.nii")),
    Encoding("one voxel", partial(of_shape, shape=(1, 1, 1, 20), dtype="f4")),
    Encoding("not finite", partial(not_finite, dtype="f4")),
    Encoding("not finite, float64", partial(not_finite, dtype="f8")),
    Encoding("not finite, scaled", partial(not_finite, dtype="f4", slope=0.5, inter=4)),
    Encoding("odd floats", partial(odd_floats, dtype="f4")),
    Encoding("odd doubles", partial(odd_floats, dtype="f8")),
    Encoding("list of volumes", volumes),
    Encoding("list of one", partial(volumes, n=1, suffix=".nii")),
    Encoding("list of scaled", partial(volumes, slopes=(0.5,), suffix=".nii"), nilearn=False),
    Encoding("list, each scaled in its way", partial(volumes, slopes=(None, 0.5, 2.0)), nilearn=False),
    Encoding("glob", pattern),
    Encoding("in memory", in_memory),
    Encoding("in memory, float32 in C order", partial(in_memory, dtype="f4")),
    Encoding("in memory, Fortran order", partial(in_memory, change=np.asfortranarray)),
    Encoding("in memory, foreign", partial(in_memory, change=lambda d: d.astype(">f8"))),
    Encoding("opened", opened),
    Encoding("opened and read", partial(opened, change=read_already)),
    Encoding("opened and sliced", partial(opened, change=lambda image: image.slicer[1:, :, 1:, 2:9])),
]


# ---- paths: each gives {key: signals} of {key: mask}


def resident(image, masks, mask_img=None, **parameters):
    with SharedImage(image, store="shm", mask_img=mask_img) as shared:
        return shared.mask_parallel(masks, **parameters)


def stored(image, masks, store, **parameters):
    with SharedImage(image, store=store) as shared:
        assert shared.store[0] == store
        return shared.mask_parallel(masks, **parameters)


def in_bands(image, masks, **parameters):
    """On disk, in bands so small that every image has several, and so a copy if it is compressed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rechunk, "_LEAST_ROWS", 64)
        patch.setattr(rechunk, "_BAND_BYTES", 1)
        return stored(image, masks, "disk", **parameters)


def in_file(image):
    """The store "file", where that is possible; else the disk."""
    return "file" if isinstance(open_source(image).layout, FileLayout) else "disk"


def by_file(image, masks, **parameters):
    return stored(image, masks, in_file(image), **parameters)


def masked_on_loading(image, masks, **parameters):
    return resident(image, masks, mask_img=np.logical_or.reduce(list(masks.values())), **parameters)


def in_batches(image, masks, batch_size=2, **parameters):
    with SharedImage(image) as shared:
        return dict(shared.iter_masks(masks, batch_size=batch_size, **parameters))


PATHS = {
    "caller": resident,
    "threads": partial(resident, n_jobs=2, prefer="threads"),
    "every CPU": partial(resident, n_jobs=-1),
    "processes": partial(resident, n_jobs=2, prefer="processes"),
    "memfd": partial(stored, store="memfd"),
    "disk": in_bands,
    "disk, processes": partial(stored, store="disk", n_jobs=2, prefer="processes"),
    "file": by_file,
    "file, processes": partial(by_file, n_jobs=2, prefer="processes"),
    "mask_img": masked_on_loading,
    "mask_img, threads": partial(masked_on_loading, n_jobs=3, prefer="threads"),
    "mask_img, processes": partial(masked_on_loading, n_jobs=3, prefer="processes"),
    "extract": extract,
    "iter_masks": in_batches,
}


def some_masks(shape):
    """Overlapping, one of a single voxel; together they leave voxels out."""
    names = ("a", "b", "single")
    masks = dict(zip(names, random_masks(3, shape), strict=True))
    masks["single"][...] = False
    masks["single"][tuple(np.array(shape) // 2)] = True
    return masks


@dataclass(frozen=True)
class Written:
    """One encoding, on disk, and what it holds by the others."""

    image: Any
    masks: dict[str, np.ndarray] = field(repr=False)
    nibabel: dict[str, np.ndarray] = field(repr=False)
    nilearn: dict[str, np.ndarray] = field(repr=False)


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    """The encoding, written once for all tests."""
    done = {}

    def once(encoding):
        if encoding.name not in done:
            image = encoding.write(tmp_path_factory.mktemp("encoding"))
            masks = some_masks(read(image).shape[:3])
            nibabel = {key: by_nibabel(image, mask) for key, mask in masks.items()}
            accepted = masks if encoding.nilearn else {}
            nilearn = {key: by_nilearn(image, mask) for key, mask in accepted.items()}
            done[encoding.name] = Written(image, masks, nibabel, nilearn)
        return done[encoding.name]

    return once


def some_always(paths, *always):
    """Parameters: these paths in each run of the tests, all of them in the long one."""
    return pytest.mark.parametrize(
        "path",
        [
            pytest.param(path, id=name, marks=[] if name in always else pytest.mark.long)
            for name, path in paths.items()
        ],
    )


def assert_exact(path, written):
    as_stored = path(written.image, written.masks, dtype=None)
    assert list(as_stored) == list(written.masks)
    for key, expected in written.nibabel.items():
        same_bits(as_stored[key], expected)
    as_nilearn = path(written.image, written.masks)
    for key, expected in written.nilearn.items():
        same_bits(as_nilearn[key], expected)


@pytest.mark.some(6)
@some_always(PATHS, "processes", "disk", "extract")
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_signals(encoding, path, write):
    assert_exact(path, write(encoding))


@pytest.mark.some(8)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_functions_get_the_same_signals(encoding, write):
    written = write(encoding)
    with SharedImage(written.image) as image:
        mapped = image.map(lambda signals: signals, written.masks, dtype=None)
    for key, expected in written.nibabel.items():
        same_bits(mapped[key], np.atleast_2d(expected))


@pytest.mark.some(12)
@pytest.mark.parametrize(
    "name",
    [
        "functional.nii",
        "example4d.nii.gz",
        "example_nifti2.nii.gz",
        "anatomical.nii",
        "reoriented_anat_moved.nii",
        "resampled_anat_moved.nii",
    ],
)
@pytest.mark.filterwarnings("ignore:.*may be in milliseconds")  # what two of these files say
@pytest.mark.parametrize("path", ["caller", "threads", "processes", "mask_img", "extract", "iter_masks"])
def test_files_of_others(name, path, write):
    assert_exact(PATHS[path], write(Encoding(name, lambda _: NIBABEL_DATA / name)))


# ---- one value per region

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}


def some_labels(shape):
    return np.random.default_rng(8).integers(0, 5, shape).astype("i2") * 3


@pytest.mark.some(8)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "name",
    [
        "int8",
        "int16",
        "uint16",
        "int64",
        "float32",
        "float64",
        "big-endian int32",
        "big-endian float64",
        "gzip",
        "scaled",
        "scaled float32",
        "one volume",
        "130 volumes",
        "not finite",
        "not finite, scaled",
        "list of volumes",
        "in memory",
        "3D",
    ],
)
def test_reductions_by_nilearn(name, strategy, write):
    written = write(BY_NAME[name])
    labels = some_labels(read(written.image).shape[:3])
    expected = labels_by_nilearn(written.image, labels, strategy)
    with SharedImage(written.image) as image:
        got = image.reduce(niimg(labels, affine_of(written.image)), strategy)
    assert (got.dtype, got.shape) == (expected.dtype.newbyteorder("="), expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_reduction_of_foreign_float32_by_nilearn(write):
    written = write(BY_NAME["big-endian float32"])
    labels = some_labels(SHAPE)
    expected = labels_by_nilearn(written.image, labels, "mean")
    got = reduced(written.image, niimg(labels, affine_of(written.image)), "mean")
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # nilearn compares dtypes with their byte order and gives float64 here; ours does not depend on it.
    assert (got.dtype, expected.dtype) == (np.float32, np.float64)


@pytest.mark.parametrize("name", ["int16", "float32", "scaled", "130 volumes", "more voxels than a tile"])
def test_eigenvariate_by_decomposition(name, write):
    written = write(BY_NAME[name])
    with SharedImage(written.image) as image:
        got = image.reduce(written.masks, "pc1")
    signals = [written.nibabel[key] for key in ("a", "b")]
    expected = np.stack([eigenvariate(one) for one in signals], axis=1)
    np.testing.assert_allclose(got[:, :2], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("strategy", "by_numpy"),
    [
        ("mean", np.nanmean),
        ("median", np.nanmedian),
        ("sum", np.nansum),
        ("minimum", np.nanmin),
        ("maximum", np.nanmax),
        ("variance", np.nanvar),
        ("standard_deviation", np.nanstd),
    ],
)
@pytest.mark.parametrize("name", ["not finite", "not finite, float64", "not finite, scaled"])
def test_omitting_by_numpy(name, strategy, by_numpy, write):
    written = write(BY_NAME[name])
    signals = written.nibabel["a"].astype(float)
    signals[~np.isfinite(signals)] = np.nan
    with SharedImage(written.image) as image:
        got = image.reduce([written.masks["a"]], strategy, nan_policy="omit")
    np.testing.assert_allclose(got[:, 0], by_numpy(signals, axis=1), rtol=1e-6)


def reduced(image, masks, strategy, mask_img=None, store="auto", **parameters):
    with SharedImage(image, mask_img=mask_img, store=store) as shared:
        return shared.reduce(masks, strategy, **parameters)


def reduced_by_file(image, masks, strategy, **parameters):
    return reduced(image, masks, strategy, store=in_file(image), **parameters)


def reduced_in_mask(image, masks, strategy, **parameters):
    return reduced(image, masks, strategy, np.logical_or.reduce(list(masks.values())), **parameters)


def extracted(image, masks, strategy, **parameters):
    return extract(image, masks, strategy=strategy, **parameters)


REDUCING_PATHS = {
    "threads": partial(reduced, n_jobs=2, prefer="threads"),
    "processes": partial(reduced, n_jobs=2, prefer="processes"),
    "disk": partial(reduced, store="disk"),
    "file": reduced_by_file,
    "file, processes": partial(reduced_by_file, n_jobs=2, prefer="processes"),
    "mask_img": reduced_in_mask,
    "mask_img, processes": partial(reduced_in_mask, n_jobs=3, prefer="processes"),
    "extract": extracted,
    "extract, processes": partial(extracted, n_jobs=2, prefer="processes"),
}


@pytest.mark.some(4)
@some_always(REDUCING_PATHS, "processes", "extract")
@pytest.mark.parametrize("name", ["int16", "float32", "scaled", "not finite", "130 volumes"])
def test_reductions_have_the_same_bits_by_every_path(name, path, write):
    written = write(BY_NAME[name])
    for strategy in (*STRATEGIES, "pc1"):
        expected = reduced(written.image, written.masks, strategy)
        same_bits(path(written.image, written.masks, strategy), expected)


@pytest.mark.parametrize("n_voxels", [200, 600])
def test_eigenvariates_have_the_same_bits_in_processes(n_voxels, tmp_path):
    run = save(tmp_path / "run.nii", bold((10, 10, 8, 300), "f4"))
    masks = [np.arange(800).reshape(10, 10, 8) < n_voxels] * 2
    expected = reduced(run, masks, "pc1")
    same_bits(reduced(run, masks, "pc1", n_jobs=2, prefer="processes"), expected)


# ---- cleaned signals

N_TIMEPOINTS = 40
CONFOUNDS = np.random.default_rng(6).normal(size=(N_TIMEPOINTS, 4))
KEPT = np.delete(np.arange(N_TIMEPOINTS), [0, 7, 8, 31])
CLEANINGS = {
    "zscore_sample": {"standardize": "zscore_sample"},
    "psc": {"standardize": "psc"},
    "detrend": {"detrend": True},
    "confounds": {"confounds": CONFOUNDS},
    "sample_mask": {"sample_mask": KEPT},
    "band-pass": {"low_pass": 0.1, "high_pass": 0.02, "t_r": 2.0},
    "detrend, zscore": {"detrend": True, "standardize": "zscore_sample"},
    "confounds, sample_mask, psc": {"confounds": CONFOUNDS, "sample_mask": KEPT, "standardize": "psc"},
    "everything": {
        "confounds": CONFOUNDS,
        "sample_mask": KEPT,
        "detrend": True,
        "high_pass": 0.01,
        "t_r": 2.0,
        "standardize": "zscore_sample",
    },
}
CLEANING_PATHS = {
    "caller": resident,
    "threads": partial(resident, n_jobs=2, prefer="threads"),
    "processes": partial(resident, n_jobs=2, prefer="processes"),
    "file": by_file,
    "file, processes": partial(by_file, n_jobs=2),
    "mask_img": masked_on_loading,
    "extract": extract,
    "extract, processes": partial(extract, n_jobs=2),
    "iter_masks": in_batches,
}


@silence()
def cleaned_by_nilearn(signals, **cleaning):
    from nilearn.signal import clean

    return clean(signals, **{"standardize": None, "detrend": False, **cleaning})


def assert_close(got, expected):
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@dataclass(frozen=True)
class Cleaned:
    """A run with more voxels than are cleaned at a time, and what nilearn makes of it."""

    path: Path
    masks: dict[str, np.ndarray]
    labels: np.ndarray

    @cached_property
    def raw(self):
        return {key: by_nilearn(self.path, mask) for key, mask in self.masks.items()}

    @cached_property
    def signals(self):
        return {
            name: {key: cleaned_by_nilearn(one, **cleaning) for key, one in self.raw.items()}
            for name, cleaning in CLEANINGS.items()
        }

    def means(self, cleaning):
        return cleaned_by_nilearn(labels_by_nilearn(self.path, self.labels, "mean"), **CLEANINGS[cleaning])


def run_to_clean(folder, dtype):
    shape = (11, 10, 9)
    masks = some_masks(shape) | {"overlapping": np.indices(shape)[0] > 6}
    run = save(folder / "run.nii", bold((*shape, N_TIMEPOINTS), dtype))
    return Cleaned(run, masks, some_labels(shape))


@pytest.fixture(scope="session")
def to_clean(tmp_path_factory):
    return run_to_clean(tmp_path_factory.mktemp("clean"), "int16")


@pytest.fixture(scope="session")
def doubles_to_clean(tmp_path_factory):
    return run_to_clean(tmp_path_factory.mktemp("clean"), "float64")


@pytest.mark.some(6)
@some_always(CLEANING_PATHS, "processes", "extract")
@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_cleaned_signals(cleaning, path, to_clean):
    got = path(to_clean.path, to_clean.masks, **CLEANINGS[cleaning])
    for key, expected in to_clean.signals[cleaning].items():
        assert_close(got[key], expected)


@pytest.mark.some(1)
@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_cleaned_doubles(cleaning, doubles_to_clean):
    got = resident(doubles_to_clean.path, doubles_to_clean.masks, **CLEANINGS[cleaning])
    for key, expected in doubles_to_clean.signals[cleaning].items():
        assert_close(got[key], expected)


@pytest.mark.some(1)
@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_functions_get_cleaned_signals(cleaning, to_clean):
    with SharedImage(to_clean.path) as image:
        got = image.map(lambda signals: signals, to_clean.masks, n_jobs=2, **CLEANINGS[cleaning])
    for key, expected in to_clean.signals[cleaning].items():
        assert_close(got[key], expected)


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("path", [reduced, extracted])
def test_cleaned_reductions(cleaning, path, to_clean):
    got = path(to_clean.path, niimg(to_clean.labels), "mean", **CLEANINGS[cleaning])
    assert_close(got, to_clean.means(cleaning))


# ---- anything at all


@dataclass(frozen=True)
class Run:
    shape: tuple[int, int, int, int]
    dtype: str
    order: str
    container: str
    kind: Any
    scaling: tuple[float, float]
    share_of_nan: float
    seed: int

    def write(self, folder):
        data = self._values().reshape(self.shape)
        slope, inter = self.scaling
        content = nifti(data, self.kind, self.order, scl_slope=slope, scl_inter=inter)
        return packed(folder, f"run{self.container}", content)

    def _values(self):
        if np.dtype(self.dtype).kind in "iu":
            return full_range(self.dtype, self.shape)
        rng = np.random.default_rng(self.seed)
        values = rng.normal(0, 1e4, self.shape).astype(self.dtype)
        values[rng.random(self.shape) < self.share_of_nan] = np.nan
        return values


def float32s(low, high):
    return st.floats(low, high, width=32)


RUNS = st.builds(
    Run,
    shape=st.tuples(*[st.integers(1, 7)] * 3, st.integers(1, 70)),
    dtype=st.sampled_from([*INTEGERS, "float32", "float64"]),
    order=st.sampled_from("<>"),
    container=st.sampled_from([".nii", ".nii.gz", ".nii.bz2"]),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    scaling=st.one_of(
        st.just((1.0, 0.0)),
        st.tuples(float32s(0.0625, 64.0) | float32s(-64.0, -0.0625), float32s(-1000, 1000)),
    ),
    share_of_nan=st.sampled_from([0, 0.1]),
    seed=st.integers(0, 99),
)
ANY_PATHS = st.one_of(
    st.builds(
        partial,
        st.sampled_from([resident, masked_on_loading]),
        n_jobs=st.sampled_from([None, 1, 2, 5, -1]),
        prefer=st.sampled_from([None, "threads"]),
    ),
    st.just(extract),
    st.builds(partial, st.just(in_batches), batch_size=st.sampled_from([1, 2, 20])),
)
quickly = partial(settings, derandomize=True)


def any_masks(data, shape):
    count = data.draw(st.integers(1, 4), label="masks")
    density, seed = data.draw(st.sampled_from([0.02, 0.3, 0.9])), data.draw(st.integers(0, 99))
    return dict(enumerate(random_masks(count, shape, seed, density)))


@quickly(max_examples=60)
@given(run=RUNS, path=ANY_PATHS, data=st.data(), block_bytes=st.sampled_from([1, 2000, 2**23]))
def test_any_run_by_any_path(run, path, data, block_bytes, tmp_path):
    image, masks = run.write(tmp_path), any_masks(data, run.shape[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_BLOCK_BYTES", block_bytes)
        signals = path(image, masks, dtype=None)
    for key, mask in masks.items():
        same_bits(signals[key], by_nibabel(image, mask))


@quickly(max_examples=25)
@given(run=RUNS, path=ANY_PATHS, data=st.data())
def test_any_run_as_nilearn_reads_it(run, path, data, tmp_path):
    image, masks = run.write(tmp_path), any_masks(data, run.shape[:3])
    signals = path(image, masks)
    key = data.draw(st.sampled_from(list(masks)))
    same_bits(signals[key], by_nilearn(image, masks[key]))


@quickly(max_examples=25)
@given(run=RUNS, n_jobs=st.sampled_from([1, 2, 3]), data=st.data())
def test_any_run_by_processes(run, n_jobs, data, tmp_path):
    image, masks = run.write(tmp_path), any_masks(data, run.shape[:3])
    signals = resident(image, masks, n_jobs=n_jobs, prefer="processes", dtype=None)
    for key, mask in masks.items():
        same_bits(signals[key], by_nibabel(image, mask))


@quickly(max_examples=25)
@given(run=RUNS, strategy=st.sampled_from(STRATEGIES), n_jobs=st.sampled_from([None, 2, 3]), data=st.data())
def test_any_reduction_by_numpy(run, strategy, n_jobs, data, tmp_path):
    image, masks = run.write(tmp_path), any_masks(data, run.shape[:3])
    by_numpy = {"minimum": np.min, "maximum": np.max, "variance": np.var, "standard_deviation": np.std}
    function = by_numpy.get(strategy) or getattr(np, strategy)
    got = reduced(image, masks, strategy, dtype="float64", n_jobs=n_jobs)
    for column, mask in enumerate(masks.values()):
        signals = np.nan_to_num(by_nibabel(image, mask).astype(float))
        scale = np.abs(signals).max() ** (2 if strategy == "variance" else 1)
        atol = 1e-13 * scale * signals.shape[1] + 1e-7 * scale * (strategy == "standard_deviation")
        np.testing.assert_allclose(got[:, column], function(signals, axis=1), rtol=1e-6, atol=atol)


# ---- a real run


@pytest.fixture(scope="session")
def real_run(real_data):
    return real_data / "sub-RAPIDTIDETEST.nii.gz"


@pytest.fixture(scope="session")
def real_masks(real_data):
    atlas = np.asarray(nib.load(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz").dataobj)
    brain = np.asarray(nib.load(real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz").dataobj) != 0
    return {"brain": brain, **{f"parcel {k}": atlas == k for k in (1, 200, 400)}}


@pytest.fixture(scope="session")
def real_signals(real_run, real_masks):
    return {key: by_nilearn(str(real_run), mask) for key, mask in real_masks.items()}


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_real_signals(path, real_run, real_masks, real_signals):
    got = path(real_run, real_masks)
    for key, expected in real_signals.items():
        same_bits(got[key], expected)


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("parcels", "strategy", "n_regions"),
    [(400, "mean", 400), (400, "standard_deviation", 400), (1000, "mean", 994)],
)
def test_real_parcels(parcels, strategy, n_regions, real_run, real_data):
    atlas = nib.load(real_data / f"sub-RAPIDTIDETEST_atlas-Schaefer{parcels}_dseg.nii.gz")
    expected = labels_by_nilearn(str(real_run), np.asarray(atlas.dataobj), strategy)
    assert expected.shape == (260, n_regions)
    for path in (partial(reduced, n_jobs=2), extracted):
        got = path(real_run, atlas, strategy)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.long
@pytest.mark.realdata
def test_real_eigenvariates(real_run, real_masks, real_signals):
    masks = {key: mask for key, mask in real_masks.items() if key != "brain"}
    got = reduced(real_run, masks, "pc1", n_jobs=2, prefer="processes")
    expected = np.stack([eigenvariate(real_signals[key]) for key in masks], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.some(1)
@pytest.mark.realdata
@pytest.mark.parametrize("path", ["caller", "processes", "extract"])
def test_real_cleaned_signals(path, real_run, real_masks, real_signals):
    cleaning = {"standardize": "zscore_sample", "detrend": True, "high_pass": 0.01, "t_r": 1.5}
    masks = {key: mask for key, mask in real_masks.items() if key != "brain"}
    got = CLEANING_PATHS[path](real_run, masks, **cleaning)
    for key in masks:
        assert_close(got[key], cleaned_by_nilearn(real_signals[key], **cleaning))
