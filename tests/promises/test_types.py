"""What type checkers are told that calls give."""

import re
import subprocess
import sys

import pytest

CALLS = {
    'image.mask_parallel(["a.nii"])': "list[ndarray]",
    'image.mask_parallel({1: "a.nii"}, n_jobs=2, memory=False)': "dict[int, ndarray]",
    'image.mask_parallel("*.nii")': "Any",
    'image.reduce("atlas.nii", detrend=True)': "ndarray",
    'image.reduce("atlas.nii", ["mean", "pc1"])': "dict[str, ndarray]",
    'image.map(float_of, ["a.nii"], random_state=0)': "list[float]",
    'image.map(float_of, {"a": "a.nii"})': "dict[str, float]",
    'image.mask("a.nii")': "ndarray",
    'extract("run.nii", "atlas.nii", strategy="mean")': "ndarray",
    'extract("run.nii", "atlas.nii", strategy=["mean"])': "dict[str, ndarray]",
}
PROGRAM = """
from sharedmask import SharedImage, extract
def float_of(signals: object) -> float: return 0.0
def work(image: SharedImage) -> None:
"""


@pytest.mark.long
def test_types_of_what_calls_give(tmp_path):
    pytest.importorskip("mypy")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM + "".join(f"    reveal_type({call})\n" for call in CALLS))
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent"]
    done = subprocess.run([*command, path], capture_output=True, text=True, timeout=280)
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    short = [re.sub(r"numpy\.ndarray\[.*?dtype\[Any\]\]", "ndarray", one) for one in revealed]
    short = [one.replace("builtins.", "") for one in short]
    assert short == list(CALLS.values()), done.stdout
