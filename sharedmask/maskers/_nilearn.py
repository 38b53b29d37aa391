"""From an image to cleaned signals, in the order in which nilearn's maskers do it.

Covers: what a masker may be given; the image on the grid that is asked for, smoothed; signals of voxels,
labels, maps and spheres; cleaning. Does not cover: estimators (``base``), volumes (``transform``,
``loader``), rows of an image that is held (``signals``).

::

    image ──> on the mask's grid ──> smoothed ──> voxels, labels, ... ──> cleaned ──> 1D for a 3D image

Three functions have the names and the arguments of those of nilearn that they replace in its maskers. All
names of nilearn that are not public, and that sharedmask knows, are imported here or listed in ``PRIVATE``.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from nibabel import Nifti1Image
from nilearn._base import NilearnBaseEstimator as NilearnBaseEstimator
from nilearn._utils.logger import find_stack_level
from nilearn._utils.tags import InputTags as InputTags
from nilearn.image import check_niimg, crop_img, resample_img
from nilearn.image import high_variance_confounds as image_confounds
from nilearn.maskers.base_masker import filter_and_extract as nilearn_filter_and_extract
from nilearn.maskers.base_masker import mask_logger as mask_logger
from nilearn.maskers.nifti_labels_masker import _ExtractionFunctor as LabelsFunctor
from nilearn.maskers.nifti_maps_masker import _ExtractionFunctor as MapsFunctor
from nilearn.maskers.nifti_masker import filter_and_mask as nilearn_filter_and_mask
from nilearn.maskers.nifti_spheres_masker import _ExtractionFunctor as SpheresFunctor
from nilearn.masking import load_mask_img
from nilearn.regions.signal_extraction import (
    _check_shape_and_affine_compatibility,
    _get_labels_data,
    _trim_maps,
)
from nilearn.signal import clean
from numpy.typing import NDArray

from sharedmask.compute.confounds import read_confounds
from sharedmask.compute.plan import Plan, plan_for
from sharedmask.compute.request import Request
from sharedmask.compute.signals import by_volume, run
from sharedmask.errors import ParameterError, RemoteError, SharedMaskError
from sharedmask.image.image import SharedImage
from sharedmask.image.niimg import SharedNifti, SourceNifti, plain
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.regions.spheres import spheres
from sharedmask.sources import loader, transform
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Facts, Source
from sharedmask.sources.values import Conversion, convert, pieces
from sharedmask.spaces.grid import Grid
from sharedmask.storage.indexes import indexed
from sharedmask.storage.rows import Rows, Series, as_source
from sharedmask.storage.segment import Handle
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array
from sharedmask.workers import pool

Given = SharedNifti | SourceNifti

_CLEAN_BYTES = 32 * 2**20  # of signals cleaned at a time; nilearn takes a few times as much meanwhile


# --- what is given ---------------------------------------------------------------------------------


def as_niimg(imgs: Any) -> Any:
    """An image as one that reads itself; what is no image as it is, for nilearn to refuse in its words."""
    if isinstance(imgs, Handle):
        return SharedNifti.of(imgs)
    if isinstance(imgs, SharedImage):
        return imgs.as_nifti()
    if imgs is None or _is_niimg(imgs):
        return imgs
    try:
        source = open_source(imgs)
        return SourceNifti.of(indexed(source)) if len(source.shape) == 4 else imgs  # else of a surface
    except RemoteError:
        raise
    except (SharedMaskError, OSError):
        return imgs


def _is_niimg(imgs: Any) -> bool:
    shared = isinstance(imgs, SharedNifti) and imgs.held is not None
    return shared or (isinstance(imgs, SourceNifti) and imgs.source is not None)


def require_niimg(imgs: Any) -> Given:
    """The same, with what is no image refused: by nilearn if it does so too, else by us."""
    image = as_niimg(imgs)
    if not _is_niimg(image):
        check_niimg(imgs, atleast_4d=True, ensure_ndim=4)
        image = SourceNifti.of(indexed(open_source(imgs)))
    return cast(Given, image)


def read_tables(confounds: Any) -> Any:
    """Confounds whose files are read, and whose numbers are finite; the rest is for nilearn to refuse."""
    if isinstance(confounds, list | tuple):
        return type(confounds)(map(read_tables, confounds))
    if isinstance(confounds, str | os.PathLike):
        return read_confounds(confounds)
    if isinstance(confounds, np.ndarray) or hasattr(confounds, "columns"):
        read_confounds(confounds)  # in their own dtype they are what nilearn computes with
    return confounds


def grid_of(image: Any) -> Grid:
    return Grid(image.shape[:3], image.affine)


# --- volumes ---------------------------------------------------------------------------------------


def series_on_grid(image: Given, parameters: dict[str, Any], target: Any = None) -> Series:
    """The image's rows, if they can be used as they are; else its volumes, resampled and smoothed."""
    grid = None if target is None or grid_of(target).is_close(grid_of(image)) else grid_of(target)
    fwhm = parameters["smoothing_fwhm"]
    if isinstance(image, SharedNifti):
        assert image.held is not None
        if grid is None and fwhm is None and isinstance(image.held, Rows):
            return image.held
        source = as_source(image.held)
    else:
        assert image.source is not None
        source = image.source
    return _smoothed(source if grid is None else _resampled(source, grid), fwhm)


def _smoothed(source: Source, fwhm: float | None) -> Source:
    if fwhm is None or fwhm > 0:
        return transform.smoothed(source, fwhm)
    if fwhm == 0:
        said = f"The parameter 'fwhm' for smoothing is specified as {fwhm}. "
        _warn(f"{said}Setting it to None (no smoothing will be performed)")
    # Along no axis: values become floats, and finite, all the same.
    return replace(transform.smoothed(source, 1.0), sigma=())  # type: ignore[call-arg]


def _resampled(source: Source, grid: Grid) -> Source:
    one = Nifti1Image(np.broadcast_to(np.float32(0), source.shape[:3]), source.affine)
    resample_img(one, grid.affine, grid.shape, interpolation="nearest")  # refuses what lies beyond
    moved = transform.resampled(source, grid)
    if moved.dtype != source.scaled_dtype:
        _warn(f"Casting data from {source.scaled_dtype} to {moved.dtype}")
    return moved


def _warn(said: str) -> None:
    warnings.warn(said, UserWarning, stacklevel=find_stack_level())


# --- signals ---------------------------------------------------------------------------------------


def voxels(series: Series, regions: Regions, parameters: dict[str, Any]) -> Array:
    """(n_timepoints, n_voxels) values, C-contiguous, in the dtype of nilearn's NiftiMasker."""
    plan, _ = _planned(series, Request(regions), parameters)
    return by_volume(series, plan)


def reduced(
    series: Series, regions: Regions, strategy: str | Callable[[Array], Array], parameters: dict[str, Any]
) -> Array:
    """(n_timepoints, n_regions) values, in the dtype of nilearn's NiftiLabelsMasker."""
    if callable(strategy):
        request = Request(regions, function=strategy)
    else:
        request = Request(regions, strategy=strategy)
    found = run(series, *_planned(series, request, parameters))
    if not found.finite:
        _warn_of_nonfinite()
    if callable(strategy):
        return _columns(found.values, request, series.facts)
    return np.ascontiguousarray(np.atleast_2d(found.values[0]))


def _planned(series: Series, request: Request, parameters: dict[str, Any]) -> tuple[Plan, MemoryBudget]:
    budget = MemoryBudget.here(parameters.get("memory_limit"))
    request = replace(request, operation=f"extracting from {series.facts.name}")
    return plan_for(series, request, budget), budget


def _columns(made: list[Any], request: Request, facts: Facts) -> Array:
    """What the caller's function made of each region, as one table."""
    columns = [np.asarray(column) for column in made]
    expected = (facts.n_timepoints,)
    for name, column in zip(request.regions.names, columns, strict=True):
        if column.shape != expected:
            raise ParameterError(f"strategy gave shape {column.shape} for region {name}, not {expected}")
    return np.stack(columns, axis=1).astype(request.reduction(facts).result, copy=False)


def _warn_of_nonfinite() -> None:
    _warn("Non-finite values detected. These values will be replaced with zeros.")


def fitted_to_maps(series: Series, maps: Array, regions: Regions, parameters: dict[str, Any]) -> Array:
    """(n_timepoints, n_maps) weights with which the maps' values at the voxels, (n_voxels, n_maps), fit best.

    Least squares of R instead of QR: only Q' times the volumes is needed of them, one block after the other.
    """
    from scipy.linalg import lstsq, qr

    facts, index = series.facts, regions.indices
    conversion = replace(Request(regions).reduction(facts), result=np.dtype(np.float64))
    reading = 0 if isinstance(series, Rows) else loader.buffer_bytes(series, len(index))
    budget = MemoryBudget.here(parameters.get("memory_limit"))
    budget.require(f"extracting from {facts.name}", 3 * maps.nbytes + reading)
    q, r = qr(maps.astype(np.float64), mode="economic", overwrite_a=True)
    projected = np.zeros((facts.n_timepoints, q.shape[1]))
    finite = True
    if isinstance(series, Rows):
        positions, finite = series.positions(regions), series.finite
        for piece in pieces(len(index), facts.n_timepoints * 8, _CLEAN_BYTES):
            projected += _true(series.array[positions[piece]], conversion)[0].T @ q[piece]
    else:
        with loader.blocks(*series.narrowed(index)) as blocks:
            for start, block in blocks:
                values, fine = _true(block, conversion)
                projected[start : start + len(block)] = values @ q
                finite = finite and fine
    if not finite:
        _warn_of_nonfinite()
    weights = lstsq(r, projected.T)[0].T
    return np.ascontiguousarray(weights, dtype=_solved_dtype(maps.dtype, facts.scaled_dtype))


def _solved_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """What scipy's solver makes of arrays of these dtypes."""
    from scipy.linalg import get_lapack_funcs

    solver = get_lapack_funcs(("gelsd",), [np.empty((1, 1), dtype) for dtype in dtypes])[0]
    solved: np.dtype[Any] = np.dtype(solver.dtype)
    return solved


def _true(stored: Array, conversion: Conversion) -> tuple[Array, bool]:
    values = np.empty(stored.shape)
    return values, convert(stored, values, conversion)


# --- cleaning --------------------------------------------------------------------------------------


def cleaned(signals: Array, parameters: dict[str, Any], confounds: Any, sample_mask: Any) -> Array:
    """``signals`` (n_timepoints, n_columns) cleaned, in place where they keep their shape.

    Columns are cleaned some at a time: most of nilearn's memory goes into copies. Which ones go together
    does not depend on ``n_jobs``, the number of threads, so neither do the numbers.
    """
    names = ("detrend", "standardize", "standardize_confounds", "t_r", "low_pass", "high_pass")
    settings = {name: parameters[name] for name in names}
    settings |= {"confounds": confounds, "sample_mask": sample_mask, "runs": parameters.get("runs")}
    extra = parameters["clean_kwargs"]
    done = any(value is not None and value is not False for value in _asked(settings)) or extra
    if not done:
        return signals
    first, *others = pieces(signals.shape[1], len(signals) * signals.itemsize, _CLEAN_BYTES)
    result = clean(signals[:, first], **settings, **extra)
    if not others:
        return np.ascontiguousarray(result)
    n_jobs = parameters.get("n_jobs", 1)
    in_place = result.dtype == signals.dtype and len(result) == len(signals)
    out = signals if in_place else np.empty((len(result), signals.shape[1]), result.dtype)
    out[:, first] = result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they came with the first columns
        pool.run_threads(_clean_some, (signals, out, settings | extra), [(span,) for span in others], n_jobs)
    return out


def _asked(settings: dict[str, Any]) -> Iterator[Any]:
    """The settings that, unless None or False, ask for something to be done."""
    return (value for name, value in settings.items() if name not in ("standardize_confounds", "t_r"))


def _clean_some(signals: Array, out: Array, settings: dict[str, Any], span: slice) -> None:
    out[:, span] = clean(signals[:, span], **settings)


# --- in the place of nilearn's functions -------------------------------------------------------------


def high_variance_confounds(imgs: Any) -> Array:
    """nilearn's, of an image of its own: the values that it caches go with it."""
    image = require_niimg(imgs)
    found: Array = image_confounds(plain(image.dataobj, image))
    return found


@dataclass(frozen=True)
class Call:
    """What one call of a masker's transform asks for, besides the masker's parameters."""

    image: Given
    parameters: dict[str, Any]
    verbose: int
    confounds: Any
    sample_mask: Any
    sklearn_output_config: Any

    def signals(self, extract: Callable[[], tuple[Array, Any]]) -> tuple[Array, Any]:
        """Cleaned signals, and what was found on the way."""
        mask_logger("load_data", self.image, self.verbose)
        mask_logger("extracting", verbose=self.verbose)
        signals, found = extract()
        mask_logger("cleaning", verbose=self.verbose)
        signals = cleaned(signals, self.parameters, self.confounds, self.sample_mask)
        flat = len(self.image.shape) == 3 and self.sklearn_output_config is None
        return (signals.squeeze() if flat else signals), found


def filter_and_mask(
    imgs: Any,
    mask_img_: Any,
    parameters: dict[str, Any],
    memory_level: int = 0,
    memory: Any = None,
    verbose: int = 0,
    confounds: Any = None,
    sample_mask: Any = None,
    copy: bool = True,
    sklearn_output_config: Any = None,
) -> Array:
    """Signals of the voxels of a mask, (n_timepoints, n_voxels) or for a 3D image (n_voxels,)."""
    image = require_niimg(imgs)
    if not grid_of(image).is_close(grid_of(mask_img_)):
        _warn(
            "imgs are being resampled to the mask_img resolution. This process is memory intensive. You "
            "might want to provide a target_affine that is equal to the affine of the imgs or resample the "
            "mask beforehand to save memory and computation time."
        )
        mask_img_ = crop_img(mask_img_, copy=False)

    def extract() -> tuple[Array, None]:
        series = series_on_grid(image, parameters, mask_img_)
        return voxels(series, Regions.from_any(mask_img_), parameters), None

    call = Call(image, parameters, verbose, confounds, sample_mask, sklearn_output_config)
    return call.signals(extract)[0]


def filter_and_extract(
    imgs: Any,
    extraction_function: Any,
    parameters: dict[str, Any],
    memory_level: int = 0,
    memory: Any = None,
    verbose: int = 0,
    confounds: Any = None,
    sample_mask: Any = None,
    copy: bool = True,
    dtype: Any = None,
    sklearn_output_config: Any = None,
) -> tuple[Array, Any]:
    """Signals of labels or maps, (n_timepoints, n_regions), and which they are.

    ``extraction_function`` is nilearn's; it only tells what is wanted.
    """
    image = require_niimg(imgs)
    target = None
    if parameters.get("target_shape") is not None:
        target = getattr(extraction_function, "labels_img", None) or extraction_function.maps_img_
    series_of = partial(series_on_grid, image, parameters, target)
    extract = _EXTRACTORS[extraction_function.func_name]
    call = Call(image, parameters, verbose, confounds, sample_mask, sklearn_output_config)
    return call.signals(partial(extract, extraction_function, target or image, series_of, parameters))


def _extract_labels(
    wanted: Any, reference: Any, series_of: Callable[[], Series], parameters: dict[str, Any]
) -> tuple[Array, tuple[list[Any], Nifti1Image]]:
    """``reference`` lies on the grid that the images will have."""
    labels, data = _get_labels_data(
        reference,
        wanted.labels_img,
        wanted.mask_img,
        background_label=wanted.background_label,
        keep_masked_labels=wanted.keep_masked_labels,
    )
    regions, columns = _labelled(np.array(labels), data, grid_of(reference))
    signals = reduced(series_of(), regions, wanted.strategy, parameters)
    atlas = _label_image(data, wanted.labels_img.affine)
    if len(columns) == len(labels):
        return signals, (labels, atlas)
    kept = np.zeros((len(signals), len(labels)), signals.dtype)
    kept[:, columns] = signals
    return kept, (labels, atlas)


def _label_image(data: Array, affine: Array) -> Nifti1Image:
    """Labels as nilearn gives them, in 32 bits; in their own dtype where those do not hold them."""
    with np.errstate(invalid="ignore"):
        small = data.astype(np.int32)
    kept = small if np.array_equal(small, data) else data
    return Nifti1Image(kept, affine, dtype=kept.dtype)


def _labelled(labels: Array, data: Array, grid: Grid) -> tuple[Regions, NDArray[np.intp]]:
    """The voxels of each label that has any, in C order, and which labels those are."""
    flat = data.reshape(-1)
    codes = np.searchsorted(labels, flat)
    codes[codes == len(labels)] = 0
    inside = np.flatnonzero(labels[codes] == flat)
    small = codes[inside].astype(np.min_scalar_type(len(labels)))  # sorts faster by far in 16 bits
    order = inside[np.argsort(small, kind="stable")]
    sizes = np.bincount(small, minlength=len(labels))
    kept = np.flatnonzero(sizes)
    numbers = np.ravel_multi_index(np.unravel_index(order, grid.shape), grid.shape, order="F")
    names = tuple(f"{label:g}" for label in labels[kept])
    values = tuple(int(label) for label in labels[kept])
    return Regions(grid, numbers, np.cumsum([0, *sizes[kept]]), names, values, "list"), kept


def _extract_maps(
    wanted: Any, reference: Any, series_of: Callable[[], Series], parameters: dict[str, Any]
) -> tuple[Array, list[int]]:
    _check_shape_and_affine_compatibility(reference, wanted.maps_img_, 3)
    maps = np.asanyarray(wanted.maps_img_.dataobj)
    kept = np.arange(maps.shape[-1])
    if _check_shape_and_affine_compatibility(reference, wanted.mask_img_):
        inside = np.asarray(wanted.mask_img_.dataobj).astype(bool)
        maps, _, kept = _trim_maps(maps, inside, keep_empty=wanted.keep_masked_maps)
        _tell_of_maps(maps_before=wanted.maps_img_.shape[-1], kept=kept, wanted=wanted)
    # Voxels where all maps are 0 have no part in the fit.
    support = maps.any(axis=-1)
    regions = Regions.from_any(support, grid_of(reference))
    return fitted_to_maps(series_of(), maps[support], regions, parameters), kept.tolist()


def _extract_spheres(
    wanted: Any, reference: Any, series_of: Callable[[], Series], parameters: dict[str, Any]
) -> tuple[Array, None]:
    grid, inside = grid_of(reference), None
    if wanted.mask_img is not None:
        mask = check_niimg(as_niimg(wanted.mask_img), ensure_ndim=3)
        moved = resample_img(
            mask, target_affine=grid.affine, target_shape=grid.shape, interpolation="nearest"
        )
        inside = load_mask_img(moved)[0] != 0
    regions = spheres(wanted.seeds_, wanted.radius, grid, inside, allow_overlap=wanted.allow_overlap)
    return reduced(series_of(), regions, "mean", parameters), None


def _tell_of_maps(maps_before: int, kept: NDArray[np.intp], wanted: Any) -> None:
    """nilearn's words on maps that the mask hides."""
    if wanted.keep_masked_maps:
        said = (
            'Applying "mask_img" before signal extraction may result in empty region signals in the output. '
            'These are currently kept.\n"keep_masked_maps" parameter will be removed in version 0.15. '
            'Set "keep_masked_maps=False" to silence this warning.'
        )
        warnings.warn(said, FutureWarning, stacklevel=find_stack_level())
    elif not len(kept):
        raise ValueError("No map left after applying mask to the maps image.")
    elif hidden := set(range(maps_before)) - set(kept.tolist()):
        _warn(
            "After applying mask to the maps image, maps with the following indices were removed: "
            f"{hidden}. Out of {maps_before} maps, the masked map image only contains {len(kept)} maps."
        )


_EXTRACTORS = {
    LabelsFunctor.func_name: _extract_labels,
    MapsFunctor.func_name: _extract_maps,
    SpheresFunctor.func_name: _extract_spheres,
}

STAND_INS: dict[Any, Callable[..., Any]] = {
    nilearn_filter_and_mask: filter_and_mask,
    nilearn_filter_and_extract: filter_and_extract,
    image_confounds: high_variance_confounds,
}
"""nilearn's functions, and what its maskers call instead of them."""

PRIVATE = {
    "_cache": "BaseMasker",  # calls what is costly: with our functions in the place of nilearn's
    "_check_imgs": "SurfaceMasker",  # refuses what is no image: in words that name ours, too
    "_reset_report": "SurfaceMasker",  # is called in the beginning and when it is fitted anew
    "_load_mask": "BaseMasker",  # alters the caller's mask: gets a copy
    "_get_masker_params": "NiftiMasker",  # what is given to the functions: with n_jobs
    "_report_content": "NiftiMasker",  # with the next: what fit keeps for reports, here until there is one
    "_reporting_data": "NiftiMasker",
    "_post_process_inverse_transform": "BaseMasker",  # gives an image of signals its dtype
    "_load_report_displays": "NiftiSpheresMasker",  # draws one radius: gets the mean of several
    "_check_array": "NiftiLabelsMasker",  # checks the signals of inverse_transform
    "_fit": "NiftiLabelsMasker",  # checks the strategy, and knows none of ours
    "_generate_lut": "NiftiLabelsMasker",  # is called when the atlas is loaded and not resampled yet
    "_lut_": "NiftiLabelsMasker",  # one row per column: with those of labels without voxels
}
"""Attributes of nilearn's maskers that ours override or set, and the class that has them."""
