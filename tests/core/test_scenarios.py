"""Whole trials in scenarios task and class, and on images that differ by task, against training written from the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clray.config import Experiment
from clray.data.transforms import rotation
from clray.errors import OutputError
from clray.results import TrialResults
from clray.transform import transformed
from clray.types import Purpose
from tests.core.plain_loop import TOLERANCE, Mlp, Params, Plain, assert_accuracy_equals, assert_trial_equals, digits, torch_sgd
from tests.core.test_compile_once import compilations
from tests.core.tiny import arrays_of, assert_same_bits, prepare, table, tiny

SEEN = {"steps": 5, "batch_size": 8, "active_classes": "seen"}
ALL = {"steps": 5, "batch_size": 8}
TWO, TEN = {"n_tasks": 3}, {"n_tasks": 2, "classes_per_task": 10}
CASES: dict[str, dict[str, Any]] = {
    "task, classes that recur": {
        "sequence": TWO | {"scenario": "task", "policy": "reuse"},
        "training": ALL,
        "baselines": ["expert", "joint"],
    },
    "task, permuted but for the first": {"sequence": TEN | {"scenario": "task", "policy": "permuted", "keep_first": True}, "training": ALL},
    "task, some tasks evaluated": {"sequence": TWO | {"scenario": "task"}, "training": ALL, "eval_tasks": [2, 0]},
    "class, all active": {"sequence": TWO | {"scenario": "class"}, "training": ALL},
    "class, those seen active, classes that recur": {
        "sequence": TWO | {"scenario": "class", "policy": "fixed", "classes": [[7, 1], [1, 4], [9, 7]]},
        "training": SEEN,
        "baselines": ["expert", "joint"],
    },
    "class, rotated": {"sequence": TEN | {"scenario": "class", "policy": "rotated"}, "training": SEEN},
    "domain, rotated by given angles": {"sequence": TEN | {"policy": "rotated", "angles": [-30, 90]}, "training": ALL},
    "domain, permuted": {"sequence": TEN | {"policy": "permuted"}, "training": ALL, "baselines": ["expert", "joint"]},
}


class Masked(Mlp):
    """A network that chooses among some of its outputs."""

    mask: np.ndarray

    def forward(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        logits, hidden, inputs = super().forward(params, x)
        return np.where(self.mask, logits, -np.inf), hidden, inputs


class InScenario(Plain):
    """Outputs, choices and images of a task as the scenario defines them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sequence = self.experiment.sequence
        files = {name: self.trial.folder / f"{name}.npy" for name in ("permutations", "angles")}
        self.files = {name: np.load(path) for name, path in files.items() if path.exists()}

    def meaning(self, task: int, repeat: int) -> list[Any]:
        """What each output of a task stands for: outputs that mean the same are the same."""
        classes = self.classes[task, repeat].tolist()
        if self.sequence.scenario == "domain":
            return list(range(len(classes)))
        return [(task, k) for k in classes] if self.sequence.scenario == "task" or self.files else classes

    def numbered(self, repeat: int) -> list[Any]:
        """The meanings of all outputs, in the order in which they first come."""
        return list(dict.fromkeys(one for task in range(self.sizes.n_tasks) for one in self.meaning(task, repeat)))

    def choices(self, task: int, repeat: int, asked: int) -> np.ndarray:
        """(O,) the outputs that samples of task ``asked`` are classified among while ``task`` is trained."""
        allowed = self.numbered(repeat)
        if self.sequence.scenario == "task":
            allowed = self.meaning(asked, repeat)
        elif self.experiment.training.active_classes == "seen":
            allowed = [one for earlier in range(task + 1) for one in self.meaning(earlier, repeat)]
        return np.array([one in allowed for one in self.numbered(repeat)])

    def view(self, images: np.ndarray, task: int, repeat: int) -> np.ndarray:
        """The images as they are in a task."""
        if "permutations" in self.files:
            return images[:, self.files["permutations"][task, repeat]]
        if "angles" in self.files:
            return transformed(images, rotation(float(self.files["angles"][task, repeat]), (8, 8, 1)))
        return images

    def labels(self, task: int, repeat: int, labels: np.ndarray) -> np.ndarray:
        meanings = self.meaning(task, repeat)
        return np.array([self.numbered(repeat).index(one) for one in meanings])[labels]

    def data(self, task: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = super().data(task, repeat)
        return self.view(images, task, repeat), self.labels(task, repeat, labels)

    def evaluate_in(self, params: Params, task: int, repeat: int, asked: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Accuracy and loss (E,), hidden (E, S, H) while ``task`` is trained, task by task on its own test images."""
        found: dict[str, list[Any]] = {"accuracy": [], "loss": [], "hidden": []}
        n_tested = min(len(images) for images in self.source.test)
        for other in asked:
            images = np.concatenate([self.source.test[k][:n_tested] for k in self.classes[other, repeat]])
            labels = self.labels(other, repeat, np.repeat(np.arange(self.classes.shape[2]), n_tested))
            self.model.mask = self.choices(task, repeat, other)
            logits, hidden = self.model(params, self.view(images, other, repeat))
            own = logits[np.arange(len(labels)), labels]
            losses = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1) - own
            found["accuracy"].append((logits.argmax(axis=1) == labels).mean())
            found["loss"].append(losses.mean() if np.isfinite(own).all() else np.nan)
            found["hidden"].append(hidden.reshape(-1, n_tested, hidden.shape[1])[:, : self.sizes.n_kept].reshape(-1, hidden.shape[1]))
        self.model.mask = self.choices(task, repeat, task)
        return {name: np.stack(values) for name, values in found.items()}

    def evaluate(self, params: Params, repeat: int, tasks: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
        return self.evaluate_in(params, self.now, repeat, tasks or self.experiment.eval_task_numbers)

    def task(self, params: Params, state: Any, task: int, repeat: int, *more: Any) -> Any:
        self.now, self.model.mask = task, self.choices(task, repeat, task)
        return super().task(params, state, task, repeat, *more)


def experiment_of(name: str, **changes: Any) -> dict[str, Any]:
    """The experiment of a case."""
    case = dict(CASES[name])
    n_kept = 2 * case["sequence"].get("classes_per_task", 2)
    logging = {"log_frequency": 2, "n_subsamples": n_kept, "eval_tasks": case.pop("eval_tasks", "all")}
    small = {"n_repeats": 2, "model": {"name": "mlp", "hidden": [7]}, "dataset": {"name": "digits", "train_per_class": 9}}
    return tiny(**small, **case, logging=logging) | changes


class Ran:
    """One case, finished."""

    def __init__(self, name: str, folder: Path):
        (self.trial,) = prepare(experiment_of(name), folder=folder)
        with compilations() as self.compiled:
            self.trial.run()

    @property
    def experiment(self) -> Experiment:
        return self.trial.experiment

    @property
    def plain(self) -> InScenario:
        return InScenario(digits(), Masked(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), self.trial)

    @property
    def results(self) -> TrialResults:
        return TrialResults(self.trial.member.folders.storage, self.trial.member.folders.trial_id)


@pytest.fixture(scope="module", params=CASES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(request.param, tmp_path_factory.mktemp("scenario"))


with_baselines = pytest.mark.parametrize("ran", [name for name, case in CASES.items() if "baselines" in case], indirect=True)


def test_every_file_of_every_task_equals_the_slow_loop(ran: Ran) -> None:
    """Momentum and weight decay move the columns of other heads here as there: a zero gradient is a gradient."""
    assert_trial_equals(ran.plain)


def test_training_is_compiled_once_for_all_tasks(ran: Ran) -> None:
    baselines = len(ran.experiment.baselines)
    assert ran.compiled["jit(train_task)"] == 1 + baselines
    assert ran.compiled["jit(evaluate_lanes)"] == 1


def test_initial_networks_are_evaluated_as_in_the_first_task(ran: Ran) -> None:
    assert_evaluated_from_weights(ran, "initial")


@with_baselines
def test_the_joint_network_is_evaluated_as_in_the_last_task(ran: Ran) -> None:
    assert_evaluated_from_weights(ran, "joint")


def assert_evaluated_from_weights(ran: Ran, folder: str) -> None:
    path, plain = ran.trial.folder / folder, ran.plain
    task = 0 if folder == "initial" else ran.experiment.sequence.n_tasks - 1
    weights = {file.name[len("weights.") : -len(".npy")]: np.load(file)[0].astype(np.float64) for file in path.glob("weights.*.npy")}
    asked, metrics = ran.experiment.eval_task_numbers, table(path, "metrics.parquet")
    found = [plain.evaluate_in({name: leaf[r] for name, leaf in weights.items()}, task, r, asked) for r in range(2)]
    assert_accuracy_equals(metrics["accuracy"], np.stack([one["accuracy"] for one in found]))
    np.testing.assert_allclose(metrics["loss"], np.concatenate([one["loss"] for one in found]), rtol=TOLERANCE)


@with_baselines
def test_an_expert_learns_its_task_with_the_head_of_the_task(ran: Ran) -> None:
    plain = ran.plain
    for task in range(ran.experiment.sequence.n_tasks):
        found = table(ran.trial.folder / f"task_{task:03d}", "expert.parquet")
        fresh = plain.initial(task, Purpose.EXPERT)
        for repeat in range(2):
            *_, logs = plain.task(fresh[repeat], None, task, repeat, 0, (task,))
            for name in ("accuracy", "loss"):
                expected = [*logs[name][:, 0], logs[f"end_{name}"][0]]
                np.testing.assert_allclose(found[name][repeat::2], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_tables_say_over_which_outputs_the_argmax_runs(ran: Ran) -> None:
    plain = ran.plain
    for task in range(ran.experiment.sequence.n_tasks):
        for name in ("metrics.parquet", "end.parquet"):
            facts = pq.read_schema(ran.trial.folder / f"task_{task:03d}" / name).metadata
            assert int(facts[b"n_choices"]) == plain.choices(task, 0, task).sum()
            assert facts[b"argmax_over"]


def test_model_answers_with_the_head_and_the_images_of_the_task(ran: Ran) -> None:
    plain, last = ran.plain, ran.experiment.sequence.n_tasks - 1
    images = np.concatenate([rows[:2] for rows in digits().test])
    for asked in (0, last):
        logits, hidden = ran.results.model(last, eval_task=asked)(images)
        for repeat in range(2):
            params = {name: np.asarray(leaf[-1, repeat], np.float64) for name, leaf in ran.results.weights(last).items()}
            plain.model.mask = plain.choices(last, repeat, asked)
            expected, kept = plain.model(params, plain.view(images, asked, repeat))
            if ran.experiment.sequence.scenario == "task":
                expected = expected[:, plain.model.mask]
            np.testing.assert_allclose(logits[repeat], expected, atol=1e-5)
            np.testing.assert_allclose(hidden[repeat], kept, atol=1e-5)
            alone = ran.results.model(last, repeat, eval_task=asked)(images)
            np.testing.assert_allclose(alone[0], logits[repeat], atol=1e-6)
    if ran.experiment.sequence.scenario == "task" or ran.experiment.sequence.transforms:
        with pytest.raises(OutputError, match="give eval_task, 0 to"):
            ran.results.model("initial")
    with pytest.raises(OutputError, match="there is no task 9"):
        ran.results.model(last, eval_task=9)


def test_trials_of_other_seeds_in_one_program_keep_their_own_transforms(tmp_path: Path) -> None:
    seeds = [experiment_of("class, rotated", seed=seed) for seed in (3, 4)]
    together = prepare(*seeds, folder=tmp_path / "together", width=2)
    together[0].pack.run()
    for experiment, packed in zip(seeds, together, strict=True):
        (alone,) = prepare(experiment, folder=tmp_path / "alone", width=2)
        alone.run()
        assert_same_bits(arrays_of(alone.folder), arrays_of(packed.folder))
    assert (np.load(together[0].folder / "angles.npy") != np.load(together[1].folder / "angles.npy")).all()


def test_columns_of_a_head_move_only_with_their_task_where_the_optimizer_keeps_nothing(tmp_path: Path) -> None:
    experiment = tiny(
        n_repeats=2,
        sequence={"n_tasks": 3, "scenario": "task"},
        model={"name": "mlp", "hidden": [7]},
        optimizer={"name": "sgd", "learning_rate": 0.05},
        dataset={"name": "digits", "train_per_class": 9},
        training=ALL,
        logging={"log_frequency": 5, "n_subsamples": 6},
    )
    (trial,) = prepare(experiment, folder=tmp_path)
    trial.run()
    before = np.load(trial.folder / "initial" / "weights.head.kernel.npy")[-1]
    for task in range(3):
        after = np.load(trial.folder / f"task_{task:03d}" / "weights.head.kernel.npy")[-1]
        moved = (after != before).any(axis=(0, 1))
        np.testing.assert_array_equal(moved, np.arange(6) // 2 == task)
        before = after
