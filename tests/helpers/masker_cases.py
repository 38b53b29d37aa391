"""Cases for the drop-in maskers: factors, their levels, and rows in which all pairs of levels meet.

A row names a level of every factor; :func:`built` makes of it what a masker is given. Everything is
made afresh each time, because nilearn writes into what it is given.
"""

import itertools
import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from images import AFFINE, niimg, save, sent

from sharedmask import SharedImage

BOX = (8, 7, 6)
N_VOLUMES = 40
T_R = 2.0
LABELS = (2, 3, 7, 40)


def covering(factors, allowed=lambda row: True, seed=0, tries=30):
    """Rows such that every two levels of two factors meet in at least one, if ``allowed``.

    Parameters
    ----------
    factors : dict
        Levels by the name of the factor.
    """
    rng = random.Random(seed)
    missing = dict.fromkeys(
        frozenset(pair)
        for one, other in itertools.combinations(factors, 2)
        for pair in itertools.product(_named(one, factors), _named(other, factors))
    )
    rows = []
    while missing:
        wanted = next(iter(missing))
        drawn = [{**random_row(factors, rng), **dict(sorted(wanted))} for _ in range(tries)]
        if candidates := [row for row in drawn if allowed(row)]:
            rows.append(max(candidates, key=lambda row: sum(pair in missing for pair in _pairs(row))))
            for pair in _pairs(rows[-1]):
                missing.pop(pair, None)
        missing.pop(wanted, None)
    return rows


def random_row(factors, rng):
    return {name: rng.choice(list(levels)) for name, levels in factors.items()}


def _named(factor, factors):
    return [(factor, level) for level in factors[factor]]


def _pairs(row):
    return [frozenset(pair) for pair in itertools.combinations(row.items(), 2)]


# ---- images: a level is what the file holds


def _values(dtype, shape=(*BOX, N_VOLUMES), seed=0):
    """A brain in a box whose faces are 0, so that masks can be computed."""
    rng = np.random.default_rng(seed)
    values = np.zeros(shape)
    inside = (slice(1, -1),) * 3
    values[inside] = rng.normal(100, 15, values[inside].shape).clip(1, 250)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else values.round().astype(dtype)


def _not_finite(dtype):
    values = _values(dtype)
    spots = np.random.default_rng(1).random(values.shape)
    values[spots < 0.02], values[spots > 0.99] = np.nan, np.inf
    return values


ENCODINGS = {
    "uint8": (_values, "u1", {}),
    "int16": (_values, "i2", {}),
    "int16, scaled": (_values, "i2", {"slope": 0.25, "inter": -10.0}),
    "int32": (_values, "i4", {}),
    "float32": (_values, "f4", {}),
    "float64": (_values, "f8", {}),
    "float32, scaled": (_values, "f4", {"slope": 1.5, "inter": 3.0}),
    "big-endian int16": (_values, ">i2", {}),
    "big-endian float32": (_values, ">f4", {}),
    "not finite": (_not_finite, "f4", {}),
    "not finite, float64": (_not_finite, "f8", {}),
}
SHAPES = {"4D": slice(None), "one volume": slice(0, 1), "3D": 0}


@dataclass(frozen=True)
class Files:
    """Runs by encoding, written once."""

    folder: Path

    @cache  # noqa: B019  as long as the session
    def run(self, encoding, shape="4D", suffix=".nii"):
        values, dtype, scaling = ENCODINGS[encoding]
        path = self._path(f"{encoding} {shape}{suffix}")
        return save(path, values(dtype)[..., SHAPES[shape]], t_r=T_R, **scaling)

    @cache  # noqa: B019
    def volumes(self, encoding, shape="4D"):
        values, dtype, scaling = ENCODINGS[encoding]
        data = values(dtype)[..., : N_VOLUMES if shape == "4D" else 1]
        return [
            save(self._path(f"{encoding} {shape} {t:02d}.nii"), data[..., t], **scaling)
            for t in range(data.shape[-1])
        ]

    def _path(self, name):
        return self.folder / name.replace(" ", "-").replace(",", "")


def _loaded(path):
    """In memory, with the header of the file."""
    image = nib.load(path)
    return nib.Nifti1Image(np.asanyarray(image.dataobj).copy(), image.affine, image.header)


SOURCES = {
    ".nii": lambda files, *run: files.run(*run),
    ".nii.gz as text": lambda files, *run: str(files.run(*run, ".nii.gz")),
    "in memory": lambda files, *run: _loaded(files.run(*run)),
    "opened": lambda files, *run: nib.load(files.run(*run, ".nii.gz")),
    "list of paths": lambda files, *run: list(files.volumes(*run)),
    "list of images": lambda files, *run: [_loaded(path) for path in files.volumes(*run)],
    "glob": lambda files, *run: str(files.volumes(*run)[0])[: -len("00.nii")] + "??.nii",
    "SharedImage": lambda files, *run: files.run(*run, ".nii.gz"),
    "handle": lambda files, *run: files.run(*run),
}
SHARED = ("SharedImage", "handle")


def for_us(source, imgs, closing):
    """What our masker is given where nilearn's gets ``imgs``."""
    if source not in SHARED:
        return imgs
    image = closing.enter_context(SharedImage(imgs))
    return sent(image) if source == "handle" else image


# ---- grids of masks and atlases, as shape and affine


def _moved(matrix, shape=BOX):
    return shape, AFFINE @ np.array(matrix, dtype=float)


def _diagonal(*scales, offset=(0, 0, 0)):
    matrix = np.diag([*scales, 1.0])
    matrix[:3, 3] = offset
    return matrix


_TURN = np.array([[0.96, -0.28, 0, 1], [0.28, 0.96, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]])

GRIDS = {
    "same": _moved(np.eye(4)),
    "nearly the same": (BOX, AFFINE * (1 + 1e-7)),
    "half a voxel off": _moved(_diagonal(1, 1, 1, offset=(0.5, 0, 0))),
    "coarser": _moved(_diagonal(1.5, 1.5, 1.5), (5, 5, 4)),
    "finer": _moved(_diagonal(0.7, 0.7, 0.7), (11, 10, 8)),
    "flipped": _moved(_diagonal(-1, 1, 1, offset=(BOX[0] - 1, 0, 0))),
    "permuted": _moved(np.eye(4)[[1, 0, 2, 3]], (BOX[1], BOX[0], BOX[2])),
    "turned": _moved(_TURN),
    "one slice shorter": _moved(np.eye(4), (*BOX[:2], BOX[2] - 1)),
    "far": _moved(_diagonal(1, 1, 1, offset=(-200, 0, 0))),
    "far behind": _moved(_diagonal(1, 1, 1, offset=(200, 0, 0))),
}


# ---- masks, atlases, maps: functions of a grid


def _inside(shape, seed=2, density=0.4):
    return np.random.default_rng(seed).random(shape) < density


def _mask(change):
    return lambda shape: change(_inside(shape))


def _one_voxel(inside):
    only = np.zeros(inside.shape, "u1")
    only[tuple(size // 2 for size in inside.shape)] = 1
    return only


def _with_nan(inside):
    values = inside.astype("f4")
    values[0, 0, :2] = np.nan
    return values


MASKS = {
    "uint8": _mask(lambda inside: inside.astype("u1")),
    "weights": _mask(lambda inside: np.where(inside, np.float32(0.3), 0)),
    "negative": _mask(lambda inside: -inside.astype("i2")),
    "labels": _mask(lambda inside: inside.astype("i2") * 2 + _inside(inside.shape, 3)),
    "all": _mask(lambda inside: np.ones(inside.shape, "u1")),
    "one voxel": _mask(_one_voxel),
    "with NaN": _mask(_with_nan),
    "4D": _mask(
        lambda inside: np.stack([inside, inside | True, inside | _inside(inside.shape, 4)], -1) * 1.0
    ),
}


def atlas(shape, dtype="i2"):
    """Labels with gaps, some of one voxel, on a background of 0."""
    rng = np.random.default_rng(5)
    found = rng.choice([0, *LABELS[:3]], shape, p=[0.4, 0.2, 0.2, 0.2])
    found[tuple(size // 2 for size in shape)] = LABELS[3]
    return found.astype(dtype)


def maps(shape, dtype="f4", n_maps=3):
    rng = np.random.default_rng(6)
    return np.where(rng.random((*shape, n_maps)) < 0.4, rng.random((*shape, n_maps)), 0).astype(dtype)


def disjoint_maps(shape, n_maps=3):
    return (atlas(shape)[..., None] == LABELS[:n_maps]).astype("f4")


def names_table():
    return pd.DataFrame({"index": [0, *LABELS], "name": ["Background", "two", "three", "seven", "forty"]})


# ---- what goes to transform


def _random(*shape):
    return np.random.default_rng(7).normal(size=shape)


def _table(path, write):
    if not path.exists():
        write(pd.DataFrame(_random(N_VOLUMES, 2), columns=["a", "b"]), path)
    return path


CONFOUNDS = {
    "none": lambda folder: None,
    "array": lambda folder: _random(N_VOLUMES, 2),
    "one column": lambda folder: _random(N_VOLUMES),
    "data frame": lambda folder: pd.DataFrame(_random(N_VOLUMES, 2), columns=["a", "b"]),
    "tsv": lambda folder: _table(folder / "c.tsv", lambda d, p: d.to_csv(p, sep="\t", index=False)),
    "csv": lambda folder: str(_table(folder / "c.csv", lambda d, p: d.to_csv(p, index=False))),
    "list": lambda folder: [_random(N_VOLUMES, 3), pd.DataFrame(_random(N_VOLUMES, 1), columns=["a"])],
    "constant column": lambda folder: np.c_[np.ones(N_VOLUMES), _random(N_VOLUMES)],
}
KEPT = np.r_[1:14, 16:38]
SAMPLE_MASKS = {
    "none": None,
    "indices": KEPT,
    "booleans": np.isin(np.arange(N_VOLUMES), KEPT),
    "list of one": [KEPT],
}

# ---- constructor parameters: a level is what it adds

FILTERS = {
    "none": {},
    "band": {"low_pass": 0.15, "high_pass": 0.02, "t_r": T_R},
    "low": {"low_pass": 0.1, "t_r": T_R},
    "high": {"high_pass": 0.01, "t_r": T_R},
    "above Nyquist": {"low_pass": 0.5, "t_r": T_R},
    "cosine": {"high_pass": 0.02, "t_r": T_R, "clean_args": {"filter": "cosine"}},
    "other padding": {
        "low_pass": 0.1,
        "t_r": T_R,
        "clean_args": {"butterworth__padtype": "even", "butterworth__padlen": 9},
    },
    "no extrapolation": {"high_pass": 0.02, "t_r": T_R, "clean_args": {"extrapolate": False}},
    "ensure finite": {"clean_args": {"ensure_finite": True}},
}
MASK_ARGS = {"none": {}, "no opening": {"mask_args": {"opening": False}}}
TARGETS = {
    "none": {},
    "affine": {"target_affine": _moved(_diagonal(1.4, 1.4, 1.4))[1]},
    "affine and shape": {
        "target_affine": _moved(_diagonal(1.2, 1.2, 1.2))[1],
        "target_shape": (7, 6, 5),
    },
    "of the image": {"target_affine": AFFINE},
    "sizes": {"target_affine": np.diag([5.0, 5.0, 5.0])},
}
STANDARDIZE = (None, False, True, "zscore_sample", "psc")
DTYPES = (None, "auto", "f4", "f8", "i4")

CLEANING = {
    "source": (".nii", ".nii.gz as text", "in memory", "SharedImage"),
    "encoding": ("int16", "int16, scaled", "float32", "float64"),
    "standardize": STANDARDIZE,
    "standardize_confounds": (True, False),
    "detrend": (False, True),
    "high_variance_confounds": (False, True),
    "filter": tuple(FILTERS),
    "confounds": tuple(CONFOUNDS),
    "sample_mask": tuple(SAMPLE_MASKS),
    "smoothing_fwhm": (None, 5.0),
    "dtype": (None, "auto"),
}
ENCODED = {
    "encoding": tuple(ENCODINGS),
    "shape": tuple(SHAPES),
    "source": tuple(SOURCES),
    "grid": tuple(GRIDS),
    "smoothing_fwhm": (None, 5.0, 0),
    "standardize": (None, "zscore_sample"),
    "dtype": DTYPES,
    "how": ("fit_transform", "transform", "pandas", "transform_single_imgs"),
}
NIFTI = {
    "runs": (False, True),
    "mask": tuple(MASKS),
}
VOLUMES = {
    "dtype": (None, "f4"),
    "source": ("in memory", ".nii.gz as text", "list of paths", "SharedImage"),
    "encoding": ("int16", "int16, scaled", "float32", "not finite"),
    "grid": ("same", "half a voxel off", "coarser"),
    "mask": ("uint8", "computed"),
    "mask_strategy": ("background", "epi", "whole-brain-template"),
    "mask_args": tuple(MASK_ARGS),
    "target": tuple(TARGETS),
    "smoothing_fwhm": (None, 5.0),
    "standardize": (None, "psc"),
    "reports": (True, False),
}
ATLAS = {
    "strategy": ("mean", "median", "sum", "minimum", "maximum", "variance", "standard_deviation"),
    "names": ("none", "labels", "lut", "lut file"),
    "background_label": (0, 2),
    "atlas": ("int16", "float32", "path"),
    "mask": ("none", "uint8", "weights", "other grid", "one voxel"),
    "keep_masked_labels": (False, True),
    "resampling_target": ("data", "labels", None),
}
MAPS = {
    "maps": ("float32", "float64", "path", "disjoint"),
    "mask": ("none", "uint8", "weights", "other grid"),
    "allow_overlap": (True, False),
    "keep_masked_maps": (False, True),
    "resampling_target": ("data", "maps", "mask", None),
}


# ---- from a row to what a masker is given


@dataclass
class Given:
    """What one of the two maskers is given."""

    constructor: dict[str, Any]
    imgs: Any
    call: dict[str, Any] = field(default_factory=dict)
    how: str = "fit_transform"
    closing: ExitStack = field(default_factory=ExitStack)


_LITERAL = (
    *("standardize", "standardize_confounds", "detrend", "high_variance_confounds", "smoothing_fwhm"),
    *("dtype", "mask_strategy", "reports", "strategy", "background_label"),
    *("keep_masked_labels", "resampling_target", "allow_overlap", "keep_masked_maps"),
)


def given(kind, row, files, ours):
    """One side's input; ``ours`` may be a shared image where theirs is its path."""
    made = Given(_constructor(kind, row, files), _imgs(row, files), how=row.get("how", "fit_transform"))
    if ours:
        made.imgs = for_us(row["source"], made.imgs, made.closing)
    made.call = _call(row, files)
    return made


def _imgs(row, files):
    return SOURCES[row["source"]](files, row["encoding"], row.get("shape", "4D"))


def _constructor(kind, row, files):
    made = {name: row[name] for name in _LITERAL if name in row}
    for settings, name in ((FILTERS, "filter"), (TARGETS, "target"), (MASK_ARGS, "mask_args")):
        made |= settings[row.get(name, "none")]
    if row.get("runs"):
        made["runs"] = np.arange(N_VOLUMES) // (N_VOLUMES // 2)
    return made | {"nifti": _for_nifti, "labels": _for_labels, "maps": _for_maps}[kind](row, files)


def _for_nifti(row, files):
    mask = row.get("mask", "uint8")
    return {} if mask == "computed" else {"mask_img": on_grid(MASKS[mask], row)}


def _for_labels(row, files):
    dtype = "f4" if row.get("atlas") == "float32" else "i2"
    image = on_grid(atlas, row, dtype)
    if row.get("atlas") == "path":
        image = _saved(image, files.folder / "atlas" / f"{row.get('grid', 'same')}.nii.gz")
    return {"labels_img": image, **_names(row.get("names"), files), **_region_mask(row)}


def _names(how, files):
    if how == "labels":
        return {"labels": ["two", "three", "seven", "forty"]}
    if how == "lut":
        return {"lut": names_table()}
    if how == "lut file":
        return {"lut": _table(files.folder / "lut.tsv", _write_names)}
    return {}


def _write_names(_, path):
    names_table().to_csv(path, sep="\t", index=False)


def _for_maps(row, files):
    if row.get("maps") == "disjoint":
        image = on_grid(disjoint_maps, row)
    else:
        image = on_grid(maps, row, "f8" if row.get("maps") == "float64" else "f4")
    if row.get("maps") == "path":
        image = _saved(image, files.folder / "maps" / f"{row.get('grid', 'same')}.nii.gz")
    return {"maps_img": image, **_region_mask(row)}


def _region_mask(row):
    """A mask beside regions, on their grid or on another."""
    mask = row.get("mask", "none")
    if mask == "none":
        return {}
    grid = "coarser" if mask == "other grid" else row.get("grid", "same")
    return {"mask_img": on_grid(MASKS["uint8" if mask == "other grid" else mask], {"grid": grid})}


def on_grid(make, row, *how):
    shape, affine = GRIDS[row.get("grid", "same")]
    return niimg(make(shape, *how), affine)


def _saved(image, path):
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        nib.save(image, path)
    return path


def _call(row, files):
    confounds = CONFOUNDS[row.get("confounds", "none")](files.folder)
    return {"confounds": confounds, "sample_mask": SAMPLE_MASKS[row.get("sample_mask", "none")]}
