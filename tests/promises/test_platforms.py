"""macOS and Windows, in interpreters that lack what they lack: what needs no other process works."""

import json
import os

import pytest
from children import python

SMOKE = """
    import json, os, pickle, sys, warnings
    import nibabel as nib
    import numpy as np
    import sharedmask

    for name in sharedmask.__all__:
        getattr(sharedmask, name)
    from sharedmask import Coordinator, FrameDataset, SharedImage, SharedLabelsMasker, SharedNiftiMasker
    from sharedmask import extract, extract_many, share
    from sharedmask.errors import ParameterError, SharedMaskError

    folder = sys.argv[1]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (4, 5, 6, 12)).astype("int16")
    path = os.path.join(folder, "run.nii")
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path + ".gz")
    labels = nib.Nifti1Image((np.arange(120) % 4).astype("int16").reshape(4, 5, 6), np.eye(4))
    mask = np.asarray(labels.dataobj) == 2
    masks, expected = {"a": mask, "b": ~mask}, data[mask].T
    means = np.stack([data[np.asarray(labels.dataobj) == n].mean(0) for n in (1, 2, 3)], 1)
    equal = np.testing.assert_array_equal

    equal(extract(path + ".gz", masks)["a"], expected)
    for store, where in (("auto", path + ".gz"), ("private", path), ("file", path)):
        with SharedImage(where, store=store) as image:
            equal(image.mask(mask), expected)
            equal(image.mask_parallel(masks, n_jobs=2)["a"], expected)
            np.testing.assert_allclose(image.reduce(labels, "mean"), means, rtol=1e-6)
            equal(image.map(lambda series: series.sum(), masks, n_jobs=2)["a"], expected.sum())
            equal(image.frame(3), data[..., 3])
            if store == "auto":
                assert image.store[0] == "private", image.store
            for call in (lambda: image.handle, lambda: image.publish("x"), lambda: pickle.dumps(image)):
                try:
                    call()
                except ParameterError as error:
                    assert "which this system lacks" in str(error)
                else:
                    raise AssertionError("it was shared")
    for call in (lambda: share(data), lambda: Coordinator().__enter__()):
        try:
            call()
        except SharedMaskError as error:
            assert "which this system lacks" in str(error), error
        else:
            raise AssertionError("it was shared")
    mask_img = nib.Nifti1Image(mask.astype("uint8"), np.eye(4))
    np.testing.assert_allclose(SharedNiftiMasker(mask_img, standardize=None).fit().transform(path), expected)
    of_labels = SharedLabelsMasker(labels, standardize=None).fit().transform(path)
    np.testing.assert_allclose(of_labels, means, rtol=1e-6)
    with FrameDataset(path + ".gz") as frames:
        assert frames.store[0] == "private", frames.store
        equal(frames[3][0], data[..., 3])
    journal, found = os.path.join(folder, "done.jsonl"), []
    keep = lambda name, signals: found.append(signals)
    extract_many([path, path + ".gz"], masks, n_jobs=2, resume=journal, on_result=keep)
    assert len(found) == 2 == len(open(journal).readlines())
    for signals in found:
        equal(signals["a"], expected)
    print(json.dumps(sorted(os.listdir(folder))))
"""


@pytest.mark.some(1)
@pytest.mark.parametrize("profile", ["macos", "windows"])
def test_what_needs_no_other_process_works(profile, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    done = python(SMOKE, folder, env={**os.environ, "BARE_PROFILE": profile}, helpers=True, fresh=True)
    assert done.returncode == 0, done.stderr
    assert not [name for name in json.loads(done.stdout.splitlines()[-1]) if name.endswith(".tmp")]
