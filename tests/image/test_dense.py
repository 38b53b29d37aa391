"""Dense series in every call: the values of nibabel, wherever the image lives."""

import gzip
from functools import partial

import cifti_files as files
import numpy as np
import pytest
from command import called
from images import same_bits

from sharedmask import FrameDataset, Regions, SharedImage, errors, extract, extract_many
from sharedmask.compute import plan, row_sums
from sharedmask.compute.request import Request
from sharedmask.sources.opening import open_source

ATLAS = np.arange(15) % 4
STORES = ["shm", "memfd", "disk", "file"]


@pytest.fixture
def path(tmp_path):
    return files.dtseries(tmp_path / "run.dtseries.nii", 40)


def means(true, atlas=ATLAS):
    return np.stack(
        [true[:, atlas == k].astype(float).mean(axis=1) for k in np.unique(atlas[atlas > 0])], axis=1
    )


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("rows", [True, False])
def test_every_store_gives_the_file_s_values(tmp_path, store, rows):
    path = files.dtseries(tmp_path / "run.dtseries.nii", 40, by_row=rows)
    true = files.truth(path)
    with SharedImage(path, store=store) as image:
        assert (image.shape, image.t_r) == ((15, 40), 0.8)
        same_bits(image.mask("CortexRight"), true[:, 7:10])
        same_bits(np.ascontiguousarray(image.array), true.T)
        same_bits(np.ascontiguousarray(image.frame(-1)), true[-1])
        np.testing.assert_allclose(image.reduce(ATLAS), means(true), rtol=1e-6)
        same_bits(image.reduce(ATLAS), extract(path, ATLAS, strategy="mean"))
        assert image.map(np.shape, {"a": ATLAS == 1}) == {"a": (40, 4)}
        with SharedImage.attach(image.handle) as other:
            assert other.mask(ATLAS == 2).tobytes() == image.mask(ATLAS == 2).tobytes()
            assert other._facts.grid.matches(image._facts.grid)


def test_a_file_is_mapped_and_not_copied(path):
    with SharedImage(path, store="file") as image:
        image.load()
        assert image._held.attachment.file.path == str(path)
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        with pytest.raises(errors.SourceChangedError):
            image.mask(ATLAS == 1)


@pytest.mark.parametrize(("dtype", "compress"), [(">f4", False), ("f4", True)])
def test_what_is_not_as_it_is_in_memory_is_not_mapped(tmp_path, dtype, compress):
    path = files.dtseries(tmp_path / "run.dtseries.nii", dtype=dtype)
    true = files.truth(path)
    if compress:
        plain, path = path, tmp_path / "run.dtseries.nii.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(errors.ImageError, match=r"take another store"):
        SharedImage(path, store="file").load()
    np.testing.assert_allclose(extract(path, ATLAS, strategy="mean"), means(true), rtol=1e-6)
    same_bits(extract(path, ATLAS == 3), true[:, ATLAS == 3])


@pytest.mark.parametrize(
    "strategy", ["mean", "median", "sum", "minimum", "maximum", "variance", "standard_deviation", "pc1"]
)
@pytest.mark.parametrize("slope", [None, 0.25])
def test_reductions_are_the_same_held_and_passing(tmp_path, strategy, slope):
    how = {"slope": slope, "inter": slope and 1.0, "dtype": "i2"}
    path = files.dtseries(tmp_path / "run.dtseries.nii", **how)
    with SharedImage(path, store="shm") as image:
        same_bits(extract(path, ATLAS, strategy=strategy), image.reduce(ATLAS, strategy))


@pytest.mark.parametrize("nan_policy", [None, "omit", "propagate", "raise"])
@pytest.mark.parametrize("block_bytes", [200, 2**24])
@pytest.mark.parametrize("finite", [True, False])
def test_sums_are_the_same_bits_however_rows_are_read(tmp_path, monkeypatch, nan_policy, block_bytes, finite):
    """Overlapping regions, some of whose voxels are infinite or none."""
    monkeypatch.setattr(row_sums, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(row_sums, "_PILED_BYTES", block_bytes)
    monkeypatch.setattr(plan, "_FEW_ROWS", 0)  # rows pass by, however few
    values = files.values(15, 9)
    if not finite:
        values[2, 3], values[4:6, 10] = np.nan, np.inf
    path = tmp_path / "run.dtseries.nii"
    files.save(path, values, files.series(9), files.models())
    masks = {"all": np.ones(15, bool), "few": np.arange(15) % 3 == 0, "last": np.arange(15) == 14}
    asked = {"strategy": ["mean", "sum"], "nan_policy": nan_policy}

    def taken(call):
        try:
            return call(masks, **asked)
        except errors.ParameterError as error:
            return str(error).split(":")[0]

    with SharedImage(path, store="shm") as image:
        held, passing = taken(image.reduce), taken(partial(extract, path))
    if nan_policy == "raise" and not finite:
        assert isinstance(held, str) and isinstance(passing, str)
        return
    for name in ("mean", "sum"):
        np.testing.assert_array_equal(passing[name], held[name])
        assert passing[name].dtype == held[name].dtype


@pytest.mark.parametrize(("dtype", "few"), [("f4", True), ("f4", False), (">f4", True), (">f4", False)])
def test_rows_of_very_many_regions_do_not_pass_by_where_they_can_be_mapped(tmp_path, dtype, few):
    source = open_source(
        files.dtseries(
            tmp_path / "run.dtseries.nii",
            dtype=dtype,
            places=files.surface(vertices=range(1000), n_vertices=1000),
        )
    )
    labels = np.arange(1000) % (500 if few else 10) + 1
    request = Request.checked(source, Regions.from_labels(labels, source.grid), strategy="mean")
    assert plan.passes_by(source, request) == (not few or dtype == ">f4")
    same_bits(
        extract(source, labels, strategy="mean"),
        SharedImage(source, store="private").reduce(labels),
    )


def test_rows_that_pass_by_end_with_their_errors(tmp_path, path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes(10))
    compressed = tmp_path / "cut.dtseries.nii.gz"
    compressed.write_bytes(gzip.compress(whole)[:-12])
    with pytest.raises(errors.DamagedImageError, match="cut"):
        extract(compressed, ATLAS, strategy="mean")
    opened = open_source(path)
    path.write_bytes(whole)
    with pytest.raises(errors.SourceChangedError):
        next(opened.blocks(np.arange(15)))


def test_cleaning_and_masks_that_are_held(path):
    how = {"standardize": "zscore_sample", "low_pass": 0.1, "detrend": True}
    cleaned = extract(path, {"a": ATLAS == 1}, **how)
    with SharedImage(path, mask_img=ATLAS > 0) as image:
        again = image.mask_parallel(
            {"a": ATLAS == 1}, standardize="zscore_sample", low_pass=0.1, detrend=True
        )
        with pytest.raises(errors.OutsideImageError):
            image.mask("CortexLeft")
    assert cleaned["a"].tobytes() == again["a"].tobytes()
    np.testing.assert_allclose(cleaned["a"].std(axis=0, ddof=1), 1, rtol=1e-5)


def test_many_runs_with_and_without_a_medial_wall(tmp_path, path):
    other = files.dtseries(tmp_path / "other.dtseries.nii", 40, places=files.whole(), seed=3)
    inside = files.truth(other)[:, [0, 1, 3, 4, 7, 8, 11]]
    study = extract_many([str(path), str(other)], "CortexLeft").results
    same_bits(study[str(path)], files.truth(path)[:, :7])
    assert study[str(other)].shape == (40, 12)
    np.testing.assert_array_equal(study[str(other)][:, [0, 1, 3, 4, 7, 8, 11]], inside)


def test_what_needs_a_volume_says_so(path):
    with SharedImage(path) as image:
        said = r"needs a volume, and .*run.dtseries.nii has 15 elements"
        with pytest.raises(errors.GridMismatchError, match=said):
            image.as_nifti()
    for call in (lambda: extract(path, ATLAS, smoothing_fwhm=4.0), lambda: FrameDataset(path)):
        with pytest.raises(errors.GridMismatchError, match="needs a volume"):
            call()


def test_info_says_what_a_dense_series_is(path):
    said = called("info", path).stdout
    assert (
        "15 elements: CORTEX_LEFT 7 of 12 vertices, CORTEX_RIGHT 3 of 12 vertices, 2 structures of 5 voxels"
        in said
    )
    assert "0.8 s" in said


def test_rows_of_the_file_are_let_go(path):
    with SharedImage(path, store="file") as image:
        assert image.load()._held.as_they_lie
    with SharedImage(path, store="disk") as image:
        assert not image.load()._held.as_they_lie
