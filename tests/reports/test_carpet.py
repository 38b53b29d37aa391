"""Carpets: which voxels lie together."""

import numpy as np
import pytest
from images import save

from sharedmask.regions.regions import Regions
from sharedmask.reports.carpet import groups_of, networks_of, ordered, owners, tissues_of
from sharedmask.spaces.grid import Grid

SHAPE = (4, 5, 6)
GRID = Grid(SHAPE, np.diag([3.0, 3, 3, 1]))


@pytest.mark.parametrize("finer", [1, 3])
@pytest.mark.parametrize(
    ("structures", "labels"),
    [
        (False, {1: "grey matter", 2: "white matter", 3: "CSF", 7: "other"}),
        (
            True,
            {
                2: "white matter",
                1021: "grey matter",
                12175: "grey matter",
                47: "cerebellum",
                4: "CSF",
                0: "other",
            },
        ),
    ],
)
def test_tissues_are_those_of_the_nearest_voxels(tmp_path, finer, structures, labels):
    truth = np.random.default_rng(0).choice(list(labels), SHAPE).astype("int16")
    fine = np.kron(truth, np.ones((finer,) * 3, "int16"))
    affine = np.diag([3.0 / finer] * 3 + [1])
    affine[:3, 3] = (1 / finer - 1) * 1.5  # the same corner
    path = save(tmp_path / "dseg.nii.gz", fine[:-finer], affine=affine)
    voxels = np.arange(0, np.prod(SHAPE), 2)
    expected = np.where(np.arange(4)[:, None, None] < 3, truth, 0).reshape(-1, order="F")[voxels]
    found = tissues_of(path, structures, GRID, voxels)
    assert found == [labels.get(label, "other") for label in expected.tolist()]


@pytest.mark.parametrize(
    ("lut", "found"),
    [
        ("index\tname\tnetwork\n1\ta\tVis\n2\tb\tDMN\n3\tc\tn/a\n", {1: "Vis", 2: "DMN"}),
        ("index\tlabel\tnetwork_id\tnetwork_label\n1\ta\t1\tVis\n2\tb\t2\tDMN\n", {1: "Vis", 2: "DMN"}),
        ("index\tname\tNetwork\n1\ta\tVis\n2\tb\tVis\n", {}),
        ("index\tname\n1\t17Networks_LH_VisCent_ExStr_1\n2\t17Networks_RH_ContA_2\n3\tThalamus\n",
         {1: "VisCent", 2: "ContA"}),
        ("index\tname\n1\tpons\n2\tLH_\n", {}),
        ("index\tname\tnetwork\n" + "".join(f"{n}\tr{n}\tn{n}\n" for n in range(1, 60)), {}),
        ("no table\n", {}),
    ],
)  # fmt: skip
def test_networks_are_those_of_the_table(tmp_path, lut, found):
    (tmp_path / "lut.tsv").write_text(lut)
    assert networks_of(tmp_path / "lut.tsv") == found


def test_voxels_lie_region_by_region_in_their_network(tmp_path):
    labels = np.zeros(SHAPE, "int16")
    labels[0], labels[1], labels[2] = 5, 6, 7
    regions = Regions.from_labels(save(tmp_path / "atlas.nii.gz", labels, affine=GRID.affine), GRID)
    voxels = np.arange(np.prod(SHAPE))
    owner = owners(regions, voxels)
    lut = tmp_path / "lut.tsv"
    lut.write_text("index\tname\tnetwork\n5\ta\tLate\n6\tb\tEarly\n7\tc\tLate\n")
    order, groups = ordered(groups_of(owner, regions, "Toy", lut), owner)
    assert groups == [("Late", 60), ("Early", 30), ("other", 30)]
    assert labels.reshape(-1, order="F")[order].tolist() == [5] * 30 + [7] * 30 + [6] * 30 + [0] * 30
    assert ordered(groups_of(owner, regions, "Toy", None), owner)[1] == [("Toy", 90), ("other", 30)]
