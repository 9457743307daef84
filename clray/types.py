"""The axis glossary of the whole package, array aliases and the pytrees that several rooms share.

One letter, one axis, everywhere (names, comments, docstrings, file shapes):

======  ==============================================================================================
letter  axis
======  ==============================================================================================
T       tasks in the sequence
R       repeats: independent replicas with their own classes, data order and initial weights
A       lanes: what the compiled program is vmapped over; one lane is one repeat of one trial
C       classes per task
K       classes of the source data set
U       classes that one lane evaluates on (U <= K)
P       test samples per class that are evaluated
N       training samples of one task in one repeat, the same for all tasks
B       batch size
L       log points of one task
E       evaluated tasks
S       fixed test samples per task whose hidden states are kept
H       hidden (representation) dimension
D       input dimension after flattening (image models have height, width, channels in its place)
======  ==============================================================================================
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array: TypeAlias = jax.Array
    HostArray: TypeAlias = np.ndarray
else:
    Array: TypeAlias = Any
    HostArray: TypeAlias = Any

PlacedArray: TypeAlias = Any
"""A NumPy array before it is placed on a device and after it was fetched, a ``jax.Array`` in between."""

Params: TypeAlias = dict[str, Array]
"""Trainable parameters, flat: dotted path to array, e.g. ``{"head.kernel": (H, C), "head.bias": (C,)}``."""

ModelState: TypeAlias = dict[str, Array]
"""What a model carries besides parameters (batch statistics), flat like ``Params``; empty for most models."""

Hyper: TypeAlias = Mapping[str, Array]
"""Hyperparameters that are traced values, so that trials which differ only in them share a program."""


class Purpose(enum.IntEnum):
    """What a random key is for. Keys follow from (seed, repeat, task, purpose) by ``jax.random.fold_in``."""

    INIT = 0
    STEP = 1
    BOUNDARY = 2
    EXPERT = 3
    JOINT = 4


class Batch(NamedTuple):
    """One training batch of one lane."""

    images: Array  # [B, D] or [B, height, width, channels], float32, scaled; as stored in the hook ``batch`` of strategies
    labels: Array  # [B] int32, numbers of outputs: in scenario domain the position of the class in the task
    weights: Array  # [B] float32, weight of each sample in the mean loss
