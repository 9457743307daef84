"""What a study needs beside its ideal models, by arithmetic on its sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from clray.core.program import Spec
from clray.sizes import Sizes
from clray.study.config import Study
from clray.study.gradients import record_bytes

FLOAT, DOUBLE = 4, 8


class StudyNeeds(NamedTuple):
    """Bytes."""

    device: int  # inputs and deltas of all past samples of one network, its images, and a few gradients
    disk: int


def study_needs(study: Study, sizes: Sizes, spec: Spec, n_params: int) -> StudyNeeds:
    """Estimates one study.

    Args:
        spec: of its training program.
        n_params: trainable parameters of one network.
    """
    past = (sizes.n_tasks - 1) * sizes.n_train
    image = math.prod(sizes.input_shape)
    device = record_bytes(spec, past) + past * image * np.dtype(sizes.dtype).itemsize + 6 * n_params * FLOAT
    params, _ = jax.eval_shape(spec.pure_model.init, jax.eval_shape(lambda: jax.random.key(0)))
    memory, n_pasts = study.memory, sizes.n_tasks - 1
    n_values = len(memory.methods) * len(memory.fractions) * memory.num_samples * sizes.n_repeats * n_pasts * len(params)
    rows = (
        len(memory.methods) * memory.num_samples * sizes.n_repeats * n_pasts * sum(f for f in memory.fractions if f < 1.0) * sizes.n_train
    )
    disk = n_values * (3 * DOUBLE + 2 * len(study.similarity) * FLOAT) + int(rows) * FLOAT
    return StudyNeeds(device, disk + sizes.n_tasks * sizes.n_repeats * n_params * FLOAT)
