"""Network maps against float64 formulas, and every known defect of the prior system."""

import networks
import nibabel as nib
import numpy as np
import pytest
import scipy.stats
from children import python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from images import AFFINE
from networks import SHAPE, lesion, mask, reference, reference_kept, series, write, write_split

from sharedmask import FunctionalNetworkMapper, batch_process
from sharedmask.errors import (
    ConnectomeError,
    EmptyMaskError,
    GridMismatchError,
    ImageError,
    MaskError,
    MemoryLimitError,
    ParameterError,
)
from sharedmask.network import correlation
from sharedmask.system.settings import using

METHODS = ("boes", "pini")
STRAIGHT = np.array([[4.0, 0, 0, -60], [0, 4, 0, -70], [0, 0, 4, -30], [0, 0, 0, 1]])
SIZES = (1, 2, 12, 40, 200)
ALL = {"t_threshold": 2.0}


@pytest.fixture(scope="module")
def data():
    data = series()
    data[:, :, 7] = 0.1  # constant in all subjects
    data[2, :, 9] = 3.3  # constant in one
    return data


@pytest.fixture(scope="module")
def connectome(data, tmp_path_factory):
    return write(tmp_path_factory.mktemp("connectome") / "c.h5", data)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """More voxels than one product takes."""
    inside = mask((16, 15, 14))
    data = series(4, 25, int(inside.sum()))
    return write(tmp_path_factory.mktemp("large") / "c.h5", data, inside), inside


@pytest.fixture(scope="module")
def lesions():
    return {f"l{i}": lesion(i, n_voxels) for i, n_voxels in enumerate(SIZES)}


def images(lesions):
    return {name: image for name, (image, _) in lesions.items()}


def mapped(connectome, lesions, method="boes", batch_size=None, **parameters):
    mapper = FunctionalNetworkMapper(method, **{**ALL, **parameters}).fit(connectome)
    return mapper.transform(lesions, batch_size=batch_size)


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


def inside(image):
    """Values in the C order of the mask."""
    return np.asarray(image.dataobj)[mask()]


def close(maps, other, tolerance):
    for key in ("zmap", "tmap", "pmap", "pfdrmap"):
        np.testing.assert_allclose(maps.arrays[key], other.arrays[key], rtol=tolerance, atol=tolerance)


# --- numbers -------------------------------------------------------------------------------------


def test_maps_are_those_of_the_formulas(method, connectome, data, lesions):
    found = mapped(connectome, images(lesions), method)
    for name, (_, chosen) in lesions.items():
        kept = reference_kept(data, chosen) if method == "pini" else chosen
        each, z, t = reference(data, kept)
        unsaturated = (np.abs(each) < correlation.Z_CAP).all(axis=0)
        assert np.abs(inside(found[name].zmap) - z).max() <= 1e-6
        error = np.abs(inside(found[name].tmap) - t) / np.maximum(np.abs(t), 1)
        assert error[unsaturated].max() <= 1e-5
        np.testing.assert_allclose(inside(found[name].rmap), np.tanh(z), atol=1e-6)


def test_p_and_fdr_are_scipys(connectome, lesions):
    for maps in mapped(connectome, images(lesions)).values():
        t = inside(maps.tmap)
        p = 2 * scipy.stats.t.sf(np.abs(t.astype("f8")), 5)
        np.testing.assert_allclose(inside(maps.pmap), p, rtol=2e-5)
        adjusted = scipy.stats.false_discovery_control(inside(maps.pmap).astype("f8"))
        np.testing.assert_allclose(inside(maps.pfdrmap), adjusted, rtol=2e-6)
        np.testing.assert_array_equal(inside(maps.tthresholdmap), np.abs(t) > 2.0)
        np.testing.assert_array_equal(inside(maps.pfdrthresholdmap), inside(maps.pfdrmap) < 0.05)


@settings(max_examples=100, deadline=None)
@given(p=hnp.arrays("f8", st.integers(1, 50), elements=st.floats(0, 1)))
def test_fdr_of_any_p_is_scipys(p):
    expected = scipy.stats.false_discovery_control(p)
    np.testing.assert_allclose(correlation.benjamini_hochberg(p), expected, rtol=1e-12, atol=1e-300)


@settings(max_examples=50, deadline=None)
@given(
    t=hnp.arrays("f8", 5, elements=st.floats(-50, 50)),
    n_subjects=st.integers(2, 1000),
)
def test_p_of_any_t_is_scipys(t, n_subjects):
    expected = 2 * scipy.stats.t.sf(np.abs(t), n_subjects - 1)
    np.testing.assert_allclose(correlation.p_values(t, n_subjects), expected, rtol=1e-9, atol=1e-300)


@settings(max_examples=50, deadline=None)
@given(z=hnp.arrays("f8", st.tuples(st.integers(2, 9), st.just(3)), elements=st.floats(-0.7, 0.7)))
def test_moments_are_mean_and_squared_deviations(z):
    """Correlations made to be tanh(z), one subject after the other."""
    axes = np.eye(4, dtype="f4")
    r = np.tanh(z)
    moments = np.zeros((2, 1, 3))
    for number, one in enumerate(r):
        rows = np.stack([c * axes[0] + np.sqrt(1 - c**2) * axes[1] for c in one]).astype("f4")
        correlation.accumulate(rows[None], axes[None, :1].astype("f8"), moments, number, 0)
    np.testing.assert_allclose(moments[0, 0], z.mean(axis=0), atol=3e-7)
    np.testing.assert_allclose(moments[1, 0], ((z - z.mean(axis=0)) ** 2).sum(axis=0), atol=3e-6)


def test_a_large_offset_costs_no_precision(data, lesions, tmp_path):
    shifted = (data + 20_000).astype("f4")
    found = mapped(write(tmp_path / "c.h5", shifted), images(lesions))
    for name, (_, chosen) in lesions.items():
        assert np.abs(inside(found[name].zmap) - reference(shifted, chosen)[1]).max() <= 1e-6


def test_correlations_near_one_are_made_in_float64(tmp_path):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(5, 60, 1))
    noise = np.logspace(-3, 0, int(mask().sum()))
    data = (common + noise * rng.normal(size=(5, 60, len(noise)))).astype("f4")
    image, chosen = lesion(3, 5)
    each, z, t = reference(data, chosen)
    assert np.abs(each).max() > 3.5
    maps = mapped(write(tmp_path / "c.h5", data), image)
    assert np.abs(inside(maps.zmap) - z).max() <= 1e-6
    assert (np.abs(inside(maps.tmap) - t) / np.maximum(np.abs(t), 1)).max() <= 1e-5


# --- what must not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["threads", "processes"])
def test_workers_do_not_change_a_bit(prefer, method, large):
    given = {f"l{i}": lesion(i, size, large[1])[0] for i, size in enumerate(SIZES)}
    one = mapped(large[0], given, method)
    two = mapped(large[0], given, method, n_jobs=2, prefer=prefer)
    for name in given:
        assert all(np.array_equal(one[name].arrays[k], two[name].arrays[k]) for k in one[name])


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [3, 2, 1]])
def test_how_subjects_are_split_over_files_does_not_change_a_bit(
    sizes, method, connectome, data, lesions, tmp_path
):
    split = write_split(tmp_path / "split", data, sizes)
    one, other = (mapped(where, images(lesions), method) for where in (connectome, split))
    for name in lesions:
        assert all(np.array_equal(one[name].arrays[k], other[name].arrays[k]) for k in one[name])


def test_a_file_larger_than_its_share_of_memory_does_not_change_a_bit(
    method, connectome, lesions, monkeypatch
):
    whole = mapped(connectome, images(lesions), method)
    mapper = FunctionalNetworkMapper(method, **ALL).fit(connectome)
    two_subjects = 2 * mapper.connectome_.subject_bytes
    monkeypatch.setattr(mapper.connectome_.__class__, "blocks", in_blocks_of(two_subjects))
    pieces = mapper.transform(images(lesions))
    for name in lesions:
        assert all(np.array_equal(whole[name].arrays[k], pieces[name].arrays[k]) for k in whole[name])


def in_blocks_of(nbytes):
    from sharedmask.network.connectome import Connectome

    blocks = Connectome.blocks
    return lambda self, most_bytes: blocks(self, nbytes)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_matter(batch_size, method, connectome, lesions):
    one, other = (mapped(connectome, images(lesions), method, size) for size in (None, batch_size))
    for name in lesions:
        close(one[name], other[name], 1e-5)
        np.testing.assert_allclose(one[name].arrays["zmap"], other[name].arrays["zmap"], atol=1e-6)


def test_the_order_of_lesions_does_not_matter(method, connectome, lesions):
    one = mapped(connectome, images(lesions), method)
    other = mapped(connectome, dict(reversed(images(lesions).items())), method)
    for name in lesions:
        close(one[name], other[name], 1e-5)


def test_the_order_of_subjects_does_not_matter(method, connectome, data, lesions, tmp_path):
    one = mapped(connectome, images(lesions), method)
    other = mapped(write(tmp_path / "c.h5", data[[3, 0, 5, 1, 4, 2]]), images(lesions), method)
    for name in lesions:
        close(one[name], other[name], 1e-6)


def test_the_order_of_mask_indices_does_not_matter(method, connectome, data, lesions, tmp_path):
    order = np.random.default_rng(4).permutation(data.shape[2])
    indices = np.array(np.nonzero(mask()))[:, order]
    one = mapped(connectome, images(lesions), method)
    other = mapped(write(tmp_path / "c.h5", data[:, :, order], indices=indices), images(lesions), method)
    for name in lesions:
        np.testing.assert_allclose(inside(one[name].zmap), inside(other[name].zmap), atol=1e-6)


# --- defects of the prior system -----------------------------------------------------------------


def test_a_voxels_correlation_with_itself_is_the_cap_on_every_path(method, connectome, lesions):
    for batch_size in (1, 5):
        maps = mapped(connectome, images(lesions), method, batch_size)["l0"]
        (own,) = lesions["l0"][1]
        assert inside(maps.zmap)[own] == correlation.Z_CAP
        assert inside(maps.rmap)[own] == 1
        assert (inside(maps.tmap)[own], inside(maps.pmap)[own]) == (0, 1)  # no standard error


def test_every_voxel_correlates_perfectly_with_itself(connectome, data):
    everyone = [nib.Nifti1Image(one, AFFINE) for one in single_voxels(40)]
    for number, maps in enumerate(mapped(connectome, everyone)):
        varies = np.ptp(data[:, :, number], axis=1) > 0
        assert inside(maps.zmap)[number] == np.float32(varies.mean() * correlation.Z_CAP)
        assert np.abs(maps.arrays["zmap"]).max() <= correlation.Z_CAP


def single_voxels(count):
    for place in np.argwhere(mask())[:count]:
        volume = np.zeros(SHAPE, "u1")
        volume[tuple(place)] = 1
        yield volume


def test_a_constant_voxel_has_no_t_and_p_1(connectome, lesions):
    for maps in mapped(connectome, images(lesions)).values():
        assert [inside(maps[key])[7] for key in ("rmap", "zmap", "tmap", "pmap")] == [0, 0, 0, 1]


def test_a_lesion_on_another_affine_is_refused_though_shapes_match(connectome):
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    with pytest.raises(GridMismatchError, match="another grid"):
        mapped(connectome, lesion(affine=shifted)[0])


def test_a_lesion_on_flipped_axes_is_the_same_lesion(connectome):
    image, _ = lesion(2)
    flipped = nib.Nifti1Image(np.asarray(image.dataobj)[::-1], AFFINE @ flip(SHAPE[0]))
    one, other = (mapped(connectome, given) for given in (image, flipped))
    assert np.array_equal(one.arrays["zmap"], other.arrays["zmap"])


def flip(size):
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = size - 1
    return turn


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A connectome whose affine is exact in any arithmetic, a lesion, and the lesion on a finer grid."""
    path = write(tmp_path_factory.mktemp("straight") / "c.h5", data, affine=STRAIGHT)
    image, _ = lesion(2, 40, affine=STRAIGHT)
    fine = nib.Nifti1Image(np.asarray(image.dataobj).repeat(2, axis=0), STRAIGHT @ half_step())
    return path, image, fine


def test_a_lesion_on_another_grid_is_resampled_if_asked_for(straight):
    path, image, fine = straight
    with pytest.raises(GridMismatchError):
        mapped(path, fine)
    one, other = mapped(path, image), mapped(path, fine, resampling_target="data")
    np.testing.assert_array_equal(one.arrays["zmap"], other.arrays["zmap"])


def half_step():
    step = np.diag([0.5, 1, 1, 1])
    step[0, 3] = -0.25
    return step


def test_one_subject_is_a_clear_error(tmp_path):
    path = write(tmp_path / "c.h5", series(1))
    with pytest.raises(ConnectomeError, match="one subject: t and p need at least 2"):
        FunctionalNetworkMapper().fit(path)


def test_background_is_0_and_1_for_p(connectome, lesions):
    maps = mapped(connectome, lesions["l2"][0])
    outside = {key: np.unique(np.asarray(maps[key].dataobj)[~mask()]).tolist() for key in maps}
    assert outside == {key: [1 if key in ("pmap", "pfdrmap") else 0] for key in maps}


def test_lesion_voxels_outside_of_the_connectome_are_dropped(connectome):
    image, _ = lesion(2)
    more = np.asarray(image.dataobj) | ~mask()
    one, other = (mapped(connectome, given) for given in (image, nib.Nifti1Image(more, AFFINE)))
    assert np.array_equal(one.arrays["zmap"], other.arrays["zmap"])
    assert other.summary["n_lesion_voxels"] == 12


def test_a_series_that_is_not_finite_correlates_with_nothing(data, tmp_path):
    broken = data.copy()
    broken[1, 3, 20] = np.nan
    path = write(tmp_path / "c.h5", broken)
    (apart, _), chosen = lesion(2), lesion(2)[1]
    assert 20 not in chosen
    each = reference(data, chosen)[0][:, 20]
    each[1] = 0
    assert inside(mapped(path, apart).zmap)[20] == pytest.approx(each.mean(), abs=1e-6)


# --- what comes out ------------------------------------------------------------------------------


def test_maps_are_images_on_the_connectomes_grid(connectome, lesions):
    maps = mapped(connectome, lesions["l2"][0])
    for key in maps:
        assert maps[key].shape == SHAPE
        np.testing.assert_array_equal(maps[key].affine, AFFINE)
        assert maps[key].get_data_dtype() == (np.uint8 if "threshold" in key else np.float32)


def test_maps_that_were_not_asked_for_are_none(connectome, lesions):
    image = lesions["l2"][0]
    assert mapped(connectome, image, t_threshold=None).tthresholdmap is None
    without_p = mapped(connectome, image, compute_p_map=False)
    assert (without_p.pmap, without_p.pfdrmap, without_p.pfdrthresholdmap) == (None, None, None)
    without_fdr = mapped(connectome, image, fdr_alpha=None)
    assert without_fdr.pmap is not None
    assert list(without_fdr) == ["rmap", "zmap", "tmap", "pmap", "tthresholdmap"]
    with pytest.raises(KeyError):
        without_fdr["pfdrmap"]


def test_old_names_are_aliases(connectome, lesions):
    maps = mapped(connectome, lesions["l2"][0])
    for old, new in {"correlation_map": "rmap", "t_map": "tmap", "binary_map": "tthresholdmap"}.items():
        np.testing.assert_array_equal(getattr(maps, old).dataobj, maps[new].dataobj)
        np.testing.assert_array_equal(maps[old].dataobj, maps[new].dataobj)
    assert maps.summarystatistics == maps["summarystatistics"] == maps.summary
    with pytest.raises(AttributeError, match="nothing"):
        _ = maps.nothing


def test_the_summary_has_all_figures_always(connectome, lesions):
    summary = mapped(connectome, lesions["l2"][0]).summary
    maps = mapped(connectome, lesions["l2"][0])
    r, t, p = (inside(maps[key]) for key in ("rmap", "tmap", "pmap"))
    assert summary["mean"] == pytest.approx(r.mean(dtype="f8"))
    assert summary["std"] == pytest.approx(r.std(dtype="f8"))
    assert [summary[k] for k in ("max", "min", "t_max", "t_min", "p_max", "p_min")] == [
        extreme(values) for values in (r, t, p) for extreme in (np.max, np.min)
    ]
    assert (summary["n_subjects"], summary["n_batches"], summary["t_threshold"]) == (6, 1, 2.0)
    assert summary["n_significant_voxels"] == (np.abs(t) > 2).sum()
    assert summary["pct_significant_voxels"] == pytest.approx(100 * (np.abs(t) > 2).mean())
    bare = mapped(connectome, lesions["l2"][0], t_threshold=None, compute_p_map=False).summary
    assert list(bare) == list(summary)
    assert bare["p_min"] is bare["n_significant_fdr"] is bare["n_significant_voxels"] is None


def test_maps_come_on_the_lesions_grid_if_asked_for(straight):
    path, image, fine = straight
    maps = mapped(path, fine, output_space="lesion", resampling_target="data")
    here = mapped(path, image)
    for key in maps:
        assert maps[key].shape == fine.shape
        np.testing.assert_allclose(maps[key].affine, fine.affine)
        assert maps[key].get_data_dtype() == here[key].get_data_dtype()
    within = slice(1, -1)  # the outermost fine voxels lie outside of the connectome's centres
    fine_threshold = here.tthresholdmap.get_fdata().repeat(2, axis=0)[within]
    np.testing.assert_array_equal(maps.tthresholdmap.get_fdata()[within], fine_threshold)
    z = here.zmap.get_fdata()
    between = 0.75 * z[:-1] + 0.25 * z[1:]
    np.testing.assert_allclose(maps.zmap.get_fdata()[1:-1:2], between, atol=1e-6)
    assert maps.pmap.get_fdata()[0].min() == 1
    same = mapped(path, image, output_space="lesion")
    np.testing.assert_allclose(same.zmap.get_fdata(), here.zmap.get_fdata(), atol=1e-6)


def test_results_come_in_the_container_given(connectome, lesions, tmp_path):
    paths = [tmp_path / f"{name}.nii.gz" for name in ("b", "a")]
    for path, (image, _) in zip(paths, lesions.values(), strict=False):
        nib.save(image, path)
    assert [maps.name for maps in mapped(connectome, paths)] == ["b", "a"]
    assert list(mapped(connectome, str(tmp_path / "*.nii.gz"))) == ["a", "b"]
    assert list(mapped(connectome, {1: paths[0]})) == [1]
    assert mapped(connectome, paths[0]).name == "b"
    assert list(mapped(connectome, str(tmp_path / "a*.nii.gz"))) == ["a"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "both"},
        {"pini_percentile": 101},
        {"fdr_alpha": 0},
        {"t_threshold": -1},
        {"output_space": "mni"},
        {"prefer": "cluster"},
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        FunctionalNetworkMapper(**wrong)


def test_a_mapper_needs_a_connectome(lesions):
    with pytest.raises(ParameterError, match="call fit"):
        FunctionalNetworkMapper().transform(lesions["l0"][0])


def test_memory_that_cannot_be_is_refused_before_it_is_taken(connectome, lesions):
    with pytest.raises(MemoryLimitError, match="mapping a lesion"):
        mapped(connectome, lesions["l0"][0], memory_limit=100_000)


def test_without_shared_memory_blocks_are_private(connectome, lesions):
    lesion = lesions["l0"][0]
    expected = mapped(connectome, lesion).arrays
    with using(shared_memory=False):
        got = mapped(connectome, lesion).arrays
        with pytest.raises(ParameterError, match="shared_memory is off"):
            mapped(connectome, lesion, prefer="processes")
    assert all(np.array_equal(got[key], expected[key]) for key in expected)


# --- many lesions --------------------------------------------------------------------------------


def test_500_lesions_of_which_3_are_bad(tmp_path):
    connectome = write(tmp_path / "c.h5", series(3, 20))
    shifted = AFFINE.copy()
    shifted[1, 3] += 40
    (tmp_path / "text.nii.gz").write_text("not an image")
    outside = nib.Nifti1Image((~mask()).astype("u1"), AFFINE)
    given = {f"lesion-{i:03d}": lesion(i)[0] for i in range(500)}
    given |= {"lesion-007": outside, "lesion-250": lesion(affine=shifted)[0]}
    given["lesion-499"] = tmp_path / "text.nii.gz"
    handed, told = [], []
    outcome = batch_process(
        given,
        FunctionalNetworkMapper().fit(connectome),
        on_batch=handed.append,
        errors="collect",
        progress=lambda done, total: told.append(done),
    )
    assert sum(map(len, handed)) == len(outcome.summaries) == 497
    assert outcome.results == {}
    kinds = {"lesion-007": EmptyMaskError, "lesion-250": GridMismatchError}
    assert {name: type(outcome.errors[name]) for name in kinds} == kinds
    assert isinstance(outcome.errors["lesion-499"], ImageError | MaskError)
    assert all(name in str(error) for name, error in outcome.errors.items())
    assert told == sorted(told)
    assert told[-1] == 500


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import networks, numpy as np
from sharedmask import FunctionalNetworkMapper, batch_process

def resident(field):
    line = next(one for one in open("/proc/self/status") if one.startswith(field))
    return int(line.split()[1]) * 1024

inside = np.ones((30, 40, 30), bool)
lesions = {f"l{i}": networks.lesion(i, 20, inside)[0] for i in range(int(sys.argv[4]))}
small = FunctionalNetworkMapper().fit(sys.argv[2])
small.transform(networks.lesion()[0])
mapper = FunctionalNetworkMapper().fit(sys.argv[3])
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
outcome = batch_process(lesions, mapper, on_batch=lambda batch: None)
assert len(outcome.summaries) == len(lesions)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_is_a_block_and_flat_from_10_to_500_lesions(tmp_path):
    small = write(tmp_path / "small.h5", series(2))
    inside = np.ones((30, 40, 30), bool)
    shape = (12, 80, 36_000)
    data = np.random.default_rng(0).standard_normal(shape, "f4")
    large = write(tmp_path / "large.h5", data, inside)
    peaks = []
    for count in (10, 500):
        done = python(MEMORY, networks.__file__.rpartition("/")[0], small, large, count)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert max(peaks) <= 1.3 * data.nbytes, peaks
    assert peaks[1] <= 1.05 * peaks[0], peaks
