"""Scenarios, as the compiled program sees them: which outputs of one head a sample is classified among.

Labels are numbers of outputs in all three, so a stored sample needs nothing besides its label:

``domain``  O = C outputs, shared by all tasks; every output is a choice.
``task``    O = T*C; the C outputs of a sample's own task are its choices, and ``label // C`` is its task.
``class``   O = the classes of the sequence; all are choices, or (``active_classes: seen``) those of the tasks so far.

A head a task is a block of columns of one kernel, so lanes and tasks share one program. Columns of other tasks get a gradient
of exactly zero. What an optimizer does with a zero gradient it does to them as well: weight decay shrinks them, and momentum
and Adam's running means move them on for some batches after their task. PyTorch does the same where the heads are slices of one
output layer, as in the code of van de Ven & Tolias; separate layers, whose gradient is None, stand still there.
"""

from __future__ import annotations

import jax.numpy as jnp

from clray.core.program import Spec
from clray.types import Array


def choices_of(spec: Spec, labels: Array, task: Array) -> Array | None:
    """[..., O] bool: the outputs that samples with labels [...] are classified among while ``task`` is trained; None: all."""
    output = jnp.arange(spec.n_outputs)
    if spec.scenario == "task":
        return labels[..., None] // spec.classes_per_task == output // spec.classes_per_task
    if spec.seen:
        return jnp.broadcast_to(output < seen_at(spec, task), (*labels.shape, spec.n_outputs))
    return None


def seen_at(spec: Spec, task: Array) -> Array:
    """How many outputs are a choice in scenario class; segments of the joint stream have task numbers from T on."""
    return jnp.asarray(spec.seen, jnp.int32)[jnp.minimum(task, spec.n_tasks - 1)]
