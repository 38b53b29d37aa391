"""Files of rows: which of their bytes are read, and what rows asked for twice, or in any order, are."""

import cifti_files as files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import same_bits

from sharedmask import extract
from sharedmask.sources import by_row
from sharedmask.sources.opening import open_source
from sharedmask.sources.values import Conversion
from sharedmask.system.files import pread_into


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(files.dtseries(tmp_path_factory.mktemp("rows") / "a.dtseries.nii", 9))


@given(st.lists(st.integers(0, 14), max_size=40), st.sampled_from([1, 80, 2**20]))
def test_rows_come_in_any_order(source, numbers, block):
    out = np.empty((len(numbers), 9))
    conversion = Conversion(1.0, 0.0, source.dtype, out.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_row, "_BLOCK_BYTES", block)
        assert source.load(out, np.array(numbers, np.intp), conversion)
    same_bits(out, source.read()[numbers].astype("f8").reshape(-1, 9))


def test_one_region_is_read_without_the_others(tmp_path):
    """What is read of a plain file are the header and the rows asked for."""
    path = files.dtseries(tmp_path / "run.dtseries.nii", 2000, places=files.whole())
    source = open_source(path)
    places = []

    def counted(fd, view, place):
        places.append((place - source.offset, len(view)))
        return pread_into(fd, view, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_row.files, "pread_into", counted)
        extract(source, np.isin(np.arange(24), [3, 4, 5, 20]))
    assert places == [(3 * 8000, 3 * 8000), (20 * 8000, 8000)]
