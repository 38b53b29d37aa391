"""FreeSurfer's annotations and overlays."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import surface_files as files
from images import same_bits

from sharedmask import SharedImage, extract
from sharedmask.errors import MaskError
from sharedmask.sources.opening import open_source

LEFT = np.array([0, 1, 1, 1, 2, 2, 0, 0, 1, 2])


@pytest.mark.parametrize(("first", "expected"), [("unknown", ["a", "b"]), ("region", ["region", "a", "b"])])
def test_annotations(tmp_path, first, expected):
    path, values = files.func(tmp_path / "lh.func.gii")
    atlas = files.annotation(tmp_path / "lh.toy.annot", LEFT, [first, "a", "b"])
    with SharedImage(path) as image:
        found = image.mask_parallel(atlas)
    assert list(found) == expected
    same_bits(found["b"], values[LEFT == 2].T)


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
def test_overlays(tmp_path, ending):
    values = np.random.default_rng(0).normal(size=(10, 7)).astype("f4")
    path = files.overlay(tmp_path / f"rh.bold.{ending}", values)
    mask = files.overlay(tmp_path / f"rh.mask.{ending}", LEFT == 1)
    assert open_source(path).grid.parts == "CORTEX_RIGHT"
    same_bits(extract(path, mask), values[LEFT == 1].T)


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
@pytest.mark.parametrize(("milliseconds", "expected"), [(800, 0.8), (0, None), (np.nan, None), (None, None)])
def test_overlays_have_a_repetition_time(tmp_path, ending, milliseconds, expected):
    paths = [tmp_path / f"{side}.bold.mgh" for side in ("lh", "rh")]
    for path in paths:
        image = nib.MGHImage(np.ones((10, 1, 1, 4), "f4"), np.eye(4))
        image.header["tr"] = milliseconds or 0
        nib.save(image, path)
        if milliseconds is None:
            path.write_bytes(path.read_bytes()[: 284 + 160])
        path.with_suffix(".mgz").write_bytes(gzip.compress(path.read_bytes()))
    paths = [path.with_suffix(f".{ending}") for path in paths]
    with SharedImage(paths[0]) as left, SharedImage(paths) as both:
        assert left.t_r == both.t_r == expected


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("ending", ["mgh", "mgz"])
def test_overlays_have_nibabel_s_values(tmp_path, dtype, ending):
    values = np.arange(40, dtype=dtype).reshape(10, 1, 1, 4)
    nib.save(nib.MGHImage(values, np.eye(4)), tmp_path / f"lh.bold.{ending}")
    same_bits(open_source(tmp_path / f"lh.bold.{ending}").read(), values.reshape(10, 4))


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
def test_volumes_that_are_cut_short(tmp_path, ending):
    run, mask = tmp_path / "run.nii", tmp_path / f"mask.{ending}"
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9, 2), "f4"), np.eye(4)), run)
    values = np.random.default_rng(0).random((9, 9, 9)) > 0.5
    nib.save(nib.MGHImage(values.astype("f4"), np.eye(4)), mask)
    mask.write_bytes(mask.read_bytes()[: mask.stat().st_size // 2])
    with pytest.raises(MaskError, match=rf"mask.{ending} is truncated"):
        extract(run, mask)
