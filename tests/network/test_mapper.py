"""Network maps against float64 formulas, and every known defect of the prior system."""

import networks
import nibabel as nib
import numpy as np
import pytest
import scipy.stats
from children import python
from images import AFFINE
from networks import (
    ALL,
    SHAPE,
    SIZES,
    inside,
    lesion,
    mapped,
    mask,
    reference,
    reference_kept,
    series,
    write,
    write_split,
)

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


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """More voxels than one product takes."""
    inside = mask((16, 15, 14))
    data = series(4, 25, int(inside.sum()))
    return write(tmp_path_factory.mktemp("large") / "c.h5", data, inside), inside


def images(lesions):
    return {name: image for name, (image, _) in lesions.items()}


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


def test_a_large_offset_costs_no_precision(data, lesions, tmp_path):
    shifted = (data + 20_000).astype("f4")
    found = mapped(write(tmp_path / "c.h5", shifted), images(lesions))
    for name, (_, chosen) in lesions.items():
        assert np.abs(inside(found[name].zmap) - reference(shifted, chosen)[1]).max() <= 1e-6


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


def test_a_lesion_on_another_grid_is_resampled_if_asked_for(straight):
    path, image, fine = straight
    with pytest.raises(GridMismatchError):
        mapped(path, fine)
    one, other = mapped(path, image), mapped(path, fine, resampling_target="data")
    np.testing.assert_array_equal(one.arrays["zmap"], other.arrays["zmap"])


def test_one_subject_is_a_clear_error(tmp_path):
    path = write(tmp_path / "c.h5", series(1))
    with pytest.raises(ConnectomeError, match="one subject: t and p need at least 2"):
        FunctionalNetworkMapper().fit(path)


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


@pytest.mark.long
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
        done = python(MEMORY, networks.__file__.rpartition("/")[0], small, large, count, fresh=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert max(peaks) <= 1.3 * data.nbytes, peaks
    assert peaks[1] <= 1.05 * peaks[0], peaks
