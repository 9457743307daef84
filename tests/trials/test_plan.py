"""From files and settings to a checked plan: what is varied, what is set, what is known before anything starts."""

from __future__ import annotations

import contextlib
import gc
import textwrap
from pathlib import Path
from typing import Any

import pytest

from clray.errors import ConfigError
from clray.trials.plan import parse_settings, plan_run, plan_sweep
from tests.trials.sweeps import experiment, sweep, write

OWN_MODELS = """
from clray.errors import ConfigError
from clray.models.mlp import MLP

class Fragile(MLP):
    def build(self, shape, n_outputs, rngs):
        if self.hidden == (8,):
            raise ArithmeticError("eight are too many")
        return super().build(shape, n_outputs, rngs)

class Choosy(MLP):
    def build(self, shape, n_outputs, rngs):
        raise ConfigError("takes no images of any shape")
"""


def test_settings_are_yaml_by_dotted_key() -> None:
    given = ["a.b=1e-5", "c = [1, {d: x}]", "e=", "f=a=b", "a.b=2"]
    assert parse_settings(given) == {"a.b": 2, "c": [1, {"d": "x"}], "e": None, "f": "a=b"}


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_after_a_plan_as_before_it(collects: bool) -> None:
    try:
        for rate, refused in ((0.1, False), (-1.0, True)):
            gc.enable() if collects else gc.disable()
            with pytest.raises(ConfigError) if refused else contextlib.nullcontext():
                plan_sweep(sweep(grid={"optimizer.learning_rate": [rate]}))
            assert gc.isenabled() == collects
    finally:
        gc.enable()


@pytest.mark.parametrize("item", ["seed", "=3", "  =3"])
def test_a_setting_without_a_key_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match=r"--set .*: expected dotted.key=value, such as optimizer.learning_rate=0.03"):
        parse_settings([item])


def test_settings_reach_every_trial_and_the_file_that_is_kept() -> None:
    plan = plan_sweep(sweep(grid={"seed": [1, 2]}), {"training.epochs": 2, "model": {"name": "mlp", "hidden": [4, 4]}})
    assert [(t.experiment.seed, t.experiment.training.epochs, t.experiment.model.hidden) for t in plan.trials] == [  # type: ignore[attr-defined]
        (1, 2, (4, 4)),
        (2, 2, (4, 4)),
    ]
    assert plan.document["experiment"]["training"] == {"epochs": 2, "batch_size": 8}


@pytest.mark.parametrize("key", ["seed", "model.hidden", "model.hidden.0", "training.epochs"])
def test_a_key_that_the_sweep_varies_cannot_be_set(key: str) -> None:
    data = sweep(grid={"seed": [1, 2]}, zip={"model.hidden": [[4]]}, cases=[{"training.epochs": 1}])
    with pytest.raises(ConfigError, match=rf"--set {key}: the sweep varies .* itself"):
        plan_sweep(data, {key: 1})


def test_a_table_around_a_varied_key_can_be_set() -> None:
    plan = plan_sweep(sweep(grid={"optimizer.learning_rate": [0.5]}), {"optimizer": {"name": "adam"}})
    assert plan.trials[0].experiment.optimizer.canonical() == {"name": "adam", "learning_rate": 0.5}


def test_run_takes_the_base_experiment_of_a_sweep_and_the_name_of_the_file(tmp_path: Path) -> None:
    of_a_sweep = plan_run(write(tmp_path / "s.yaml", sweep("tries", grid={"seed": [1, 2]})), {"seed": 7})
    assert (of_a_sweep.name, len(of_a_sweep.trials), of_a_sweep.trials[0].experiment.seed) == ("tries", 1, 7)
    without_name = plan_run(write(tmp_path / "some-file.yaml", experiment()))
    assert without_name.name == "some-file"


def test_a_sweep_of_one_point_is_the_experiment_itself() -> None:
    (alone,), (swept,) = plan_run(experiment(name="x", seed=5)).trials, plan_sweep(sweep(cases=[{"seed": 5}])).trials
    assert alone.trial_id == swept.trial_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": {"n_tasks": 6}}, r"sequence.n_tasks is 6: disjoint tasks of 2 classes out of 10 allow at most 5"),
        (
            {"sequence": {"n_tasks": 2, "policy": "permuted"}},
            r"sequence.classes_per_task is 2, but policy permuted has all 10 classes .* give 10",
        ),
        (
            {"sequence": {"n_tasks": 40000, "policy": "reuse", "scenario": "task"}},
            r"sequence.n_tasks: 40000 tasks of 2 classes take 80000 outputs in scenario task, more than the 65536 .* at most 32768 tasks",
        ),
        ({"sequence": {"n_tasks": 2, "classes_per_task": 11}}, r"sequence.classes_per_task is 11, but the data set has 10 classes"),
        ({"sequence": {"n_tasks": 1, "policy": "fixed", "classes": [[3, 10]]}}, r"sequence.classes lists class 10, .* classes 0 to 9"),
        ({"training": {"epochs": 1, "batch_size": 41}}, r"training.batch_size: 41 is larger than the 40 training samples"),
        ({"sequence": {"n_tasks": 10**9, "policy": "reuse"}}, r"sequence.n_tasks: 1000000000 is more than the 100000 tasks"),
        ({"training": {"steps": 2**31, "batch_size": 8}}, r"training: 2 tasks of 2147483648 batches are more than"),
        ({"training": {"epochs": 2**50, "batch_size": 8}}, r"training: 2 tasks of \d+ batches are more than the 2147483647 steps"),
        ({"logging": {"log_frequency": 6, "n_subsamples": 4}}, r"logging.log_frequency: 6 is larger than the 5 batches of a task"),
        ({"logging": {"log_frequency": 5, "n_subsamples": 5}}, r"logging.n_subsamples: 5 must be a multiple of the 2 classes"),
        ({"logging": {"log_frequency": 5, "n_subsamples": 72}}, r"logging.n_subsamples: 72 must be .* at most 70"),
        ({"model": {"name": "cnn"}, "dataset": {"name": "digits", "resize": 4}}, r"model.* at least 8 x 8 pixels, got shape \(4, 4, 1\)"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_does_not_fit_the_data_is_known_from_the_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(experiment(name="x", **changes))


def test_named_sets_are_known_without_their_files() -> None:
    """Sizes come from constants: nothing is downloaded, decoded or looked for."""
    data = experiment(name="x", dataset={"name": "mnist", "root": "/not/there"}, sequence={"n_tasks": 5})
    plan = plan_run(data)
    sizes = plan.sizes[plan.trials[0].trial_id]
    assert sizes is not None
    assert (sizes.n_train, sizes.n_classes, sizes.input_shape, sizes.dtype) == (2 * 5421, 10, (784,), "uint8")
    with pytest.raises(ConfigError, match="allow at most 5"):
        plan_run(data | {"sequence": {"n_tasks": 6}})


def test_what_does_not_fit_says_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        textwrap.dedent("""\
        name: s
        experiment:
          sequence: {n_tasks: 2}
          dataset: {name: digits}
          model: {name: mlp}
          optimizer: {name: sgd}
          training: {epochs: 1, batch_size: 400}
          logging: {log_frequency: 1}
        grid:
          seed: [1, 2]
        """)
    )
    with pytest.raises(ConfigError) as caught:
        plan_sweep(path)
    assert str(caught.value).startswith(f"{path}:7: training.batch_size: 400 is larger than")
    assert str(caught.value).endswith("(at seed=1)")
    text = path.read_text().replace("batch_size: 400", "batch_size: 8").replace("seed: [1, 2]", "sequence.n_tasks: [5, 6]")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        plan_sweep(path)
    assert str(caught.value).startswith(f"{path}:10: grid.sequence.n_tasks: sequence.n_tasks is 6: disjoint")
    assert str(caught.value).endswith("(at sequence.n_tasks=6)")
    path.write_text(text.replace("[5, 6]", "[5]"))
    with pytest.raises(ConfigError, match=r"^--set training.batch_size: 999 is larger than"):
        plan_sweep(path, {"training.batch_size": 999})


def test_models_of_ones_own_are_tried_each_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan_own_models.py").write_text(OWN_MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    models = [{"name": "plan_own_models:Fragile", "hidden": [width]} for width in (4, 8)]
    with pytest.raises(ConfigError, match=r"model.name: 'plan_own_models:Fragile' cannot be built .* eight are too many"):
        plan_sweep(sweep(grid={"model": models}))
    assert len(plan_sweep(sweep(grid={"model": models[:1]})).trials) == 1
    with pytest.raises(ConfigError, match="takes no images of any shape"):
        plan_run(experiment(name="x", model={"name": "plan_own_models:Choosy"}))
