"""What the documentation promises is there."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import sharedmask

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.stem for path in Path(sharedmask.__file__).parent.glob("*.py") if path.stem != "__main__")


def test_every_test_that_the_reliability_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    written = {
        name
        for path in ROOT.glob("tests/test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named <= written, named - written


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/reliability.md", "docs/frames.md"]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room):
    module = importlib.import_module(f"sharedmask.{room}" if room != "__init__" else "sharedmask")
    found = doctest.testmod(module, extraglobs={"np": __import__("numpy")})
    assert found.failed == 0


def test_the_architecture_page_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text()
    for room in set(ROOMS) - {"__init__"}:
        assert f"`{room}`" in text, room


def test_public_names_are_documented():
    for name in sharedmask.__all__:
        if name != "__version__":
            assert getattr(sharedmask, name).__doc__, name
