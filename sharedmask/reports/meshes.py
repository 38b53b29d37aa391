"""Pictures of surfaces: regions on meshes, each hemisphere from two sides.

Covers: which mesh goes with an image, which triangles are seen, their colours and shades. Does not cover:
reading meshes (``gifti``).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.reports.figures import as_data_url, bare_figure
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.space import Space
from sharedmask.surfaces.gifti import Mesh
from sharedmask.typing import Array, Numbers

_WIDTH = 5.2
_SIDES = (-1.0, 1.0)  # seen from the left, and from the right
_GREY = 0.75
_FLAT = 1e-3  # mm from the lowest to the highest vertex
_DARKEST = 0.45  # a triangle that is seen from its edge


def check_mesh(mesh: Mesh, space: Space | None) -> None:
    """Refuse one that is not of the surfaces of an image, by a ParameterError."""
    surfaces = space.structures if isinstance(space, BrainModels) else ()
    if not any((one.name, one.n_vertices) == (mesh.structure, len(mesh.points)) for one in surfaces):
        said = f"the mesh {mesh.name} is of {mesh.structure}, {len(mesh.points)} vertices"
        raise ParameterError(f"{said}, and the image has {space or 'voxels'}")


def regions_on(mesh: Mesh, space: BrainModels, numbers: Array) -> Array:
    """The number of each vertex, (n_vertices,), of those of the elements; 0 of what the image leaves out."""
    found = np.zeros(len(mesh.points), int)
    for start, one in zip(space.starts, space.structures, strict=False):
        if one.name == mesh.structure and one.n_vertices is not None:
            found[one.numbers] = numbers[start : start + len(one.numbers)]
    return found


def drawn(meshes: Sequence[Mesh], regions: Sequence[Array]) -> str:
    """Meshes side by side, from the left and from the right; a colour for each region, else grey.

    A flat one is drawn as it lies. ``regions`` has of each vertex the number of its region, 0 for none.
    """
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    views = [(number, *view) for number, mesh in enumerate(meshes) for view in _views(mesh)]
    figure = bare_figure(_WIDTH, _WIDTH / len(views) * 0.8)
    most = max(2, *(int(numbers.max(initial=0)) for numbers in regions))
    rows = figure.subplots(1, len(views), squeeze=False, gridspec_kw={"wspace": 0.02})
    for axes, (number, seen, corners, shades) in zip(rows.flat, views, strict=True):
        owners = regions[number][meshes[number].triangles[seen]].max(axis=1)
        colours = colormaps["turbo"]((owners - 1) / (most - 1))[:, :3]
        colours[owners == 0] = _GREY
        faces = PolyCollection(list(corners), facecolors=colours * shades[:, None], edgecolors="face")
        faces.set(linewidth=0.1, antialiased=False)
        axes.add_collection(faces)
        axes.autoscale_view()
        axes.set_aspect("equal")
        axes.set_axis_off()
    return as_data_url(figure)


def _views(mesh: Mesh) -> Iterator[tuple[Numbers, Array, Array]]:
    """Triangles that are seen, the farthest first, where their corners are drawn, and how bright they are."""
    corners = mesh.points[mesh.triangles].astype(float)
    if np.ptp(mesh.points[:, 2]) < _FLAT:
        yield np.arange(len(corners)), corners[:, :, :2], np.ones(len(corners))
        return
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    across = normals[:, 0] / np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
    for side in _SIDES:
        seen = np.flatnonzero(side * across > 0)
        seen = seen[np.argsort(side * corners[seen, :, 0].mean(axis=1))]
        yield seen, corners[seen][:, :, 1:] * (side, 1.0), _DARKEST + (1 - _DARKEST) * side * across[seen]
