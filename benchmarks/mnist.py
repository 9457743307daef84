"""MNIST with everything logged: does I/O hide behind compute? Needs the data set (``clray data prepare mnist``).

python -m benchmarks.mnist
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data import digits_experiment
from benchmarks.timing import report
from clray.process import available_cpus, configure_jax


def experiment(n_tasks: int = 5) -> Any:
    """MLP 784-400-400-2, batch 128, R = 16, 84 batches a task, a log every 28 with weights and hidden states."""
    from clray.documents import Document, parse_experiment

    data = digits_experiment(n_tasks, 16, 28)
    data |= {"dataset": {"name": "mnist"}, "model": {"name": "mlp", "hidden": [400, 400]}, "training": {"epochs": 1, "batch_size": 128}}
    return parse_experiment(Document("bench", data))


def whole(root: str) -> float:
    """Seconds from the first commit of a task to the last."""
    from clray.trials.job import Job, JobTrial, run_job

    given = experiment()
    times: list[float] = []
    outcomes = run_job(Job(root, (JobTrial(given.trial_id(), given.plain(), 1),)), lambda *_: times.append(time.perf_counter()))
    assert outcomes[0].status == "done", outcomes
    return times[-1] - times[0]


def compute_alone() -> float:
    """Seconds of four tasks on the devices, data in place, nothing fetched."""
    import jax

    from clray.experiment import Member, TrialPack, _Sequence

    class _Folders:
        trial_id, log = "bench", None

    pack = TrialPack([Member(experiment(), _Folders())])  # type: ignore[arg-type]
    sequence = _Sequence(pack, pack.members)
    placed = sequence.lanes.place(sequence._build(0), sequence.row_of_lane)
    states = sequence.lanes.init()
    jax.block_until_ready(sequence.lanes.train(states, placed, 0, 420))
    start = time.perf_counter()
    for task in range(4):
        states, logs = sequence.lanes.train(states, placed, task, 420)
        jax.block_until_ready(logs)
    return time.perf_counter() - start


def io_alone(root: str) -> float:
    """Seconds to read one trial's committed tasks 1 to 4 into memory and to write them again with the same commits."""
    import numpy as np

    from clray.store.filesystem import Storage
    from clray.store.layout import SweepLayout, task_folder
    from clray.store.reader import open_array, read_commit, read_table
    from clray.store.writer import FolderCommit

    storage = Storage.of(root)
    name = next(iter(storage.list_names("trials")))
    source, target = SweepLayout().trial(name), SweepLayout().trial("t_0000000000")
    Path(root, target.base).mkdir()
    loaded = []
    for task in range(1, 5):
        commit = read_commit(storage, source, task_folder(task))
        assert commit is not None
        arrays = {n: np.array(open_array(storage, commit, n)) for n in commit.files if n.endswith(".npy")}
        loaded.append((arrays, {n: read_table(storage, commit, n) for n in commit.files if n.endswith(".parquet")}))
    start = time.perf_counter()
    for task, (arrays, tables) in enumerate(loaded):
        with FolderCommit(storage, target, task_folder(task), "001-io", "0") as folder:
            for n, array in arrays.items():
                folder.write_array(n, array.shape, array.dtype, iter(array))
            for n, table in tables.items():
                folder.write_table(n, table)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    configure_jax(available_cpus())
    rounds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as root:
            rounds.append((whole(root), io_alone(root), compute_alone()))
    wall, files, compute = (statistics.median(each) for each in zip(*rounds, strict=True))
    longer = max(compute, files)
    measured = f"{wall:.2f} s against {compute:.2f} s compute, {files:.2f} s I/O = {wall / longer:.2f} x the longer"
    report("benchmarks.mnist", [("MNIST 784-400-400-2, R=16, everything logged, four tasks", measured, "<= 1.15 x")])


if __name__ == "__main__":
    main()
