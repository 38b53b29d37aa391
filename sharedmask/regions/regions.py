"""Regions: masks and atlases as voxel index sets on one grid.

Covers: reading masks and label images, putting them on the image's grid, what regions are shown as. Does not
cover: the sets themselves (``sets``), comparing grids, and a voxel's number (``grid``), the voxels' values
(``compute.kernels``), reading images (``source``), look-up tables (``lut``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np

from sharedmask.errors import EmptyMaskError, MaskError, SharedMaskWarning
from sharedmask.regions import parcels
from sharedmask.regions.lut import image_and_lut, read_lut
from sharedmask.regions.masks import (
    Opened,
    ResamplingTarget,
    file_stem,
    is_label_pair,
    label_codes,
    matching,
    moves_the_image,
    open_maps,
    place_on,
    read_volume,
    target_grid,
    unique_names,
    unpack,
    voxels_inside,
    wanted_labels,
)
from sharedmask.regions.sets import RegionRow, Sets
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.space import Space, mismatch_error
from sharedmask.typing import Array, Numbers


class Regions(Sets):
    """Sets of voxels on one grid, from masks (``from_any``) or an atlas (``from_labels``).

    Parameters
    ----------
    grid : Grid or BrainModels
        Where the voxels are.
    indices : array, (n,), intp
        The voxel numbers of all regions, one region after the other. Within a region the order is the C order
        of the mask as it was given: that of ``data[mask]`` and of nilearn.
    offsets : array, (n_regions + 1,), intp
        Region ``i`` is ``indices[offsets[i]:offsets[i + 1]]``.
    names : tuple of str
        One for each region.
    labels : tuple of int
        The atlas' values, or 1 to n for masks.
    container : {"single", "list", "dict"}
        What the caller gave.
    keys : tuple, optional
        The dict's keys; by default the names.
    missing : tuple of (index, name)
        Rows of the look-up table, or labels lost in resampling, that have no voxel here.
    weights : array, (n,), float64, optional
        Of maps (:meth:`from_maps`): what each of ``indices`` counts.

    Examples
    --------
    >>> from sharedmask import Grid
    >>> mask = np.zeros((2, 3, 2), bool)
    >>> mask[1, 0, 1] = mask[0, 2, 0] = True
    >>> regions = Regions.from_any({"roi": mask}, Grid((2, 3, 2), np.eye(4)))
    >>> regions[0]
    array([4, 7])
    >>> regions.pack(["its signals"])
    {'roi': 'its signals'}
    """

    def to_cifti(self, values: Array, kind: parcels.Kind | None = None, *, t_r: float | None = None) -> Any:
        """Make a parcellated CIFTI-2 image of values of the regions: of surfaces, voxels or both.

        Parameters
        ----------
        values : ndarray
            (n_timepoints, n_regions), (n_regions, n_regions) or (n_maps, n_regions).
        kind : {"series", "matrix", "scalars"}, default="series"
            To save as ``.ptseries.nii``, ``.pconn.nii``, ``.pscalar.nii``.
        t_r : float, optional
            Seconds from one volume of a series to the next; by default 0, which is none.

        Returns
        -------
        nibabel.Cifti2Image
            To be saved.

        Raises
        ------
        ParameterError
            The shape is not that of so many regions; values are symmetric and no kind is said.

        Examples
        --------
        >>> from sharedmask import Grid
        >>> regions = Regions.from_labels(np.arange(4).reshape(4, 1, 1), Grid((4, 1, 1), np.eye(4)))
        >>> regions.to_cifti(np.ones((10, 3)), t_r=0.8).shape
        (10, 3)
        """
        return parcels.parcellated(self.grid, self.names, self, np.asarray(values), kind, t_r)

    def to_dataframe(self, signals: Any = None) -> Any:
        """The table, or signals under the regions' names.

        Parameters
        ----------
        signals : ndarray, (n_timepoints, n_regions), optional
            Default: the table, as :meth:`table` has it.

        Returns
        -------
        pandas.DataFrame
            A row per region, or per volume.

        Examples
        --------
        >>> from sharedmask import Grid
        >>> regions = Regions.from_labels(np.arange(3).reshape(3, 1, 1), Grid((3, 1, 1), np.eye(4)))
        >>> regions.to_dataframe()["n_voxels"].tolist()
        [1, 1]
        """
        import pandas as pd

        if signals is None:
            return pd.DataFrame(self.table(), columns=list(RegionRow._fields))
        return pd.DataFrame(np.atleast_2d(signals), columns=list(self.names))

    def __repr__(self) -> str:
        names = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        return f"<Regions {len(self)} ({names}) of {len(self.indices)} voxels on {self.grid}>"

    def _repr_html_(self) -> str:
        from sharedmask.regions import views

        cells = ([row.index, row.name, row.n_voxels] for row in self.table())
        table = views.rows_html(("label", "name", "voxels"), cells, len(self) + len(self.missing))
        facts = {"regions": len(self), "voxels": len(self.indices), "grid": self.grid}
        pictures = ""
        if isinstance(self.grid, Grid):
            numbers = np.zeros(self.grid.n_voxels, np.int32)
            numbers[self.indices] = np.repeat(np.arange(1, len(self) + 1), self.sizes)
            pictures = views.projections_html(numbers.reshape(self.grid.shape, order="F"))
        return views.facts_html("Regions", facts, pictures) + table

    def fits(self, grid: Space) -> bool:
        """Whether the regions can be put :meth:`on` a grid.

        Parameters
        ----------
        grid : Grid or BrainModels
            An image's.

        Returns
        -------
        bool
            As :meth:`on` would do.
        """
        return grid.numbers_of(self.grid, self.indices) is not None

    def on(self, grid: Space) -> Regions:
        """The same regions, each in its own order, on an image's grid.

        Parameters
        ----------
        grid : Grid or BrainModels
            The same grid, or the same with axes flipped or permuted; or brain models, where vertices that the
            image leaves out are left out of the regions.

        Returns
        -------
        Regions
            Themselves where nothing is to be done.

        Raises
        ------
        GridMismatchError
            For any other grid.
        EmptyMaskError
            A region has no place there.
        """
        kept = self.placed_on(grid)
        if np.any(lost := (kept.sizes == 0) & (self.sizes > 0)):
            raise EmptyMaskError(f"region {self.names[int(np.argmax(lost))]!r} has no place in {grid}")
        return kept

    def placed_on(self, grid: Space) -> Regions:
        """The same regions on an image's grid, without voxels those that have no place there.

        Parameters
        ----------
        grid : Grid or BrainModels
            An image's.

        Returns
        -------
        Regions
            As many.

        Raises
        ------
        GridMismatchError
            As :meth:`on`.
        """
        if self.grid.matches(grid):
            return self if self.grid.identity == grid.identity else replace(self, grid=grid)
        numbers = grid.numbers_of(self.grid, self.indices)
        if numbers is None:
            more = f" (and {len(self) - 1} more)" if len(self) > 1 else ""
            raise mismatch_error(f"region {self.names[0]!r}{more}", self.grid, grid)
        here = numbers >= 0
        return replace(self._where(here), grid=grid, indices=numbers[here])

    @classmethod
    def from_any(
        cls, masks: Any, grid: Space | None = None, *, resampling_target: ResamplingTarget = None
    ) -> Regions:
        """Regions from one or many binary masks.

        Parameters
        ----------
        masks : path, glob pattern, nibabel image, 3D array, list or dict of these, or Regions
            Nonzero and finite is inside. One 4D image or array is a stack of masks along its last axis. On
            brain models also arrays over the elements, names of structures (``CortexLeft``), and volumes
            for the structures of voxels; one file of labels is an atlas.
        grid : Grid or BrainModels, optional
            The image's; by default that of the first mask. Arrays are taken to lie on it.
        resampling_target : {None, "data", "mask", "labels"}
            A mask on another grid is refused, or with ``"data"`` resampled to ``grid`` (nearest neighbour). A
            mask whose axes are flipped or permuted needs neither. With ``"mask"``, or ``"labels"``, ``grid``
            is only that of arrays: the regions lie on the first mask's, which the others must share.

        Raises
        ------
        MaskError, EmptyMaskError, GridMismatchError, MissingFileError, ParameterError

        Examples
        --------
        >>> from sharedmask import Grid
        >>> grid = Grid((4, 4, 4), np.eye(4))
        >>> Regions.from_any([np.ones((4, 4, 4)), np.eye(4)[:, :, None] * np.ones(4)], grid).sizes
        array([64, 16])
        """
        to_masks = moves_the_image(resampling_target)
        masks, _ = image_and_lut(masks)
        if isinstance(masks, Regions):
            return masks if grid is None or to_masks else masks.on(grid)
        if is_label_pair(masks):
            return cls.from_labels(masks, grid, resampling_target=resampling_target)
        on = None if resampling_target else grid
        container, keys, items = unpack(masks, on, grid)
        if container == "single" and items[0].names is not None:
            return cls.from_labels(items[0], grid, resampling_target=resampling_target)
        names, parts, doubts = unique_names(str(key) for key in keys), list[Numbers](), list[str]()
        for name, item in zip(names, items, strict=True):
            volume = read_volume(item, name, on=on, space=grid)
            grid = target_grid(volume, grid, own=to_masks and not parts)
            inside, doubt = voxels_inside(volume)
            doubts += filter(None, [doubt])
            parts.append(place_on(volume, inside, grid, resampling_target)[0])
            del volume, inside  # before the next is read
        if doubts:
            more = f". So it is with {len(doubts) - 1} more" if len(doubts) > 1 else ""
            warnings.warn(f"{doubts[0]}{more}", SharedMaskWarning, stacklevel=2)
        assert grid is not None  # there is at least one item
        offsets = np.cumsum([0, *map(len, parts)])
        given = tuple(keys) if isinstance(masks, Mapping) else names
        labels = tuple(range(1, len(names) + 1))
        return cls(grid, np.concatenate(parts), offsets, names, labels, container, given)

    @classmethod
    def from_labels(
        cls,
        labels_img: Any,
        grid: Space | None = None,
        *,
        lut: Any = None,
        labels: Iterable[int] | None = None,
        background_label: int = 0,
        resampling_target: ResamplingTarget = None,
    ) -> Regions:
        """One region per value of a label image, sorted by value.

        Parameters
        ----------
        labels_img : path, nibabel image, 3D array, or Bunch of nilearn's fetchers
            Integers of any size and sign, also as floats; not finite is background. A Bunch has its names.
        grid : Grid or BrainModels, optional
            As in :meth:`from_any`.
        lut : path of a TSV or CSV file, DataFrame or mapping, optional
            Names: columns ``index`` and ``name``, or ``{value: name}``; by default ``str(value)``.
        labels : iterable of int, optional
            Keep only these values.
        background_label : int
            The value that is no region.
        resampling_target : {None, "data", "mask", "labels"}
            As in :meth:`from_any`, errors as well.

        Returns
        -------
        Regions
            With the values as ``labels``.

        Examples
        --------
        >>> from sharedmask import Grid
        >>> atlas = np.arange(4).reshape(4, 1, 1)
        >>> Regions.from_labels(atlas, Grid((4, 1, 1), np.eye(4)), lut={2: "insula"}).names
        ('1', 'insula', '3')
        """
        to_masks = moves_the_image(resampling_target)
        labels_img, lut = image_and_lut(labels_img, lut)
        stem, on = file_stem(labels_img) or "labels", None if resampling_target else grid
        volume = read_volume(labels_img, stem, "label image", on, grid)
        grid = target_grid(volume, grid, own=to_masks)
        known = read_lut(lut) if lut is not None else volume.names or {}
        if lut is None and volume.names == {}:
            raise MaskError(f"{volume.where} has a label table that gives no names: give them as lut=")
        values, codes = label_codes(volume, background_label)
        names = wanted_labels(labels, {*values, *known} - {background_label}, known, volume.where)
        numbers, found = place_on(volume, codes, grid, resampling_target)
        small = found.astype(np.min_scalar_type(len(values)))  # sorts faster by far in 16 bits than in 32
        order = np.argsort(small, kind="stable")  # stable: C order within a label
        counts = np.bincount(found, minlength=len(values) + 1)[1:]
        kept = np.array([value in names for value in values]) & (counts > 0)
        here = {value: names[value] for value in compress(values, kept)}
        if not here:
            raise EmptyMaskError(f"{volume.where}: none of the labels asked for has a voxel")
        missing = tuple((value, name) for value, name in names.items() if value not in here)
        indices, offsets = numbers[order][np.repeat(kept, counts)], np.cumsum([0, *counts[kept]])
        return cls(grid, indices, offsets, tuple(here.values()), tuple(here), "dict", missing=missing)

    @classmethod
    def from_maps(
        cls,
        maps_img: Any,
        grid: Space | None = None,
        *,
        lut: Any = None,
        resampling_target: ResamplingTarget = None,
    ) -> Regions:
        """One region per volume of a 4D image, whose values are weights; a probabilistic atlas, as DiFuMo.

        Parameters
        ----------
        maps_img : path, nibabel image, 4D array, or Bunch of nilearn's fetchers
            Where a map is 0, or not finite, is outside of its region.
        grid, lut, resampling_target : optional
            As in :meth:`from_labels`, errors as well; maps are resampled linearly. Maps count from 1.

        Examples
        --------
        >>> from sharedmask import Grid
        >>> maps = np.zeros((3, 1, 1, 2))
        >>> maps[0, 0, 0] = 0.5, 1.0
        >>> Regions.from_maps(maps, Grid((3, 1, 1), np.eye(4)), lut={1: "insula"}).weights
        array([0.5, 1. ])
        """
        maps_img, lut = image_and_lut(maps_img, lut)
        names, numbers, weights = read_lut(lut), list[Numbers](), list[Array]()
        to_maps = moves_the_image(resampling_target)
        opened, own = open_maps(maps_img, grid, resampling_target)
        grid = own if grid is None or to_maps else grid
        for name, values in opened:
            inside = np.flatnonzero(np.isfinite(values) & (values != 0))
            if not len(inside):
                raise EmptyMaskError(f"{name} is empty: all its values are 0 or not finite")
            numbers.append(inside)
            weights.append(values[inside].astype(np.float64))
        labels = tuple(range(1, len(numbers) + 1))
        called = unique_names(names.get(label, str(label)) for label in labels)
        offsets = np.cumsum([0, *map(len, numbers)])
        joined = np.concatenate(numbers), offsets, called, labels
        return cls(own, *joined, "dict", weights=np.concatenate(weights)).on(grid)

    @classmethod
    def from_atlas_or_masks(
        cls,
        given: Any,
        grid: Space | None = None,
        *,
        weighted: bool = False,
        resampling_target: ResamplingTarget = None,
    ) -> Regions:
        """Regions to reduce: one 3D image is an atlas; lists, dicts, patterns and 4D images are masks.

        Parameters
        ----------
        given : atlas or masks
            As users give them to ``reduce``.
        grid : Grid or BrainModels, optional
            The image's.
        weighted : bool
            A 4D image is maps of weights.
        resampling_target : {None, "data", "mask", "labels"}
            As in :meth:`from_any`.

        Returns
        -------
        Regions
            As :meth:`from_labels`, :meth:`from_any` or :meth:`from_maps` makes them.
        """
        if weighted and not isinstance(given, Regions):
            return cls.from_maps(given, grid, resampling_target=resampling_target)
        given, lut = image_and_lut(given)
        many = not is_label_pair(given) and (
            isinstance(given, (list, tuple, Mapping, Regions)) or bool(matching(given))
        )
        once = given if many else Opened.of(given)
        if many or (isinstance(once, Opened) and once.is_several):
            return cls.from_any(once, grid, resampling_target=resampling_target)
        return cls.from_labels(once, grid, lut=lut, resampling_target=resampling_target)
