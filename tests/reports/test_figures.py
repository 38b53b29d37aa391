"""Pictures: outlines and slices where regions are."""

import numpy as np

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
