"""Probes: values of some voxels beside what is asked for, by every way to the voxels."""

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, save, truth

from sharedmask import Grid, Regions, extract_many

REGIONS = Regions.from_labels(np.arange(210).reshape(SHAPE) % 5, Grid(SHAPE, AFFINE))
PROBES = np.array([0, 3, 77, 209])


@pytest.mark.parametrize("strategy", ["mean", ("median", "pc1")])
@pytest.mark.parametrize("store", [None, "shm"])
@pytest.mark.parametrize("scaling", [{}, {"slope": 0.5, "inter": 3.0}])
@pytest.mark.parametrize("cleaning", [{}, {"detrend": True, "sample_mask": np.arange(3, 12)}])
def test_probes_are_as_they_are(strategy, store, scaling, cleaning, tmp_path):
    path = save(tmp_path / "bold.nii.gz", bold(), **scaling)
    each = {**cleaning, **({"sample_mask": [cleaning["sample_mask"]]} if cleaning else {})}
    asked = {"strategy": strategy, "store": store, **each}
    plain = extract_many([path], REGIONS, **asked).results[str(path)]
    found = extract_many([path], REGIONS, probes=lambda key: PROBES, **asked).results[str(path)]
    np.testing.assert_equal(found.signals, plain)
    expected = truth(path).reshape(-1, 12, order="F")[PROBES].T
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.values.dtype == np.float32
