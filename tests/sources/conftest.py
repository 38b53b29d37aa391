"""An image in a plain file."""

import pytest
from source_files import save


@pytest.fixture
def plain(tmp_path):
    return save(tmp_path / "run.nii")
