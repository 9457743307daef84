"""The baselines that come with a trial: experts of every task and one network on the mixture of all, and the untrained one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clray.core.task import train_task
from clray.types import Purpose
from tests.core.plain_loop import TOLERANCE, Mlp, Plain, assert_accuracy_equals, cross_entropy, digits, torch_sgd
from tests.core.tiny import OneTrial, arrays_of, assert_same_bits, prepare, table, tiny


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[OneTrial, int]:
    """The tiny experiment with both baselines, and how many training programs they needed."""
    (trial,) = prepare(tiny(baselines=["expert", "joint"]), folder=tmp_path_factory.mktemp("baselines"))
    prepare(tiny(), folder=tmp_path_factory.mktemp("again"))[0].run()  # that of the trial itself, should it have been let go since
    before = train_task._cache_size()
    trial.run()
    return trial, train_task._cache_size() - before


@pytest.fixture(scope="module")
def trial(counted: tuple[OneTrial, int]) -> OneTrial:
    """The tiny experiment with both baselines."""
    return counted[0]


@pytest.fixture(scope="module")
def plain(trial: OneTrial) -> Plain:
    """The same by the definition."""
    return Plain(digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), trial)


def test_each_baseline_is_one_program_for_all_tasks_and_segments(counted: tuple[OneTrial, int]) -> None:
    assert counted[1] == 2


def test_baselines_change_nothing_else(trial: OneTrial, base_trial: OneTrial) -> None:
    found = {name: array for name, array in arrays_of(trial.folder).items() if "expert" not in name and "joint" not in name}
    assert_same_bits(found, arrays_of(base_trial.folder))


def test_tasks_and_the_joint_stream_gathered_on_the_device_are_the_same(trial: OneTrial, finished: Callable[..., OneTrial]) -> None:
    gathered = finished(tiny(baselines=["expert", "joint"]), gather=True)
    assert gathered.pack.source_on is not None
    assert trial.pack.source_on is None
    assert_same_bits(arrays_of(gathered.folder), arrays_of(trial.folder))


def test_baselines_of_packed_trials_equal_those_alone(trial: OneTrial, finished: Callable[..., OneTrial], tmp_path: Path) -> None:
    other = tiny(baselines=["expert", "joint"], seed=4)
    alone = [arrays_of(one.folder) for one in (trial, finished(other))]
    packed = prepare(tiny(baselines=["expert", "joint"]), other, folder=tmp_path / "packed", width=4)
    assert not any(isinstance(outcome, Exception) for outcome in packed[0].pack.run())
    for one, expected in zip(packed, alone, strict=True):
        assert_same_bits(arrays_of(one.folder), expected)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_expert_is_a_fresh_network_on_the_data_and_order_of_its_task(trial: OneTrial, plain: Plain, task: int) -> None:
    fresh = plain.initial(task, Purpose.EXPERT)
    logs = [plain.task(params, None, task, repeat, 0, tasks=(task,))[2] for repeat, params in enumerate(fresh)]
    found = table(trial.folder / f"task_{task:03d}", "expert.parquet")
    assert found["step"].tolist() == [4] * 4 + [8] * 4 + [12] * 4 + [15] * 4  # the last rows: after the last batch
    assert found["repeat"].tolist() == [0, 1, 2, 3] * 4
    assert set(found["eval_task"].tolist()) == {task}
    expected = {name: np.stack([one[name] for one in logs], axis=1)[..., 0] for name in ("accuracy", "loss")}
    ends = {name: np.stack([one[f"end_{name}"] for one in logs]).T for name in ("accuracy", "loss")}
    assert_accuracy_equals(found["accuracy"], np.concatenate([expected["accuracy"], ends["accuracy"]]))
    loss = np.concatenate([expected["loss"], ends["loss"]]).ravel()
    np.testing.assert_allclose(found["loss"], loss, rtol=TOLERANCE, atol=TOLERANCE)


def test_experts_of_different_tasks_and_the_learner_start_from_different_weights(plain: Plain) -> None:
    starts = [plain.initial()] + [plain.initial(task, Purpose.EXPERT) for task in range(3)] + [plain.initial(0, Purpose.JOINT)]
    kernels = [tuple(params["head.kernel"].ravel()) for fresh in starts for params in fresh]
    assert len(set(kernels)) == len(kernels) == 5 * 4


def mixture(plain: Plain, repeat: int) -> Counter[tuple[bytes, int]]:
    """How often each (image, label) occurs in all tasks of a repeat."""
    found: Counter[tuple[bytes, int]] = Counter()
    for task in range(3):
        images, labels = plain.data(task, repeat)
        found.update((image.astype(np.float32).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    return found


def test_joint_stream_visits_every_sample_of_every_task_once_an_epoch(trial: OneTrial, plain: Plain) -> None:
    epoch = 3 * 84
    for number in range(2):
        images, labels = trial.draw.loader.joint_segment(number, epoch)
        for repeat in range(4):
            visited = Counter((image.tobytes(), int(label)) for image, label in zip(images[:, repeat], labels[:, repeat], strict=True))
            assert visited == mixture(plain, repeat)
        first_quarter = {task for task in range(3) if set(plain.classes[task, 0]) & source_classes(images[:64, 0])}
        assert first_quarter == {0, 1, 2}, "tasks come one after the other instead of mixed"


def source_classes(images: np.ndarray) -> set[int]:
    """The digits that are there."""
    known = {image.astype(np.float32).tobytes(): k for k, images in enumerate(digits().train) for image in images}
    return {known[image.tobytes()] for image in images}


def test_joint_is_one_fresh_network_trained_on_the_stream_in_turn(trial: OneTrial, plain: Plain) -> None:
    folder, batch_size, n_batches = trial.folder / "joint", 16, 3 * 15
    found: dict[str, list[Any]] = {"accuracy": [], "loss": [], "hidden": []}
    final, losses, hits = [], np.empty((n_batches, 4)), np.empty((n_batches, 4))
    batches = [trial.draw.loader.joint_segment(number, batch_size) for number in range(n_batches)]
    for repeat, params in enumerate(plain.initial(0, Purpose.JOINT)):
        state = None
        for number, (images, labels) in enumerate(batches):
            x, y = images[:, repeat].astype(np.float64), labels[:, repeat]
            logits = plain.model(params, x)[0]
            losses[number, repeat], hits[number, repeat] = cross_entropy(logits, y), (logits.argmax(axis=1) == y).mean()
            params, state = plain.update(params, plain.model.gradient(params, x, y), state, number)
        final.append(params)
        for name, value in plain.evaluate(params, repeat).items():
            found[name].append(value)
    for name in ("metrics.parquet", "end.parquet"):
        assert_accuracy_equals(table(folder, name)["accuracy"], np.stack(found["accuracy"]))
        np.testing.assert_allclose(table(folder, name)["loss"], np.concatenate(found["loss"]), rtol=TOLERANCE, atol=TOLERANCE)
    assert set(table(folder, "metrics.parquet")["step"]) == {n_batches}
    train = table(folder, "train.parquet")
    windows = n_batches // (len(train["step"]) // 4)
    assert train["step"].tolist() == np.repeat(np.arange(windows, n_batches + 1, windows), 4).tolist()
    np.testing.assert_allclose(train["loss"], losses.reshape(-1, windows, 4).mean(axis=1).ravel(), rtol=TOLERANCE, atol=TOLERANCE)
    assert_accuracy_equals(train["accuracy"], hits.reshape(-1, windows, 4).mean(axis=1))
    np.testing.assert_allclose(np.load(folder / "representations.npy")[0], np.stack(found["hidden"]), rtol=TOLERANCE, atol=TOLERANCE)
    for name in final[0]:
        weights = np.load(folder / f"weights.{name}.npy")
        np.testing.assert_allclose(weights[0], np.stack([params[name] for params in final]), rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def result_of(folder: Path) -> dict[str, Any]:
    """RESULT.json."""
    return json.loads((folder / "RESULT.json").read_text())


def test_on_digits_joint_is_above_finetune_and_experts_above_what_is_left_of_their_tasks(trial: OneTrial) -> None:
    metrics = {name: value["mean"] for name, value in result_of(trial.folder)["metrics"].items()}
    assert metrics["joint_acc"] > metrics["acc"] + 0.05
    assert metrics["expert_acc"] > metrics["acc"] + 0.05


def test_baseline_accuracies_in_the_result_are_those_after_the_last_batch(trial: OneTrial) -> None:
    metrics = result_of(trial.folder)["metrics"]
    experts = [table(trial.folder / f"task_{task:03d}", "expert.parquet")["accuracy"][-4:] for task in range(3)]
    np.testing.assert_allclose(metrics["expert_acc"]["repeats"], np.mean(experts, axis=0), rtol=1e-6)
    joint = table(trial.folder / "joint", "end.parquet")["accuracy"].reshape(4, 3).mean(axis=1)
    np.testing.assert_allclose(metrics["joint_acc"]["repeats"], joint, rtol=1e-6)
