"""Ways to get the signals of several masks of one run: ours, and the ones people use today.

Covers: each way as a function ``(run, masks, n_jobs) -> signals``, all by path; the parts they have
in common. Does not cover: measuring (``timing``, ``memory``). Everything but numpy is imported
where it is used, so that a process which runs one variant holds what that variant needs.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Signals = list[Array]
Run = Callable[[Path, Sequence[Path], int], Signals]

CLEANING = {"standardize": "zscore_sample", "detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0}
_DECOMPRESSED_PIECE = 256 * 1024


# --- ours ----------------------------------------------------------------------------------------


def extract(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    from sharedmask import extract

    signals: Signals = extract(run, list(masks), n_jobs=n_jobs)
    return signals


def resident(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    from sharedmask import SharedImage

    with SharedImage(run) as image:
        signals: Signals = image.mask_parallel(list(masks), n_jobs=n_jobs)
    return signals


def resident_processes(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    from sharedmask import SharedImage

    with SharedImage(run) as image:
        signals: Signals = image.mask_parallel(list(masks), n_jobs=n_jobs, prefer="processes")
    return signals


def in_store(store: Any) -> Run:
    """The way that holds the run in this store."""

    def masked(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
        from sharedmask import SharedImage

        with SharedImage(run, store=store) as image:
            signals: Signals = image.mask_parallel(list(masks), n_jobs=n_jobs)
        return signals

    return masked


# --- theirs --------------------------------------------------------------------------------------


def numpy_indexing(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """``np.asanyarray(dataobj)[mask]`` with the run loaded once."""
    data = load_array(run)
    return [data[mask].T for mask in load_masks(masks)]


def indexing_loop(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """``np.asanyarray(dataobj)[mask]``, each mask in a job that is given the path of the run."""
    return _in_jobs(_indexed_path, run, masks, n_jobs)


def indexing_loop_memory(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """The same in jobs that are given the loaded array, which joblib puts into a file in memory."""
    return _in_jobs(_indexed, load_array(run), load_masks(masks), n_jobs)


def shared_array(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """:func:`shared_recipe` without its float64: the values as they are on disk."""
    return _through_shared_memory(load_array, run, masks, n_jobs)


def shared_recipe(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """nilearn's example of masking a large run through ``SharedMemory``, with its result.

    The same steps: ``get_fdata`` (float64), a second copy in shared memory, joblib over an array
    on its buffer; with the clean-up in a ``finally``.
    """
    import nibabel as nib

    return _through_shared_memory(lambda path: nib.load(path).get_fdata(), run, masks, n_jobs)


def _through_shared_memory(
    load: Callable[[Path], Array], run: Path, masks: Sequence[Path], n_jobs: int
) -> Signals:
    import nibabel as nib
    from joblib import Parallel, delayed

    data = load(run)
    shm = SharedMemory(create=True, size=data.nbytes)
    try:
        shared = np.ndarray(data.shape, dtype=data.dtype, buffer=shm.buf)
        np.copyto(shared, data)
        del data
        jobs = [delayed(_indexed)(shared, nib.load(mask).get_fdata().astype(bool)) for mask in masks]
        signals: Signals = Parallel(n_jobs=n_jobs)(jobs)
        del jobs, shared
    finally:
        shm.close()
        shm.unlink()
    return signals


def _indexed(data: Array, mask: Array) -> Array:
    return data[mask]


def _indexed_path(run: Path, mask: Path) -> Array:
    return _indexed(load_array(run), load_masks([mask])[0])


def _in_jobs(job: Callable[..., Array], image: Any, masks: Sequence[Any], n_jobs: int) -> Signals:
    from joblib import Parallel, delayed

    found: Signals = Parallel(n_jobs=n_jobs)(delayed(job)(image, mask) for mask in masks)
    return found


def union_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """One NiftiMasker over the union of the masks, then the columns of each."""
    import nibabel as nib
    from nilearn.maskers import NiftiMasker

    inside = load_masks(masks)
    union = np.any(inside, axis=0)
    mask_img = nib.Nifti1Image(union.astype(np.uint8), nib.load(masks[0]).affine)
    with _quiet():
        signals = NiftiMasker(mask_img=mask_img).fit_transform(run)
    return [signals[:, mask[union]] for mask in inside]


def masker_loop(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """One NiftiMasker per mask, each given the path of the run."""
    return _in_jobs(_masker, run, masks, n_jobs)


def masker_loop_memory(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """The same, given the loaded image instead of the path."""
    import nibabel as nib

    loaded = nib.Nifti1Image(load_array(run), nib.load(run).affine)
    return _in_jobs(_masker, loaded, masks, n_jobs)


def masker_loop_shared(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """The same, given the shared image as a niimg."""
    from sharedmask import SharedImage

    with SharedImage(run) as image:
        return _in_jobs(_masker, image.as_nifti(), masks, n_jobs)


def indexing_loop_shared(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """A loop of ``data[mask]`` over the shared image."""
    from sharedmask import SharedImage

    with SharedImage(run) as image:
        return _in_jobs(_indexed, image.array, load_masks(masks), n_jobs)


# --- one masker with one image: ours and nilearn's, which differ in their names only ----------------


def labels_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    return [_transformed("NiftiLabelsMasker", run, labels_img=masks[0])]


def shared_labels_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    return [_transformed("SharedLabelsMasker", run, labels_img=masks[0])]


def one_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    return [_transformed("NiftiMasker", run, mask_img=masks[0])]


def shared_one_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    return [_transformed("SharedNiftiMasker", run, mask_img=masks[0])]


def cleaning_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """The second path is that of the confounds."""
    mask, confounds = masks
    return [_transformed("NiftiMasker", run, confounds, mask_img=mask, **CLEANING)]


def shared_cleaning_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    mask, confounds = masks
    return [_transformed("SharedNiftiMasker", run, confounds, mask_img=mask, **CLEANING)]


def cleaning_loop(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """One NiftiMasker per mask, each of which cleans its voxels."""
    return [cleaning_masker(run, [mask, masks[-1]], n_jobs)[0] for mask in masks[:-1]]


def shared_multi_masker(run: Path, masks: Sequence[Path], n_jobs: int) -> Signals:
    """All masks at once; the last path is that of the confounds."""
    *masks, confounds = masks
    return list(_transformed("SharedMultiMasker", run, confounds, masks=masks, **CLEANING))


def _transformed(name: str, run: Path, confounds: Path | None = None, **parameters: Any) -> Any:
    module = import_module("sharedmask" if name.startswith("Shared") else "nilearn.maskers")
    masker = getattr(module, name)(**{"standardize": None, **parameters})
    with _quiet():
        return masker.fit_transform(run, confounds=confounds)


def _masker(run: Any, mask: Path) -> Array:
    from nilearn.maskers import NiftiMasker

    with _quiet():
        signals: Array = NiftiMasker(mask_img=mask).fit_transform(run)
    return signals


def _quiet() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore")


# --- parts ---------------------------------------------------------------------------------------


def decompress(run: Path) -> None:
    """Decompress the file into a small buffer, again and again: the floor of reading it."""
    from isal import igzip

    piece = bytearray(_DECOMPRESSED_PIECE)
    with igzip.open(run) as file:
        while file.readinto(piece):
            pass


def load_array(run: Path) -> Array:
    import nibabel as nib

    return np.asanyarray(nib.load(run).dataobj)


def load_masks(masks: Sequence[Path]) -> list[Array]:
    import nibabel as nib

    return [np.asanyarray(nib.load(mask).dataobj) != 0 for mask in masks]


def copies(signals: Signals) -> Signals:
    """The bytes of ``signals``, layouts included, copied into fresh arrays."""
    fresh = [np.empty_like(one) for one in signals]
    for new, one in zip(fresh, signals, strict=True):
        np.copyto(new, one)
    return fresh


# --- results -------------------------------------------------------------------------------------


def as_nilearn(signals: Signals, n_timepoints: int) -> Signals:
    """(n_timepoints, n_voxels) of float32, as which the variants are compared."""
    return [(one if len(one) == n_timepoints else one.T).astype(np.float32, copy=False) for one in signals]


def digests(signals: Signals, n_timepoints: int) -> list[str]:
    """One of each mask's shape and values."""
    return [_digest(one) for one in as_nilearn(signals, n_timepoints)]


def _digest(signals: Array) -> str:
    found = hashlib.blake2b(f"{signals.shape}".encode(), digest_size=16)
    for volume in signals:
        found.update(np.ascontiguousarray(volume))
    return found.hexdigest()


# --- by name -------------------------------------------------------------------------------------

VARIANTS: dict[str, Run] = {
    "extract": extract,
    "resident": resident,
    "resident_processes": resident_processes,
    "numpy_indexing": numpy_indexing,
    "shared_recipe": shared_recipe,
    "shared_array": shared_array,
    "indexing_loop": indexing_loop,
    "indexing_loop_memory": indexing_loop_memory,
    "masker_loop_memory": masker_loop_memory,
    **{store: in_store(store) for store in ("shm", "memfd", "disk", "file")},
    "union_masker": union_masker,
    "masker_loop": masker_loop,
    "masker_loop_shared": masker_loop_shared,
    "indexing_loop_shared": indexing_loop_shared,
    "labels_masker": labels_masker,
    "shared_labels_masker": shared_labels_masker,
    "one_masker": one_masker,
    "shared_one_masker": shared_one_masker,
    "cleaning_masker": cleaning_masker,
    "shared_cleaning_masker": shared_cleaning_masker,
    "cleaning_loop": cleaning_loop,
    "shared_multi_masker": shared_multi_masker,
}
