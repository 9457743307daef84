"""Where the weights of a network meet its data: what every sample contributes to every weight's gradient, without a gradient a sample.

A network's program is walked through once for one sample. An equation that joins something made of parameters alone (``u``: a
kernel, a broadcast bias) with something that depends on the sample (``x``) is a meeting, ``y = op(x, u)``. The gradient of any
weighted sum of losses with respect to ``u`` needs only ``x`` and the back-propagated delta ``d = dloss/dy`` of the samples
concerned: for a dense layer it is the matrix product ``sum_i x_i d_i^T`` over them. So ``x`` and ``d`` of all samples are
computed once, and a set of samples costs one product a layer, with neither a forward nor a backward pass of its own.

Nothing here knows layers: any operation will do that treats samples one by one, convolutions, scales and recurrences included.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clray.types import Array, Params

INLINED = ("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Calls that are looked into where a parameter goes in; others are meetings themselves."""

KEEPS_DELTA = ("add", "add_any", "sub")
"""Operations whose gradient with respect to ``u`` does not depend on ``x``."""


PLAIN_PRODUCT = (((1,), (0,)), ((), ()))
"""``x (1, in) @ u (in, out)``, in the words of ``dot_general``."""


SAME_NUMBERS = ("reshape", "squeeze", "broadcast_in_dim", "expand_dims", "copy")
"""Operations that keep all elements in their order, where they keep their number."""


class Recorded(NamedTuple):
    """Of n samples, in the order of the meetings."""

    inputs: list[tuple[Array, ...]]  # [n, *x.shape] of every operand that depends on the sample; () where none is needed
    deltas: list[Array]  # [n, *y.shape]; one for all meetings that share it


@dataclass(frozen=True)
class Meeting:
    """One operation that joins parameters with data.

    Attributes:
        equation: the operation.
        from_data: for each operand whether it depends on the sample.
        delta: which of the deltas belongs to it.
        needs_inputs: whether the gradient depends on ``x``.
        shape: of ``y`` for one sample.
    """

    equation: Any
    from_data: tuple[bool, ...]
    delta: int
    needs_inputs: bool
    shape: tuple[int, ...]

    @property
    def is_dense(self) -> bool:
        """Whether ``y`` is one row times a matrix: a dense layer."""
        one_row = len(self.shape) == 1 or (len(self.shape) == 2 and self.shape[0] == 1)
        return self.equation.primitive.name == "dot_general" and one_row

    @property
    def is_plain_product(self) -> bool:
        """Whether ``y`` is a row of data times a matrix of weights."""
        return self.is_dense and self.from_data == (True, False) and self.equation.params["dimension_numbers"] == PLAIN_PRODUCT

    def apply(self, inputs: Sequence[Array], weights: Sequence[Array]) -> Array:
        """``op(x, u)`` of one sample."""
        from_data, from_weights = iter(inputs), iter(weights)
        out: Array = _run(self.equation, [next(from_data if data else from_weights) for data in self.from_data])[0]
        return out

    def gradient(self, inputs: Sequence[Array], weights: Sequence[Array], deltas: Array) -> tuple[Array, ...]:
        """Sum over n samples of the gradient with respect to ``u``.

        Args:
            inputs: [n, *x.shape] each.
            weights: ``u``.
            deltas: [n, *y.shape], each already times the weight of its sample.
        """
        if self.is_plain_product:
            rows = deltas.shape[0]
            return (inputs[0].reshape(rows, -1).T @ deltas.reshape(rows, -1),)
        if not self.needs_inputs:  # y = x + u or x - u: any x will do
            n, at = deltas.shape[0], iter(self.equation.invars)
            inputs = [jnp.zeros((n, *var.aval.shape), var.aval.dtype) for var, data in zip(at, self.from_data, strict=True) if data]
        whole = jax.vmap(self.apply, in_axes=(0, None))
        out: tuple[Array, ...] = jax.vjp(lambda *u: whole(inputs, u), *weights)[1](deltas)
        return out


class Taps:
    """The meetings of one network.

    Args:
        logits: ``(params, image [*input_shape]) -> [O]``, one sample.
        params: shapes are enough.
        input_shape: of one sample.
    """

    def __init__(self, logits: Callable[[Params, Array], Array], params: Mapping[str, Any], input_shape: tuple[int, ...]):
        self.names = sorted(params)
        closed = jax.make_jaxpr(lambda p, x: logits(dict(p), x))(dict(params), jax.ShapeDtypeStruct(input_shape, jnp.float32))
        self._jaxpr, self._constants = closed.jaxpr, closed.consts
        self.meetings: list[Meeting] = []
        self._find()

    @property
    def n_deltas(self) -> int:
        """Number of different deltas."""
        return 1 + max(meeting.delta for meeting in self.meetings)

    def _find(self) -> None:
        found: dict[Any, int] = {}

        def meet(equation: Any, operands: list[_Value]) -> _Value:
            from_data = tuple(operand.kind == DATA for operand in operands)
            source = next(operand for operand in operands if operand.kind == DATA)
            shape = equation.outvars[0].aval.shape
            simple = equation.primitive.name in KEEPS_DELTA
            # Behind a product whose only use is that a bias is added to it, both have the same delta.
            same = simple and source.once and source.shape == shape and (from_data[0] or equation.primitive.name != "sub")
            shared = found.get(id(source)) if same else None
            delta = len(set(found.values())) if shared is None else shared
            self.meetings.append(Meeting(equation, from_data, delta, not simple, shape))
            out = _Value(DATA, None, shape)
            found[id(out)] = delta
            self._kept.append(out)  # so that ids stay different
            return out

        self._kept: list[_Value] = []
        operands = [_Value(WEIGHT if i < len(self.names) else DATA, None, var.aval.shape) for i, var in enumerate(self._jaxpr.invars)]
        _walk(self._jaxpr, [_Value(CONSTANT, None, ()) for _ in self._constants], operands, meet)

    def weights(self, params: Params) -> list[tuple[Array, ...]]:
        """``u`` of every meeting."""
        found: list[tuple[Array, ...]] = []

        def meet(equation: Any, operands: list[_Value]) -> _Value:
            found.append(tuple(operand.value for operand in operands if operand.kind != DATA))
            return _Value(DATA, None, ())

        operands = [_Value(WEIGHT, params[name], ()) for name in self.names] + [_Value(DATA, None, ())]
        _walk(self._jaxpr, [_Value(CONSTANT, value, ()) for value in self._constants], operands, meet)
        return found

    def record(self, params: Params, images: Array, loss: Callable[[Array, Any], Array], labels: Any) -> Recorded:
        """``x`` and ``d`` of n samples.

        Args:
            images: [n, *input_shape].
            loss: ``(logits [O], label) -> scalar`` of one sample.
            labels: [n, ...].
        """

        def one(image: Array, label: Any) -> tuple[list[tuple[Array, ...]], list[Array]]:
            def perturbed(shifts: list[Array]) -> tuple[Array, list[tuple[Array, ...]]]:
                logits, inputs = self._forward(params, image, shifts)
                return loss(logits, label), inputs

            shapes = {meeting.delta: meeting.shape for meeting in reversed(self.meetings)}
            zeros = [jnp.zeros(shapes[i]) for i in range(self.n_deltas)]
            deltas, inputs = jax.grad(perturbed, has_aux=True)(zeros)
            return inputs, deltas

        return Recorded(*jax.vmap(one)(images, labels))

    def _forward(self, params: Params, image: Array, shifts: list[Array]) -> tuple[Array, list[tuple[Array, ...]]]:
        inputs: list[tuple[Array, ...]] = []
        shifted: set[int] = set()

        def meet(equation: Any, operands: list[_Value]) -> _Value:
            meeting = self.meetings[len(inputs)]
            inputs.append(tuple(o.value for o in operands if o.kind == DATA) if meeting.needs_inputs else ())
            out = _run(equation, [operand.value for operand in operands])[0]
            if meeting.delta not in shifted:
                shifted.add(meeting.delta)
                out = out + shifts[meeting.delta]
            return _Value(DATA, out, ())

        operands = [_Value(WEIGHT, params[name], ()) for name in self.names] + [_Value(DATA, image, ())]
        (out,) = _walk(self._jaxpr, [_Value(CONSTANT, value, ()) for value in self._constants], operands, meet)
        return out.value, inputs

    def gradients(self, recorded: Recorded, weights: Sequence[tuple[Array, ...]], factors: Array) -> list[tuple[Array, ...]]:
        """Sum over n samples, each times its factor, of the gradients with respect to every ``u``."""
        scaled = [d * factors.reshape(-1, *[1] * (d.ndim - 1)) for d in recorded.deltas]
        return [
            meeting.gradient(x, u, scaled[meeting.delta]) for meeting, x, u in zip(self.meetings, recorded.inputs, weights, strict=True)
        ]

    def dense_places(self, params: Mapping[str, Any]) -> dict[str, int] | None:
        """For every parameter the meeting it belongs to, where each belongs to one, as it is, and all meetings are those of dense layers.

        Args:
            params: shapes are enough.

        Returns:
            None for all other networks.
        """
        if any(len(meeting.from_data) - sum(meeting.from_data) != 1 for meeting in self.meetings):
            return None
        closed = jax.make_jaxpr(lambda p: [u for (u,) in self.weights(p)])(dict(params))
        name_of = dict(zip(closed.jaxpr.invars, self.names, strict=True))
        for equation in closed.jaxpr.eqns:
            if equation.primitive.name in SAME_NUMBERS:
                source, out = equation.invars[0], equation.outvars[0]
                if source in name_of and source.aval.size == out.aval.size:
                    name_of[out] = name_of[source]
        found = [name_of.get(var) if not hasattr(var, "val") else None for var in closed.jaxpr.outvars]
        if None in found or sorted(map(str, found)) != self.names:
            return None
        for meeting, name in zip(self.meetings, found, strict=True):
            bias = not meeting.needs_inputs and math.prod(meeting.shape) == math.prod(params[str(name)].shape)
            if not (meeting.is_plain_product or bias):
                return None
        return {str(name): place for place, name in enumerate(found)}

    def sum_of_products(self, recorded: Recorded, places: Mapping[str, int], measure: Callable[[Array], Array]) -> Params:
        """Sum over n samples of ``measure(gradient)`` of every parameter, for a measure of products that is the product of measures.

        Args:
            places: from ``dense_places``.

        Returns:
            The elements of each parameter, in an array of any shape.
        """
        sums = {}
        for name, place in places.items():
            meeting = self.meetings[place]
            delta = measure(recorded.deltas[meeting.delta])
            delta = delta.reshape(delta.shape[0], -1)
            if meeting.needs_inputs:
                sums[name] = measure(recorded.inputs[place][0]).reshape(delta.shape[0], -1).T @ delta
            else:
                sums[name] = delta.sum(axis=0)
        return sums

    def to_parameters(self, params: Params, gradients: Sequence[tuple[Array, ...]]) -> Params:
        """Gradients with respect to every ``u`` as gradients with respect to the parameters."""
        (out,) = jax.vjp(self.weights, params)[1]([tuple(g) for g in gradients])
        return dict(out)


CONSTANT, WEIGHT, DATA = range(3)


@dataclass
class _Value:
    """A value on its way through the program: made of constants, of parameters (and constants), or of the sample as well."""

    kind: int
    value: Any
    shape: tuple[int, ...]
    once: bool = False  # made by a meeting and used once


def _walk(jaxpr: Any, constants: list[_Value], operands: list[_Value], meet: Callable[[Any, list[_Value]], _Value]) -> list[_Value]:
    """Runs a program. Values that are ``None`` stand for themselves: what depends on them is not computed."""
    env: dict[Any, _Value] = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, operands, strict=True))

    used = Counter(id(atom) for equation in jaxpr.eqns for atom in equation.invars) + Counter(id(atom) for atom in jaxpr.outvars)

    def read(atom: Any) -> _Value:
        return _Value(CONSTANT, atom.val, jnp.shape(atom.val)) if hasattr(atom, "val") else env[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        kinds = {value.kind for value in given}
        if WEIGHT in kinds and DATA in kinds:
            inner = _inner(equation)
            if inner is not None:
                passed = [replace(value, once=False) for value in given]
                outputs = _walk(inner.jaxpr, [_Value(CONSTANT, value, ()) for value in inner.consts], passed, meet)
                for value, var in zip(outputs, equation.outvars, strict=True):
                    value.once = value.once and used[id(var)] == 1
            elif len(equation.outvars) == 1:
                outputs = [meet(equation, given)]
                outputs[0].once = used[id(equation.outvars[0])] == 1
            else:
                raise NotImplementedError(f"an operation with several outputs joins weights and data: {equation.primitive.name}")
        else:
            kind = max(kinds, default=CONSTANT)
            values = [value.value for value in given]
            known = all(value is not None for value in values)
            results = _run(equation, values) if known else [None] * len(equation.outvars)
            outputs = [_Value(kind, result, var.aval.shape) for result, var in zip(results, equation.outvars, strict=True)]
        env |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    if equation.primitive.name not in INLINED:
        return None
    for key in ("jaxpr", "call_jaxpr"):
        inner = equation.params.get(key)
        if inner is not None and hasattr(inner, "consts"):
            return inner
    return None


def _run(equation: Any, values: list[Any]) -> list[Any]:
    out = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(out) if equation.primitive.multiple_results else [out]
