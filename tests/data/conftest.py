"""What the data tests share: experiments in one line, and a data set whose pixels tell which image they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from clray.config import Experiment, Logging, Sequence, Training
from clray.data.cache import Dataset
from clray.data.source import DatasetInfo
from clray.options import DatasetOptions, ModelOptions, OptimizerOptions, StrategyOptions


class ImageModel(ModelOptions):
    """Stands for any model that takes images as they are."""

    takes_images: ClassVar[bool] = True


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """Builds an experiment from what matters to data: sequence, repeats, data options."""

    def build(
        images: bool = False, split: str = "test", sequence: dict[str, Any] | None = None, dataset: Any = None, **top: Any
    ) -> Experiment:
        return Experiment(
            sequence=Sequence(**({"n_tasks": 2} | (sequence or {}))),
            dataset=dataset if isinstance(dataset, DatasetOptions) else DatasetOptions(name="synthetic", **(dataset or {})),
            model=(ImageModel if images else ModelOptions)(name="model"),
            optimizer=OptimizerOptions(name="sgd"),
            strategy=(StrategyOptions(name="finetune"),),
            training=Training(epochs=1),
            logging=Logging(split=split),
            **top,
        )

    return build


@pytest.fixture
def synthetic() -> Callable[..., Dataset]:
    """Builds a data set in memory, classes shuffled, whose pixel at flat position p of image i is 10 i + p (test: negative)."""

    def build(train_counts: tuple[int, ...], test_counts: tuple[int, ...], dtype: str = "float32") -> Dataset:
        shape = (2, 3, 1)
        rng = np.random.default_rng(0)
        parts = []
        for sign, counts in ((1, train_counts), (-1, test_counts)):
            labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
            pixels = sign * (10 * np.arange(len(labels))[:, None] + np.arange(6))
            parts += [pixels.reshape(-1, *shape).astype(dtype), labels]
        info = DatasetInfo(len(train_counts), train_counts, test_counts, shape, dtype)
        return Dataset(info, *parts, mean=np.zeros(1, np.float32), std=np.ones(1, np.float32))

    return build
