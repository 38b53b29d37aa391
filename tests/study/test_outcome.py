"""Outcomes: what became of each image, as a data frame."""

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, save

from sharedmask import Grid, Regions, extract_many

REGIONS = Regions.from_labels(np.arange(210).reshape(SHAPE) % 60, Grid(SHAPE, AFFINE))


def test_a_row_for_each_image(tmp_path):
    good = save(tmp_path / "good.nii", bold())
    with pytest.warns(match="1 of 2 images failed"):
        study = extract_many({"x": good, "y": niimg(bold()[:3])}, REGIONS)
    frame = study.to_dataframe().set_index("image")
    assert frame.loc["x", "state"] == "complete" and "grid" in frame.loc["y", "error"]
