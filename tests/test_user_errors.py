"""What people get wrong: one message that names the place and what is valid, exit code 2, nothing started, no traceback."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clray.errors import ResourceError, UserError, did_you_mean
from clray.trials.entry import execute, quiet
from clray.trials.plan import parse_settings, plan_run, plan_sweep
from tests.core.tiny import tiny

CLRAY = str(Path(sys.executable).with_name("clray"))

SWEEP = """\
name: tries
experiment:
  n_repeats: 2
  sequence: {n_tasks: 5}
  dataset: {name: digits}
  model: {name: mlp, hidden: [16]}
  optimizer: {name: sgd, learning_rate: 0.1}
  training: {epochs: 1, batch_size: 32}
  logging: {log_frequency: 4, n_subsamples: 20}
"""


def refused(path: Path, *settings: str) -> str:
    """The message with which a sweep file is refused."""
    with pytest.raises(UserError) as caught:
        plan_sweep(path, parse_settings(settings))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A good sweep file."""
    path = tmp_path / "tries.yaml"
    path.write_text(SWEEP)
    plan_sweep(path)
    return path


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("optimizer.learning_rat=0.1", ["--set", "learning_rat", "did you mean 'learning_rate'", "momentum"]),
        ("trainng.epochs=1", ["trainng", "did you mean 'training'"]),
        ("optimizer.name=sdg", ["unknown optimizer 'sdg'", "did you mean 'sgd'", "adamw"]),
        ("optimizer.name=SGD", ["unknown optimizer 'SGD'", "did you mean 'sgd'"]),
        ("model.name=mlpp", ["unknown model 'mlpp'", "did you mean 'mlp'", "cnn"]),
        ("dataset.name=mnits", ["unknown", "'mnits'", "did you mean 'mnist'", "cifar10"]),
        ("strategy.name=finetun", ["unknown strategy 'finetun'", "finetune"]),
        ("training.epochs=many", ["training.epochs", "whole number", "many"]),
        ("training.epochs=1.5", ["training.epochs", "whole number", "1.5"]),
        ("training.epochs=true", ["training.epochs", "whole number"]),
        ("optimizer.learning_rate=-1", ["optimizer.learning_rate", "greater than 0", "-1"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate", "finite"]),
        ("optimizer.momentum=1", ["optimizer.momentum", "less than 1"]),
        ("seed=-1", ["seed", "-1"]),
        ("sequence.n_tasks=6", ["6", "5", "reuse"]),
        ("sequence.policy=fixed", ["fixed", "classes"]),
        ("training.batch_size=1000", ["training.batch_size", "1000", "278"]),
        ("logging.log_frequency=9", ["logging.log_frequency", "9", "8"]),
        ("logging.n_subsamples=21", ["logging.n_subsamples", "21", "multiple of the 2"]),
        ("logging.n_subsamples=72", ["logging.n_subsamples", "72", "70"]),
        ("logging.eval_tasks=[5]", ["eval_tasks", "5", "4"]),
        ("name=../../etc", ["name", "../../etc"]),
        ("training.steps=5", ["exactly one of epochs and steps", "--set training.epochs=null"]),
        ("dataset.train_per_class=1000", ["dataset.train_per_class", "1000", "139"]),
        ("strategy=[]", ["strategy"]),
        ("model.hidden=[8, x]", ["--set model.hidden: item 1: must be a whole number, got 'x'"]),
        ("model.hidden.0.x=1", ["model.hidden.0.x", "not a table"]),
        ("optimizer=", ["optimizer", "table"]),
        ("dataset.name=nowhere_module:Thing", ["nowhere_module"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_is_valid(sweep: Path, setting: str, parts: list[str]) -> None:
    message = refused(sweep, setting)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (SWEEP + "grid: {optimizer.learning_rate: [0.1, 0.2}\n", ["tries.yaml:10:"]),
        (SWEEP + "grd: {}\n", ["tries.yaml:10", "grd", "did you mean 'grid'"]),
        (SWEEP + "grid: {optimizer.learning_rate: []}\n", ["tries.yaml", "grid.optimizer.learning_rate", "empty"]),
        (SWEEP + "grid: {optimizer.learning_rat: [0.1]}\n", ["learning_rat", "did you mean 'learning_rate'"]),
        (SWEEP + "grid: {optimizer.learning_rate: [0.1, fast]}\n", ["optimizer.learning_rate", "number", "fast"]),
        (SWEEP + "zip: {training.epochs: [1, 2], training.batch_size: [8]}\n", ["equal length", "epochs has 2", "batch_size has 1"]),
        (SWEEP + "grid: {seed: [1]}\nzip: {seed: [2]}\n", ["grid.seed", "zip.seed", "same value"]),
        (SWEEP + "random: {n: 2, keys: {optimizer.learning_rate: {loguniform: [0, 1]}}}\n", ["loguniform", "0 < low < high"]),
        (SWEEP + "random: {n: 2, keys: {optimizer.learning_rate: {normal: [0, 1]}}}\n", ["uniform, loguniform, int, choice"]),
        (SWEEP.replace("name: tries", "name: a/b"), ["tries.yaml:1", "a/b"]),
        (SWEEP.replace("  n_repeats: 2", "  n_repeats: 2\n  n_repeats: 3"), ["tries.yaml:", "duplicate"]),
        (SWEEP.replace("learning_rate: 0.1", "learning_rate: !!python/object:os.system {}"), ["tag"]),
        ("", ["tries.yaml", "nothing"]),
        ("- 1\n", ["tries.yaml", "list"]),
        (SWEEP.partition("experiment:")[2].replace("\n  ", "\n").strip(), ["tries.yaml", "experiment"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_is_refused_naming_the_place(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "tries.yaml"
    path.write_text(text)
    message = refused(path)
    for part in parts:
        assert part in message, message


def test_aliases_that_expand_into_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tries.yaml"
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    path.write_text(f"a0: &a0 [x]\n{levels}\n{SWEEP}")
    assert "too many" in refused(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.yaml")
    assert str(tmp_path) in refused(tmp_path)


def test_damaged_and_missing_data_files_are_named(tmp_path: Path, sweep: Path) -> None:
    for part, n in (("train", 40), ("test", 20)):
        np.save(tmp_path / f"X_{part}.npy", np.zeros((n, 8), np.uint8))
        np.save(tmp_path / f"y_{part}.npy", np.arange(n) % 10)
    given = (
        "dataset.name=arrays",
        f"dataset.root={tmp_path}",
        "logging.n_subsamples=2",
        "training.batch_size=4",
        "logging.log_frequency=1",
    )
    plan_sweep(sweep, parse_settings(given))
    whole = (tmp_path / "X_train.npy").read_bytes()
    (tmp_path / "X_train.npy").write_bytes(whole[:-10])
    assert "X_train.npy" in refused(sweep, *given)
    (tmp_path / "X_train.npy").unlink()
    assert "X_train.npy" in refused(sweep, *given)


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A real ``clray`` process."""
    return subprocess.run([CLRAY, *arguments], cwd=folder, capture_output=True, text=True, timeout=100)


def test_the_command_exits_with_2_and_one_message(sweep: Path) -> None:
    done = command("sweep", sweep.name, "--set", "optimizer.learning_rat=1", folder=sweep.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("clray: ")
    assert "Traceback" not in done.stderr
    assert "did you mean 'learning_rate'" in done.stderr
    assert not (sweep.parent / "results").exists()


def test_memory_output_needs_this_process(sweep: Path) -> None:
    done = command("sweep", sweep.name, "--output", "memory://x", folder=sweep.parent)
    assert done.returncode == 2
    assert "memory://" in done.stderr
    assert "--local" in done.stderr


def test_an_output_that_cannot_be_written_is_named(sweep: Path) -> None:
    (sweep.parent / "taken").write_text("a file")
    done = command("run", sweep.name, "--output", "taken/below", folder=sweep.parent)
    assert done.returncode == 2
    assert "taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_starts_neither_torch_nor_ray_nor_a_jax_backend(sweep: Path) -> None:
    code = (
        "import sys; sys.argv = ['clray', 'sweep', 'tries.yaml', '--dry-run']\n"
        "from clray.cli import app\n"
        "try: app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "import jax; from jax._src import xla_bridge\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules], xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sweep.parent, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip().endswith("[] False"), done.stdout + done.stderr
    assert "1 trial" in done.stdout


def test_run_imports_neither_ray_nor_pandas(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(tiny(n_repeats=1, sequence={"n_tasks": 1})))
    assert command("data", "prepare", "digits", folder=tmp_path).returncode == 0  # reads it by scikit-learn, which imports pandas
    code = (
        "import sys; sys.argv = ['clray', 'run', 'tiny.json', '-q']\n"
        "from clray.cli import app\n"
        "try: app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('ray', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_finished_sweep_that_is_run_again_imports_neither_ray_nor_pandas(sweep: Path) -> None:
    code = (
        "import sys; sys.argv = ['clray', 'sweep', 'tries.yaml']\n"
        "from clray.cli import app\n"
        "try: app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('ray', 'pandas') if name in sys.modules])"
    )
    assert command("sweep", sweep.name, "--local", folder=sweep.parent).returncode == 0
    done = subprocess.run([sys.executable, "-c", code], cwd=sweep.parent, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    assert "1 trial: 0 to run, 1 finished before" in done.stderr


def test_a_sweep_without_ray_installed_says_what_to_do(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(ResourceError, match="Ray is not installed here: pip install ray, or give --local"):
        execute(plan_sweep(sweep), str(sweep.parent / "out"), quiet, local=False)
    assert not (sweep.parent / "out").exists()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, clray.cli; print([m for m in ('jax', 'torch', 'ray', 'pandas', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_one_experiment_can_be_taken_out_of_a_sweep_file(sweep: Path) -> None:
    plan: Any = plan_run(sweep, {"optimizer.learning_rate": 0.03})
    assert plan.name == "tries"
    assert plan.trials[0].experiment.optimizer.learning_rate == 0.03


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("learning_rat", "learning_rate"),
        ("lr", "learning_rate"),
        ("rate", ""),
        ("accuracy", "acc"),
        ("forget", "forgetting"),
        ("l", None),
    ],
)
def test_the_valid_name_that_may_be_meant_is_named(given: str, near: str) -> None:
    said = did_you_mean(given, ["optimizer.learning_rate", "learning_rate", "acc", "forgetting"])
    assert said == (f"did you mean {near!r}? " if near else "") + "valid: acc, forgetting, learning_rate, optimizer.learning_rate"
    for wrong in ("lr", "optimizer.lr", "training.lr"):
        said = did_you_mean(wrong, ["optimizer.name", "optimizer.learning_rate", "head.learning_rate"])
        right = "head" if wrong == "lr" else "optimizer"
        assert (f"did you mean '{right}.learning_rate'?" in said) == (wrong != "training.lr")
