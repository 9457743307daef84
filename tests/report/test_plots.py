"""``clray plot``: every kind, in every format, and one message where it cannot be."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from clray.errors import UserError
from clray.report.plots import KINDS, OF_STUDY, plot
from clray.report.sweep_files import open_sweep
from tests.report.fake_sweep import DOCUMENT, write_sweep

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_STUDY])
def test_every_kind_makes_a_figure(sweep_folder: Path, tmp_path: Path, kind: str) -> None:
    form = list(STARTS)[len(kind) % 3]
    place = plot(str(sweep_folder), kind, None, "acc", (), str(tmp_path / f"new/figure.{form}"))
    assert Path(place).read_bytes().startswith(STARTS[form])


def test_trials_are_chosen_by_id_or_by_metric(sweep_folder: Path, tmp_path: Path) -> None:
    done = open_sweep(str(sweep_folder)).finished

    def matrix(trial: str | None, metric: str) -> bytes:
        return Path(plot(str(sweep_folder), "matrix", trial, metric, (), str(tmp_path / "x.svg"))).read_bytes()

    by_id = {trial_id: matrix(trial_id[:7], "acc") for trial_id in done["trial_id"]}
    assert len(set(by_id.values())) == len(by_id)
    for metric, best in (("acc", done["acc_mean"].idxmax()), ("forgetting", done["forgetting_mean"].idxmin())):
        assert matrix(None, metric) == by_id[done.loc[best, "trial_id"]]


def test_the_default_name_is_that_of_sweep_and_kind(sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plot(str(sweep_folder), "compare", None, "forgetting", ("learning_rate",), None) == "fake-compare.png"
    assert (tmp_path / "fake-compare.png").read_bytes().startswith(STARTS["png"])


def test_wrong_input_is_one_message(sweep_folder: Path, tmp_path: Path) -> None:
    write_sweep(str(tmp_path / "one"), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
    (tmp_path / "file").touch()
    out = str(tmp_path / "x.png")
    for folder, kind, trial, metric, by, output, message in (
        (sweep_folder, "acuracy", None, "acc", (), out, "did you mean 'accuracy'"),
        (sweep_folder, "matrix", None, "acc", (), "x.jpeg", "one of .png, .svg, .pdf"),
        (sweep_folder, "matrix", "t_no", "acc", (), out, "no trial 't_no'"),
        (sweep_folder, "compare", None, "nothing", (), out, "no metric 'nothing'"),
        (sweep_folder, "compare", None, "acc", ("learning_rat",), out, "no trial has the key"),
        (sweep_folder, "compare", None, "acc", ("learning_rate", "hidden", "seed"), out, "one or two settings, got 3"),
        (tmp_path / "one", "compare", None, "acc", (), out, "nothing was varied"),
        (sweep_folder, "matrix", None, "acc", (), str(tmp_path / "file/x.png"), "cannot write"),
        (tmp_path, "matrix", None, "acc", (), out, "no sweep here"),
    ):
        with pytest.raises(UserError) as error:
            plot(str(folder), kind, trial, metric, by, output)
        assert message in str(error.value)


def test_trials_with_nothing_to_plot_say_why(tmp_path: Path) -> None:
    plan = write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("failed",))
    with pytest.raises(UserError, match=f"{plan.trials[0].trial_id}: nothing to plot: no task is committed"):
        plot(str(tmp_path), "accuracy", None, "acc", (), str(tmp_path / "x.png"))


def words(folder: Path, kind: str, by: tuple[str, ...] = ()) -> str:
    """All text of a figure, in one line."""
    place = plot(str(folder), kind, None, "acc", by, str(folder / "words.svg"))
    return " ".join(" ".join(ElementTree.parse(place).getroot().itertext()).split())


def test_a_figure_names_what_it_shows_and_says_what_its_bars_are(sweep_folder: Path) -> None:
    best = open_sweep(str(sweep_folder)).finished.sort_values("acc_mean")["trial_id"].iloc[-1]
    assert f"fake: trial {best}; mean and standard error over" in words(sweep_folder, "accuracy")
    assert f"fake: trial {best}; mean over" in words(sweep_folder, "matrix")
    assert f"fake: trial {best}" in words(sweep_folder, "since"), "which has a label below all panels already"
    assert "fake: mean and standard error over repeats, of all trials with that value" in words(sweep_folder, "compare", ("seed",))


def test_settings_that_most_trials_have_are_compared_first(tmp_path: Path) -> None:
    cases = [{"strategy.name": "finetune"}, *({"strategy.name": name, "strategy.importance": x} for name, x in (("l2", 1.0), ("ewc", 2.0)))]
    write_sweep(str(tmp_path), {"name": "fake", "experiment": DOCUMENT["experiment"], "cases": cases}, ("done",) * 3)
    sweep = open_sweep(str(tmp_path))
    assert sweep.factors == ["strategy.name", "strategy.importance"]
    assert "strategy.name" in words(tmp_path, "compare")
    assert words(tmp_path, "compare").endswith("of all trials with that value; also varied (--by): strategy.importance")
    assert "importance" in words(tmp_path, "parallel")


def test_a_setting_that_is_null_in_some_trials_is_shown_or_named(tmp_path: Path) -> None:
    grid = {"optimizer.learning_rate": [0.1, 0.2], "dataset.test_per_class": [None, 20]}
    write_sweep(str(tmp_path), {"name": "fake", "experiment": DOCUMENT["experiment"], "grid": grid}, ("done",) * 4)
    assert "test_per_class" in words(tmp_path, "parallel")
    assert words(tmp_path, "compare").endswith("also varied (--by): dataset.test_per_class")


def test_settings_of_unfinished_trials_are_not_compared(tmp_path: Path) -> None:
    cases = [{"strategy.name": "finetune"}, {"strategy.name": "l2", "strategy.importance": 1.0}]
    write_sweep(str(tmp_path), {"name": "fake", "experiment": DOCUMENT["experiment"], "cases": cases}, ("done", "failed"))
    assert open_sweep(str(tmp_path)).by_coverage == ["strategy.name"]
    assert "strategy.name" in words(tmp_path, "compare")
