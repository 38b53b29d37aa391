"""Views: what a notebook shows of regions and images, and data frames of what comes of them."""

import re

import numpy as np
from images import AFFINE, SHAPE, bold, save

from sharedmask import Grid, Regions, SharedImage

LUT = {1: "a <b>", 99: "gone"}
REGIONS = Regions.from_labels(np.arange(210).reshape(SHAPE) % 60, Grid(SHAPE, AFFINE), lut=LUT)


def test_regions_show_a_table_and_where_they_are():
    shown = REGIONS._repr_html_()
    assert "a &lt;b&gt;" in shown and "<b>Regions</b>" in shown and "and 30 more" in shown
    assert len(re.findall("data:image/png;base64", shown)) == 3
    assert repr(REGIONS).startswith("<Regions 59 (a <b>, 2, 3, ...)")


def test_an_image_shows_what_it_is_and_once_loaded_how_it_looks(tmp_path):
    with SharedImage(save(tmp_path / "bold.nii.gz", bold(), t_r=2.0)) as image:
        before = image._repr_html_()
        assert "not loaded" in before and "7 x 6 x 5 x 12" in before and "2 s" in before
        assert "data:image/png" not in before
        assert len(re.findall("data:image/png;base64", image.load()._repr_html_())) == 3
    assert "closed" in image._repr_html_()


def test_without_matplotlib_there_are_no_pictures(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.image", None)
    assert "data:image" not in REGIONS._repr_html_() and "a &lt;b&gt;" in REGIONS._repr_html_()


def test_data_frames():
    table = REGIONS.to_dataframe()
    assert len(table) == 60 and table.set_index("index").loc[99, "n_voxels"] == 0
    signals = np.random.default_rng(0).normal(size=(4, 59))
    assert REGIONS.to_dataframe(signals)["a <b>"].tolist() == signals[:, 0].tolist()
