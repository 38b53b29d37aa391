"""What every store of an image does: the contract of ``SharedImage(path, store=...)``.

Who is one inherits the suite and gives fixtures ``store``, its name, and ``path``, an image that it takes.
"""

import gc
import os
import pickle

import numpy as np
import pytest
from images import random_masks, same_bits, truth

from sharedmask import SharedImage
from sharedmask.errors import ClosedImageError, ParameterError
from sharedmask.storage import rows
from sharedmask.storage.registry import entries


class StoreContract:
    shared = True
    """Whether other processes can attach."""

    @pytest.fixture
    def image(self, path, store):
        with SharedImage(path, store=store) as image:
            yield image

    def test_values_are_the_files(self, image, path, store):
        masks = random_masks(3, image.shape[:3])
        for signals, mask in zip(image.mask_parallel(masks, n_jobs=2), masks, strict=True):
            same_bits(signals, truth(path)[mask].T.astype("f4"))
        same_bits(np.asarray(image.array), truth(path))
        assert image.store[0] == (rows.PRIVATE if store == "auto" else store)

    def test_processes_and_threads_give_the_same_bits(self, image):
        masks = random_masks(3, image.shape[:3])
        clean = {"standardize": "zscore_sample"}
        ways = ("threads", "processes") if self.shared else ("threads",)
        first, *others = (image.mask_parallel(masks, n_jobs=2, prefer=way, **clean) for way in ways)
        for other in others:
            for one, same in zip(first, other, strict=True):
                same_bits(one, same)

    def test_nobody_can_write(self, image):
        with pytest.raises(ValueError, match="read-only"):
            image.array[0, 0, 0, 0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            image.array.flags.writeable = True

    def test_a_view_keeps_its_bytes_when_the_image_is_closed(self, image, path):
        view = image.array[1:3]
        image.close()
        same_bits(np.asarray(view), truth(path)[1:3])
        with pytest.raises(ClosedImageError):
            image.mask(random_masks(1)[0])

    def test_nothing_is_left_of_a_closed_image(self, image, registry_dir, segments_of_this_test):
        image.load()
        assert bool(entries()) == self.shared
        image.close()
        image.close()
        assert os.listdir(registry_dir) == []
        assert not segments_of_this_test()

    def test_views_travel_as_handles_and_attach_to_the_same_bytes(self, image, path):
        if not self.shared:
            same_bits(pickle.loads(pickle.dumps(image.array)), truth(path))
            with pytest.raises(ParameterError, match="held by this process alone"):
                _ = image.handle
            return
        view = image.array
        sent = pickle.dumps(view[2])
        assert len(sent) < 4000
        same_bits(np.asarray(pickle.loads(sent)), truth(path)[2])
        same_bits(np.asarray(pickle.loads(pickle.dumps(image.as_nifti())).dataobj), truth(path))
        with SharedImage.attach(image.handle) as other:
            same_bits(np.asarray(other.array), truth(path))

    def test_an_image_that_was_dropped_is_released_with_a_warning(self, path, store, segments_of_this_test):
        if not self.shared:
            SharedImage(path, store=store).load()
            return
        with pytest.warns(ResourceWarning, match="was not closed"):
            SharedImage(path, store=store).load()
            gc.collect()
        assert not segments_of_this_test() and entries() == []
