"""What every image is that ``loader`` reads: the contract of ``sharedmask.sources.volumes``.

Who implements it inherits the suite and gives a fixture ``it``: ``it.volumes``, and ``it.values``, which they
have, (n_timepoints, n_voxels), in the dtype that they are read as.
"""

import os
import threading

import numpy as np
import pytest
from images import same_bits

from sharedmask.sources import loader


class VolumesContract:
    def test_it_says_what_it_is(self, it):
        assert (it.volumes.n_timepoints, it.volumes.n_voxels) == it.values.shape
        assert it.volumes.dtype == it.values.dtype and it.volumes.dtype.isnative
        assert type(it.volumes.reads_ahead) is bool
        assert it.volumes.reading_bytes >= 0

    @pytest.mark.some(40)
    @pytest.mark.parametrize("step", [1, 3, 5, 100])
    def test_volumes_come_in_order_however_many_at_once(self, it, step):
        out = np.full_like(it.values, 77)
        with it.volumes.volumes() as reader:
            for start in range(0, len(out), step):
                reader.readinto(out[start : start + step])
        same_bits(out, it.values)

    def test_one_volume_needs_no_second_axis(self, it):
        out = np.full(it.volumes.n_voxels, 77, it.volumes.dtype)
        with it.volumes.volumes() as reader:
            for volume in it.values:
                reader.readinto(out)
                same_bits(out, volume)

    def test_what_was_read_stays(self, it):
        """A reader's buffer is its own."""
        first, rest = np.empty_like(it.values[:1]), np.empty_like(it.values[1:])
        with it.volumes.volumes() as reader:
            reader.readinto(first)
            kept = first.copy()
            reader.readinto(rest)
        same_bits(first, kept)

    def test_passes_are_independent(self, it):
        """One within the other, one after the other, and in threads."""
        outer, inner, later = np.empty_like(it.values), np.empty_like(it.values), np.empty_like(it.values)

        def read(out):
            with it.volumes.volumes() as reader:
                reader.readinto(out)

        with it.volumes.volumes() as reader:
            reader.readinto(outer[:1])
            read(inner)
            reader.readinto(outer[1:])
        threads = [threading.Thread(target=read, args=(out,)) for out in (later, np.empty_like(it.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for out in (outer, inner, later):
            same_bits(out, it.values)

    @pytest.mark.some(30)
    @pytest.mark.parametrize("read", [0, 1])
    def test_a_pass_may_end_early_and_leaves_nothing_open(self, it, read):
        before = sorted(os.listdir("/proc/self/fd"))
        with it.volumes.volumes() as reader:
            reader.readinto(np.empty((read, it.volumes.n_voxels), it.volumes.dtype))
        assert sorted(os.listdir("/proc/self/fd")) == before
        with pytest.raises(RuntimeError, match="mine"), it.volumes.volumes():
            raise RuntimeError("mine")
        assert sorted(os.listdir("/proc/self/fd")) == before

    @pytest.mark.some(30)
    @pytest.mark.parametrize("select", [None, [3, 0, 3], [1]])
    def test_the_loader_makes_rows_of_it(self, it, select):
        expected = it.values if select is None else it.values[:, select]
        rows = np.empty(expected.shape[::-1], it.values.dtype)
        select = None if select is None else np.array(select)
        finite = loader.load(it.volumes, rows, select=select)
        same_bits(rows, expected.T)
        assert finite == bool(np.isfinite(expected).all())
