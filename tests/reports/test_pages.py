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
from sharedmask.reports import figures
from sharedmask.reports.pages import Parcels, RunReport, RunRow, StudyReport, Timeline
from sharedmask.reports.quality import Quality
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid

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
  // more
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
        [Parcels("Toy", regions, regions.table(regions[0]))],
        signals[np.arange(12) != 3],
        values.mean(-1),
        {"strategy": "mean", "detrend": False},
        Timeline([0.0, 0.5, 1.0], [1e6, 3 * 2**20, 2e6], 2**22),
        quality=Quality(values.reshape(-1, 12).T, np.arange(12) != 3, np.linspace(0, 1, 12)),
        groups=[("Toy", 120), ("other", 90)],
        matrices={"correlation": np.corrcoef(signals.T)},
    )


def seen(page, width, tmp_path, script=""):
    """What a browser finds on ``page`` in a frame of ``width``, after a script."""
    framed = tmp_path / "framed.html"
    framed.write_text(
        FRAME.replace("// more", script).format(width=width, page=html.escape(page.read_text()))
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1400,1000", "--dump-dom", framed.as_uri(),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', answer.stdout)
    assert found, answer.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_all_of_a_page(run, width, tmp_path):
    run.write(tmp_path / "run.html")
    found = seen(tmp_path / "run.html", width, tmp_path)
    assert found["errors"] == []
    assert len(found["images"]) == 6
    for natural, shown in found["images"]:
        assert natural > 600  # decoded, not a broken address
        assert 0.85 * min(width, 1000) - 40 < shown <= width
    assert found["needs"] <= width  # nothing to scroll sideways for
    assert found["smallest"] >= 13


CLICKS = """
  const column = name => [...page.querySelectorAll("#runs th button")].find(one => one.textContent === name);
  const names = () => [...page.querySelectorAll("#runs tbody tr")].filter(row => !row.hidden).map(
    row => row.cells[0].textContent);
  const orders = {{first: names()}};
  column("mean_fd").click(); orders.up = names();
  column("mean_fd").click(); orders.down = names();
  column("run").click(); orders.named = names();
  const filter = page.getElementById("filter");
  filter.value = "nback sub-1"; filter.dispatchEvent(new window.Event("input")); orders.filtered = names();
  orders.shown = page.getElementById("shown").textContent;
  document.documentElement.dataset.found = JSON.stringify({{...JSON.parse(
    document.documentElement.dataset.found), orders}});
"""


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_sorts_and_filters_runs(width, tmp_path):
    motion = {
        "sub-2_task-rest": "0.9",
        "sub-10_task-rest": "n/a",
        "sub-1_task-nback": "10",
        "sub-1_task-rest": "2",
    }
    picture = figures.thumbnail(np.random.default_rng(0).normal(size=(20, 30)))
    rows = [
        RunRow(
            name,
            facts={"mean_fd": fd, "tsnr": "50", "notes": "no mask " * 9},
            page=f"{name}.html",
            thumbnail=picture,
        )
        for name, fd in motion.items()
    ]
    coverage = {"Toy": np.random.default_rng(0).random((9, 4))}
    StudyReport("All", rows, coverage=coverage).write(tmp_path / "study.html")
    found = seen(tmp_path / "study.html", width, tmp_path, CLICKS)
    assert found["errors"] == [] and found["needs"] <= width and found["smallest"] >= 13
    assert len(found["images"]) == 4 + 3 and all(natural >= 160 for natural, _ in found["images"])
    orders = found["orders"]
    assert orders["first"] == list(motion)
    assert orders["up"] == ["sub-2_task-rest", "sub-1_task-rest", "sub-1_task-nback", "sub-10_task-rest"]
    assert orders["down"] == ["sub-1_task-nback", "sub-1_task-rest", "sub-2_task-rest", "sub-10_task-rest"]
    assert orders["named"] == ["sub-1_task-nback", "sub-1_task-rest", "sub-2_task-rest", "sub-10_task-rest"]
    assert orders["filtered"] == ["sub-1_task-nback"] and orders["shown"] == "1 of 4"


MANY = """
  const count = () => page.querySelectorAll("#runs tbody tr").length;
  const started = performance.now(), counts = [count(), page.getElementById("shown").textContent];
  const filter = page.getElementById("filter");
  filter.value = "sub-0012"; filter.dispatchEvent(new window.Event("input")); counts.push(count());
  filter.value = ""; filter.dispatchEvent(new window.Event("input"));
  page.getElementById("more").click(); counts.push(count(), page.getElementById("more").hidden);
  document.documentElement.dataset.found = JSON.stringify({{...JSON.parse(
    document.documentElement.dataset.found), counts}});
"""


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_a_page_of_ten_thousand_runs_is_small_and_shows_them(tmp_path):
    facts = {"mean_fd": "0.123456", "tsnr": "52.1234", "space": "MNI152NLin2009cAsym", "notes": ""}
    rows = [
        RunRow(f"sub-{n:05}_task-rest", facts={**facts, "files": n}, page="a.html") for n in range(10_000)
    ]
    StudyReport("All", rows).write(tmp_path / "study.html")
    assert (tmp_path / "study.html").stat().st_size < 2 * 2**20
    found = seen(tmp_path / "study.html", 1280, tmp_path, MANY)
    assert found["errors"] == []
    shown = "10000 of 10000, the first 500 of them here"
    assert found["counts"] == [500, shown, 10, 10_000, True]


def test_a_page_is_one_file(run, tmp_path):
    run.write(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    assert [path.name for path in tmp_path.glob("*.*")] == ["run.html"]
    assert set(re.findall(r'(?:src|href)="(?!data:)([^"]*)', text)) <= {"study.html"}


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
    assert "Toy 1 Left &lt;b&gt; 90 90 1.000 0" in text
    assert "Toy 7 Right 30 0 0.000 1" in text
    assert "Toy 9 Absent 0 0 0.000 n/a" in text


def test_a_study_lists_failures_first(tmp_path):
    runs = [
        RunRow("sub-01", facts={"volumes": 12}, page="sub-01.html"),
        RunRow("sub-02", error="sub-02 is truncated"),
    ]
    StudyReport("All", runs, timeline=Timeline([0, 1], [1e6, 2e6])).write(tmp_path / "study.html")
    text = (tmp_path / "study.html").read_text()
    assert "1 runs complete" in text and "1 failed" in text
    assert text.index("sub-02 is truncated") < text.index('"sub-01.html"')


def test_nothing_half_written_stays(run, tmp_path, monkeypatch):
    (tmp_path / "run.html").write_text("before")
    monkeypatch.setattr(figures, "coverage", lambda shares: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.write(tmp_path / "run.html")
    assert [path.read_text() for path in tmp_path.glob("*.*")] == ["before"]


def test_missing_libraries_are_named(run, tmp_path, monkeypatch):
    from sharedmask.reports import pages

    pages._templates.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ParameterError, match="install jinja2"):
        run.write(tmp_path / "run.html")
