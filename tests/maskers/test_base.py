"""What maskers share: reports, whose volume is read for them."""

import pickle

import numpy as np
import pytest
from drop_ins import MASK, T, plain
from images import truth

from sharedmask import (
    SharedNiftiMasker,
)


@pytest.mark.filterwarnings("ignore:Casting data")
def test_the_volume_of_a_report_is_read_for_the_report(path):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK})
    masker.fit_transform(path)
    for shown in (masker, pickle.loads(pickle.dumps(masker))):
        middle = shown._reporting_data["images"]
        np.testing.assert_array_equal(middle.dataobj, truth(path)[..., T // 2])
    assert "Nifti" in str(masker.generate_report())
