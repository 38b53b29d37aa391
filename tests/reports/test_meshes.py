"""Regions on meshes."""

import base64
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from sharedmask.errors import ParameterError
from sharedmask.reports.meshes import check_mesh, drawn, regions_on
from sharedmask.spaces.brain_models import BrainModels, Structure
from sharedmask.surfaces.gifti import Mesh

LEFT = "CIFTI_STRUCTURE_CORTEX_LEFT"
# An octahedron: 0 is its left and 1 its right corner.
POINTS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], "f4") * 50
RINGS = [(2, 4), (4, 3), (3, 5), (5, 2)]
TRIANGLES = np.array([(0, b, a) for a, b in RINGS] + [(1, a, b) for a, b in RINGS])
MESH = Mesh("lh.surf.gii", LEFT, POINTS, TRIANGLES)
SPACE = BrainModels((Structure(LEFT, np.array([0, 2, 3, 4, 5]), 6),))


def coloured(picture):
    """Of the left and of the right half, how many pixels are neither grey nor white."""
    png = imread(BytesIO(base64.b64decode(picture.partition(",")[2])))[..., :3]
    found = np.ptp(png, axis=2) > 0.1
    return [int(half.sum()) for half in np.array_split(found, 2, axis=1)]


def test_a_region_is_drawn_on_the_side_that_it_is_seen_from():
    owners = regions_on(MESH, SPACE, np.array([1, 0, 0, 0, 0]))
    assert owners.tolist() == [1, 0, 0, 0, 0, 0]
    left, right = coloured(drawn([MESH], [owners]))
    assert left > 1000 and right == 0
    assert sum(coloured(drawn([MESH], [np.zeros(6, int)]))) == 0


def test_a_flat_mesh_is_drawn_once():
    flat = Mesh("flat.surf.gii", LEFT, POINTS * (1, 1, 0), TRIANGLES)
    assert min(coloured(drawn([flat], [np.ones(6, int)]))) > 1000


@pytest.mark.parametrize("space", [None, BrainModels((Structure(LEFT, np.arange(4), 7),))])
def test_a_mesh_of_other_surfaces_is_refused(space):
    check_mesh(MESH, SPACE)
    with pytest.raises(ParameterError, match=r"lh\.surf\.gii is of .*LEFT, 6 vertices, and the image has"):
        check_mesh(MESH, space)
