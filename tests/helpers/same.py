"""Every call that takes ``n_jobs`` or ``executor``, on files of the working directory, as answers to compare.

Imported, or run as somebody's main script: what it defines is then found nowhere else.
"""

import contextlib
import faulthandler
import hashlib
import importlib
import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import sharedmask  # whose names are imported where they are used: workers import this file

SHAPE = (4, 4, 4)
HANGS_AFTER = 300.0  # seconds of a call, far beyond what the busiest machine takes


def write(folder, number):
    """What the calls read; folders of other numbers have other values in files of the same names."""
    import h5py
    import nibabel as nib

    rng = np.random.default_rng(number)
    data = {
        "run.nii.gz": rng.integers(0, 999, (*SHAPE, 24)).astype("i2"),
        "mask.nii": (rng.random(SHAPE) < 0.7).astype("u1"),
        "atlas.nii": rng.integers(0, 3, SHAPE).astype("u1"),
        "maps.nii": rng.random((*SHAPE, 2)).astype("f4"),
    }
    for name, values in data.items():
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / name)
    np.savetxt(folder / "confounds.tsv", rng.random(24), header="x", comments="")
    (folder / "note.txt").write_text(f"note {number}")
    inside = data["mask.nii"] > 0
    series = rng.normal(size=(3, 20, inside.sum())).astype("f4")
    with h5py.File(folder / "connectome.h5", "w") as file:
        file.create_dataset("timeseries", data=series, chunks=(1, *series.shape[1:]), compression="gzip")
        file["mask_indices"], file["mask_affine"] = np.array(np.nonzero(inside)), np.eye(4)
        file.attrs["mask_shape"] = SHAPE
        file.attrs["n_subjects"], file.attrs["n_timepoints"], file.attrs["n_voxels"] = series.shape


def seen(_):
    """What a function may see of its surroundings, and draw."""
    with open("note.txt") as file, contextlib.suppress(ImportError):
        users = importlib.import_module("users_own").version()
        return file.read(), os.environ.get("USERS_VARIABLE"), users, np.random.rand(), random.random()


class Held:
    """Whose method is a function that holds a generator."""

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def draw(self, values):
        return float(np.sum(values)) + self.rng.random()


def image(work):
    def call(n_jobs):
        with sharedmask.SharedImage("run.nii.gz") as opened:
            return work(opened, n_jobs)

    return call


def frames(function):
    def call(n_jobs):
        with sharedmask.FrameDataset("run.nii.gz") as opened:
            return opened.map(function(), n_jobs=n_jobs)

    return call


def many(**options):
    def call(n_jobs):
        with ThreadPoolExecutor(2) as threads:
            where = {"executor": threads} if n_jobs is None else {"n_jobs": n_jobs}
            study = sharedmask.extract_many(
                ["run.nii.gz"] * 2, **options, confounds=["confounds.tsv"] * 2, **where
            )
        assert not study.errors, study.errors
        return list(study.results.values())

    return call


def network(**options):
    def call(n_jobs):
        mapper = sharedmask.FunctionalNetworkMapper(n_jobs=n_jobs, **options).fit("connectome.h5")
        return [mapper.transform("mask.nii").arrays[name] for name in ("rmap", "zmap")]

    return call


def masker(kind, *arguments, **options):
    def call(_):
        return getattr(sharedmask, kind)(*arguments, detrend=True, standardize=None, **options).fit_transform(
            "run.nii.gz"
        )

    return call


def of_runs(kind, *arguments):
    def call(n_jobs):
        masker = getattr(sharedmask, kind)(*arguments, detrend=True, standardize=None, n_jobs=n_jobs)
        return masker.fit_transform(["run.nii.gz"] * 2)

    return call


def inner(signals):
    return float(np.sum(signals)) + np.random.rand()


def of_many_masks(n_jobs):
    return sharedmask.SharedMultiMasker(MASKS, detrend=True, standardize=None, n_jobs=n_jobs).fit_transform(
        "run.nii.gz"
    )


MASKS = ["mask.nii"] * 3
CALLS = {
    "map": image(lambda one, jobs: one.map(seen, MASKS, n_jobs=jobs)),
    "map, cleaned": image(lambda one, jobs: one.map(seen, MASKS, n_jobs=jobs, confounds="confounds.tsv")),
    "map, a method": image(lambda one, jobs: one.map(Held().draw, MASKS, n_jobs=jobs)),
    "map, seeded": image(
        lambda one, jobs: one.map(lambda _: np.random.rand(), MASKS, n_jobs=jobs, random_state=0)
    ),
    "mask": image(lambda one, jobs: one.mask("mask.nii", n_jobs=jobs, confounds="confounds.tsv")),
    "masks": image(lambda one, jobs: one.mask_parallel(MASKS, n_jobs=jobs)),
    "masks, processes": image(lambda one, jobs: one.mask_parallel(MASKS, n_jobs=jobs, prefer="processes")),
    "masks, cleaned": image(
        lambda one, jobs: one.mask_parallel(MASKS, n_jobs=jobs, confounds="confounds.tsv")
    ),
    "regions": image(lambda one, jobs: one.reduce("atlas.nii", n_jobs=jobs, detrend=True)),
    "extract": lambda jobs: sharedmask.extract(
        "run.nii.gz", "mask.nii", n_jobs=jobs, confounds="confounds.tsv"
    ),
    "extract, passing": lambda jobs: sharedmask.extract(
        "run.nii.gz", "atlas.nii", strategy="mean", n_jobs=jobs
    ),
    "many": many(masks="atlas.nii", strategy="mean", detrend=True),
    "many, executor": lambda jobs: many(masks="mask.nii")(None if jobs > 1 else 1),
    "masks in turn": image(lambda one, jobs: list(one.iter_masks(MASKS, n_jobs=jobs, detrend=True))),
    "connectivity": image(lambda one, jobs: one.connectivity("atlas.nii", n_jobs=jobs)),
    "searchlight": image(
        lambda one, jobs: np.asarray(one.searchlight(inner, 1, mask_img="mask.nii", n_jobs=jobs).dataobj)
    ),
    "linear model": image(
        lambda one, jobs: one.fit_glm(np.vander(np.arange(24.0), 2), "mask.nii", n_jobs=jobs).estimates
    ),
    "batch": lambda jobs: list(
        sharedmask.batch_process({1: 1, 2: 2, 3: 3}, seen, n_jobs=jobs).results.values()
    ),
    "frames": frames(lambda: seen),
    "frames, a method": frames(lambda: Held().draw),
    "network": network(),
    "network, processes": network(prefer="processes"),
    "masker": masker("SharedNiftiMasker", "mask.nii"),
    "masker of labels": masker("SharedLabelsMasker", "atlas.nii"),
    "masker of maps": masker("SharedMapsMasker", "maps.nii"),
    "masker of spheres": masker("SharedSpheresMasker", [(0, 0, 0), (3, 3, 3)], radius=1.5),
    "masker of many": of_many_masks,
    "masker of runs": of_runs("SharedMultiNiftiMasker", "mask.nii"),
    "masker of runs, labels": of_runs("SharedMultiLabelsMasker", "atlas.nii"),
    "masker of runs, maps": of_runs("SharedMultiMapsMasker", "maps.nii"),
}


OPENED = {
    "image": (lambda: sharedmask.SharedImage("run.nii.gz"), lambda one: one.mask(np.ones(SHAPE))),
    "image, on disk": (
        lambda: sharedmask.SharedImage("run.nii.gz", store="disk", mask_img="mask.nii"),
        lambda one: one.frame(0),
    ),
    "image, in workers": (
        lambda: sharedmask.SharedImage("run.nii.gz"),
        lambda one: one.map(np.sum, [np.ones(SHAPE)] * 3, n_jobs=2),
    ),
    "masks in turn": (lambda: Opened(sharedmask.SharedImage("run.nii.gz")), lambda one: list(one.signals)),
    "frames, private": (
        lambda: sharedmask.FrameDataset("run.nii.gz", store="private"),
        lambda one: one.map(np.sum, n_jobs=2),
    ),
    "frames": (lambda: sharedmask.FrameDataset("run.nii.gz"), lambda one: one.map(np.sum, n_jobs=2)),
    "network": (
        lambda: sharedmask.FunctionalNetworkMapper(n_jobs=2).fit("connectome.h5"),
        lambda one: one.transform(lesion()).arrays["rmap"],
    ),
    "masker": (
        lambda: sharedmask.SharedNiftiMasker("mask.nii", standardize=None).fit(),
        lambda one: one.transform(run()),
    ),
    "masker of labels": (
        lambda: sharedmask.SharedLabelsMasker("atlas.nii", standardize=None).fit(),
        lambda one: one.transform(run()),
    ),
    "masker of spheres": (
        lambda: sharedmask.SharedSpheresMasker(
            [(1, 1, 1)], radius=2, mask_img="mask.nii", standardize=None
        ).fit(),
        lambda one: one.transform(run()),
    ),
}
"""What is opened in one folder, and used in another."""


class Opened:
    """An image whose masks were asked for."""

    def __init__(self, opened):
        self.signals = opened.iter_masks(MASKS, batch_size=1, confounds="confounds.tsv")
        self.close = opened.close


def lesion():
    import nibabel as nib

    return nib.Nifti1Image(np.ones(SHAPE, "u1"), np.eye(4))


def run():
    import nibabel as nib

    return nib.Nifti1Image(np.random.default_rng(5).random((*SHAPE, 9)).astype("f4"), np.eye(4))


def digest(value):
    """What two values share if they are equal."""
    if isinstance(value, np.ndarray):
        return hashlib.sha1(np.ascontiguousarray(value)).hexdigest(), value.dtype.str, value.shape
    if isinstance(value, list | tuple):
        return [digest(one) for one in value]
    return repr(value)


def answer(name, n_jobs):
    np.random.seed(0)
    random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        try:
            return digest(CALLS[name](n_jobs))
        finally:
            faulthandler.cancel_dump_traceback_later()


def answers(n_jobs, names=None):
    return {name: answer(name, n_jobs) for name in names or CALLS}


def compared(_=None):
    """The calls whose answers differ here, with workers and without."""
    alone, together = answers(1), answers(2)
    return alone, [name for name in alone if together[name] != alone[name]]
