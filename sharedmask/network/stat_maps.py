"""The maps of one lesion: values per voxel, given out as images.

Covers: which maps there are and their names, thresholds, the summary, the grid they come on. Does
not cover: how z comes about (``mapper``), the statistics' arithmetic (``correlation``), files
(``output``).
"""

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.network import correlation
from sharedmask.records import dataclass
from sharedmask.spaces.grid import Grid
from sharedmask.typing import Array, NDArray

if TYPE_CHECKING:
    from nibabel import Nifti1Image

BINARY = ("tthresholdmap", "pfdrthresholdmap")
KEYS = ("rmap", "zmap", "tmap", "pmap", "pfdrmap", *BINARY)
_BACKGROUND = {"pmap": 1, "pfdrmap": 1}
_ALIASES = {
    "correlation_map": "rmap",
    "z_map": "zmap",
    "t_map": "tmap",
    "p_map": "pmap",
    "t_threshold_map": "tthresholdmap",
    "binary_map": "tthresholdmap",
}


@dataclass(frozen=True)
class Statistics:
    """Which statistics to make of z."""

    compute_p_map: bool = True
    fdr_alpha: float | None = 0.05
    """Level of the false discovery rate; None: no adjusted p."""
    t_threshold: float | None = None
    """Of the size of t; None: no map of it."""

    def __post_init__(self) -> None:
        if self.fdr_alpha is not None and not 0 < self.fdr_alpha < 1:
            raise ParameterError(f"fdr_alpha={self.fdr_alpha} is no level between 0 and 1")
        threshold = self.t_threshold
        if threshold is not None and not (isinstance(threshold, int | float | np.number) and threshold >= 0):
            raise ParameterError(f"t_threshold={threshold!r} must be 0 or more")

    def values_from(self, mean: Array, squares: Array, n_subjects: int) -> dict[str, Array]:
        """The values of all maps asked for, (n_voxels,) float32 and uint8."""
        t = correlation.t_values(mean, squares, n_subjects)
        values = {"rmap": np.tanh(mean), "zmap": mean, "tmap": t}
        if self.compute_p_map:
            values["pmap"] = correlation.p_values(t, n_subjects)
            if self.fdr_alpha is not None:
                values["pfdrmap"] = correlation.benjamini_hochberg(values["pmap"])
        maps: dict[str, Array] = {key: array.astype(np.float32) for key, array in values.items()}
        if self.t_threshold is not None:
            maps["tthresholdmap"] = (np.abs(maps["tmap"]) > self.t_threshold).astype(np.uint8)
        if "pfdrmap" in maps:
            maps["pfdrthresholdmap"] = (maps["pfdrmap"] < self.fdr_alpha).astype(np.uint8)
        return maps

    def summary(self, values: Mapping[str, Array]) -> dict[str, Any]:
        """Figures of the maps over the connectome's voxels; None where there is no such map."""
        r = values["rmap"].astype(np.float64)
        found: dict[str, Any] = {name: float(getattr(r, name)()) for name in ("mean", "std", "max", "min")}
        found |= _range("t", values["tmap"]) | _range("p", values.get("pmap"))
        found |= _share("voxels", values.get("tthresholdmap")) | _share("fdr", values.get("pfdrthresholdmap"))
        return {**found, "t_threshold": self.t_threshold, "fdr_alpha": self.fdr_alpha}


def _range(name: str, values: Array | None) -> dict[str, float | None]:
    low, high = (None, None) if values is None else (float(values.min()), float(values.max()))
    return {f"{name}_min": low, f"{name}_max": high}


def _share(name: str, inside: Array | None) -> dict[str, float | None]:
    count = None if inside is None else int(inside.sum())
    percent = None if inside is None else 100 * float(inside.mean())
    return {f"n_significant_{name}": count, f"pct_significant_{name}": percent}


@dataclass(frozen=True, eq=False)
class NetworkMaps(Mapping[str, Any]):
    """What one lesion is connected to.

    Each map is an attribute or an item and is made when it is asked for; what is held is one value
    per voxel of the connectome. As a mapping it has the maps that were asked for; as an attribute
    any other map is None.

    Attributes
    ----------
    name : str
    rmap, zmap, tmap : Nifti1Image, float32
        Mean correlation, mean of Fisher's z over subjects, and its t; 0 outside of the connectome.
    pmap, pfdrmap : Nifti1Image, float32
        Two-sided p of t, and adjusted for the false discovery rate; 1 outside of the connectome.
    tthresholdmap, pfdrthresholdmap : Nifti1Image, uint8
        1 where t is larger in size than ``t_threshold``, and where adjusted p is below ``fdr_alpha``.
    summary : dict
    arrays : dict of (n_voxels,) arrays
        The same per voxel, in the order of the connectome's files.

    Examples
    --------
    >>> maps = NetworkMaps("a", Grid((2, 1, 1), np.eye(4)), np.array([1]), {"pmap": np.ones(1, "f4")}, {})
    >>> maps.pmap.get_fdata().ravel().tolist(), maps.zmap, list(maps)
    ([1.0, 1.0], None, ['pmap'])
    """

    name: str
    grid: Grid
    voxels: NDArray[np.intp] = field(repr=False)
    arrays: Mapping[str, Array] = field(repr=False)
    summary: Mapping[str, Any]
    target: Grid | None = None
    """The grid that the images come on, if it is another than the connectome's."""

    @property
    def results(self) -> "dict[str, NetworkMaps]":
        """``results["FunctionalNetworkMapping"]``, as Lacuna has it, is this."""
        return {"FunctionalNetworkMapping": self}

    @property
    def metadata(self) -> dict[str, str]:
        """``metadata["subject_id"]``, as Lacuna has it, is the name."""
        return {"subject_id": self.name}

    def __iter__(self) -> Iterator[str]:
        return (key for key in KEYS if key in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, key: str) -> Any:
        if key == "summarystatistics":
            return self.summary
        return self._image(_ALIASES.get(key, key))

    def __getattr__(self, name: str) -> Any:
        key = _ALIASES.get(name, name)
        if key in KEYS:
            return self._image(key) if key in self.arrays else None
        if name == "summarystatistics":
            return self.summary
        raise AttributeError(f"maps of a lesion have no {name!r}")

    def _image(self, key: str) -> "Nifti1Image":
        image = self.grid.to_nifti(self.voxels, self.arrays[key], _BACKGROUND.get(key, 0))
        return image if self.target is None else _resampled(image, self.target, key)


def _resampled(image: "Nifti1Image", target: Grid, key: str) -> "Nifti1Image":
    """On another grid: linear, nearest for binary maps; what lies outside is background."""
    from nilearn.image import resample_img

    background = _BACKGROUND.get(key, 0)
    data = np.asarray(image.dataobj)
    moved = resample_img(
        type(image)((data - background).astype(data.dtype), image.affine),
        target.affine,
        target.shape,
        interpolation="nearest" if key in BINARY else "linear",
        force_resample=True,
        copy_header=True,
    )
    resampled = np.asarray(moved.dataobj) + background
    return type(image)(resampled.astype(data.dtype), target.affine)
