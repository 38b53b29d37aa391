"""Extraction in one pass, and what it refuses as the shared image does."""

import gzip
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from gzip_files import raw_run, small_pieces
from images import AFFINE, SHAPE, bold, niimg, random_masks, same_bits, save, truth
from small_runs import LARGE_MASKS, every_worker, owned, refused

from sharedmask import Regions, SharedImage, extract
from sharedmask.decoding.seek_points import Points
from sharedmask.errors import (
    DamagedImageError,
    EmptyMaskError,
    GridMismatchError,
    MaskError,
    MemoryLimitError,
    MissingFileError,
    OutsideImageError,
    ParameterError,
)
from sharedmask.sources import loader
from sharedmask.sources.opening import open_source


def test_an_empty_mask_is_named(mask_parallel, masks):
    said = refused(EmptyMaskError, mask_parallel, {**masks, "amygdala": np.zeros(SHAPE)})
    assert "amygdala" in said


def test_an_empty_file_of_a_mask_is_named(mask_parallel, tmp_path):
    path = save(tmp_path / "nothing.nii.gz", np.zeros(SHAPE, "u1"))
    assert str(path) in refused(EmptyMaskError, mask_parallel, [path])


def test_a_mask_on_another_grid_is_named(mask_parallel, masks, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1.75
    path = save(tmp_path / "shifted.nii.gz", masks["a"].astype("u1"), affine=moved)
    said = refused(GridMismatchError, mask_parallel, [masks["a"], path])
    assert str(path) in said
    assert "-58.25" in said
    assert "-60" in said


def test_a_mask_of_another_shape_is_named(mask_parallel):
    said = refused(GridMismatchError, mask_parallel, {"thalamus": np.ones((7, 6, 4))})
    assert "thalamus" in said
    assert "7 x 6 x 4" in said
    assert "7 x 6 x 5" in said


def test_no_masks_at_all(mask_parallel):
    assert "no mask" in refused(MaskError, mask_parallel, [])


def test_masks_that_are_not_there(mask_parallel, tmp_path):
    assert "roi-*" in refused(MissingFileError, mask_parallel, str(tmp_path / "roi-*.nii.gz"))


@pytest.mark.parametrize("request_of", ["mask_parallel", "reduce", "map", "iter_masks"])
def test_a_mask_outside_of_the_mask_img_is_named(request_of, path, brain):
    reaching = brain.copy()
    reaching[np.nonzero(~brain)[0][0], np.nonzero(~brain)[1][0], np.nonzero(~brain)[2][0]] = True
    given = {"inside": brain, "reaching": reaching}
    with SharedImage(path, mask_img=brain) as opened:
        call = {
            "mask_parallel": opened.mask_parallel,
            "reduce": opened.reduce,
            "map": partial(opened.map, len),
            "iter_masks": lambda masks: dict(opened.iter_masks(masks)),
        }[request_of]
        said = refused(OutsideImageError, call, given)
    assert said.startswith(f"mask reaching has 1 of its {reaching.sum()} voxels outside of the mask_img")
    assert str(path) in said


def test_an_empty_mask_img_is_refused(path):
    assert "empty" in refused(EmptyMaskError, SharedImage, path, mask_img=np.zeros(SHAPE))


def test_a_mask_img_on_another_grid_is_refused(path, masks):
    mask_img = niimg(masks["a"].astype("u1"), np.eye(4))
    assert "another grid" in refused(GridMismatchError, SharedImage, path, mask_img=mask_img)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"prefer": "fork"}, "prefer='fork'"),
        ({"nan_policy": "ignore"}, "nan_policy='ignore'"),
        ({"standardize": "zscore"}, "standardize='zscore'"),
        ({"dtype": "float33"}, "float33"),
        ({"sample_mask": [0, 12]}, "volume 12"),
        ({"sample_mask": []}, "sample_mask"),
        ({"sample_mask": np.ones(13, bool)}, "13 booleans for the 12 volumes"),
        ({"confounds": np.zeros((13, 2))}, "13 rows for the 12 volumes"),
        ({"confounds": np.full((12, 2), np.nan)}, "row 0, column 0"),
    ],
    ids=str,
)
def test_a_parameter_is_refused_before_any_work(wrong, said, mask_parallel, masks, monkeypatch):
    monkeypatch.setattr(loader, "load", None)
    assert said in refused(ParameterError, mask_parallel, masks, **wrong)


def test_a_filter_needs_its_volumes_in_order(tmp_path):
    image = save(tmp_path / "run.nii", bold((*SHAPE, 40)))
    for kept in ([3, 2, *range(4, 40)], [3, 3, *range(4, 40)]):
        said = refused(
            ParameterError, extract, image, random_masks(1), sample_mask=kept, low_pass=0.1, t_r=2.0
        )
        assert "ascend" in said


def test_an_unknown_parameter_is_refused(mask_parallel, masks):
    assert "smoothing" in refused(TypeError, mask_parallel, masks, smoothing=6)


@pytest.mark.parametrize("call", ["reduce", "extract"])
def test_an_unknown_strategy_is_refused_before_any_work(call, path, masks, monkeypatch):
    monkeypatch.setattr(loader, "load", None)
    with SharedImage(path) as opened:
        function = opened.reduce if call == "reduce" else partial(extract, path)
        said = refused(ParameterError, function, masks, strategy="mode")
    assert "strategy='mode' is none of mean, median" in said


def test_a_filter_without_a_repetition_time_is_refused(tmp_path, masks):
    path = save(tmp_path / "run.nii", bold(), t_r=0)
    with SharedImage(path) as opened:
        said = refused(ParameterError, opened.mask_parallel, masks, low_pass=0.1)
    assert said.startswith(f"a filter needs t_r: neither {path}")


@every_worker
def test_refused_non_finite_values_are_counted(workers, not_finite_path):
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[2, 3, 1], two[4:] = True, True
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, [one], nan_policy="raise", **workers)
        assert "values looked at are not finite" in said
        np.testing.assert_array_equal(opened.mask(two, nan_policy="raise"), truth(not_finite_path)[two].T)


def test_an_image_with_refused_non_finite_values_is_named(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, {"v1": np.ones(SHAPE)}, nan_policy="raise")
    assert "nan.nii.gz" in said or "v1" in said


def test_all_refused_non_finite_values_are_counted(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, [np.ones(SHAPE)], nan_policy="raise")
    assert "values looked at are not finite" in said


def test_refused_non_finite_values_are_counted_while_streaming(not_finite_path):
    said = refused(ParameterError, extract, not_finite_path, [np.ones(SHAPE)], nan_policy="raise")
    assert "values looked at are not finite" in said


@pytest.mark.parametrize("strategy", ["mean", "median", "pc1"])
def test_refused_non_finite_values_of_reductions(strategy, not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.reduce, [np.ones(SHAPE)], strategy, nan_policy="raise")
    assert "values looked at are not finite" in said


def test_signals_cannot_leave_values_out(mask_parallel, masks):
    assert "omit" in refused(ParameterError, mask_parallel, masks, nan_policy="omit")


def test_propagated_values_of_a_principal_course(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        got = opened.reduce([np.ones(SHAPE)], "pc1", nan_policy="propagate")
    assert np.isnan(got).all()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"strategy": "mean"}, {"standardize": "psc"}, {"standardize": "psc", "n_jobs": 2}],
    ids=str,
)
def test_extraction_over_the_limit_is_not_begun(parameters, large, no_segment):
    said = refused(MemoryLimitError, extract, large, LARGE_MASKS, memory_limit="1M", **parameters)
    assert "large.nii.gz needs " in said
    assert "and 1 MiB may be used (memory_limit='1M')" in said


@pytest.mark.parametrize("cleaning", [{}, {"detrend": True}], ids=str)
def test_extracted_signals_over_the_limit_are_not_made(cleaning, large):
    said = refused(MemoryLimitError, extract, large, LARGE_MASKS, memory_limit="16M", **cleaning)
    assert "(memory_limit='16M')" in said


def test_batches_fit_where_all_masks_do_not(large):
    with SharedImage(large, memory_limit="12M") as opened:
        refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS)
        for _, signals in opened.iter_masks(LARGE_MASKS, batch_size=1):
            assert signals.shape == (20, 65536)


@pytest.mark.parametrize("parameters", [{}, {"strategy": "mean"}, {"detrend": True, "n_jobs": 2}], ids=str)
def test_extraction_of_a_truncated_image_leaves_nothing(parameters, truncated, masks):
    assert str(truncated) in refused(DamagedImageError, extract, truncated, masks, **parameters)
    assert owned() == []


@pytest.mark.realdata
def test_a_real_empty_mask_is_named(real_data):
    null = real_data / "sub-RAPIDTIDETEST_nullmask.nii.gz"
    with SharedImage(real_data / "sub-RAPIDTIDETEST.nii.gz") as opened:
        assert str(null) in refused(EmptyMaskError, opened.mask, null)


@pytest.mark.realdata
def test_real_confounds_of_another_run_are_refused(real_data):
    motion = real_data / "sub-HAPPYTEST_mcf.par"
    run, brain = real_data / "sub-RAPIDTIDETEST.nii.gz", real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz"
    said = refused(ParameterError, extract, run, brain, confounds=motion)
    assert said == f"{motion}: 110 rows for the 260 volumes of {run}"


@pytest.mark.realdata
def test_real_masks_of_several_kinds_by_many_jobs(real_data):
    run = real_data / "sub-RAPIDTIDETEST.nii.gz"
    atlas = Regions.from_labels(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz")
    with SharedImage(run, mask_img=real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz") as opened:
        inside = {name for row in atlas.table(opened._voxels) if row.coverage == 1 for name in [row.name]}
        values = np.asarray(nib.load(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz").dataobj)
        masks = {name: values == int(name) for name in sorted(inside)[:20]}
        alone = opened.mask_parallel(masks)
        jobs = opened.mask_parallel(masks, n_jobs=20, prefer="processes")
    for name in masks:
        same_bits(jobs[name], alone[name])


@pytest.mark.some(9)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", "volumes"])
@pytest.mark.parametrize("strategy", [None, "mean", "pc1"])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"detrend": True, "standardize": "psc"},
        {"confounds": np.arange(80.0).reshape(40, 2) ** 2},
        {"low_pass": 0.1, "t_r": 2.0},
    ],
    ids=lambda asked: "+".join(asked) or "alone",
)
def test_kept_volumes_are_the_same_from_what_is_read_of_the_image(tmp_path, ending, strategy, asked):
    data = bold((*SHAPE, 40))
    if ending == "volumes":
        image = [save(tmp_path / f"{n:02d}.nii", data[..., n]) for n in range(40)]
    else:
        image = save(tmp_path / f"run{ending}", data)
    masks = random_masks(2)
    for kept in ([12, 17, 13, 15, 19, 14], np.arange(40) > 35, [39], [3, 3, 4, 4]):
        if asked and len(kept) in (1, 4):
            continue
        kept = sorted(kept) if "low_pass" in asked and len(kept) < 40 else kept
        got = extract(image, masks, strategy=strategy, sample_mask=kept, **asked)
        with SharedImage(image) as held:
            if strategy is None:
                expected = held.mask_parallel(masks, sample_mask=kept, **asked)
            else:
                expected = held.reduce(masks, strategy=strategy, sample_mask=kept, **asked)
        for one, other in zip(got, expected, strict=True):
            same_bits(one, other)


@pytest.mark.parametrize("strategy", [None, "mean"])
def test_of_kept_volumes_with_an_index_nothing_else_is_decoded(tmp_path, monkeypatch, strategy):
    pytest.importorskip("rapidgzip")
    small_pieces(monkeypatch)
    (tmp_path / "run.nii.gz").write_bytes(gzip.compress(raw_run(tmp_path), 1))
    source = open_source(tmp_path / "run.nii.gz")
    middle, masks = source.n_timepoints // 2, [np.ones(source.shape[:3], bool)]
    extract(source, masks, strategy="mean", index=True)
    decoded, decode = [], Points.decode
    monkeypatch.setattr(Points, "decode", lambda *args: decoded.append(args) or decode(*args))
    monkeypatch.setattr("sharedmask.decoding.parallel.n_cpus", lambda: 1)
    for kept in ([middle, middle + 1], [0, source.n_timepoints - 1]):
        decoded.clear()
        extract(source, masks, strategy=strategy, sample_mask=kept)
        assert 0 < len({number for _, _, number, _ in decoded}) < len(decoded[0][0]) / 3
