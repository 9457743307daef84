"""The page in a real browser: nothing in its console, nothing fetched, tables that sort and filter, pictures that are there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: none of {', '.join(BROWSERS)} is installed")
TIMEOUT_SECONDS = 90


def browse(page: Path, profile: Path, script: str = "", width: int = 1280, *options: str) -> tuple[Any, list[str]]:
    """Opens the page, runs ``script`` in it, and returns what the script returned and what the console said.

    The script is the body of a function; it runs in a copy of the page, since the browser is driven by nothing but its command line.
    """
    code = f"<script>document.title = JSON.stringify((() => {{ {script} }})() ?? null)</script></body>"
    copy = page.with_name("tested.html")
    copy.write_text(page.read_text().replace("</body>", code))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        *options,
        "--dump-dom",
        copy.as_uri(),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    finally:
        copy.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stdout[:500]
    return json.loads(html.unescape(title[1])), re.findall(r"CONSOLE.*", done.stderr)


HELPERS = """
const rows = () => [...document.querySelectorAll("#trials tbody tr")].filter((row) => !row.hidden);
const column = (key) => [...document.querySelectorAll("#trials th")].findIndex((head) => head.dataset.key === key);
const values = (key) => rows().map((row) => row.cells[column(key)].dataset.v ?? row.cells[column(key)].textContent);
const click = (key) => document.querySelectorAll("#trials th")[column(key)].querySelector("button").click();
const enter = (id, value, event) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event(event));
};
"""


@pytest.fixture(scope="module")
def page(report_folder: Path) -> Path:
    return report_folder / "index.html"


def test_console_is_clean_and_nothing_is_fetched(page: Path, tmp_path: Path) -> None:
    fetched, console = browse(page, tmp_path, 'return performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert console == []


def test_a_mistake_would_be_seen_in_the_console(page: Path, tmp_path: Path) -> None:
    _, console = browse(page, tmp_path, 'console.error("made up"); const image = new Image(); image.src = "https://example.org/x.png"')
    assert any("made up" in line for line in console)
    assert any("Content Security Policy" in line for line in console)


def test_table_sorts_and_filters(page: Path, tmp_path: Path) -> None:
    script = """
    const found = {all: values("trial").length};
    click("acc"); found.best = values("acc");
    click("acc"); found.worst = values("acc");
    found.marked = document.querySelectorAll("#trials th")[column("acc")].getAttribute("aria-sort");
    click("trial"); found.names = values("trial");
    enter("filter", "learning_rate<0.05", "input"); found.low = values("optimizer.learning_rate");
    enter("filter", "learning_rate<0.05 acc>0.78", "input"); found.both = values("acc");
    enter("filter", "RUNNING", "input"); found.words = values("status");
    enter("filter", "nosuchcolumn=1", "input"); found.none = values("trial").length;
    enter("filter", "", "input");
    enter("status", "failed", "change"); found.failed = values("status");
    found.shown = document.getElementById("shown").textContent;
    enter("status", "", "change");
    found.hidden = document.querySelectorAll("#trials th")[column("largest_dip")].hidden;
    enter("best", "largest_dip", "change"); found.dips = values("largest_dip");
    found.visible = !document.querySelectorAll("#trials th")[column("largest_dip")].hidden;
    const box = document.querySelector('.boxes input[value="bwt"]'); box.click();
    found.bwt = rows()[0].cells[column("bwt")].hidden;
    return found;
    """
    found, console = browse(page, tmp_path, HELPERS + script)
    assert console == []
    assert found["all"] == 8
    given = [float(value) for value in found["best"] if value]
    assert len(given) == 4
    assert given == sorted(given, reverse=True)
    assert found["best"][4:] == [""] * 4  # trials without a value come last either way
    assert [float(value) for value in found["worst"] if value] == sorted(given)
    assert found["worst"][4:] == [""] * 4
    assert found["marked"] == "ascending"
    assert found["names"] == sorted(found["names"])
    assert {float(value) for value in found["low"]} == {0.001, 0.01}
    assert found["both"]
    assert all(float(value) > 0.78 for value in found["both"])
    assert len(found["both"]) < 4
    assert found["words"] == ["running, 2 tasks"]
    assert found["none"] == 0
    assert found["failed"] == ["failed, 0 tasks"]
    assert found["shown"] == "1 of 8"
    assert (found["hidden"], found["visible"]) == (True, True)
    dips = [float(value) for value in found["dips"] if value]
    assert dips == sorted(dips)
    assert found["bwt"] is True


@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_are_there_and_fit(page: Path, tmp_path: Path, width: int) -> None:
    script = f"""
    const frame = document.createElement("div");
    frame.style.width = "{width}px"; frame.append(...document.body.childNodes); document.body.append(frame);
    const boxes = [...document.querySelectorAll("figure")].map((figure) => {{
      const svg = figure.querySelector("svg").getBoundingClientRect();
      const parts = figure.querySelectorAll("svg text, svg path").length;
      return [figure.className, svg.width, svg.height, parts, figure.getBoundingClientRect().right];
    }});
    const images = [...document.querySelectorAll("svg image")].map((image) => image.getBBox().width);
    const texts = [...document.querySelectorAll("figure:not(.wide) svg text")];
    const small = texts.filter((text) => text.getBoundingClientRect().height < 6).length;
    return {{boxes, images, small}};
    """
    found, console = browse(page, tmp_path, script, max(width, 500))
    assert console == []
    assert len(found["boxes"]) > 40
    for name, across, high, n_parts, right in found["boxes"]:
        assert across > 250
        assert high > 80
        assert n_parts > 10
        assert right <= width + 1
        assert name == "wide" or across <= width
    assert found["images"]
    assert all(across > 3 for across in found["images"])
    assert found["small"] == 0


def test_dark_pages_have_light_text_on_dark_paper(page: Path, tmp_path: Path) -> None:
    script = """
    const tick = document.querySelector("svg text");
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return [getComputedStyle(document.body).backgroundColor, getComputedStyle(tick).fill, dark];
    """
    light, _ = browse(page, tmp_path, script)
    dark, _ = browse(page, tmp_path, script, 1280, "--blink-settings=preferredColorScheme=0")

    def brightness(color: str) -> float:
        return sum(map(float, re.findall(r"\d+", color)[:3])) / 765

    assert (light[2], dark[2]) == (False, True)
    assert brightness(light[0]) > 0.9 > 0.5 > brightness(light[1])
    assert brightness(dark[0]) < 0.2 < 0.5 < brightness(dark[1])
