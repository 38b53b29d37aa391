"""From an image to cleaned signals, in the order in which nilearn's maskers do it.

Covers: the image on the grid that is asked for, smoothed; signals of voxels, labels, maps and spheres;
cleaning. Does not cover: what may be given (``inputs``), estimators (``base``), volumes (``transform``,
``loader``), rows of an image that is held (``signals``).

::

    image ──> on the mask's grid ──> smoothed ──> voxels, labels, ... ──> cleaned ──> 1D for a 3D image

Three functions have the names and the arguments of those of nilearn that they replace in its maskers.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from nilearn.image import check_niimg, crop_img, resample_img
from nilearn.image import high_variance_confounds as image_confounds
from nilearn.signal import clean

from sharedmask.compute.cleaning import is_cleaning
from sharedmask.compute.plan import Plan, plan_for
from sharedmask.compute.request import Request
from sharedmask.compute.signals import by_volume, run
from sharedmask.errors import ParameterError
from sharedmask.image.niimg import SharedNifti, plain
from sharedmask.maskers import _nilearn
from sharedmask.maskers.inputs import Niimg, as_niimg, grid_of, require_niimg
from sharedmask.regions.regions import Regions
from sharedmask.regions.spheres import spheres
from sharedmask.sources import loader, transform
from sharedmask.sources.source import Facts, Source
from sharedmask.sources.values import Conversion, convert, pieces
from sharedmask.spaces.grid import Grid
from sharedmask.storage.rows import Rows, Series, as_source
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array, Numbers
from sharedmask.workers import threaded

_CLEAN_BYTES = 32 * 2**20  # of signals cleaned at a time; nilearn takes a few times as much meanwhile


# --- volumes ---------------------------------------------------------------------------------------


def series_on_grid(image: Niimg, parameters: dict[str, Any], target: Any = None) -> Series:
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
    warnings.warn(said, UserWarning, stacklevel=_nilearn.find_stack_level())


# --- signals ---------------------------------------------------------------------------------------


def voxels(series: Series, regions: Regions, parameters: dict[str, Any]) -> Array:
    """(n_timepoints, n_voxels) values, C-contiguous, in the dtype of nilearn's NiftiMasker."""
    plan, _ = _planned(series, Request(regions), parameters)
    return by_volume(series, plan)


def reduced(
    series: Series, regions: Regions, strategy: str | Callable[[Array], Array], parameters: dict[str, Any]
) -> Array:
    """(n_timepoints, n_regions) values, in the dtype of nilearn's NiftiLabelsMasker."""
    how = {"function": strategy} if callable(strategy) else {"strategy": strategy}
    request = Request(regions, **how)
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
    from scipy.linalg import get_lapack_funcs, lstsq, qr

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
    dtypes = (maps.dtype, facts.scaled_dtype)  # of what they are, nilearn's solver gives
    solver = get_lapack_funcs(("gelsd",), [np.empty((1, 1), dtype) for dtype in dtypes])[0]
    return np.ascontiguousarray(weights, dtype=solver.dtype)


def _true(stored: Array, conversion: Conversion) -> tuple[Array, bool]:
    values = np.empty(stored.shape)
    return values, convert(stored, values, conversion)


# --- cleaning --------------------------------------------------------------------------------------


def cleaned(signals: Array, parameters: dict[str, Any], confounds: Any, sample_mask: Any) -> Array:
    """``signals`` (n_timepoints, n_columns) cleaned, in place where they keep their shape.

    Columns are cleaned some at a time: most of nilearn's memory goes into copies. Which ones go together
    does not depend on ``n_jobs``, the number of threads, so neither do the numbers. Where they hang on which
    go together, these are all, or those of each of ``parts``, one part after the other.
    """
    names = ("detrend", "standardize", "standardize_confounds", "t_r", "low_pass", "high_pass")
    settings = {name: parameters[name] for name in names} | {"runs": parameters.get("runs")}
    settings |= {"confounds": confounds, "sample_mask": sample_mask}
    extra = parameters["clean_kwargs"]
    if not is_cleaning(settings) and settings["runs"] is None and not extra:
        return signals
    if looks_at_all(settings):
        parts = parameters.get("parts") or [slice(None)]
        return np.hstack([clean(signals[:, part], **settings, **extra) for part in parts])
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
        threaded.run_threads(
            _clean_some, (signals, out, settings | extra), [(span,) for span in others], n_jobs
        )
    return out


def looks_at_all(settings: Mapping[str, Any]) -> bool:
    """Whether what becomes of a column hangs on those beside it, by :func:`nilearn.signal.clean`.

    See :class:`sharedmask.compute.cleaning.Cleaning`. Confounds that are not standardized change means, too.
    """
    filters = settings["low_pass"] is not None or settings["high_pass"] is not None
    return settings["standardize"] == "psc" and (filters or not settings["standardize_confounds"])


def _clean_some(signals: Array, out: Array, settings: dict[str, Any], span: slice) -> None:
    out[:, span] = clean(signals[:, span], **settings)


# --- in the place of nilearn's functions -------------------------------------------------------------


def high_variance_confounds(imgs: Any) -> Array:
    """nilearn's, of an image of its own: the values that it caches go with it."""
    image = require_niimg(imgs)
    found: Array = image_confounds(plain(image.dataobj, image))
    return found


def _signals(
    extract: Callable[[], tuple[Array, Any]],
    image: Niimg,
    parameters: dict[str, Any],
    verbose: int,
    confounds: Any,
    sample_mask: Any,
    sklearn_output_config: Any,
) -> tuple[Array, Any]:
    """Cleaned signals, and what was found on the way."""
    _nilearn.mask_logger("load_data", image, verbose)
    _nilearn.mask_logger("extracting", verbose=verbose)
    signals, found = extract()
    _nilearn.mask_logger("cleaning", verbose=verbose)
    signals = cleaned(signals, parameters, confounds, sample_mask)
    flat = len(image.shape) == 3 and sklearn_output_config is None
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

    return _signals(extract, image, parameters, verbose, confounds, sample_mask, sklearn_output_config)[0]


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
    extractor = _EXTRACTORS[extraction_function.func_name]
    extract = partial(extractor, extraction_function, target or image, series_of, parameters)
    return _signals(extract, image, parameters, verbose, confounds, sample_mask, sklearn_output_config)


def _extract_labels(
    wanted: Any, reference: Any, series_of: Callable[[], Series], parameters: dict[str, Any]
) -> tuple[Array, tuple[list[Any], Nifti1Image]]:
    """``reference`` lies on the grid that the images will have."""
    labels, data = _nilearn.labels_of(
        reference,
        wanted.labels_img,
        wanted.mask_img,
        background_label=wanted.background_label,
        keep_masked_labels=wanted.keep_masked_labels,
    )
    if data.dtype == np.uint64:
        labels = np.array(labels).tolist()  # beside a 0 that is none, NumPy's would become floats
    regions, columns = _labelled(np.array(labels), data, grid_of(reference))
    signals = reduced(series_of(), regions, wanted.strategy, parameters)
    with np.errstate(invalid="ignore"):
        small = data.astype(np.int32)  # as nilearn gives them, where 32 bits hold them
    shown = small if np.array_equal(small, data) else data
    atlas = Nifti1Image(shown, wanted.labels_img.affine, dtype=shown.dtype)
    if len(columns) == len(labels):
        return signals, (labels, atlas)
    every = np.zeros((len(signals), len(labels)), signals.dtype)
    every[:, columns] = signals
    return every, (labels, atlas)


def _labelled(labels: Array, data: Array, grid: Grid) -> tuple[Regions, Numbers]:
    """The voxels of each label that has any, in C order, and which labels those are."""
    flat = data.reshape(-1)
    codes = np.searchsorted(labels, flat)
    codes[codes == len(labels)] = 0
    inside = np.flatnonzero(labels[codes] == flat)
    small = codes[inside].astype(np.min_scalar_type(len(labels)))  # sorts faster by far in 16 bits
    order = inside[np.argsort(small, kind="stable")]
    sizes = np.bincount(small, minlength=len(labels))
    present = np.flatnonzero(sizes)
    numbers = np.ravel_multi_index(np.unravel_index(order, grid.shape), grid.shape, order="F")
    names = tuple(f"{label:g}" for label in labels[present])
    values = tuple(map(int, labels[present]))
    return Regions(grid, numbers, np.cumsum([0, *sizes[present]]), names, values, "list"), present


def _extract_maps(
    wanted: Any, reference: Any, series_of: Callable[[], Series], parameters: dict[str, Any]
) -> tuple[Array, list[int]]:
    _nilearn.check_grids(reference, wanted.maps_img_, 3)
    maps = np.asanyarray(wanted.maps_img_.dataobj)
    kept = np.arange(maps.shape[-1])
    if _nilearn.check_grids(reference, wanted.mask_img_):
        inside = np.asarray(wanted.mask_img_.dataobj).astype(bool)
        maps, _, kept = _nilearn.trim_maps(maps, inside, keep_empty=wanted.keep_masked_maps)
        _check_maps(wanted.maps_img_.shape[-1], kept, wanted)
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
        inside = _nilearn.load_mask_img(moved)[0] != 0
    regions = spheres(wanted.seeds_, wanted.radius, grid, inside, allow_overlap=wanted.allow_overlap)
    return reduced(series_of(), regions, "mean", parameters), None


def _check_maps(n_maps: int, kept: Numbers, wanted: Any) -> None:
    """nilearn's words on maps that the mask hides."""
    if wanted.keep_masked_maps:
        said = (
            'Applying "mask_img" before signal extraction may result in empty region signals in the output. '
            'These are currently kept.\n"keep_masked_maps" parameter will be removed in version 0.15. '
            'Set "keep_masked_maps=False" to silence this warning.'
        )
        warnings.warn(said, FutureWarning, stacklevel=_nilearn.find_stack_level())
    elif not len(kept):
        raise ValueError("No map left after applying mask to the maps image.")
    elif hidden := set(range(n_maps)) - set(kept.tolist()):
        _warn(
            "After applying mask to the maps image, maps with the following indices were removed: "
            f"{hidden}. Out of {n_maps} maps, the masked map image only contains {len(kept)} maps."
        )


_EXTRACTORS = {
    _nilearn.LabelsFunctor.func_name: _extract_labels,
    _nilearn.MapsFunctor.func_name: _extract_maps,
    _nilearn.SpheresFunctor.func_name: _extract_spheres,
}

STAND_INS: dict[Any, Callable[..., Any]] = {
    _nilearn.filter_and_mask: filter_and_mask,
    _nilearn.filter_and_extract: filter_and_extract,
    image_confounds: high_variance_confounds,
}
"""nilearn's functions, and what its maskers call instead of them."""
