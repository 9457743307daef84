"""Figures: labels that do not overlap, axes that fit their values, and shapes at the edges."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from clray.report.figures import drift as drift_figures
from clray.report.figures import sweep as sweep_figures
from clray.report.figures import trial as trial_figures
from clray.report.figures.style import DARK, PAPER, SERIES, figure_bytes, mean_and_spread, panels, spread, styled
from clray.report.sweep_files import SweepFiles
from clray.report.trial_files import TrialCurves
from clray.store.filesystem import Storage


def curves_of(n_tasks: int, n_logs: int = 3, n_repeats: int = 2, tasks: list[int] | None = None, baselines: bool = True) -> TrialCurves:
    rng = np.random.default_rng(0)
    tasks = list(range(n_tasks)) if tasks is None else tasks

    def both(*shape: int) -> dict[str, np.ndarray]:
        return {"accuracy": rng.random(shape), "loss": rng.random(shape) + 0.1}

    return TrialCurves(
        steps=7 * np.arange(1, n_logs + 1),
        repeats=np.arange(n_repeats),
        eval_tasks=np.asarray(tasks),
        logs=both(n_tasks, n_logs, n_repeats, len(tasks)),
        end=both(n_tasks, len(tasks), n_repeats),
        initial=both(len(tasks), n_repeats),
        expert=both(n_tasks, n_logs, n_repeats) if baselines else None,
        expert_end=both(n_tasks, n_repeats) if baselines else None,
        joint=both(len(tasks), n_repeats) if baselines else None,
    )


def texts(figure: Figure) -> set[str]:
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))}


EDGES = {
    "one task, one repeat, one log": curves_of(1, 1, 1),
    "without baselines": curves_of(3, baselines=False),
    "some evaluated tasks": curves_of(4, tasks=[3, 0]),
    "only a task that is not trained yet": curves_of(2, tasks=[5]),
    "many tasks": curves_of(40, 2),
}


@pytest.mark.parametrize("name", EDGES)
def test_every_figure_of_a_trial_can_be_drawn(name: str) -> None:
    curves = EDGES[name]
    with styled():
        figures = [
            trial_figures.curve_figure(curves, "accuracy", 0.5),
            trial_figures.curve_figure(curves, "loss", 0.5),
            trial_figures.seen_figure(curves, 0.5),
            trial_figures.matrix_figure(curves, 0.5),
            trial_figures.forgetting_figure(curves),
            trial_figures.baselines_figure(curves, 0.5),
        ]
        for figure in figures:
            assert figure_bytes(figure, "svg").startswith(b"<?xml")


def test_axes_carry_their_names_and_units() -> None:
    curves = curves_of(3)
    with styled():
        assert {"batches trained", "accuracy", "task 0", "task 2"} <= texts(trial_figures.curve_figure(curves, "accuracy", 0.5))
        assert "cross-entropy (nats)" in texts(trial_figures.curve_figure(curves, "loss", 0.5))
        assert {"evaluated task", "after training task", "untrained"} <= texts(trial_figures.matrix_figure(curves, 0.5))
        assert {"learner", "experts", "joint", "chance"} <= texts(trial_figures.seen_figure(curves, 0.5))
        assert {"task", "accuracy lost by the end", "from its best"} <= texts(trial_figures.forgetting_figure(curves))


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.03, 2.3, [0.1, 1]), (0.2, 0.9, [0.2, 0.5]), (0.55, 0.83, [0.6, 0.8]), (1e-5, 0.5, [1e-5, 0.1]), (0.69, 0.7, [0.691, 0.699])],
)
def test_logarithmic_axes_have_two_ticks_apart_within_them(low: float, high: float, wanted: list[float]) -> None:
    assert trial_figures.log_ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize("spread", [0.001, 0.2, 5.0, 1000.0])
def test_the_axis_of_losses_has_numbers_whatever_their_range(spread: float) -> None:
    curves = curves_of(3, baselines=False)
    for logged in (curves.logs, curves.end, curves.initial):
        logged["loss"] = 0.5 + spread * logged["loss"]
    with styled():
        figure = trial_figures.curve_figure(curves, "loss", 0.5)
        figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    shown = [label for label in figure.axes[0].get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len({label.get_text() for label in shown}) == 2


def test_matrix_shows_the_means_over_repeats() -> None:
    curves = curves_of(3)
    with styled():
        shown = texts(trial_figures.matrix_figure(curves, 0.5))
    for value in curves.end["accuracy"].mean(axis=2).ravel():
        assert f"{value:.2f}".removeprefix("0") in shown or value >= 0.995


def test_repeats_that_diverged_are_left_out_of_means() -> None:
    curves = curves_of(3, n_repeats=3)
    curves.end["accuracy"][1:, :, 1] = np.nan
    assert list(curves.kept) == [True, False, True]
    assert trial_figures.courses(curves, "accuracy").shape == (3, 4, 2, 3)
    curves = curves_of(3, n_repeats=2)
    curves.end["accuracy"][1:] = np.nan
    assert list(curves.kept) == [True, True]  # all did: what there is is shown


def test_files_have_the_size_of_a_column_and_text_stays_text() -> None:
    with styled():
        figure, axes = panels(2.0)
        axes[0, 0].set_xlabel("batches & more")
    svg = figure_bytes(figure, "svg").decode()
    assert 'width="244.8pt"' in svg
    assert "batches &amp; more" in svg
    assert figure_bytes(figure, "png")[:4] == b"\x89PNG"
    assert figure_bytes(figure, "pdf")[:4] == b"%PDF"
    assert figure_bytes(figure, "svg") == svg.encode()  # the same figure, the same file


def test_the_users_matplotlibrc_changes_nothing() -> None:
    import matplotlib

    with styled():
        plain = figure_bytes(trial_figures.matrix_figure(curves_of(2), 0.5), "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        with styled():
            assert figure_bytes(trial_figures.matrix_figure(curves_of(2), 0.5), "svg") == plain


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.0, 0.01, 1.0], [0.99, 1.0, 0.98], [0.3], [], [0.1] * 30])
def test_labels_move_apart_and_keep_their_order(places: list[float]) -> None:
    gap = min(0.1, 1 / max(len(places) - 1, 1))
    moved = spread(places, 0.1)
    ordered = np.array(moved)[np.argsort(places, kind="stable")] if places else np.array([])
    assert (np.diff(ordered) >= gap - 1e-9).all()
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)
    apart = [0.1, 0.5, 0.9]
    assert spread(apart, 0.1) == pytest.approx(apart)


def test_mean_and_standard_error_leave_nan_out() -> None:
    values = np.array([[1.0, 3.0, np.nan], [5.0, np.nan, np.nan], [np.nan] * 3])
    mean, error = mean_and_spread(values, axis=1)
    np.testing.assert_allclose(mean, [2.0, 5.0, np.nan])
    np.testing.assert_allclose(error, [1.0, 0.0, 0.0])


def linear_rgb(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    """WCAG 2."""
    return float(linear_rgb(color) @ [0.2126, 0.7152, 0.0722])


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b*, white point D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("color", SERIES)
def test_colours_of_labels_can_be_read_on_light_and_dark(color: str) -> None:
    for shade, paper in ((color, 1.0), (DARK[color], luminance(DARK[PAPER]))):
        lighter, darker = sorted((luminance(shade), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 2.7, shade


COLOUR_VISION = {  # Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
    "typical": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", COLOUR_VISION)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_stay_apart_for_everyone(vision: str, dark: bool) -> None:
    shades = [DARK[color] if dark else color for color in SERIES]
    seen = [lab(np.clip(np.array(COLOUR_VISION[vision]) @ linear_rgb(shade), 0, 1)) for shade in shades]
    for (i, one), (j, other) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(one - other) > 14, (shades[i], shades[j])  # 2 can just be told apart


def sweep_of(columns: dict[str, list[object]]) -> SweepFiles:
    n = len(next(iter(columns.values())))
    trials = pd.DataFrame({"trial_id": [f"t{i}" for i in range(n)], "status": "done", **columns})
    trials["acc_mean"], trials["acc_sem"] = np.linspace(0.5, 0.9, n), 0.01
    repeats = pd.DataFrame({"trial_id": list(trials["trial_id"]) * 2, "repeat": [0] * n + [1] * n, "acc": [*trials["acc_mean"]] * 2})
    return SweepFiles(Storage.of("memory://x"), "x", {}, trials, {}, False, repeats)


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 0.2, 0.3],
        ["a", "b", "c"],
        [0.1, None, 0.1],
        list(np.logspace(-4, 0, 30)),
        list(np.linspace(0, 1, 30)),
        ["long name " * 3] * 2 + ["x"],
    ],
    ids=["numbers", "names", "missing", "many over decades", "many", "long names"],
)
def test_every_kind_of_setting_has_its_figures(values: list[object]) -> None:
    sweep = sweep_of({"param.a.b": values, "param.c": [i % 2 for i in range(len(values))]})
    with styled():
        for figure in (
            sweep_figures.factor_figure(sweep, "a.b", ["acc"]),
            sweep_figures.compare_figure(sweep, ["a.b", "c"], "acc"),
            sweep_figures.parallel_figure(sweep.finished, ["a.b", "c"], ["acc"]),
        ):
            assert figure_bytes(figure, "svg").startswith(b"<?xml")


def test_settings_over_decades_are_drawn_as_logarithms() -> None:
    sweep = sweep_of({"param.rate": list(np.logspace(-4, 0, 30))})
    with styled():
        figure = sweep_figures.factor_figure(sweep, "rate", ["acc"])
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[-1].get_xlabel() == "rate"


def test_only_values_with_an_order_are_joined_by_lines() -> None:
    for values, joined in (([0.1, 0.2, 0.3], True), (["er", "ewc", "si"], False)):
        sweep = sweep_of({"param.setting": values})
        with styled():
            figures = [sweep_figures.factor_figure(sweep, "setting", ["acc"]), sweep_figures.compare_figure(sweep, ["setting"], "acc")]
        for figure in figures:
            data, *_ = figure.axes[0].containers[0]
            assert (data.get_linestyle() == "-") is joined


def test_drift_of_many_tasks_is_an_image() -> None:
    curves = curves_of(20, 1)
    rows = [
        {"task": t, "step": 7, "repeat": r, "eval_task": e, "cka_own": 1.0 if e <= t else np.nan}
        for t in range(20)
        for r in range(2)
        for e in range(20)
    ]
    with styled():
        figure = drift_figures.drift_figure(pd.DataFrame(rows), curves)
    assert {"evaluated task", "after training task"} <= texts(figure)
