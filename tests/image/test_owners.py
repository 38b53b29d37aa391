import subprocess
import warnings

import numpy as np
import pytest
from children import running
from images import bold, save

from sharedmask import SharedImage
from sharedmask.errors import AttachError, ParameterError, SharedMaskWarning
from sharedmask.storage.registry import reap

pytestmark = pytest.mark.shares


@pytest.fixture
def paths(tmp_path):
    """Two runs whose files have one name, as FEAT gives to all of them."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    return [save(tmp_path / folder / "filtered.nii.gz", bold(seed=seed)) for seed, folder in enumerate("ab")]


def test_a_name_that_is_taken_is_not_published_again(paths):
    with SharedImage(paths[0]) as first, SharedImage(paths[1]) as second:
        first.publish("run")
        with pytest.raises(
            ParameterError, match=r"another image is shared under the name 'run', by process \d+"
        ):
            second.publish("run")
        assert second.handle.label == "filtered.nii.gz"
        with SharedImage.attach("run") as got:
            assert got.handle.token == first.handle.token
        first.publish("run")  # its own it may have again
        first.publish("other")
        second.publish("run")
        with SharedImage.attach("run") as got:
            np.testing.assert_array_equal(got.array, second.array)
    with pytest.raises(AttachError, match="no image is shared under the name 'run'"):
        SharedImage.attach("run")


def test_the_name_of_an_image_that_was_closed_or_killed_is_free(paths):
    owner = """
        import sys
        from sharedmask import SharedImage
        image = SharedImage(sys.argv[1])
        image.publish("run")
        print("ready", flush=True)
        sys.stdin.read()
    """
    with SharedImage(paths[1]) as second:
        with running(owner, paths[0], stdin=subprocess.PIPE) as process:
            with pytest.raises(ParameterError, match=f"by process {process.pid}: publish"):
                second.publish("run")
            process.kill()
            process.wait()
        second.publish("run")
        second.publish("third")
        with SharedImage(paths[0]) as first:
            first.publish("run")
        second.publish("run")
    reap()


def test_that_several_have_a_name_is_said_to_who_attaches_by_it(paths):
    with SharedImage(paths[0]).load() as first, SharedImage(paths[1]).load() as second:
        said = rf"2 images are shared under the name 'filtered\.nii\.gz', by processes {first.handle.pid}, "
        with pytest.warns(SharedMaskWarning, match=said), SharedImage.attach("filtered.nii.gz") as got:
            np.testing.assert_array_equal(got.array, second.array)
        first.publish("first")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name, image in (("first", first), ("filtered.nii.gz", second)):
                with SharedImage.attach(name) as got:
                    assert got.handle.token == image.handle.token
