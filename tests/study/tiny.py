"""A study that runs in seconds, and its files as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from clray.artifacts import TrialFolders
from clray.experiment import Member
from clray.store.filesystem import Storage
from clray.study.config import Study
from clray.study.run import StudyPack
from clray.trials.plan import plan_run

METHODS = ["random", "class_balanced", "reservoir", "kmeans", "gss", "lambda", "herding"]


def tiny_study(**changes: Any) -> dict[str, Any]:
    """Three tasks of digits, two ideal models."""
    return {
        "name": "tiny",
        "study": "gradient_similarity",
        "seed": 3,
        "n_repeats": 2,
        "sequence": {"n_tasks": 3, "classes_per_task": 2},
        "dataset": {"name": "digits", "train_per_class": 40, "test_per_class": 10},
        "model": {"name": "mlp", "hidden": [12]},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "training": {"epochs": 2, "batch_size": 16},
        "logging": {"log_frequency": 10},
        "memory": {"methods": METHODS, "fractions": [0.02, 0.3, 1], "num_samples": 3},
        **changes,
    }


def prepared(folder: Path, attempt: str = "001-test", **changes: Any) -> StudyPack:
    """The tiny study, ready to run into ``folder`` on one device."""
    trial = plan_run(tiny_study(**changes)).trials[0]
    assert isinstance(trial.experiment, Study)
    folders = TrialFolders(Storage.of(folder), trial.trial_id, attempt)
    return StudyPack([Member(trial.experiment, folders)], jax.local_devices()[:1])


def run(pack: StudyPack) -> Path:
    """Runs a study; its trial's folder."""
    (outcome,) = pack.run()
    if isinstance(outcome, Exception):
        raise outcome
    folders = pack.member.folders
    return Path(folders.storage.root) / folders.trial.base


def arrays_of(trial: Path) -> dict[str, np.ndarray]:
    """All .npy files of a study's own folders."""
    own = ("memory", "gradients", "similarity", "downstream")
    return {str(path.relative_to(trial)): np.load(path) for path in sorted(trial.glob("*/*.npy")) if path.parent.name.startswith(own)}
