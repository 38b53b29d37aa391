"""``sharedmask network``: what it writes, its exit codes, and taking up where a kill stopped it."""

import nibabel as nib
import numpy as np
import pytest
from networks import contents, lesion, mask, reference, series, write, write_study

from sharedmask import FunctionalNetworkMapper
from sharedmask.compute.journal import Failures
from sharedmask.errors import ParameterError
from sharedmask.network import output


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


@pytest.fixture
def mapper(study):
    return FunctionalNetworkMapper().fit(study / "connectome")


def lesions_of(study):
    return sorted((study / "lesions").glob("*.nii.gz"))


def test_resuming_does_what_is_missing_changed_or_failed_before(study, mapper):
    (study / "lesions/sub-5.nii.gz").write_text("not an image")
    first = output.map_to(lesions_of(study), mapper, study / "out", batch_size=4)
    assert list(first.errors) == ["sub-5"]
    nib.save(lesion(5)[0], study / "lesions/sub-5.nii.gz")
    nib.save(lesion(77)[0], study / "lesions/sub-0.nii.gz")
    (study / "out/sub-8_summary.json").unlink()
    again = output.map_to(lesions_of(study), mapper, study / "out", resume=True)
    assert again.complete == ("sub-0", "sub-5", "sub-8")
    assert len(again.skipped) == 6
    assert again.errors == Failures(study / "out/.sharedmask/failed").all() == {}
    chosen = lesion(77)[1]
    found = np.asarray(nib.load(study / "out/sub-0_zmap.nii.gz").dataobj)[mask()]
    np.testing.assert_allclose(found, reference(series(), chosen)[1], atol=1e-6)


def test_what_is_complete_is_not_read_again(study, mapper, monkeypatch):
    output.map_to(lesions_of(study), mapper, study / "out")
    monkeypatch.setattr("sharedmask.network.mapper.share_block", None)
    assert len(output.map_to(lesions_of(study), mapper, study / "out", resume=True).skipped) == 9


def test_lesions_whose_maps_are_gone_are_done_again(study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    (study / "out").rename(study / "moved")
    (study / "moved/sub-4_zmap.nii.gz").unlink()
    again = output.map_to(lesions_of(study), mapper, study / "moved", resume=True)
    assert again.complete == ("sub-4",)


def test_done_again_without_resume_nothing_of_before_is_complete(study, mapper, monkeypatch):
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.setattr(output, "write_maps", _full)
    with pytest.raises(OSError, match="No space left"):
        output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.undo()
    assert len(output.map_to(lesions_of(study), mapper, study / "out", resume=True).complete) == 9


def _full(folder, maps):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("changed", [{"method": "pini"}, {"fdr_alpha": 0.01}, {"t_threshold": 3}])
def test_other_settings_are_not_mixed_in(changed, study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out")
    other = FunctionalNetworkMapper(**changed).fit(study / "connectome")
    with pytest.raises(ParameterError, match=next(iter(changed))):
        output.map_to(lesions_of(study), other, study / "out", resume=True)


def test_another_connectome_is_not_mixed_in(study, mapper):
    output.map_to(lesions_of(study), mapper, study / "out")
    other = FunctionalNetworkMapper().fit(write(study / "other.h5", series(seed=8)))
    with pytest.raises(ParameterError, match="another connectome"):
        output.map_to(lesions_of(study), other, study / "out", resume=True)


def test_without_resume_all_is_done_again_and_nothing_else_is_touched(study, mapper):
    with_threshold = FunctionalNetworkMapper(t_threshold=1).fit(study / "connectome")
    output.map_to(lesions_of(study), with_threshold, study / "out")
    (study / "out/my_summary.json").write_text("the user's")
    report = output.map_to(lesions_of(study), mapper, study / "out")
    assert len(report.complete) == 9
    assert (study / "out/my_summary.json").read_text() == "the user's"
    assert not list((study / "out").glob("*_tthresholdmap.nii.gz"))


def test_a_full_disk_ends_the_run_and_leaves_it_resumable(study, mapper, monkeypatch):
    write_maps = output.write_maps

    def full(folder, maps):
        if maps.name == "sub-3":
            raise OSError(28, "No space left on device")
        return write_maps(folder, maps)

    monkeypatch.setattr(output, "write_maps", full)
    with pytest.raises(OSError, match="No space left"):
        output.map_to(lesions_of(study), mapper, study / "out", batch_size=2)
    monkeypatch.undo()
    output.map_to(lesions_of(study), mapper, study / "out", resume=True)
    output.map_to(lesions_of(study), mapper, study / "whole", batch_size=2)
    assert contents(study / "out") == contents(study / "whole")


def test_progress_counts_lesions(study, mapper):
    told = []
    output.map_to(lesions_of(study), mapper, study / "out", batch_size=4, progress=lambda *n: told.append(n))
    assert told[-1] == (9, 9)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert any(done not in (4, 8, 9) for done, _ in told)  # within a batch, too
