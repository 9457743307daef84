"""The report of a sweep of 500 trials: seconds and peak memory. `python -m benchmarks.report [N_TRIALS]`

One real trial (digits, T=5, R=8, weights and representations kept) is trained; the others are the same files under other ids,
linked rather than copied, with their own settings. The report runs as a user runs it, in a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clray
from benchmarks.data import digits_experiment
from benchmarks.timing import report
from clray.artifacts import write_config
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.plan import Plan, plan_sweep
from clray.trials.status import read_status
from clray.trials.sweep import _write_sweep_file
from clray.trials.table import TrialsTable, row_of

GOAL_SECONDS, GOAL_BYTES = 60, 2 * 2**30


def main() -> None:
    """Prints the table: a first report, then one of unchanged results."""
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory(dir=os.environ.get("CLRAY_BENCH_DIR")) as folder:
        sweep = linked_sweep(Path(folder), n_trials)
        rows = []
        for title, options in (("first", []), ("again, nothing changed", []), ("again, six trials shown", ["--show", "6"])):
            seconds, n_bytes = reported(sweep, options)
            rows.append((f"{n_trials} trials, {title}", f"{seconds:.1f} s, {n_bytes / 2**20:.0f} MiB", "60 s, 2048 MiB"))
        page = sweep / "report" / "index.html"
        rows.append(("size of the page", f"{page.stat().st_size / 2**20:.1f} MiB", ""))
    report("benchmarks.report", rows)


def linked_sweep(folder: Path, n_trials: int) -> Path:
    """A sweep whose trials all hold the results of one."""
    experiment: dict[str, Any] = digits_experiment(log_frequency=20)
    experiment["model"]["hidden"] = [128, 128]
    experiment["baselines"] = ["expert"]
    clray.run(experiment, output=str(folder / "one"))
    (source,) = (folder / "one" / "bench" / "trials").iterdir()
    rates = [float(f"{10 ** (-3 + 3 * i / n_trials):.8f}") for i in range(-(-n_trials // 10))]
    axes = {"optimizer.learning_rate": rates, "optimizer.momentum": [i / 10 for i in range(10)]}
    plan = plan_sweep({"name": "many", "experiment": experiment, "grid": axes})
    storage = Storage.of(str(folder / "many"))
    _write_sweep_file(storage, SweepLayout(), plan)
    for trial in plan.trials:
        link_trial(source, Path(storage.root) / "trials" / trial.trial_id)
        layout = SweepLayout().trial(trial.trial_id)
        storage.remove_file(layout.config)
        write_config(storage, layout, trial.experiment)
        result = json.loads((source / "RESULT.json").read_text()) | {"trial_id": trial.trial_id}
        storage.replace_bytes(layout.result, json.dumps(result).encode())
    write_table(storage, plan)
    return Path(storage.root)


def link_trial(source: Path, target: Path) -> None:
    """The same files under another folder."""
    for file in source.rglob("*"):
        if file.is_file() and file.name != "RESULT.json":
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)


def write_table(storage: Storage, plan: Plan) -> None:
    """trials.parquet."""
    layout = SweepLayout()
    table = TrialsTable(storage, layout)
    for trial in plan.trials:
        status = read_status(storage, layout.trial(trial.trial_id), driver_alive=False, commits=False)
        table.rows[trial.trial_id] = row_of(trial.trial_id, trial.params, status)
    table.write()


def reported(sweep: Path, options: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes) of one `clray report`."""
    code = "import sys; from clray.cli import main; main()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "report", str(sweep), "--quiet", *options], check=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


if __name__ == "__main__":
    main()
