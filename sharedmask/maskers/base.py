"""nilearn's maskers over shared and streamed images: the same parameters, the same numbers.

Covers: `SharedNiftiMasker`, `SharedLabelsMasker`, `SharedMapsMasker` and `SharedSpheresMasker`, subclasses of
nilearn's that load and extract by themselves. Does not cover: what is done to an image (``extractors``), many
masks at once (``multi``), many images (``runs``). Fitting, parameter checks, cleaning, reports and the way
back are nilearn's.
"""

from __future__ import annotations

import functools
import glob
import inspect
import operator
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy as shallow_copy
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import numpy as np
from nibabel import Nifti1Image
from nilearn.signal import clean
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sharedmask.errors import ParameterError
from sharedmask.image.niimg import SourceNifti, plain
from sharedmask.maskers.extractors import STAND_INS
from sharedmask.maskers.inputs import as_niimg, check_there, read_tables
from sharedmask.remote.addresses import url_of

Masker = TypeVar("Masker", bound=type)

_ORDER = ("", "Parameters", "Attributes", "See Also", "Notes", "Examples")
_ENTRY = re.compile(r"^(?=\w[\w, ]* : )", re.MULTILINE)
_HEADING = re.compile(r"^([A-Z]\w*(?: \w+)?)\n-+\n", re.MULTILINE)
_OURS = ("keep_missing_labels", "memory_limit")
_MEMORY_LIMIT = """\
memory_limit : int, float, str or None, default=None
    What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM. Free memory and control
    groups limit it anyway."""


def documented(masker: Masker) -> Masker:
    """The class with nilearn's description of what it inherits, its own, and what all of ours share."""
    unlike: str = vars(next(one for one in masker.__mro__ if "_UNLIKE" in vars(one)))["_UNLIKE"]
    own = _sections(masker)
    parents = next(found for one in masker.__mro__[1:] if "Parameters" in (found := _sections(one)))
    merged = parents | own
    entries = map(_entries, (parents["Parameters"], own.get("Parameters", ""), _MEMORY_LIMIT))
    merged["Parameters"] = _joined(*functools.reduce(operator.or_, entries).values())
    merged["Attributes"] = _joined(parents["Attributes"], own.get("Attributes"))
    merged["Notes"] = _joined(own.get("Notes"), unlike)
    order = [name for name in _ORDER if name in merged]
    texts = [f"{name}\n{'-' * len(name)}\n{merged[name]}" if name else merged[name] for name in order]
    masker.__doc__ = "\n\n".join(texts) + "\n"
    return masker


def _joined(*paragraphs: str | None) -> str:
    return "\n\n".join(filter(None, paragraphs))


def _entries(text: str) -> dict[str, str]:
    """Name -> what is said of a parameter."""
    return {one.partition(" :")[0]: one.rstrip() for one in _ENTRY.split(text) if one.strip()}


def _sections(documented_class: type) -> dict[str, str]:
    """Heading -> text of a numpydoc docstring; the summary is under the empty heading."""
    parts = _HEADING.split(inspect.cleandoc(documented_class.__doc__ or ""))
    return {"": parts[0].strip()} | {
        name: text.strip("\n ") for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def check_clean_args(given: dict[str, Any] | None) -> None:
    """Refuse what :func:`nilearn.signal.clean` would ignore.

    Raises ParameterError: naming the key.
    """
    known = inspect.signature(clean).parameters
    for key in given or {}:
        if key not in known and not key.startswith("butterworth__"):
            raise ParameterError(f"clean_args: nilearn.signal.clean has no parameter {key!r}")


def _is_taken_for_a_pattern(path: str | os.PathLike[str]) -> bool:
    """Whether nilearn would look for other files than the one that has this name."""
    return glob.has_magic(os.fspath(path)) and os.path.exists(path)


class Parametrised(TransformerMixin):
    """A masker with parameters of ours besides those of nilearn's."""

    def _take(self, own: dict[str, Any]) -> None:
        """Have all of them, which are the ``locals()`` of ``__init__``."""
        given = {name: value for name, value in own.items() if name != "self"}
        ours = {name: given.pop(name) for name in _OURS if name in given}
        super().__init__(**given)
        for name, value in ours.items():
            setattr(self, name, value)


class SharedMasker(Parametrised):
    """What the maskers do unlike nilearn's."""

    _SHOWN: ClassVar[dict[str, str]]
    """What reports show besides the image, and the attribute that has it."""
    _UNLIKE = """\
Unlike nilearn's: the caller's images and masks are never altered nor left cached; ``memory`` caches by a
fingerprint of the file, not by its name; ``clean_args`` that would be ignored are refused; Analyze images
and pairs of files are accepted, complex images refused; values have native byte order."""

    def fit(self, imgs: Any = None, y: Any = None) -> Any:
        """Prepare the mask or the regions.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones, optional
            What the mask is computed from, if none was given, and what reports show.
        y : None
            Not used.

        Returns
        -------
        self
            With what it found, under names that end in ``_``.

        Raises
        ------
        ParameterError
            ``clean_args`` has a key that :func:`nilearn.signal.clean` does not know.
        """
        check_clean_args(self.clean_args)
        image = self._opened(imgs)
        waits = self.reports and self._can_wait(image)
        with self._as_if(**self._for_nilearn(), **({"reports": False} if waits else {})):
            super().fit(image, y)
        if waits:
            self._report_later(image)
        else:
            self._own_report_volume()
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Extract signals.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            A file is read once, forward, and only what is asked for is kept. Of a shared image nothing is
            loaded. An image in memory is not altered.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`; (n_timepoints, n_confounds).
        sample_mask : array, or list of one, optional
            The volumes to keep, by number or as booleans.

        Returns
        -------
        ndarray or data frame, (n_timepoints, n_elements)
            (n_elements,) for a 3D image.
        """
        check_is_fitted(self)
        return super().transform(self._opened(imgs), confounds=confounds, sample_mask=sample_mask)

    def transform_single_imgs(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """The same as :meth:`transform`, without its checks and high variance confounds.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            One image.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`.
        sample_mask : array, optional
            The volumes to keep.

        Returns
        -------
        ndarray, (n_timepoints, n_elements)
            (n_elements,) for a 3D image.
        """
        check_is_fitted(self)
        read = read_tables(confounds, sample_mask)  # before nilearn's cache, which knows a file by its name
        transform = super(SharedMasker, self._as_fitted()).transform_single_imgs
        return self._completed(transform(as_niimg(imgs), confounds=read, sample_mask=sample_mask))

    def _completed(self, signals: Any) -> Any:
        """What is given, where nilearn's signals are those."""
        return signals

    def _as_fitted(self) -> Any:
        """What nilearn's code sees of this where it transforms."""
        return self

    def _opened(self, imgs: Any) -> Any:
        return as_niimg(imgs)

    def _cache(self, func: Any, *args: Any, **options: Any) -> Any:
        # nilearn calls whatever is costly through this method: here its way with images becomes ours.
        return super()._cache(STAND_INS.get(func, func), *args, **options)

    def _load_mask(self, imgs: Any) -> Any:
        # nilearn writes zeros where the mask is not finite: into a copy, and not into the caller's.
        lent = shallow_copy(self)
        lent.mask_img = deepcopy(self.mask_img)
        return super(SharedMasker, lent)._load_mask(imgs)

    def _for_nilearn(self) -> dict[str, Any]:
        """Parameters as it takes them: images of masks and atlases that it would not find by their names."""
        given = [(name, getattr(self, name, None)) for name in ("mask_img", "labels_img", "maps_img")]
        for _, one in given:
            check_there(one)
        paths = ((name, one) for name, one in given if isinstance(one, str | os.PathLike))
        return {name: as_niimg(one) for name, one in paths if url_of(one) or _is_taken_for_a_pattern(one)}

    @contextmanager
    def _as_if(self, **parameters: Any) -> Iterator[None]:
        """Other parameters, for nilearn to see meanwhile."""
        own = {name: getattr(self, name) for name in parameters}
        self.set_params(**parameters)
        try:
            yield
        finally:
            self.set_params(**own)

    def _can_wait(self, image: Any) -> bool:
        """Whether the volume that reports show need not be read before there is a report.

        It is the middle one: to read it costs half of the time of reading the file.
        """
        of_file = isinstance(image, SourceNifti) and image.source is not None and image.source.paths
        resampled = getattr(self, "target_affine", None) is not None or getattr(self, "target_shape", None)
        return bool(of_file) and len(image.shape) == 4 and not resampled

    def _report_later(self, image: SourceNifti) -> None:
        """What nilearn's ``fit`` keeps for reports."""
        self._report_content["reports_at_fit_time"] = True
        shown = {key: getattr(self, attribute) for key, attribute in self._SHOWN.items()}
        self._reporting_data = shown | {"dim": 4, "images": image.later(image.shape[3] // 2)}

    def _own_report_volume(self) -> None:
        """The volume that reports show, in an array of its own: it holds no image, and can be pickled."""
        kept = getattr(self, "_reporting_data", None) or {}
        if isinstance(image := kept.get("images"), Nifti1Image):
            kept["images"] = plain(np.array(image.dataobj), image)
