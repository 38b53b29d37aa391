"""A segment of each kind, and one with a name."""

import numpy as np
import pytest
from owners import TOKEN, WITH_VOXELS

from sharedmask.storage.segment import Segment


@pytest.fixture(params=["shm", "memfd"])
def segment(request):
    made = Segment(TOKEN, WITH_VOXELS, request.param)
    yield made
    made.store.release()
    vars(made).pop("_map", None)  # pytest holds on to the fixture's value


@pytest.fixture
def named():
    made = Segment(TOKEN, WITH_VOXELS, "shm")
    yield made
    made.store.release()
    vars(made).pop("_map", None)


@pytest.fixture
def handle(segment):
    segment.array("rows")[:] = np.arange(15).reshape(3, 5)
    segment.array("voxels")[:] = [2, 3, 7]
    return segment.share("run.nii.gz", {"finite": True})
