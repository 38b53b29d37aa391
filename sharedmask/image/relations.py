"""Relations: how regions go together, and every voxel with seeds.

Covers: matrices of an atlas, maps of seeds as images. Does not cover: the measures (``connectivity``),
other calls of an image (``operations``).
"""

from typing import Any, Unpack

import numpy as np

from sharedmask.compute.confounds import kept_volumes
from sharedmask.compute.connectivity import SeedCorrelation, check_matrices, connectivity, standardized
from sharedmask.compute.request import Parameters
from sharedmask.errors import ParameterError
from sharedmask.image.operations import Operations
from sharedmask.regions import parcels
from sharedmask.regions.masks import ResamplingTarget
from sharedmask.regions.regions import Regions
from sharedmask.system import settings
from sharedmask.typing import Array, NDArray, Numbers

_BLOCK_BYTES = 4 * 2**20  # of the series of the voxels that are correlated at a time, as float64


class Relations(Operations):
    """The calls of an image that compare series; what it has to provide is declared here."""

    _voxels: Numbers | None
    """Those that are held; None: all."""

    def connectivity(
        self,
        labels_img: Any,
        kind: str = "correlation",
        *,
        strategy: str = "mean",
        fisher_z: bool = False,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> NDArray[np.float64]:
        """The matrix of regions' signals, by nilearn's ``ConnectivityMeasure``.

        It shrinks covariances (Ledoit and Wolf): the fewer the volumes, the smaller correlations are beside
        those of ``numpy.corrcoef``, down to 0.

        Parameters
        ----------
        labels_img : atlas or masks
            As for :meth:`reduce`.
        kind : {"correlation", "partial correlation", "covariance", "precision"}
            What is compared.
        strategy : str
            What stands for a region.
        fisher_z : bool
            The inverse hyperbolic tangent of correlations, with NaN on the diagonal.
        resampling_target, memory, **parameters : optional
            As in :meth:`reduce`.

        Returns
        -------
        ndarray, (n_regions, n_regions)
            In the order of the labels or masks; ``Regions.table()`` names them.

        Raises
        ------
        ParameterError
            And what :meth:`reduce` raises.
        """
        check_matrices([kind], fisher_z)  # before the work
        if not isinstance(strategy, str):
            raise ParameterError(f"strategy={strategy!r}: one value per region and volume is compared")
        signals = self.reduce(
            labels_img, strategy, resampling_target=resampling_target, memory=memory, **parameters
        )
        return connectivity(signals, kind, fisher_z=fisher_z)

    def seed_maps(
        self,
        seeds: Any,
        *,
        mask_img: Any = None,
        strategy: str = "mean",
        fisher_z: bool = False,
        resampling_target: ResamplingTarget = None,
        **parameters: Unpack[Parameters],
    ) -> Any:
        """The correlation of every voxel with each seed, in one pass over the rows for all seeds.

        Parameters
        ----------
        seeds : atlas, masks, or ndarray of (n_timepoints, n_seeds)
            Regions, each of which is a seed, as for :meth:`reduce`; or series, which are taken as they are,
            of the volumes that are kept.
        mask_img : mask, optional
            The voxels; default: all that are held.
        strategy : str
            What stands for a region.
        fisher_z : bool
            The inverse hyperbolic tangent.
        resampling_target, **parameters : optional
            As in :meth:`reduce`.

        Returns
        -------
        nibabel.Nifti1Image, (x, y, z, n_seeds), or of elements nibabel.Cifti2Image, (n_seeds, n_elements)
            In float32; 0 outside of the mask and where a voxel never changes. The latter is saved as
            ``.dscalar.nii`` or ``.pscalar.nii``; its maps have the names of the regions.

        Examples
        --------
        >>> import nibabel as nib
        >>> from sharedmask import SharedImage
        >>> bold = np.random.default_rng(0).normal(size=(3, 3, 3, 20)).astype("f4")
        >>> with SharedImage(nib.Nifti1Image(bold, np.eye(4))) as image:
        ...     maps = image.seed_maps(bold[1, 1, 1, :, None])
        >>> maps.shape, round(float(maps.dataobj[1, 1, 1, 0]), 6)
        ((3, 3, 3, 1), 1.0)
        """
        if (kept := self._n_kept(parameters)) < 2:
            raise ParameterError(f"maps of seeds need several volumes: of {self._name} {kept} is kept")
        blocks = self._blocks(mask_img, resampling_target)
        series, names = self._seeds(seeds, strategy, resampling_target, parameters)
        with self._in_use(settings.current()) as (_, budget):
            nbytes = 4 * series.shape[1] * (2 * len(blocks.indices) + self._grid.n_voxels)
            budget.require(
                f"making {series.shape[1]} maps of seeds of {self._name}", nbytes, "give fewer seeds"
            )
        found = self.map(SeedCorrelation(standardized(series), fisher_z), blocks, **parameters)
        return parcels.maps(self._grid, blocks.indices, np.concatenate(found), names)

    def _seeds(
        self, seeds: Any, strategy: str, target: ResamplingTarget, parameters: Parameters
    ) -> tuple[Array, tuple[str, ...]]:
        """Their series, and their names where they are regions."""
        if not (isinstance(seeds, np.ndarray) and seeds.ndim <= 2):
            asked: Parameters = {**parameters, "progress": None, "on_result": None}
            regions = self._reducible(seeds, strategy, target)
            return np.atleast_2d(self.reduce(regions, strategy, **asked)), regions.names
        series = seeds[:, None] if seeds.ndim == 1 else seeds
        n_timepoints = self._n_kept(parameters)
        if len(series) != n_timepoints or not np.isfinite(series).all():
            raise ParameterError(
                f"seeds of shape {seeds.shape}: finite series of {n_timepoints} volumes are needed"
            )
        return series, ()

    def _blocks(self, mask_img: Any, target: ResamplingTarget) -> Regions:
        """The voxels, some thousands a region."""
        voxels = self._voxels_of(mask_img, target)
        size = max(64, _BLOCK_BYTES // (8 * self._facts.n_timepoints))
        offsets = [*range(0, len(voxels), size), len(voxels)]
        names = tuple(map(str, range(1, len(offsets))))
        return Regions(self._grid, voxels, np.asarray(offsets), names, tuple(range(1, len(offsets))), "list")

    def _n_kept(self, parameters: Parameters) -> int:
        mask = parameters.get("sample_mask")
        return self._facts.n_timepoints if mask is None else len(kept_volumes(self._facts, mask))

    def _voxels_of(self, mask_img: Any, target: ResamplingTarget) -> Numbers:
        if target not in (None, "data"):
            raise ParameterError(f"resampling_target={target!r}: maps are on the grid of the image")
        if mask_img is not None:
            return Regions.from_any(mask_img, self._grid, resampling_target=target).union
        return np.arange(self._grid.n_voxels) if self._voxels is None else self._voxels
