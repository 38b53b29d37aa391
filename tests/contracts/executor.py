"""What every executor does that works on the images of a study.

Who is one inherits the suite and gives a fixture ``how``: what ``extract_many`` is given of it. Wherever the
work is done, results, errors and callbacks are here, in this process.
"""

import os

import pytest
from images import bold, random_masks, same_bits, save, truth

from sharedmask import extract
from sharedmask.errors import DamagedImageError
from sharedmask.study.cohort import extract_many


class ExecutorContract:
    @pytest.fixture
    def runs(self, tmp_path):
        return [str(save(tmp_path / f"sub-{i}_bold.nii.gz", bold(seed=i))) for i in range(4)]

    @pytest.fixture
    def masks(self):
        return dict(zip("abc", random_masks(3), strict=True))

    def test_each_image_has_the_bits_that_it_has_alone(self, how, runs, masks):
        study = extract_many(runs, masks, **how)
        assert set(study.results) == set(runs) == set(study.complete)
        for path, signals in study.results.items():
            for name, mask in masks.items():
                same_bits(signals[name], truth(path)[mask].T.astype("float32"))

    @pytest.mark.long
    def test_reduced_and_cleaned_signals_are_those_of_one_image(self, how, runs, masks):
        asked = {"strategy": "mean", "standardize": "zscore_sample", "detrend": True}
        study = extract_many(runs, masks, **asked, **how)
        for path in runs:
            same_bits(study.results[path], extract(path, masks, **asked))

    def test_a_failure_is_its_images_own_and_arrives_as_what_it_is(self, how, runs, masks):
        with open(runs[1], "r+b") as file:
            file.truncate(os.path.getsize(runs[1]) // 2)
        errors = {}
        study = extract_many(runs, masks, on_error=errors.__setitem__, **how)
        assert list(errors) == [runs[1]] and set(study.complete) == {*runs} - {runs[1]}
        assert type(errors[runs[1]]) is DamagedImageError and "truncated" in str(errors[runs[1]])

    def test_callbacks_are_called_here_and_an_image_is_let_go_after_its_own(self, how, runs, masks):
        told = []
        study = extract_many(
            runs, masks, on_result=lambda key, signals: told.append((key, os.getpid())), **how
        )
        assert sorted(told) == [(path, os.getpid()) for path in runs]
        assert not study.results

    def test_what_is_complete_is_not_done_again(self, how, runs, masks, tmp_path):
        told = []

        def keep(key, signals):
            told.append(key)
            return []

        journal = tmp_path / "done.jsonl"
        extract_many(runs[:2], masks, on_result=keep, resume=journal, **how)
        extract_many(runs, masks, on_result=keep, resume=journal, **how)
        assert sorted(told) == runs
