"""The border between flax.nnx modules and the core, which sees pure functions over flat dicts of arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from clray.errors import ConfigError
from clray.options import ModelOptions
from clray.types import Array, ModelState, Params


class Apply(Protocol):
    """``(params, state, images (B, ...), train, key) -> (logits (B, O), hidden (B, H), state)``."""

    def __call__(
        self, params: Params, state: ModelState, images: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Array, ModelState]: ...


class PureModel(NamedTuple):
    """A model as pure functions of one lane.

    Attributes:
        init: ``key -> (params, state)``.
        apply: see ``Apply``.
        hidden_size: H.
    """

    init: Any
    apply: Apply
    hidden_size: int


@functools.lru_cache(maxsize=64)
def pure_model(options: ModelOptions, input_shape: tuple[int, ...], n_outputs: int) -> PureModel:
    """Splits the module that ``options`` builds into graph and arrays. Starts no JAX backend.

    Args:
        options: of the model.
        input_shape: (D,) or (height, width, channels).
        n_outputs: number of logits.

    Raises:
        ConfigError: the module carries variables other than parameters and batch statistics, or returns something else than
            logits and hidden states.
    """
    try:
        graph, params, rest = _split(nnx.eval_shape(lambda: options.build(input_shape, n_outputs, nnx.Rngs(0))))
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's own module does
        raise ConfigError(f"model.name: {options.name!r} cannot be built for {input_shape}: {type(error).__name__}: {error}") from error
    templates = {**_flat(params), **_flat(rest)}
    paths = {".".join(str(part) for part in path): path for path in templates}
    stray = [name for name, path in paths.items() if not isinstance(templates[path], (nnx.Param, nnx.BatchStat))]
    if stray:
        raise ConfigError(
            f"model.name: {options.name} carries {', '.join(stray)}; only nnx.Param and nnx.BatchStat are supported: "
            "take dropout keys from the rngs argument of the call instead of storing them"
        )

    def flatten(state: Any) -> dict[str, Array]:
        return {".".join(str(part) for part in path): leaf[...] for path, leaf in _flat(state).items()}

    def init(key: Array) -> tuple[Params, ModelState]:
        _, params, rest = _split(options.build(input_shape, n_outputs, nnx.Rngs(key)))
        return flatten(params), flatten(rest)

    def apply(params: Params, state: ModelState, images: Array, *, train: bool, key: Array | None) -> tuple[Array, Array, ModelState]:
        arrays = {**params, **state}
        merged = nnx.from_flat_state({path: templates[path].replace(arrays[name]) for name, path in paths.items()})
        module = nnx.merge(graph, merged)
        logits, hidden = module(images, train=train, rngs=None if key is None else nnx.Rngs(key))
        new_state = flatten(nnx.state(module, nnx.BatchStat)) if state else state
        return logits, hidden, new_state

    return PureModel(init, apply, _hidden_size(options, init, apply, input_shape, n_outputs))


def _hidden_size(options: ModelOptions, init: Any, apply: Apply, input_shape: tuple[int, ...], n_outputs: int) -> int:
    """H, after a look at what the module returns."""
    rows = 3
    images = jax.ShapeDtypeStruct((rows, *input_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def forward(key: Array, x: Array) -> Any:
        params, state = init(key)
        return apply(params, state, x, train=False, key=None)

    try:
        logits, hidden, _ = jax.eval_shape(forward, key, images)
        fits = logits.shape == (rows, n_outputs) and hidden.ndim == 2 and hidden.shape[0] == rows
        found = f"shapes {logits.shape} and {hidden.shape}"
    except (TypeError, ValueError, AttributeError) as error:
        fits, found = False, f"{type(error).__name__}: {error}"
    if not fits:
        raise ConfigError(
            f"model.name: {options.name!r} must return logits (B, {n_outputs}) and hidden (B, H) from a call with (x, train=, rngs=), "
            f"where x is (B, {', '.join(map(str, input_shape))}); it gave {found}"
        )
    return int(hidden.shape[-1])


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph, parameters, everything else)."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    return graph, params, rest


def _flat(state: Any) -> dict[tuple[Any, ...], Any]:
    return dict(nnx.to_flat_state(state))
