"""What the documentation promises is there."""

import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command
import masker_cases as cases
import networks
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from images import niimg, random_masks
from joblib import parallel_config
from nilearn.masking import apply_mask

import sharedmask

ROOT = Path(__file__).parents[2]
PACKAGE = Path(sharedmask.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__main__", "_build")
)
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("page", ["reliability", "platforms", "migrating", "from-lacuna", "from-nifreeze"])
def test_every_test_that_a_page_names_exists(page):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / f"docs/{page}.md").read_text()))
    written = {
        name for path in ROOT.glob("tests/*/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named <= written, named - written


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md")))],
)
def test_links_lead_somewhere(page):
    text = re.sub(r"gallery/(plot_\w+)\.rst", r"examples/\1.py", (ROOT / page).read_text())
    text = text.replace("gallery/index.rst", "examples/GALLERY_HEADER.rst")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(module), extraglobs={"np": __import__("numpy")})
    assert found.failed == 0


def test_the_architecture_page_names_every_package():
    text = (ROOT / "docs/architecture.md").read_text()
    for package in PACKAGES:
        assert f"`{package}`" in text, package


def test_the_files_that_the_architecture_page_names_exist():
    named = re.findall(r"`(\w+/\w+(?:/|\.py))`", (ROOT / "docs/architecture.md").read_text())
    assert len(named) > 20
    for path in named:
        assert (PACKAGE / path).exists(), path


def test_decisions_are_all_on_the_architecture_page():
    text = (ROOT / "docs/architecture.md").read_text()
    for page in ROOT.glob("docs/decisions/*.md"):
        assert f"(decisions/{page.name})" in text, page.name


def test_public_names_are_documented():
    for name in sharedmask.__all__:
        if name != "__version__":
            assert getattr(sharedmask, name).__doc__, name


@pytest.fixture
def inputs_of_the_migration_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases.Files(tmp_path).run("int16", "4D", ".nii.gz").rename("sub-01_bold.nii.gz")
    cases.CONFOUNDS["tsv"](tmp_path).rename("confounds.tsv")
    (tmp_path / "rois").mkdir()
    for number, mask in enumerate(random_masks(3, cases.BOX)):
        nib.save(niimg(mask.astype("u1")), tmp_path / f"rois/{number}.nii.gz")
    nib.save(niimg(cases.atlas(cases.BOX)), "atlas.nii.gz")
    nib.save(niimg(cases.maps(cases.BOX)), "maps.nii.gz")


@pytest.mark.usefixtures("inputs_of_the_migration_page")
def test_the_migration_page_runs_and_its_pairs_agree():
    """Blocks of one section that make ``signals`` make the same."""
    names = {"__name__": "migrating"}
    for section in (ROOT / "docs/migrating.md").read_text().split("\n## "):
        blocks = re.findall(r"```python\n(.*?)```", section, re.S)
        with parallel_config("sequential"):  # loky's processes would stay
            made = [_signals_of(block, names) for block in blocks]
        made = [one for one in made if one is not None]
        for other in made[1:]:
            assert len(other) == len(made[0])
            for one, expected in zip(other, made[0], strict=True):
                np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:boolean values for .standardize.:FutureWarning")  # of the loop before
@pytest.mark.usefixtures("inputs_of_the_migration_page")
def test_the_readme_s_examples_run():
    """Those of Python in their order, and the lines that extract."""
    masks = sorted(map(str, Path("rois").iterdir()))
    shutil.copy("atlas.nii.gz", "schaefer400_dseg.nii.gz")
    Path("schaefer400_dseg.tsv").write_text("index\tname\n" + "".join(f"{n}\tR{n}\n" for n in range(1, 10)))
    names = {"masks": masks, "my_function": lambda image, mask: apply_mask(image, mask)}
    text, made = (ROOT / "README.md").read_text(), []
    with parallel_config("sequential"):  # loky's processes would stay
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(block, names)
            made.append(names["signals"])
    assert [len(made), len(names["results"])] == [4, 3]
    for one, other, other_way in zip(made[0], made[1], names["results"], strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, other_way)
    for line in re.findall(r"^sharedmask extract BOLD.nii.gz .*", text, re.M):
        _, *arguments = shlex.split(line.replace("BOLD.nii.gz", "sub-01_bold.nii.gz"))
        assert command.called(*arguments).returncode == 0
    assert pd.read_csv("means.tsv", sep="\t").shape[0] == len(made[0][0])
    assert len(np.load("series.npz")) == len(masks)


def _signals_of(block, names):
    names.pop("signals", None)
    exec(block, names)
    return names.get("signals")


def test_the_memory_page_has_every_setting_and_profile():
    from dataclasses import fields

    from sharedmask.system.settings import PROFILES, Settings

    text = (ROOT / "docs/memory.md").read_text()
    for name in [*(field.name for field in fields(Settings)), *PROFILES]:
        assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE), name


def _run_page(name):
    names = {"__name__": name}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{name}.md").read_text(), re.S):
        exec(block, names)


def test_the_page_of_lacuna_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lesions").mkdir()
    networks.write_split(tmp_path / "connectome", networks.series(), [2, 4])
    for number in range(3):
        networks.lesion(number)[0].to_filename(tmp_path / f"lesions/sub-{number}.nii.gz")
    _run_page("from-lacuna")
    assert len(list(tmp_path.glob("sub-*_binary.nii.gz"))) == 3


def test_the_page_of_nifreeze_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = np.random.default_rng(0).integers(0, 900, (5, 4, 3, 9)).astype("i2")
    for name in ("dwi", "pet"):
        niimg(run).to_filename(tmp_path / f"{name}.nii.gz")
    niimg(np.ones((5, 4, 3), "u1")).to_filename(tmp_path / "brain.nii.gz")
    directions = np.random.default_rng(1).normal(size=(3, 9))
    np.savetxt("dwi.bvec", directions / np.linalg.norm(directions, axis=0))
    np.savetxt("dwi.bval", [[0.0] + [1000.0] * 8])
    Path("pet.json").write_text('{"FrameTimesStart": [0, 1, 2, 3, 4, 5, 6, 7, 8]}')
    _run_page("from-nifreeze")
    assert nib.load("moved.nii.gz").shape == (5, 4, 3, 8)


@pytest.mark.parametrize(("link", "leads"), [("a.html#there", True), ("a.html#else", False), ("b", False)])
def test_links_of_the_site_are_followed(link, leads, tmp_path):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery/plot_2_atlas.html").write_text('<a href="../index.html">')
    (tmp_path / "index.html").write_text(f'<a href="a.html"><a href="{link}">')
    (tmp_path / "a.html").write_text('<p id="there"><a href="gallery/plot_2_atlas.html">')
    links = [sys.executable, ROOT / "docs/links.py", tmp_path]
    done = subprocess.run(links, capture_output=True, text=True)
    assert (done.returncode == 0) is leads
    assert leads or f"{link} leads nowhere" in done.stderr
