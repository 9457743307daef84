"""The page of a sweep in every state: complete, self-contained, honest about what failed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from clray.errors import UserError
from clray.report.build import build_report, choose
from clray.report.figures.style import DARK
from clray.report.html import inline_svg
from clray.report.sweep_files import open_sweep
from tests.report.fake_sweep import DOCUMENT, STATES, write_sweep


class Page(HTMLParser):
    """What a page consists of."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids[str(given["id"])] += 1
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if given.get(name):
                (self.links if tag == "a" else self.loaded).append(str(given[name]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(report_folder: Path) -> str:
    return (report_folder / "index.html").read_text()


def test_page_is_well_formed_and_ids_are_unique(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert [name for name, n in page.ids.items() if n > 1] == []


def test_page_loads_nothing_from_anywhere(html: str) -> None:
    page = Page(html)
    assert [target for target in page.loaded if not target.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_every_link_of_the_page_leads_somewhere(html: str, report_folder: Path) -> None:
    page = Page(html)
    assert len(page.links) > 50
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert (report_folder / link).is_file(), link


def test_every_figure_is_png_and_svg_and_every_table_csv_and_parquet(report_folder: Path, html: str) -> None:
    figures = [path.stem for path in (report_folder / "figures").iterdir()]
    assert {path.suffix for path in (report_folder / "figures").iterdir()} == {".png", ".svg"}
    assert set(Counter(figures).values()) == {2}
    assert len(set(figures)) == Page(html).tags["figure"]
    tables = {path.name for path in (report_folder / "tables").iterdir()}
    assert {"trials.csv", "trials.parquet", "best.csv", "failures.csv", "repeats.parquet"} <= tables
    for name in {Path(table).stem for table in tables}:
        csv, parquet = pd.read_csv(report_folder / f"tables/{name}.csv"), pd.read_parquet(report_folder / f"tables/{name}.parquet")
        assert list(csv.columns) == list(parquet.columns), name
        assert len(csv) == len(parquet) > 0, name


def test_every_state_is_shown_as_such(html: str, sweep_folder: Path) -> None:
    statuses = open_sweep(str(sweep_folder)).trials.set_index("trial_id")["status"]
    assert dict(Counter(statuses)) == {"done": 4, "diverged": 1, "running": 1, "failed": 1, "pending": 1}
    for trial_id, status in statuses.items():
        row = re.search(rf"<tr><td[^>]*>(<a href=\"#{trial_id}\">)?{trial_id}.*?</tr>", html[html.index('id="trials"') :])
        assert row, trial_id
        assert f">{status}</span>" in row[0]
    assert "2 of 3 committed" in html
    assert "1 diverged and left out of means" in html
    assert "all diverged" in html
    assert "still running" in html
    assert html.count("No task is committed, so there is nothing to plot.") == 2


def test_what_a_failed_trial_said_is_shown_and_cannot_become_markup(html: str) -> None:
    assert "a made-up failure &lt;with&gt; markup &amp; more" in html
    assert "<with>" not in html
    assert "a made-up line" in html  # the end of the traceback


def test_sweep_file_beside_the_page_runs_again_to_the_same_trials(report_folder: Path) -> None:
    from clray.trials.plan import plan_sweep

    again = plan_sweep(str(report_folder / "sweep.yaml"))
    assert {trial.trial_id for trial in again.trials} == {trial.trial_id for trial in plan_sweep(dict(DOCUMENT)).trials}
    assert "versions" not in YAML(typ="safe", pure=True).load(report_folder / "sweep.yaml")


def test_report_imports_no_jax(sweep_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep_folder, tmp_path / "fake", ignore=shutil.ignore_patterns("report"))
    code = (
        "import sys\nfrom clray.report.build import build_report\n"
        f"build_report({str(tmp_path / 'fake')!r}, show=1, quiet=True)\n"
        "print([name for name in ('jax', 'flax', 'optax', 'torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_a_report_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    small = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01, 0.1]}}
    write_sweep(str(folder), small, ("done", "failed"), alive=False)
    first, second = list(open_sweep(str(folder)).trials["trial_id"])
    build_report(str(folder), [first], quiet=True)
    assert list((folder / "report/figures").glob(f"{first}-*"))
    place = build_report(str(folder), [second[:6]], quiet=True)
    assert place.endswith("report/index.html")
    assert not list((folder / "report/figures").glob(f"{first}-*"))
    assert list((folder / "report/metrics").glob(first))  # measures stay: they are used again


@pytest.mark.parametrize("states", [("pending", "pending"), ("failed", "failed"), ("running", "pending"), ("all diverged", "failed")])
def test_a_sweep_without_a_finished_trial_has_a_report(tmp_path: Path, states: tuple[str, ...]) -> None:
    folder = tmp_path / "fake"
    small = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01, 0.1]}}
    write_sweep(str(folder), small, states)
    build_report(str(folder), show=1, quiet=True)
    html = (folder / "report/index.html").read_text()
    Page(html)
    assert states[0].removeprefix("all ") in html


def test_trials_of_their_own_section_are_the_best_the_worst_and_some_between(sweep_folder: Path) -> None:
    sweep = open_sweep(str(sweep_folder))
    ranked = list(sweep.finished.sort_values("acc_mean", ascending=False)["trial_id"])
    assert [trial for trial, _ in choose(sweep, "acc", 2)] == [ranked[0], ranked[-1]]
    assert [why for _, why in choose(sweep, "acc", 2)] == ["best ACC", "worst ACC"]
    assert {trial for trial, _ in choose(sweep, "acc", 4)} == set(ranked)
    assert len(choose(sweep, "acc", 99)) == len(STATES)
    assert choose(sweep, "acc", 0) == []
    lowest = sweep.finished.sort_values("forgetting_mean")["trial_id"].iloc[0]
    assert choose(sweep, "forgetting", 1)[0][0] == lowest


def test_wrong_input_is_one_message(sweep_folder: Path, tmp_path: Path) -> None:
    for wrong, options, message in (
        (tmp_path, {}, "no sweep here"),
        (sweep_folder, {"trial_ids": ["t_nothing"]}, "no trial 't_nothing'"),
        (sweep_folder, {"trial_ids": ["t_"]}, "more than one trial"),
        (sweep_folder, {"metric_name": "acuracy"}, "no metric 'acuracy'"),
    ):
        with pytest.raises(UserError, match=message):
            build_report(str(wrong), quiet=True, **options)  # type: ignore[arg-type]


def test_inline_figures_follow_the_colours_of_the_page() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg width="10pt" viewBox="0 0 10 10"><metadata>x</metadata><defs><style type="text/css">*{}</style>'
        '<clipPath id="a"/></defs><g id="b" clip-path="url(#a)" style="fill: #1b1f24"/><use xlink:href="#a"/></svg>'
    )
    inline = inline_svg(svg, "f1", 'say "so"')
    assert "#1b1f24" in DARK
    assert "fill: var(--c1)" in inline
    assert 'id="f1-a"' in inline
    assert "url(#f1-a)" in inline
    assert 'xlink:href="#f1-a"' in inline
    assert 'aria-label="say &quot;so&quot;"' in inline
    assert 'viewBox="0 0 10 10"' in inline
    assert not re.search(r"<style|<metadata|width=", inline)
