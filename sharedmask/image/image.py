"""The shared image: where sources, segments and requests meet.

Covers: when an image is loaded, where its rows live, when it is closed, how others get it. Does not
cover: what may be asked of it (``operations``), the filling of its store (``rows``), who cleans up
after a crash (``registry``), a single pass that holds no image (``extraction``).
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.compute.request import Request
from sharedmask.errors import (
    AttachError,
    ClosedImageError,
    ImageError,
    MissingFileError,
    OutsideImageError,
    ParameterError,
)
from sharedmask.image import owners, protocol
from sharedmask.image.results import Lookup, is_settled
from sharedmask.image.searchlight import Searchlights
from sharedmask.regions.alignment import brain_voxels
from sharedmask.remote.addresses import absolute
from sharedmask.sources import transform
from sharedmask.sources.excerpt import excerpt
from sharedmask.sources.opening import check_signals, open_source, warn_of_time
from sharedmask.sources.source import Facts, FileSource, Source
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.storage import container, rows, segment
from sharedmask.storage.indexes import indexed
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.rows import Held, geometry_of
from sharedmask.storage.segment import Handle
from sharedmask.system import inputs, monitor
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.system.monitor import MemoryReport
from sharedmask.system.process import Lock
from sharedmask.system.settings import Settings
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array
from sharedmask.workers import idle

if TYPE_CHECKING:
    from sharedmask.image.niimg import SharedNifti
_log = logging.getLogger(__name__)

Store = Literal["auto", "shm", "memfd", "disk", "file", "private"]


class SharedImage(Searchlights):
    """One fMRI run, decoded once into shared memory, for any number of masks.

    The image is loaded when it is first used (or by :meth:`load`) and its memory is released by
    :meth:`close`, by leaving the ``with`` block, or when the process ends in whatever way.

    Parameters
    ----------
    source : str, path, niimg, or list of those
        A NIfTI or Analyze file, compressed or not; a list or glob pattern of 3D volumes; a
        nibabel image.
    mask_img : mask, optional
        Keep only the voxels inside it (a brain is about a third of its box). Masks that reach
        outside are refused.
    volumes : slice, optional
        Load these consecutive volumes only, as if the run held no others: ``slice(100, 200)``. Of a
        .nii.gz with an index, and of uncompressed files, nothing else is read.
    index : bool
        Make the index of a .nii.gz that has none, as ``sharedmask index`` does; it is used in any case.
    store : {"auto", "shm", "memfd", "disk", "file", "private"}
        Where the bytes live: named shared memory; sealed anonymous memory (Linux); a file of rows
        that is kept for the next run; the image's own file, uncompressed; memory of this process, for
        its threads. ``"auto"`` is the first (the last where the system shares no memory),
        the second in a batch job or where /dev/shm is too small, the third if the image does not
        fit in memory; :attr:`store` tells which and why.
    smoothing_fwhm : float, optional
        Smooth each volume by a Gaussian of this full width at half maximum, in mm, while it is loaded:
        the values of nilearn's ``smooth_img``, as float32 or float64. The store holds these.
    memory_limit : int, float or str, optional
        What this image and the results of a call may take together: bytes, ``"8G"``, or a
        fraction of the RAM. Free RAM and control groups limit it anyway.
    name : str, optional
        For messages and ``sharedmask ls``; default: the file's name.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> left, right = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    >>> left[0], right[1] = True, True
    >>> with SharedImage(bold) as image:
    ...     signals = image.mask_parallel({"left": left, "right": right})
    >>> signals["left"].shape
    (10, 12)
    """

    def __init__(
        self,
        source: Any,
        *,
        mask_img: Any = None,
        volumes: slice | None = None,
        index: bool = False,
        store: Store = "auto",
        smoothing_fwhm: float | None = None,
        memory_limit: int | float | str | None = None,
        name: str | None = None,
    ) -> None:
        if store not in ("auto", *rows.STORES):
            raise ParameterError(f"store={store!r} is none of 'auto', {', '.join(map(repr, rows.STORES))}")
        opened = excerpt(indexed(open_source(source), index), volumes)
        check_signals(opened)
        warn_of_time(opened)
        self._source: Source | None = transform.smoothed(opened, smoothing_fwhm)
        self._begin(self._source, name or os.path.basename(self._source.name))
        if mask_img is not None:
            with within(memory_limit):
                self._voxels = brain_voxels(mask_img, self._grid)
        self._asked_store = store
        self._memory_limit = memory_limit

    def _begin(self, facts: Facts, name: str) -> None:
        """The state of an image, read from a file or attached, before it has rows."""
        self._facts = facts
        self._grid = facts.grid
        self._voxels = None
        self._asked_store = "auto"
        self._memory_limit = None
        self._name = name
        self._lock = Lock()
        self._owned: OwnedSegment | None = None
        self._lease: socket.socket | None = None
        self._held: Held | None = None
        self._fingerprint: str | None = None
        self._was_settled = False  # when it was loaded, so that what changed its file since is seen
        self._store: tuple[str, str] | None = None
        self._closed = False

    # --- facts ---

    @property
    def nbytes(self) -> int:
        """Bytes that the image takes in its store."""
        return container.projected(geometry_of(self._facts, self._voxels))

    @property
    def store(self) -> tuple[str, str]:
        """Where the bytes live or would live now, and why there."""
        return self._store or self._choice(MemoryBudget.here(self._memory_limit))

    def _choice(self, budget: MemoryBudget) -> tuple[str, str]:
        assert self._source is not None  # an attached image knows its owner's choice
        return rows.choose(self._asked_store, self._source, self._voxels, budget)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._held else "not loaded"
        store, reason = self.store
        facts = f"{'x'.join(map(str, self.shape))} {self.dtype} {format_bytes(self.nbytes)}"
        return f"<SharedImage {self._name} {facts} {store} ({reason}) {state}>"

    def _repr_html_(self) -> str:
        from sharedmask.regions import views

        store, reason = self.store
        facts = {
            "shape": " x ".join(map(str, self.shape)),
            "stored as": f"{self.dtype}, {format_bytes(self.nbytes)}",
            "repetition time": "unknown" if self.t_r is None else f"{self.t_r:g} s",
            "lives in": f"{store} ({reason})",
            "state": "closed" if self._closed else "open" if self._held else "not loaded",
        }
        middle = self.frame(self.shape[3] // 2) if self._held and isinstance(self._grid, Grid) else None
        pictures = "" if middle is None else views.slices_html(middle)
        return views.facts_html(self._name, facts, pictures)

    # --- life ---

    def load(self) -> "SharedImage":
        """Decode the image now, instead of at its first use.

        Returns
        -------
        SharedImage
            Itself.

        Raises
        ------
        MemoryLimitError
            Before anything is allocated.
        DamagedImageError
            The file is truncated or its checksum is wrong; nothing is left behind.
        SourceChangedError
            The file is not the one that was opened, or was written to while it was read.
        """
        idle.let_go()
        self._loaded()
        return self

    def _loaded(self, budget: MemoryBudget | None = None) -> Held:
        with self._lock:
            self._check_open()
            if self._held is None:
                budget = budget or MemoryBudget.here(self._memory_limit)
                with monitor.operation("load", f"loading {self._name}", self.nbytes):
                    self._held = self._load(budget)
            else:
                self._held.check()
            return self._held

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedImageError(f"{self._name} is closed: open it again with SharedImage(...)")

    @contextlib.contextmanager
    def _in_use(self, knobs: Settings) -> Iterator[tuple[Held, MemoryBudget]]:
        """The image, and what a call may take besides, whose surroundings are looked at once.

        If another thread closes the image before workers attach, that is what is said.
        """
        if self._asked_store == rows.PRIVATE:
            knobs = replace(knobs, shared_memory=False)
        try:
            if self._held is None:
                idle.let_go()  # of an image that nobody closed, before memory is looked at
            before = self._bytes_in_memory
            budget = MemoryBudget.here(self._memory_limit, before, knobs)
            held = self._loaded(budget)
            yield held, budget.less(self._bytes_in_memory - before)
        except AttachError as error:
            if self._closed:
                raise ClosedImageError(f"{self._name} was closed while it was in use") from error
            raise

    @property
    def _bytes_in_memory(self) -> int:
        """What the image takes now that counts as memory in use."""
        return self.nbytes if self._store is not None and rows.in_memory(self._store[0]) else 0

    def _load(self, budget: MemoryBudget) -> Held:
        assert self._source is not None  # an attached image has its rows
        if self._source.files:
            self._was_settled = is_settled(self._source)
            if not self._was_settled:
                self._fingerprint = None
        store, reason = self._choice(budget)
        _log.info("%s goes to %s: %s", self._name, store, reason)
        self._owned, held = rows.load(self._source, self._voxels, self._name, budget, store)
        self._store = store, reason
        return held

    def _lookup(self, request: Request) -> Lookup | None:
        with self._lock:
            self._check_open()
            if self._source is None:
                return None
            fingerprint = self._identified(self._source)
            return None if fingerprint is None else Lookup(self._source, fingerprint, request, self._voxels)

    def _identified(self, source: Source) -> str | None:
        """The fingerprint of what is held, or will be read; None if it cannot be known."""
        if self._held is None or self.store[0] == "file":
            self._fingerprint = _unchanged_fingerprint(source)
        elif self._fingerprint is None and self._was_settled:
            with contextlib.suppress(ImageError):
                self._fingerprint = _unchanged_fingerprint(source)
        return self._fingerprint

    def memory_report(self) -> MemoryReport:
        """What the image takes and where, and what this process and its workers hold.

        Returns
        -------
        MemoryReport
            In bytes, with the limits; its text is a table.
        """
        budget = MemoryBudget.here(self._memory_limit, self._bytes_in_memory)
        store = self._store or self._choice(budget)
        return monitor.report(self._held is not None, self.nbytes, store, budget)

    def close(self) -> None:
        """Release the memory; results and views that are still in use keep theirs. Idempotent."""
        with self._lock:
            file = rows.our_file(self._held) if self._source is not None else None
            self._closed, self._held = True, None
            rows.release(self._owned, file)
            self._owned = None
            idle.let_go()
            if self._lease is not None:
                self._lease.close()

    def __enter__(self) -> "SharedImage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sharing ---

    @property
    def handle(self) -> Handle:
        """What another process of this user needs to attach; see :meth:`attach`. Loads the image."""
        shared = self._loaded().shared
        if shared is None:
            raise rows.not_shared_error(self._name, self._asked_store)
        if self._owned is not None:
            self._owned.record.keep()
        return shared.handle

    def publish(self, name: str) -> Handle:
        """Load the image and let others find it by a name (:meth:`attach`, ``sharedmask ls``).

        Parameters
        ----------
        name : str
            What can be printed and does not begin with ``{``, as a handle does; no other image has it.

        Returns
        -------
        Handle
            With that name.
        """
        with self._lock:
            held = self._loaded()
            if held.attachment is None or held.shared is None:
                return self.handle  # which says why there is none
            if self._owned is None:
                raise ParameterError(f"{self._name} is another process's image: only its owner names it")
            with owners.free(name, held.shared.handle.token):
                held.attachment.handle = self._owned.rename(name)  # with which views travel
            self._name = name
            return held.attachment.handle

    @classmethod
    def attach(cls, handle: Handle | str) -> "SharedImage":
        """The image that another process shares; nothing is loaded or copied.

        Parameters
        ----------
        handle : Handle or str
            Its :attr:`handle`, the handle as JSON, or its :attr:`name`; of several the newest, and a warning.

        Raises
        ------
        AttachError
            There is no such image, or the handle is of another machine, boot or user.
        """
        attachment = segment.attach(handle := owners.meant(handle))
        held = rows.attached(attachment)
        image = cls.__new__(cls)
        image._source = None
        image._begin(held.facts, handle.label)
        image._voxels, image._held = held.voxels, held
        image._store = attachment.kind, "its owner's choice"
        return image

    @classmethod
    def connect(cls, source: str | os.PathLike[str], *, start: bool = False) -> "SharedImage":
        """The image as this machine's coordinator holds it, loaded once for all who ask.

        The coordinator (``sharedmask serve``) keeps the image at least until :meth:`close`, or
        until this process ends. Where there is none, the image is loaded here, or attached if
        ``source`` is the name of a published one.

        Parameters
        ----------
        source : str or path
            A file, or the name of an image that is loaded already.
        start : bool
            Start a coordinator if there is none; it ends after half an hour without clients.

        Raises
        ------
        SharedMaskError
            What loading it raises, there or here.
        """
        if not isinstance(source, str | os.PathLike):
            raise ImageError(f"a coordinator holds an image by its one path, not {source!r}")
        path = absolute(source)
        asked = {"path": path} if inputs.exists(path) else {"name": os.fspath(source)}
        if "name" in asked and os.sep in asked["name"]:
            raise MissingFileError(f"{asked['name']} {inputs.dangling(path) or 'does not exist'}")
        lease = protocol.connect()
        if lease is None and start:
            protocol.start()
            lease = protocol.connect()
        with contextlib.ExitStack() as unless_leased:
            if lease is not None:
                unless_leased.enter_context(lease)
                if (handle := protocol.ask(lease, "open", **asked)["handle"]) is not None:
                    image = cls.attach(handle)
                    image._lease = lease
                    unless_leased.pop_all()
                    return image
        return cls(path) if "path" in asked else cls.attach(asked["name"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).attach, (self.handle.to_json(),)

    def as_nifti(self) -> "SharedNifti":
        """The image as a nibabel image that travels to other processes as a handle.

        Loops written for nibabel images share the one copy without a changed line:
        ``Parallel(n_jobs=20)(delayed(f)(image.as_nifti(), mask) for mask in masks)``. It is valid
        for as long as this image is open, or until its last view goes.

        Returns
        -------
        nibabel.Nifti1Image
            With its file's header; its data are those that are shared.
        """
        from sharedmask.image.niimg import SharedNifti

        box_of(self._grid, "a NIfTI image")
        held = self._loaded()
        return SharedNifti.here(held) if held.shared is None else SharedNifti.of(self.handle)

    # --- the array ---

    @property
    def stored(self) -> Array:
        """The stored values as a read-only (x, y, z, n_timepoints) view; before scaling.

        Like :attr:`array` it travels to other processes as a handle, and so do its slices.
        """
        held = self._loaded()
        if held.voxels is not None:
            raise OutsideImageError(
                f"{self._name} holds the voxels of its mask_img only: use frame() or mask()"
            )
        return held.stored_view

    @property
    def array(self) -> Array:
        """The image as a read-only (x, y, z, n_timepoints) view; no copy."""
        if self._facts.is_scaled:
            slope, inter = self.scaling
            raise ParameterError(
                f"the values of {self._name} are stored values times {slope:g} plus {inter:g}, "
                "so no view has them: use mask(), frame(), as_nifti(), or stored"
            )
        return self.stored

    def frame(self, t: int) -> Array:
        """A volume, with true values; 0 outside of the ``mask_img``.

        Parameters
        ----------
        t : int
            Its number; negative ones count from the end.

        Returns
        -------
        ndarray, (x, y, z)
            A read-only view where the values are stored as they are, else a fresh array. Of a .nii.gz file
            that has an index and is not loaded yet, only what holds this volume is decoded.
        """
        count = self.shape[-1]
        if isinstance(t, bool) or not isinstance(t, int | np.integer) or not -count <= t < count:
            self._check_open()
            raise ParameterError(f"{self._name} has {count} volumes, there is no volume {t!r}")
        if (volume := self._unloaded_frame(t := int(t) % count)) is not None:
            return volume
        held = self._loaded()
        if held.voxels is None and not self._facts.is_scaled:
            return self.stored[..., t]
        return held.volumes_at(slice(t, t + 1))[..., 0]

    def _unloaded_frame(self, t: int) -> Array | None:
        """Volume ``t`` of an image that is not loaded, if its file has an index."""
        with self._lock:
            self._check_open()
            source = self._source
            if self._held is not None or self._voxels is not None or not isinstance(source, FileSource):
                return None
        if (stored := source.volume(t)) is None:
            return None
        true = apply_read_scaling(stored, source.slope, source.inter).reshape(self.shape[:-1], order="F")
        true.flags.writeable = self._facts.is_scaled
        return true


def _unchanged_fingerprint(source: Source) -> str:
    with source.unchanged():
        return source.fingerprint
