"""``sharedmask serve`` and ``drop``."""

import numpy as np
from command import sharedmask
from images import signals
from serving import serving

from sharedmask import SharedImage
from sharedmask.storage import registry


def test_drop_closes_an_image_and_its_clients_keep_it(run):
    with serving(run):
        with SharedImage.connect(run) as image:
            done = sharedmask("drop", "run.nii.gz")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert registry.entries() == []
            np.testing.assert_array_equal(image.mask(np.ones(image.shape[:3])), signals(run))
        done = sharedmask("drop", "run.nii.gz")
        assert done.returncode == 64
        assert "holds no image 'run.nii.gz'" in done.stderr


def test_drop_without_a_coordinator_says_so():
    done = sharedmask("drop", "run.nii.gz")
    assert done.returncode == 64
    assert "no coordinator is running" in done.stderr
