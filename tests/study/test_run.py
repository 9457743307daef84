"""A whole study: what its files hold, and that it goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from clray.assembly import make_lanes
from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.core.program import TaskArrays
from clray.errors import ConfigError
from clray.memory import estimate
from clray.results import open_results
from clray.store.filesystem import Storage
from clray.store.integrity import check_parts, parts_of, set_damage_aside
from clray.study.batches import union_batches, with_memory
from clray.study.downstream import downstream_spec
from clray.study.gradients import record_bytes
from clray.study.run import StudyPack
from clray.trials.pack import pack_key
from clray.trials.plan import plan_run
from tests.study.tiny import METHODS, arrays_of, prepared, run, tiny_study

FRACTIONS, DRAWS, REPEATS, TASKS = (0.02, 0.3, 1.0), 3, 2, 3
STUDY_FOLDERS = [
    *("memory_000", "memory_001", "gradients_001", "gradients_002"),
    *(f"{kind}_{method}" for kind in ("similarity", "downstream") for method in METHODS),
    "joined",
]


def nonces(trial: Path) -> dict[str, str]:
    """Of the committed folders; what was set aside is none of them."""
    committed = [path for path in trial.glob("*/COMMIT.json") if not path.parent.name.startswith(".")]
    return {path.parent.name: json.loads(path.read_text())["nonce"] for path in committed}


def test_every_folder_is_committed_and_the_trial_is_done(study: tuple[StudyPack, Path]) -> None:
    _, trial = study
    assert sorted(nonces(trial)) == sorted(["initial", "task_000", "task_001", "task_002", *STUDY_FOLDERS])
    assert json.loads((trial / "RESULT.json").read_text())["status"] == "done"


@pytest.mark.parametrize("method", METHODS)
def test_arrays_have_the_axes_of_the_documentation_and_everything_has_cosine_one(study: tuple[StudyPack, Path], method: str) -> None:
    pack, trial = study
    for metric in ("cosine", "mse", "norm_ratio"):
        values = np.load(trial / f"similarity_{method}" / f"similarity.{metric}.npy")
        assert values.shape == (len(FRACTIONS), DRAWS, REPEATS, TASKS - 1, len(pack.names))
        assert np.isfinite(values).all()
        whole = np.load(trial / f"similarity_{method}" / f"whole.{metric}.npy")
        assert whole.shape == values.shape[:-1]
    cosine = np.load(trial / f"similarity_{method}" / "similarity.cosine.npy")
    assert np.abs(cosine[-1] - 1.0).max() < 1e-5
    assert (np.abs(cosine[:2] - 1.0) > 1e-4).any()


def test_the_table_holds_the_arrays(study: tuple[StudyPack, Path]) -> None:
    pack, trial = study
    frame = pq.read_table(trial / "similarity_random" / "similarity.parquet").to_pandas()
    array = np.load(trial / "similarity_random" / "similarity.cosine.npy")
    row = frame[
        (frame.fraction == 0.3) & (frame["sample"] == 2) & (frame.repeat == 1) & (frame.task == 2) & (frame.parameter == "head.bias")
    ]
    assert row["cosine"].tolist() == [array[1, 2, 1, 1, pack.names.index("head.bias")]]
    assert len(frame) == array.size + array[..., 0].size
    assert set(frame.parameter) == {*pack.names, "all"}


def test_similarities_are_those_of_plain_gradients_of_the_stored_sets(study: tuple[StudyPack, Path]) -> None:
    """From the files alone: weights, rows of the sets and images, a backward pass a set."""
    pack, trial = study
    n = pack.sizes.n_train
    model = pack.spec.pure_model

    @jax.jit
    def gradient(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array, factors: jax.Array) -> dict[str, jax.Array]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            logits = model.apply(params, {}, images, train=False, key=None)[0]
            return -jnp.vdot(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels], factors)

        return jax.grad(loss)(params)

    def flat(params: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        factors = np.zeros(len(labels), np.float32)
        factors[chosen] = 1.0 / len(chosen)
        found = gradient(params, images, labels, factors)
        return np.concatenate([np.ravel(found[name]) for name in pack.names])

    for repeat in range(REPEATS):
        params = {name: leaf[repeat] for name, leaf in pack.parameters(2).items()}
        indices = np.concatenate([np.load(trial / f"memory_{past:03d}" / "samples.npy")[repeat] for past in range(2)])
        images = pack.draw.images(indices).astype(np.float32) * np.float32(pack.spec.scale)
        labels = pack.draw.row_labels[:2, :, repeat].ravel()
        everything = flat(params, images, labels, np.arange(2 * n))
        for number, method in enumerate(METHODS):
            whole = np.load(trial / f"similarity_{method}" / "whole.cosine.npy")[:, :, repeat, 1]
            for draw in range(DRAWS):
                sets = [pack.memory_sets(number, past, repeat) for past in range(2)]
                own_draw = draw % len(sets[0])
                for at in range(2):
                    chosen = np.concatenate([past * n + sets[past][own_draw][at] for past in range(2)])
                    own = flat(params, images, labels, chosen)
                    cosine = own @ everything / np.linalg.norm(own) / np.linalg.norm(everything)
                    assert whole[at, draw] == pytest.approx(cosine, abs=1e-4), (method, draw, at)


def test_stored_sets_have_the_sizes_of_their_fractions(study: tuple[StudyPack, Path]) -> None:
    _, trial = study
    for method, sizes in (("random", 2 + 24), ("class_balanced", 2 + 24), ("herding", 2 + 24)):
        draws = 1 if method == "herding" else DRAWS
        assert np.load(trial / "memory_001" / f"rows.{method}.npy").shape == (REPEATS, draws, sizes)


def test_joined_table_has_similarity_beside_accuracy(study: tuple[StudyPack, Path]) -> None:
    _, trial = study
    frame = pq.read_table(trial / "joined" / "joined.parquet").to_pandas()
    accuracy = np.load(trial / "downstream_gss" / "accuracy.npy")
    assert accuracy.shape == (len(FRACTIONS), REPEATS, TASKS, TASKS)
    whole = np.load(trial / "similarity_gss" / "whole.cosine.npy")
    row = frame[(frame.method == "gss") & (frame.fraction == 0.3) & (frame.repeat == 1) & (frame.task == 2) & (frame.parameter == "all")]
    assert row["accuracy_past"].tolist() == pytest.approx([accuracy[1, 1, 2, :2].mean()])
    assert row["accuracy"].tolist() == pytest.approx([accuracy[1, 1, 2].mean()])
    assert row["cosine"].tolist() == pytest.approx([whole[1, 0, 1, 1]])
    assert row["cosine_mean"].tolist() == pytest.approx([whole[1, :, 1, 1].mean()])


def test_memory_of_a_downstream_model_is_what_it_trained_on(study: tuple[StudyPack, Path]) -> None:
    """Training on the stored sets by hand gives the stored accuracy."""
    pack, trial = study

    table = jax.tree.map(lambda leaf: leaf[[1]], make_lanes(pack.study, pack.draw.pool, pack.draw.labels))
    lanes = ChunkedLanes(downstream_spec(pack.spec), table, pack.pools, plan_chunks(1, pack.devices))
    states = lanes.init()
    n = pack.sizes.n_train
    for task in range(TASKS):
        sets = [pack.memory_sets(METHODS.index("kmeans"), past, 1)[0][1] for past in range(task)]
        numbers = with_memory(union_batches(pack.study, pack.sizes, 1, task), task, n, sets)
        everything: TaskArrays = pack.draw.arrays([(1, numbers)], pixels=True)
        states, logs = lanes.train(states, lanes.place(everything, [0]), task, TASKS * pack.sizes.total_batches)
    stored = np.load(trial / "downstream_kmeans" / "accuracy.npy")
    assert np.array_equal(lanes.fetch_logs(logs).end_accuracy[0], stored[1, 1, 2])


def test_some_of_the_sets_downstream_give_the_accuracies_of_all_of_them(study: tuple[StudyPack, Path], tmp_path: Path) -> None:
    _, trial = study
    some = run(prepared(tmp_path, downstream={"methods": ["herding", "random"], "fractions": [0.3, 1]}))
    assert sorted(path.name for path in some.glob("downstream_*")) == ["downstream_herding", "downstream_random"]
    for method in ("herding", "random"):
        whole = np.load(trial / f"downstream_{method}" / "accuracy.npy")
        assert np.array_equal(np.load(some / f"downstream_{method}" / "accuracy.npy"), whole[1:])
    frame = pq.read_table(some / "joined" / "joined.parquet").to_pandas()
    row = frame[
        (frame.method == "herding") & (frame.fraction == 0.3) & (frame.repeat == 0) & (frame.task == 2) & (frame.parameter == "all")
    ]
    assert row["accuracy"].tolist() == pytest.approx([np.load(trial / "downstream_herding" / "accuracy.npy")[1, 0, 2].mean()])
    assert row["cosine"].tolist() == [np.load(trial / "similarity_herding" / "whole.cosine.npy")[1, 0, 0, 1]]


@pytest.mark.parametrize("lost", ["memory_001", "gradients_002", "similarity_gss", "downstream_random"])
def test_what_is_missing_is_made_again_and_nothing_else(study: tuple[StudyPack, Path], tmp_path: Path, lost: str) -> None:
    _, trial = study
    root = tmp_path / "copy"
    shutil.copytree(trial.parents[1], root)
    copy = root / trial.relative_to(trial.parents[1])
    before, arrays = nonces(copy), arrays_of(copy)
    shutil.rmtree(copy / lost)
    (copy / "RESULT.json").unlink()
    run(prepared(root, "002-test"))
    after = nonces(copy)
    assert {name for name in after if after[name] != before[name]} == {lost}
    found = arrays_of(copy)
    assert {name: values.tobytes() for name, values in found.items()} == {name: values.tobytes() for name, values in arrays.items()}


def spoil(file: Path, how: str) -> None:
    """Removes a file, or changes a byte of it."""
    if how == "lost":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["lost", "damaged"])
@pytest.mark.parametrize("file", ["task_000/state.msgpack", "task_001/state.msgpack", "task_002/state.msgpack"])
def test_the_same_command_trains_an_ideal_model_again_whose_state_is_gone(
    study: tuple[StudyPack, Path], tmp_path: Path, file: str, how: str
) -> None:
    _, trial = study
    root = tmp_path / "copy"
    shutil.copytree(trial.parents[1], root)
    copy = root / trial.relative_to(trial.parents[1])
    before, state = nonces(copy), (copy / file).read_bytes()
    spoil(copy / file, how)
    for later in ("gradients_001", "gradients_002"):  # what still needs the networks
        shutil.rmtree(copy / later)
    (copy / "RESULT.json").unlink()
    run(prepared(root, "002-test"))
    after = nonces(copy)
    assert {name for name in after if after[name] != before[name]} == {file.partition("/")[0], "gradients_001", "gradients_002"}
    assert (copy / file).read_bytes() == state
    found, expected = arrays_of(copy), arrays_of(trial)
    assert {name: found[name].tobytes() for name in expected} == {name: values.tobytes() for name, values in expected.items()}


def test_weights_that_were_logged_and_are_gone_are_made_again(tmp_path: Path) -> None:
    memory = {"methods": ["random"], "fractions": [0.1, 1], "num_samples": 2}
    options = {"memory": memory, "downstream": None, "logging": {"log_frequency": 10, "weights": True}}
    trial = run(prepared(tmp_path, **options))
    file = trial / "task_001" / "weights.head.kernel.npy"
    before, weights = nonces(trial), file.read_bytes()
    file.unlink()
    (trial / "RESULT.json").unlink()
    run(prepared(tmp_path, "002-test", **options))
    assert {name for name, nonce in nonces(trial).items() if nonce != before[name]} == {"task_001"}
    assert file.read_bytes() == weights


def test_a_state_that_a_finished_study_lost_is_found_by_verify_and_set_aside(study: tuple[StudyPack, Path], tmp_path: Path) -> None:
    _, trial = study
    root = tmp_path / "copy"
    shutil.copytree(trial.parents[1], root)
    storage = Storage.of(root)
    (root / "trials" / trial.name / "task_001" / "state.msgpack").unlink()
    damaged = [damage for _, damage in check_parts(storage, parts_of(storage, trial.name), lambda n_bytes: None) if damage]
    assert [damage.part for damage in damaged] == ["task_001"]
    assert "state.msgpack is missing" in damaged[0].problems[0]
    set_damage_aside(storage, trial.name, damaged)
    run(prepared(root, "002-test"))
    assert not [damage for _, damage in check_parts(storage, parts_of(storage, trial.name), lambda n_bytes: None) if damage]


def test_a_study_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    with open(file, "w") as out:
        YAML(typ="safe").dump(tiny_study(memory={"methods": ["random", "herding"], "fractions": [0.1, 1], "num_samples": 2}), out)

    def start(output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "clray.cli", "run", str(file), "--output", str(tmp_path / output), "--quiet"]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen([*command[:1], "-c", "from clray.cli import main; main()", *command[3:]], env=env)

    assert start("whole").wait(timeout=240) == 0
    killed = start("killed")
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("killed/tiny/trials/*/memory_000/COMMIT.json")):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (trial,) = tmp_path.glob("killed/tiny/trials/*")
    assert not (trial / "RESULT.json").exists()
    before = nonces(trial)
    assert "memory_000" in before
    assert "joined" not in before
    assert start("killed").wait(timeout=240) == 0
    after = nonces(trial)
    assert {name: after[name] for name in before} == before
    (whole,) = tmp_path.glob("whole/tiny/trials/*")
    assert sorted(after) == sorted(nonces(whole))
    expected = arrays_of(whole)
    found = arrays_of(trial)
    assert {name: values.tobytes() for name, values in found.items()} == {name: values.tobytes() for name, values in expected.items()}


def test_ideal_models_of_an_earlier_study_are_taken(study: tuple[StudyPack, Path], tmp_path: Path) -> None:
    _, trial = study
    memory = {"methods": ["random", "herding"], "fractions": [0.02, 0.3, 1], "num_samples": 3}
    for place in (trial, trial.parents[1]):
        pack = prepared(tmp_path / place.name, memory=memory, ideal_models=str(place))
        assert pack.study.trial_id() != trial.name
        other = run(pack)
        assert "compile" not in pack.seconds.phases  # nothing was trained
        for name in ("similarity_random/similarity.mse.npy", "memory_000/rows.herding.npy", "downstream_random/accuracy.npy"):
            assert np.array_equal(np.load(other / name), np.load(trial / name)), name


def test_a_repeat_alone_equals_its_slice(study: tuple[StudyPack, Path], tmp_path: Path) -> None:
    _, trial = study
    memory = {"methods": ["reservoir", "kmeans", "herding"], "fractions": [0.02, 0.3, 1], "num_samples": 3}
    alone = run(prepared(tmp_path, memory=memory, repeats=[1], downstream=None))
    for method in memory["methods"]:
        name = f"rows.{method}.npy"
        assert np.array_equal(np.load(alone / "memory_001" / name)[0], np.load(trial / "memory_001" / name)[1])
        whole = [np.load(folder / f"similarity_{method}" / "whole.cosine.npy") for folder in (alone, trial)]
        assert np.allclose(whole[0][:, :, 0], whole[1][:, :, 1], atol=1e-5)


def test_ideal_models_do_not_change_what_a_study_is() -> None:
    plain, taken = (prepared_id(**changes) for changes in ({}, {"ideal_models": None}))
    assert plain == taken


def prepared_id(**changes: object) -> str:
    return plan_run(tiny_study(**changes)).trials[0].trial_id


def test_ideal_models_of_another_experiment_are_refused(study: tuple[StudyPack, Path], tmp_path: Path) -> None:
    _, trial = study
    for changes, text in (({"seed": 4}, "seed"), ({"model": {"name": "mlp", "hidden": [13]}}, "model")):
        with pytest.raises(ConfigError, match=f"What differs: .*{text}"):
            plan_run(tiny_study(ideal_models=str(trial.parents[1]), **changes))
    with pytest.raises(ConfigError, match="no trial of a study"):
        plan_run(tiny_study(ideal_models=str(tmp_path)))


def test_results_of_the_ideal_models_are_those_of_any_trial(study: tuple[StudyPack, Path]) -> None:
    _, trial = study
    root = trial.parents[1]
    (root / "sweep.yaml").touch()
    opened = open_results(root).trial(trial.name)
    assert opened.accuracy_matrix().shape == (TASKS, TASKS, REPEATS)


def test_a_study_shares_its_program_with_no_other() -> None:
    seeds = [plan_run(tiny_study(seed=seed)).trials[0] for seed in (1, 2)]
    assert pack_key(seeds[0], None) != pack_key(seeds[1], None)


def test_the_estimate_counts_what_a_study_adds(study: tuple[StudyPack, Path]) -> None:
    pack, trial = study
    with_study = estimate(pack.study, pack.sizes)
    written = sum(path.stat().st_size for path in trial.glob("*/*.npy")) + sum(
        path.stat().st_size for path in trial.glob("*/state.msgpack")
    )
    assert written < with_study.disk < 4 * written
    assert with_study.device > record_bytes(pack.spec, pack.n_past)
