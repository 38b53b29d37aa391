"""What may be given as an image, of surfaces and elements; of volumes see ``test_source``."""

import cifti_files
import numpy as np
import pytest
import surface_files as files

from sharedmask import SharedImage, extract
from sharedmask.errors import ImageError, MissingFileError
from sharedmask.sources.opening import check_signals, is_surface, open_source


@pytest.mark.parametrize("name", ["a.func.gii", "b.shape.GII", "lh.aparc.annot"])
def test_files_of_surfaces_are_told_by_their_names(tmp_path, name):
    assert is_surface(name)
    with pytest.raises(MissingFileError, match=name):
        open_source(tmp_path / name)


@pytest.mark.parametrize("thing", ["a.nii", "a.mgz", np.ones(3), None])
def test_others_are_no_surfaces(thing):
    assert not is_surface(thing)


@pytest.mark.parametrize("call", [SharedImage, lambda path: extract(path, np.ones(15, bool))])
def test_labels_are_no_signals(tmp_path, call):
    path = cifti_files.save(
        tmp_path / "a.dlabel.nii", np.ones((1, 15), "f4"), cifti_files.labels(), cifti_files.models()
    )
    with pytest.raises(ImageError, match=r"a\.dlabel\.nii holds labels and no signals"):
        call(path)


def test_maps_are_signals_without_time(tmp_path):
    path = cifti_files.save(
        tmp_path / "a.dscalar.nii", np.ones((1, 15), "f4"), cifti_files.scalars(), cifti_files.models()
    )
    check_signals(source := open_source(path))
    assert (source.ndim, source.t_r) == (1, None)
    assert extract(path, np.arange(15) < 4).shape == (4,)
    values = np.ones(files.N_VERTICES)
    assert open_source(files.overlay(tmp_path / "lh.area.mgh", values)).ndim == 1


def test_dense_volumes_of_a_list_follow_each_other(tmp_path):
    def saved(name, value, places):
        data = np.full((1, len(places)), value, "f4")
        return cifti_files.save(tmp_path / name, data, cifti_files.scalars(), places)

    paths = [saved(f"{i}.dscalar.nii", i, cifti_files.models()) for i in range(3)]
    assert open_source(paths).read()[0].tolist() == [0, 1, 2]
    with pytest.raises(ImageError, match=r"x\.dscalar\.nii, has shape"):
        open_source([*paths, saved("x.dscalar.nii", 1, cifti_files.whole())])
