"""Pictures: outlines and slices where regions are."""

import numpy as np
import pytest

from sharedmask.reports import figures


def test_outlines_lie_on_the_regions_edge():
    places = np.zeros((4, 4), int)
    places[1:3, 1:3] = 5
    borders = figures._borders(places)
    drawn = np.argwhere(~borders.mask)
    assert set(borders.compressed()) == {5}
    # On a grid four times as fine the region is [4, 12), and its line lies at both ends.
    assert drawn.min() == 4 and drawn.max() == 12
    assert borders.mask[6:11, 6:11].all()


def test_slices_lie_where_regions_are():
    places = np.zeros((4, 4, 40), int)
    places[:, :, 10:31] = 1
    assert (np.abs(figures._slices(places, 2) - 20) <= 10).all()


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are before they become pictures."""
    made = []
    monkeypatch.setattr(figures, "_png", lambda figure: made.append(figure) or b"")
    return made


@pytest.mark.parametrize("t_r", [2.0, None])
def test_signals_stand_at_the_times_of_the_volumes_that_they_are_of(drawn, t_r):
    kept = np.ones(30, bool)
    kept[[0, 7]] = False
    signals = np.arange(28.0)[:, None] ** 2 * np.ones(3)
    figures.carpet(signals, t_r, kept)
    (axes,) = drawn[0].axes
    (image,) = axes.images
    assert image.get_extent()[1] == 30 * (t_r or 1)
    assert (~kept[:, None] == np.ma.getmaskarray(image.get_array()).T).all()
    edges = [box.get_bbox().intervalx / (t_r or 1) for box in axes.patches]
    np.testing.assert_allclose(edges, [[0, 1], [7, 8]])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.carpet(np.eye(20), 2.0, np.ones(20, bool)),
        lambda: figures.matrix(np.eye(20), ""),
        lambda: figures.coverage([1.0, 1.0]),
        lambda: figures.coverage_of_runs(np.ones((5, 2))),
        lambda: figures.distribution([0.1, 0.2], "FD"),
    ],
)
def test_axes_that_count_have_whole_numbers(drawn, draw):
    draw()
    axes = drawn[0].axes[0]
    counts = ("region", "regions", "runs")
    counting = [axis for axis in (axes.xaxis, axes.yaxis) if axis.get_label_text() in counts]
    assert counting
    for axis in counting:
        ticks = axis.get_majorticklocs()
        assert (ticks == np.round(ticks)).all()
