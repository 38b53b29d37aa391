"""Statistical maps: images on a grid, values outside, names, the summary."""

import numpy as np
import pytest
from images import AFFINE
from networks import SHAPE, inside, mapped, mask

from sharedmask import FunctionalNetworkMapper
from sharedmask.errors import ParameterError


def test_background_is_0_and_1_for_p(connectome, lesions):
    maps = mapped(connectome, lesions["l2"][0])
    outside = {key: np.unique(np.asarray(maps[key].dataobj)[~mask()]).tolist() for key in maps}
    assert outside == {key: [1 if key in ("pmap", "pfdrmap") else 0] for key in maps}


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


@pytest.mark.parametrize("threshold", [-1, float("nan"), "2", [3]])
def test_what_is_no_threshold_is_refused(threshold):
    with pytest.raises(ParameterError, match="t_threshold="):
        FunctionalNetworkMapper(t_threshold=threshold)
