"""Pages: what is on them, and what a browser makes of them."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg

from sharedmask.errors import ParameterError
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid
from sharedmask.study import figures
from sharedmask.study.report import RunReport, RunRow, StudyReport, Timeline

BROWSER = shutil.which("chromium")

# A page in a frame of a phone's or a screen's width (a window cannot be as narrow as a phone), and
# what its images, width and scripts came to.
FRAME = """<!doctype html><iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe"), errors = [];
frame.contentWindow.addEventListener("error", event => errors.push(event.message), true);
addEventListener("load", () => {{
  const page = frame.contentDocument, window = frame.contentWindow;
  const size = element => parseFloat(window.getComputedStyle(element).fontSize);
  document.documentElement.dataset.found = JSON.stringify({{
    errors, needs: page.documentElement.scrollWidth,
    images: [...page.images].map(image => [image.naturalWidth, image.clientWidth]),
    smallest: Math.min(...[...page.querySelectorAll("td, th, h2, p")].map(size)),
  }});
}});
</script>"""


@pytest.fixture
def run(tmp_path):
    image = niimg(bold())
    atlas = np.zeros(SHAPE, "int16")
    atlas[:3], atlas[4:, :2] = 1, 7
    lut = {1: "Left <b>", 7: "Right", 9: "Absent"}
    source = open_source(image)
    regions = Regions.from_labels(niimg(atlas), Grid(SHAPE, AFFINE), lut=lut)
    values = np.asarray(image.dataobj)
    signals = np.stack([values[atlas == label].mean(0) for label in (1, 7)], axis=1)
    return RunReport(
        "sub-01 rest",
        source,
        regions,
        signals,
        regions.table(regions[0]),
        values.mean(-1),
        {"strategy": "mean", "detrend": False},
        Timeline([0.0, 0.5, 1.0], [1e6, 3 * 2**20, 2e6], 2**22),
    )


def seen(page, width, tmp_path):
    """What a browser finds on ``page`` in a frame of ``width``."""
    framed = tmp_path / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page.read_text())))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1400,1000", "--dump-dom", framed.as_uri(),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', answer.stdout)
    assert found, answer.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_all_of_a_page(run, width, tmp_path):
    run.write(tmp_path / "run.html")
    found = seen(tmp_path / "run.html", width, tmp_path)
    assert found["errors"] == []
    assert len(found["images"]) == 4
    for natural, shown in found["images"]:
        assert natural > 600  # decoded, not a broken address
        assert 0.85 * min(width, 1000) - 40 < shown <= width
    assert found["needs"] <= width  # nothing to scroll sideways for
    assert found["smallest"] >= 13


def test_a_page_is_one_file(run, tmp_path):
    run.write(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    assert [path.name for path in tmp_path.glob("*.*")] == ["run.html"]
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_a_page_tells_what_was_done(run, tmp_path):
    run.write(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    for said in ("sub-01 rest", "7 x 6 x 5 x 12", "int16", "2 s", "strategy", "3 MiB", "1.0 s", "numpy"):
        assert said in text
    assert "detrend" not in text  # not asked for
    assert "Left &lt;b&gt;" in text and "<b>" not in text


def test_the_table_has_every_region(run, tmp_path):
    run.write(tmp_path / "run.html")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", (tmp_path / "run.html").read_text()))
    assert "1 Left &lt;b&gt; 90 90 1.000 0" in text
    assert "7 Right 30 0 0.000 1" in text
    assert "9 Absent 0 0 0.000 n/a" in text


def test_a_study_lists_failures_first(tmp_path):
    runs = [
        RunRow("sub-01", facts={"volumes": 12}, page="sub-01.html"),
        RunRow("sub-02", error="sub-02 is truncated"),
    ]
    StudyReport("All", runs, timeline=Timeline([0, 1], [1e6, 2e6])).write(tmp_path / "study.html")
    text = (tmp_path / "study.html").read_text()
    assert "1 runs complete" in text and "1 failed" in text
    assert text.index("sub-02 is truncated") < text.index('href="sub-01.html"')


def test_nothing_half_written_stays(run, tmp_path, monkeypatch):
    (tmp_path / "run.html").write_text("before")
    monkeypatch.setattr(figures, "coverage", lambda shares: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.write(tmp_path / "run.html")
    assert [path.read_text() for path in tmp_path.glob("*.*")] == ["before"]


def test_missing_libraries_are_named(run, tmp_path, monkeypatch):
    from sharedmask.study import report

    report._templates.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ParameterError, match=r"sharedmask\[report\]"):
        run.write(tmp_path / "run.html")
