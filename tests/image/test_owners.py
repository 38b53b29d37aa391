import contextlib
import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from children import running
from images import bold, save

from sharedmask import SharedImage
from sharedmask.errors import AttachError, ParameterError, SharedMaskWarning
from sharedmask.image import owners
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


def test_of_two_that_publish_under_one_name_at_once_one_is_refused(paths, monkeypatch):
    both, usual = threading.Barrier(2), owners._owners

    def look(name):
        found = usual(name)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return found

    monkeypatch.setattr(owners, "_owners", look)
    with SharedImage(paths[0]).load() as first, SharedImage(paths[1]).load() as second:
        with ThreadPoolExecutor(2) as threads:
            done = [threads.submit(image.publish, "run") for image in (first, second)]
        refused = [one.exception() for one in done if one.exception() is not None]
        assert [type(one) for one in refused] == [ParameterError]
        assert sorted(image.handle.label for image in (first, second)) == ["filtered.nii.gz", "run"]


def test_a_name_that_cannot_be_given_changes_nothing(paths):
    with SharedImage(paths[0]).load() as image:
        for refused in ("{", 3, "x" * 2**17):
            with pytest.raises(ParameterError):
                image.publish(refused)
            assert image.handle.label == image._owned.label == "filtered.nii.gz"
            assert repr(image).startswith("<SharedImage filtered.nii.gz ")


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
