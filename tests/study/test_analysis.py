"""Analyses: what is asked of every run, and what its outputs are called for it."""

import pytest

from sharedmask.errors import ParameterError
from sharedmask.sources.names import Name
from sharedmask.study.analysis import Analysis
from sharedmask.study.bids import Run
from sharedmask.study.denoising import Denoise


@pytest.mark.parametrize(
    ("strategy", "cleaning", "steps"),
    [
        (None, {"detrend": False, "low_pass": None, "t_r": 2.0}, ""),
        ("ica_aroma", {}, "denoiseIcaAroma"),
        (None, {"high_pass": 0.008, "low_pass": 0.1}, "highpass8mHzLowpass100mHz"),
        (None, {"high_pass": 0.0125}, "highpass12500uHz"),
        (None, {"low_pass": 1}, "lowpass1Hz"),
        (None, {"detrend": True, "standardize": "zscore_sample"}, "detrendZscore"),
        (None, {"smoothing_fwhm": 4.5}, "smoothingfwhm4p5"),
        ("scrubbing", {"standardize": "psc"}, "denoiseScrubbingPsc"),
    ],
)
@pytest.mark.parametrize("desc", [None, "preproc", "smoothAROMAnonaggr"])
def test_names_tell_what_was_done(tmp_path, strategy, cleaning, steps, desc):
    name = Name({"sub": "01", "task": "rest"} | ({"desc": desc} if desc else {}), "bold", ".nii.gz")
    run = Run(tmp_path, tmp_path / str(name), name)
    analysis = Analysis((), denoise=Denoise.of(strategy), cleaning=cleaning)
    assert analysis.steps == steps
    upper = steps[:1].upper() + steps[1:]
    own = desc if desc == "smoothAROMAnonaggr" else ""
    assert analysis.desc(run) == ((own + upper if own else steps) or None)
    key = (desc + upper if desc else steps) or None
    assert analysis.key(run) == (f"sub-01_task-rest_desc-{key}_bold" if key else "sub-01_task-rest_bold")


def test_no_atlas_is_refused():
    with pytest.raises(ParameterError, match=r"no atlas is given"):
        Analysis(()).check()
