"""Denoising strategies: what is loaded, and what is said of tables that do not serve."""

import numpy as np
import pandas as pd
import pytest
from datasets import MNI, confounds_of, run_of

from sharedmask.errors import MissingFileError, ParameterError
from sharedmask.study.bids import find_runs
from sharedmask.study.denoising import COMPONENTS, STRATEGIES, Denoise

STEM = "sub-01_task-rest"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "some"}')
    run_of(tmp_path, STEM)
    (run,) = find_runs(tmp_path)
    return run


@pytest.mark.parametrize("strategy", ["simple", "scrubbing"])
@pytest.mark.parametrize("name", [STEM, f"{STEM}_echo-1"])
def test_confounds_and_volumes_are_nilearns(run, strategy, name):
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    confounds_of(run.bold, STEM, moves=(3, 4))
    confounds, kept = load_confounds_strategy(str(run.bold), strategy)
    run.bold.with_name(f"{STEM}_desc-confounds_timeseries.tsv").rename(
        run.bold.with_name(f"{name}_desc-confounds_timeseries.tsv")
    )
    found = Denoise(strategy).load(run, 24)
    assert found.columns == list(confounds.columns)
    np.testing.assert_array_equal(found.kept, np.arange(24) if kept is None else kept)
    np.testing.assert_array_equal(np.union1d(found.kept, found.dropped), np.arange(24))
    assert (found.sample_mask is None) == (strategy == "simple")
    np.testing.assert_array_equal(found.confounds, confounds)


def test_a_run_without_a_table_is_named(run):
    with pytest.raises(
        MissingFileError, match=rf"{MNI}_desc-preproc_bold\.nii\.gz has no \.\.\._desc-confounds"
    ):
        Denoise("simple").load(run, 24)


@pytest.mark.parametrize(
    ("strategy", "change", "what"),
    [
        ("simple", lambda table: table[["csf"]], "white_matter"),
        ("scrubbing", lambda table: table.assign(framewise_displacement=9.0), "[Aa]ll volumes"),
        ("simple", lambda table: table.iloc[:20], "has 20 rows for the 24 volumes"),
        ("simple", lambda table: table.iloc[:0], "."),
        ("compcor", lambda table: table, "compcor"),
    ],
)
def test_a_table_that_does_not_serve_is_named(run, strategy, change, what):
    path = confounds_of(run.bold, STEM)
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    with pytest.raises(ParameterError, match=rf"{path.name}.*{what}"):
        Denoise(strategy).load(run, 24)


# --- as nilearn does it --------------------------------------------------------------------------


def test_strategies_are_nilearns():
    from nilearn.interfaces.fmriprep.load_confounds_strategy import preset_strategies

    assert {name: preset["strategy"] for name, preset in preset_strategies.items()} == dict(STRATEGIES)


WAYS = [
    Denoise("simple", motion="basic", wm_csf="full", global_signal="derivatives"),
    Denoise("scrubbing", fd_threshold=0.3, std_dvars_threshold=3, scrub=0),
    Denoise("compcor", n_compcor=2, compcor="anat_separated", demean=False),
    Denoise(("motion", "high_pass"), motion="power2"),
    Denoise(n_compcor=1),
    Denoise(("scrub", "wm_csf"), fd_threshold=0.2, scrub=8),
    Denoise("ica_aroma", ica_aroma="basic"),
    Denoise("ica_aroma"),
    Denoise(scrub=5, fd_threshold=0.2),
    Denoise(dummy_scans="auto"),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parameters_do_what_they_do_in_nilearn(run, way):
    from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy

    confounds_of(run.bold, STEM, moves=(3, 4, 9), more=True)
    bold = run.bold
    if way.wants_smooth_aroma:
        bold = bold.rename(bold.with_name(bold.name.replace("preproc", "smoothAROMAnonaggr")))
    asked = {**way.parameters, "demean": way.demean}
    if isinstance(way.strategy, str) and way.ica_aroma is None:
        confounds, kept = load_confounds_strategy(str(bold), way.strategy, **asked)
    else:
        confounds, kept = load_confounds(str(bold), way.components or ("high_pass",), **asked)
    found = way.of_image(bold)
    np.testing.assert_array_equal(found.kept, np.arange(24) if kept is None else kept)
    if way.components and confounds.shape[1]:
        assert found.columns == list(confounds.columns)
        np.testing.assert_array_equal(found.confounds, confounds)
        assert np.isfinite(found.confounds).all()
    else:
        assert found.confounds is None and found.columns == []


def test_columns_go_by_pattern_and_begin_as_nilearns(run):
    from nilearn.interfaces.fmriprep import load_confounds

    confounds_of(run.bold, STEM, moves=(3, 4), more=True)
    nilearns, _ = load_confounds(str(run.bold), ("motion", "wm_csf"), motion="full")
    for way in (Denoise(columns="trans_*,rot_*, csf,white_matter"), Denoise("simple", columns="trans_x,gl*")):
        found = way.of_image(run.bold)
        assert found.columns[-1] == (
            "white_matter" if way.strategy == () else "global_signal_derivative1_power2"
        )
        assert len(set(found.columns)) == len(found.columns) and found.sample_mask is None
        same = [name for name in found.columns if name in nilearns]
        assert len(same) == 26
        picked = found.confounds[:, [found.columns.index(name) for name in same]]
        np.testing.assert_allclose(picked, nilearns[same], rtol=1e-12, atol=1e-12)
    with pytest.raises(ParameterError, match=r"_timeseries\.tsv has no column tedana_\*; there are: trans_x"):
        Denoise(columns="tedana_*").of_image(run.bold)


@pytest.mark.parametrize(("dummies", "first"), [(0, 0), (5, 5), ("auto", 2)])
def test_volumes_at_the_beginning_go(run, dummies, first):
    table = confounds_of(run.bold, STEM, more=True)
    frame = pd.read_csv(table, sep="\t")
    for number in range(2):
        frame[f"non_steady_state_outlier{number:02}"] = (np.arange(24) == number).astype(float)
    frame.to_csv(table, sep="\t", index=False, na_rep="n/a")
    found = Denoise(columns="csf", dummy_scans=dummies).of_image(run.bold)
    np.testing.assert_array_equal(found.kept, np.arange(first, 24))
    assert Denoise("simple", dummy_scans=1).of_image(run.bold).kept[0] == 2
    with pytest.raises(ParameterError, match="keeps none of the 24 volumes"):
        Denoise(dummy_scans=24).of_image(run.bold)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strategy": "simpel"}, "'simpel' is none of simple, scrubbing"),
        (
            {"strategy": ["motion", "scrubs"]},
            "'scrubs': it is neither a strategy .simple, .* nor .*high_pass, m",
        ),
        (
            {"strategy": "simple", "fd_threshold": 0.2},
            "fd_threshold does nothing in .* simple .*: its components",
        ),
        ({"motion": "ful"}, "motion='ful' is none of basic, power2"),
        ({"scrub": -1}, "scrub=-1 is no number from 0 on"),
        ({"dummy_scans": "many"}, "dummy_scans='many' is neither"),
        ({}, "nothing to denoise by"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_run(wrong, said):
    with pytest.raises(ParameterError, match=said):
        Denoise(**wrong)


def test_what_gives_other_numbers_has_other_words():
    more = [{"strategy": "simple"}, {"strategy": "scrubbing"}, {"strategy": "simple", "demean": False}]
    more += [{"dummy_scans": 3}, {"columns": "a*"}, {"columns": "a"}, {"strategy": "scrubbing", "scrub": 2}]
    ways = [*WAYS, *(Denoise(**asked) for asked in more)]
    assert len({"".join(way.words) for way in ways}) == len(ways)
    assert "".join(Denoise("ica_aroma").words) == "denoiseicaaroma" and set(COMPONENTS) > {"motion", "scrub"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("\n", "\nabc", 1), r"'abc.*' in row 0, column 'trans_x' is not a number"),
        (lambda text: text.replace("\n", "\n1,0", 1), r"row 0, column 'trans_x' .* a point, not a comma"),
        (lambda text: None, r"cannot be read as a table of confounds: .*directory"),
    ],
)
def test_what_is_no_number_in_a_table_is_named(tmp_path, spoil, said):
    path = run_of(tmp_path, "sub-01_task-rest")
    table = confounds_of(path, "sub-01_task-rest")
    content = spoil(table.read_text())
    table.unlink()
    table.mkdir() if content is None else table.write_text(content)
    with pytest.raises(ParameterError, match=said) as caught:
        Denoise("simple").of_image(path)
    assert str(table) in str(caught.value)
