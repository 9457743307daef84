"""The command line: parse, call, print. Imports lazily, so that help is instant."""

from __future__ import annotations

import contextlib
import enum
import gc
import os
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import typer.core

from clray import __version__
from clray.errors import UserError, did_you_mean
from clray.report.commands import register
from clray.signals import EXIT_CODES, leave, resumable

EXIT_FAILED_TRIALS = 1
EXIT_DAMAGED = 1
STARTED = time.perf_counter()


class Commands(typer.core.TyperGroup):
    """A group that names its commands where somebody asks for one that it does not have."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See ``click.Group``."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UserError(f"no command {args[0]!r}; {did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    name="clray",
    help="Continual-learning experiments as compiled JAX programs, swept over Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(cls=Commands, help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

File = Annotated[str, typer.Argument(metavar="FILE", help="An experiment or sweep file (YAML 1.2).")]
Folder = Annotated[str, typer.Argument(metavar="DIR", help="The folder of one sweep, such as results/quickstart, or a URL.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a dotted key of the experiment; repeatable.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder or URL (s3://..., gs://...); files go to OUTPUT/NAME/.")]
Force = Annotated[bool, typer.Option("--force", help="Take over the folder from a driver that still holds it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show trials and estimates; run nothing.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use (auto, host:port); default: one on this machine.")]
Local = Annotated[bool, typer.Option("--local", help="Run trials one after the other in this process, without Ray.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also run failed trials again.")]


class Kind(enum.StrEnum):
    """What ``clray list`` lists."""

    datasets = "datasets"
    models = "models"
    optimizers = "optimizers"
    strategies = "strategies"
    loggers = "loggers"
    selections = "selections"


class Schema(enum.StrEnum):
    """What ``clray schema`` describes."""

    experiment = "experiment"
    published = "published"
    study = "study"
    sweep = "sweep"


def main() -> None:
    """Runs the command line; every error that a user can cause is one message and an exit code."""
    try:
        app()
    except UserError as error:
        print(f"clray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except SystemExit as end:
        if end.code in EXIT_CODES:
            leave(int(end.code or 0))
        raise


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        print(f"clray {__version__}")
        raise typer.Exit


@app.command()
def run(
    file: File,
    settings: Settings = None,
    output: Output = "results",
    quiet: Quiet = False,
    profile: Annotated[str | None, typer.Option(metavar="DIR", help="Write a trace for TensorBoard or Perfetto there.")] = None,
    force: Force = False,
) -> None:
    """Run one experiment in this process, without Ray. Given again, it resumes."""
    with resumable() as stops:
        from clray.trials.plan import parse_settings, plan_run

        plan = plan_run(file, parse_settings(settings or []))
        if profile is not None:
            _check_writable(profile)
        axes = [key for key in ("grid", "zip", "cases", "random") if key in _top_level(file)]
        if axes and not quiet:
            without = ", ".join(axes)
            print(f"{file} is a sweep: running its base experiment, without {without}. All of it: clray sweep {file}", file=sys.stderr)
        imported = time.perf_counter() - STARTED
        stops.begin()
        with _profiled(profile):
            _execute(plan, output, quiet, local=True, retry_failed=True, force=force)
        if not quiet:
            _print_phases(plan, output, imported)


@app.command()
def sweep(
    file: File,
    settings: Settings = None,
    output: Output = "results",
    quiet: Quiet = False,
    dry_run: DryRun = False,
    address: Address = None,
    local: Local = False,
    retry_failed: RetryFailed = False,
    force: Force = False,
) -> None:
    """Run a sweep on Ray: every trial that is not finished yet. Given again, it resumes."""
    _one_place(local, address)
    with resumable() as stops:
        from clray.trials.plan import parse_settings, plan_sweep

        plan = plan_sweep(file, parse_settings(settings or []))
        gc.freeze()  # the plan stays until the end: no looking for garbage in it
        if dry_run:
            from clray.trials.dry_run import print_dry_run

            print_dry_run(plan, output, local, address)
            return
        stops.begin()
        _execute(plan, output, quiet, local=local, address=address, retry_failed=retry_failed, force=force)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A published table, such as split_mnist, or the path of a sweep file of your own.")
    ],
    settings: Settings = None,
    output: Output = "results",
    quiet: Quiet = False,
    dry_run: DryRun = False,
    address: Address = None,
    local: Local = False,
    retry_failed: RetryFailed = False,
    force: Force = False,
) -> None:
    """Run the sweep of a published table and compare: measured against published. Given again, it resumes."""
    _one_place(local, address)
    with resumable() as stops:
        from clray.reproduce.command import plan_reproduction, show_comparison
        from clray.trials.plan import parse_settings

        given = parse_settings(settings or [])
        plan, matches = plan_reproduction(name, given)
        if dry_run:
            from clray.trials.dry_run import print_dry_run

            print_dry_run(plan, output, local, address)
            return
        stops.begin()
        from clray.trials.show_run import execute_and_show

        result = execute_and_show(plan, output, quiet, local=local, address=address, retry_failed=retry_failed, force=force)
        if not show_comparison(plan, matches, result, output, given, quiet) or result.failed:
            raise typer.Exit(EXIT_FAILED_TRIALS)


@app.command()
def status(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every committed file against its checksum; exit code 1 if any is damaged.")
    ] = False,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="With --verify: rename what is damaged, so that the sweep's command computes it again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is done, running, failed and pending in a sweep's folder; from its files alone."""
    if set_aside and not verify:
        raise UserError("--set-aside renames what --verify finds: give both")
    if verify:
        from clray.trials.show_verify import verify_sweep

        if verify_sweep(folder, as_json, set_aside):
            raise typer.Exit(EXIT_DAMAGED)
    else:
        from clray.trials.show_status import print_status

        print_status(folder, as_json)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Data set: a name of 'clray list datasets' or package.module:attribute.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option, such as resize=16.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder with the source files.")] = None,
) -> None:
    """Download where needed, decode and cache a data set on this machine."""
    from clray.data.cache import open_dataset, prepare
    from clray.documents import parse_dataset
    from clray.trials.plan import parse_settings

    given = parse_settings(settings or []) | ({"root": root} if root else {})
    options = parse_dataset(name, given)
    folder = prepare(options)
    info = open_dataset(options).info
    images = f"{info.n_train} training and {info.n_test} test images of {info.n_classes} classes, {info.shape} {info.dtype}"
    print(f"{name}: {images}, in {folder}")


@app.command("list")
def list_plugins(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what comes with clray. Your own is given as package.module:attribute."""
    from rich.console import Console
    from rich.table import Table

    from clray.plugins import table

    rows = Table(box=None, pad_edge=False, show_header=False)
    for name, (_, description) in table(kind.value).items():
        rows.add_row(name, description)
    Console(width=None if sys.stdout.isatty() else 200).print(rows)


@app.command()
def schema(kind: Annotated[Schema, typer.Argument(help="Which file.")]) -> None:
    """Print the JSON Schema of a file, for editors."""
    import json

    from clray.schema import json_schema

    print(json.dumps(json_schema(kind.value), indent=2))


def _one_place(local: bool, address: str | None) -> None:
    if local and address:
        raise UserError("--local runs without Ray and --address names a Ray cluster: give one of them")


def _execute(plan: Any, output: str, quiet: bool, **options: Any) -> None:
    from clray.trials.show_run import execute_and_show

    if execute_and_show(plan, output, quiet, **options).failed:
        raise typer.Exit(EXIT_FAILED_TRIALS)


def _check_writable(folder: str) -> None:
    """Before anything is trained: the profiler, which knows local folders only, would say so after it."""
    import tempfile

    if "://" in folder:
        raise UserError(f"--profile: {folder} is a URL; the profiler writes local folders only")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--profile: cannot write to {folder} ({error.strerror or error})") from None


@contextlib.contextmanager
def _profiled(folder: str | None) -> Iterator[None]:
    """Writes a trace of everything JAX does in the body."""
    if folder is None:
        yield
        return
    from clray.process import available_cpus, configure_jax

    configure_jax(available_cpus())  # before the profiler starts a backend
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a million calls of Python would leave no room for what is computed
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        yield
    if not _trained():
        print(f"nothing was left to run, so {folder}/ holds an empty trace; give another --output to run it again", file=sys.stderr)
        return
    print(f"trace: {folder}/  (TensorBoard's profile plugin, or perfetto_trace.json.gz in Perfetto)", file=sys.stderr)


def _print_phases(plan: Any, output: str, imported: float) -> None:
    """Where the seconds of one run went. Phases overlap, so they can add up to more than the whole."""
    from clray.store.layout import SweepLayout
    from clray.trials.status import read_json
    from clray.trials.sweep import sweep_root

    result = read_json(sweep_root(output, plan.name), SweepLayout().trial(plan.trials[0].trial_id).result)
    if result:
        phases = {"import": imported, **result["phases"]}
        where = ""
        if _trained():
            from clray.devices import described, training_devices

            devices, precision = training_devices(), plan.trials[0].experiment.training.precision
            on_cpu = precision != "float32" and devices[0].platform == "cpu"
            where = f"devices: {described(devices)}{f' (which compute in float32, not {precision})' if on_cpu else ''}; "
        print(f"{where}seconds (phases overlap): " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items()))


def _trained() -> bool:
    return "clray.devices" in sys.modules


def _top_level(file: str) -> dict[str, Any]:
    from clray.documents import read_yaml

    return read_yaml(file).data


register(app)
