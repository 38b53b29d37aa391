"""The order of a carpet: which voxels lie together, and what they are.

Covers: tissues of a segmentation, networks that an atlas's table tells, regions. Does not cover: finding
files (``study.bids``), drawing (``figures``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import SharedMaskError
from sharedmask.regions.lut import lut_columns
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid, box_of
from sharedmask.typing import Array, NDArray, Numbers

OTHER = "other"
TISSUES = ("grey matter", "deep grey matter", "cerebellum", "white matter", "CSF")
"""From top to bottom of a carpet; what is none of them is below."""
_MOST_NETWORKS = 20  # more are no groups that a picture could tell apart
_SCHAEFER = re.compile(r"(?:\d+Networks_)?[LR]H_([A-Za-z]+)(?:_|$)")
# BIDS' labels of tissues, and FreeSurfer's of structures.
_CLASSES = {1: "grey matter", 2: "white matter", 3: "CSF"}
_STRUCTURES = {
    **dict.fromkeys((3, 42), "grey matter"),
    **dict.fromkeys((9, 10, 11, 12, 13, 17, 18, 26, 28, *range(48, 55), 58, 60), "deep grey matter"),
    **dict.fromkeys((8, 47), "cerebellum"),
    **dict.fromkeys((2, 7, 16, 41, 46, 77, 85, *range(251, 256)), "white matter"),
    **dict.fromkeys((4, 5, 14, 15, 24, 31, 43, 44, 63, 72), "CSF"),
}
_CORTEX = 1000  # and above: FreeSurfer's parcels


def tissues_of(segmentation: Path, structures: bool, grid: Grid, voxels: Numbers) -> list[str]:
    """Which tissue each of ``voxels`` of ``grid`` is in a segmentation of the same space, on any grid.

    Its labels are FreeSurfer's ``structures``, else those of BIDS (1 grey matter, 2 white matter, 3 CSF).
    """
    labels = _labels_at(segmentation, grid, voxels)
    names = _STRUCTURES if structures else _CLASSES
    cortex = "grey matter" if structures else OTHER
    return [names.get(label, cortex if label >= _CORTEX else OTHER) for label in labels.tolist()]


def _labels_at(image: Path, grid: Grid, voxels: Numbers) -> Array:
    """The labels of the nearest voxels; 0 outside."""
    source = open_source(image)
    labels = source.read().reshape(source.shape[:3])
    affine = np.linalg.inv(box_of(source.grid, "tissues").affine) @ grid.affine
    places = np.stack(np.unravel_index(voxels, grid.shape, order="F"))
    there = np.rint(affine[:3, :3] @ places + affine[:3, 3:]).astype(np.intp)
    inside = ((there >= 0) & (there < np.array(labels.shape)[:, None])).all(axis=0)
    found = np.zeros(len(voxels), np.int64)
    found[inside] = labels[tuple(there[:, inside])]
    return found


def networks_of(lut: Any) -> dict[int, str]:
    """The network of each label of a table that tells it: by a column ``network...``, or by Schaefer's names.

    Examples
    --------
    >>> networks_of({1: "7Networks_LH_Vis_1", 2: "7Networks_RH_Default_PFC_3"})
    {1: 'Vis', 2: 'Default'}
    """
    columns: Mapping[str, list[Any]] = {}
    with suppress(SharedMaskError, OSError):  # which reading the atlas has told
        columns = {} if lut is None else lut_columns(lut)
    told = sorted((name for name in columns if str(name).lower().startswith("network")), key=_plainest)
    if told:
        cells = [str(cell).strip() for cell in columns[told[0]]]
    else:
        matches = (_SCHAEFER.match(name) for name in columns.get("name", []))
        cells = [match[1] if match else "" for match in matches]
    labels = columns.get("index", [])
    found = {
        label: cell
        for label, cell in zip(labels, cells, strict=True)
        if cell not in ("", "n/a", "nan", "None")
    }
    return found if 1 < len(set(found.values())) <= _MOST_NETWORKS else {}


def _plainest(name: str) -> tuple[int, str]:
    """Names before numbers, and the shortest first: ``network``, ``network_label``, ``network_id``."""
    return any(word in name.lower() for word in ("id", "index", "color", "colour")), name


def ordered(groups: Sequence[str], regions: Array | Sequence[int]) -> tuple[Numbers, list[tuple[str, int]]]:
    """The order of voxels group by group and in each region by region, and how many each group has.

    Of what voxels are, :data:`TISSUES` come first and in that order, then other names, by their first region,
    and :data:`OTHER` is last.

    Examples
    --------
    >>> order, counts = ordered(["CSF", "other", "grey matter", "CSF"], [4, 0, 2, 1])
    >>> order.tolist(), counts
    ([2, 3, 0, 1], [('grey matter', 1), ('CSF', 2), ('other', 1)])
    """
    first: dict[str, int] = {}
    for group, region in zip(groups, np.asarray(regions).tolist(), strict=True):
        first[group] = min(region, first.get(group, region))
    names = sorted(first, key=lambda name: (name == OTHER, _rank(name), first[name]))
    places = {name: place for place, name in enumerate(names)}
    group_of = np.array([places[group] for group in groups], np.intp)
    counts = np.bincount(group_of, minlength=len(names)).tolist()
    return np.lexsort((np.asarray(regions), group_of)), list(zip(names, counts, strict=True))


def _rank(name: str) -> int:
    return TISSUES.index(name) if name in TISSUES else len(TISSUES)


def owners(regions: Regions, voxels: Numbers) -> NDArray[np.intp]:
    """The number of the region of each of ``voxels``; that of one more region where they are in none."""
    owner = np.full(regions.grid.n_voxels, len(regions))
    for number, one in enumerate(regions):
        owner[one] = number
    return owner[voxels]


def groups_of(owner: Iterable[int], regions: Regions, name: str, lut: Any) -> list[str]:
    """What each voxel is by its region: its network, where ``lut`` tells any, else ``name``, the atlas's."""
    networks = networks_of(lut)
    known = [networks.get(label, OTHER) if networks else name for label in regions.labels]
    known.append(OTHER)
    return [known[number] for number in owner]
