"""Gradients of memory sets on Split MNIST against the plain way, a backward pass for every set. Needs MNIST.

python -m benchmarks.study

7 methods, 10 fractions, 10 draws, 3 ideal models, 4 tasks with a past: 8,400 sets. Of the plain way one draw of one model is
measured and taken times 30: every draw and model has the same numbers of rows. It gets the same weights and the same sets, and
its results are compared with clray's. Compilation counts as clray's time, choosing the sets as nobody's.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import peer, report
from clray.process import available_cpus, configure_jax

METHODS = ("random", "class_balanced", "reservoir", "kmeans", "gss", "lambda", "herding")
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DETERMINISTIC = ("lambda", "herding")


def study(models: int, draws: int, dataset: str, hidden: list[int]) -> Any:
    """The study that is measured."""
    from clray.documents import Document, parse_experiment

    pairs = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    data = {
        "study": "gradient_similarity",
        "n_repeats": models,
        "sequence": {"n_tasks": 5, "policy": "fixed", "classes": pairs},
        "dataset": {"name": dataset},
        "model": {"name": "mlp", "hidden": hidden},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "training": {"epochs": 1, "batch_size": 128},
        "memory": {"methods": list(METHODS), "fractions": list(FRACTIONS), "num_samples": draws},
        "logging": {"log_frequency": 20 if dataset == "mnist" else 2},
        "downstream": None,
    }
    return parse_experiment(Document("bench", data))


def ours(root: str, given: Any) -> tuple[Any, dict[str, float]]:
    """Runs the study; the pack, and seconds by phase."""
    import secrets

    from clray.artifacts import TrialFolders
    from clray.experiment import Member
    from clray.store.filesystem import Storage
    from clray.study.run import StudyPack

    pack = StudyPack([Member(given, TrialFolders(Storage.of(root), given.trial_id(), f"001-{secrets.token_hex(3)}"))])
    (outcome,) = pack.run()
    if isinstance(outcome, Exception):
        raise outcome
    return pack, dict(outcome["phases"])


def write_for_peer(pack: Any, path: Path) -> None:
    """The data, weights and first draw of the sets of the first model."""
    sizes, names = pack.sizes, pack.names
    meta = {
        "n_train": sizes.n_train,
        "n_tasks": sizes.n_tasks,
        "names": names,
        "methods": METHODS,
        "fractions": FRACTIONS,
        "scale": pack.spec.scale,
    }
    arrays = {
        "images": pack.draw.images(pack.draw.indices[:-1, :, 0]).reshape(sizes.n_tasks - 1, sizes.n_train, -1),
        "labels": pack.draw.row_labels[:-1, :, 0],
    }
    for task in range(1, sizes.n_tasks):
        arrays |= {f"weights.{task}.{name}": leaf[0] for name, leaf in pack.parameters(task).items()}
    for number, method in enumerate(METHODS):
        for past in range(sizes.n_tasks - 1):
            sets = pack.memory_sets(number, past, 0)[0]
            arrays |= {f"rows.{method}.{fraction}.{past}": rows for fraction, rows in zip(FRACTIONS, sets, strict=True)}
    np.savez(path, meta=json.dumps(meta), **arrays)  # type: ignore[arg-type]


def largest_difference(pack: Any, root: str, found: Any) -> float:
    """Between the cosines of both."""
    folder = Path(root, "trials", pack.study.trial_id())
    worst = 0.0
    for method in METHODS:
        own = np.load(folder / f"similarity_{method}" / "similarity.cosine.npy")
        for at, fraction in enumerate(FRACTIONS):
            for task in range(1, pack.sizes.n_tasks):
                worst = max(worst, float(np.abs(own[at, 0, 0, task - 1] - found[f"{method} {fraction} {task}"][:, 0]).max()))
    return worst


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    options = parser.parse_args()
    configure_jax(available_cpus())
    given = study(options.models, options.draws, options.dataset, options.hidden)
    with tempfile.TemporaryDirectory() as root:
        pack, phases = ours(root, given)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        write_for_peer(pack, Path(root, "peer.npz"))
        seconds = peer("benchmarks.peers.study_pytorch", str(Path(root, "peer.npz")), str(Path(root, "found.npz")))
        difference = largest_difference(pack, root, np.load(Path(root, "found.npz")))
    everything = sum(value for key, value in seconds.items() if key.startswith("everything"))
    sets = {key: value for key, value in seconds.items() if not key.startswith("everything")}
    plain = options.models * (everything + options.draws * sum(sets.values()))
    once = {key for key in sets if key.startswith(DETERMINISTIC)}
    all_of_it = {key for key in sets if f" {FRACTIONS[-1]} " in key}
    frugal = options.models * (everything + options.draws * sum(v for k, v in sets.items() if k not in once | all_of_it))
    frugal += options.models * sum(v for k, v in sets.items() if k in once - all_of_it)
    took = phases["gradients"]
    n_sets = options.models * options.draws * len(sets)
    report(
        "benchmarks.study",
        [
            (f"{n_sets} sets: PyTorch, a backward pass each", f"{plain:.0f} s against {took:.1f} s = {plain / took:.1f} x", ">= 5 x"),
            ("the same, where PyTorch does equal sets once", f"{frugal:.0f} s against {took:.1f} s = {frugal / took:.1f} x", ""),
            ("largest difference of a cosine", f"{difference:.1e}", "<= 1e-3"),
            ("peak memory of the study", f"{peak:.2f} GiB", "<= 4 GiB"),
            ("choosing the sets", f"{phases['select']:.1f} s", ""),
        ],
    )


if __name__ == "__main__":
    main()
