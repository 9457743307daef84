"""The commands of this room: ``clray report``, ``clray plot``, ``clray table``. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The folder of one sweep, such as results/quickstart, or a URL.")]
Trials = Annotated[list[str] | None, typer.Option("--trial", metavar="ID", help="Show this trial (beginning of its id); repeatable.")]
By = Annotated[list[str] | None, typer.Option("--by", metavar="KEY", help="Setting, such as strategy.name; repeatable.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(report)
    app.command()(plot)
    app.command()(table)


def report(
    folder: Folder,
    trials: Trials = None,
    show: Annotated[int, typer.Option(min=0, help="How many trials get figures of their own.")] = 3,
    metric: Annotated[str, typer.Option(help="What ranks trials.")] = "acc",
    geometry: Annotated[bool, typer.Option("--geometry", help="Also capacity, radius and dimension of class manifolds; slow.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
) -> None:
    """Write a page with figures and tables of a sweep to DIR/report/, also while it runs."""
    from clray.report.build import build_report

    place = build_report(folder, trials or (), show, metric, geometry, quiet)
    if not quiet:
        print(f"report: {place}")


def plot(
    folder: Folder,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="accuracy, loss, matrix, forgetting, baselines, drift, since, weights, plasticity; of the whole sweep: compare, parallel; "
            "of a study: similarity, downstream.",
        ),
    ],
    trial: Annotated[str | None, typer.Option("--trial", metavar="ID", help="Beginning of a trial's id; default: the best one.")] = None,
    metric: Annotated[str, typer.Option(help="What is compared, and what ranks trials; of a study: cosine, mse or norm_ratio.")] = "acc",
    by: By = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help=".png, .svg or .pdf; default <sweep>-<kind>.png.")
    ] = None,
) -> None:
    """Write one figure of a sweep or of one of its trials."""
    from clray.report.plots import plot as make

    print(make(folder, kind, trial, metric, by or (), output))


def table(
    folder: Folder,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="METRIC", help="Such as acc; repeatable.")] = None,
    by: By = None,
    form: Annotated[str, typer.Option("--format", "-f", help="text, markdown, latex or csv.")] = "text",
) -> None:
    """Print metrics by setting: mean and standard error over repeats."""
    from clray.report.labels import find_metric
    from clray.report.measure_store import MeasureStore
    from clray.report.sweep_files import open_sweep, with_metrics
    from clray.report.tables import metrics_table, render, with_settings

    sweep = open_sweep(folder)
    sweep = with_metrics(sweep, MeasureStore(sweep.storage))
    sweep, keys = with_settings(sweep, by or sweep.varied)
    wanted = metric or [name for name in ("acc", "forgetting") if name in sweep.metrics]
    names = [find_metric(name, sweep.metrics) for name in wanted] if sweep.metrics else []
    print(render(metrics_table(sweep, keys, names), keys, names, form))
