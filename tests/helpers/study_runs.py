"""A data set as fMRIPrep writes it, and an atlas."""

import pytest
from datasets import atlas, preprocessed

from sharedmask.study.atlases import find_atlas


@pytest.fixture
def dataset(tmp_path):
    return preprocessed(tmp_path / "fmriprep")


@pytest.fixture
def toy(tmp_path):
    return find_atlas(atlas(tmp_path / "atlases"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
