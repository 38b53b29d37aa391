"""Looking for seek points: what has some, what has none, what that takes."""

import gzip

import pytest
from gzip_files import indexed, points_in
from source_files import gz

from sharedmask.errors import MemoryLimitError
from sharedmask.sources.opening import open_source
from sharedmask.system import settings

pytest.importorskip("rapidgzip")


@pytest.mark.parametrize("more", [b"\0" * 512, b"hello", gzip.compress(b"more")])
def test_what_follows_the_image_makes_no_index(more, run):
    run.write_bytes(run.read_bytes() + more)
    assert points_in(open_source(run)) is None


def test_several_members_make_no_index(raw, tmp_path):
    path = gz(tmp_path / "run.nii.gz", gzip.compress(raw[:100000]) + gzip.compress(raw[100000:]))
    assert points_in(open_source(path)) is None


def test_a_search_that_does_not_fit_is_refused(run):
    with (
        settings.using(memory_limit="50M"),
        pytest.raises(MemoryLimitError, match=r"indexing .*run.nii.gz needs"),
    ):
        indexed(run)
