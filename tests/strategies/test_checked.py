"""Hooks that do not keep to the interface are refused by name, whatever XLA would have made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.errors import ConfigError
from clray.strategies.base import Strategy
from clray.strategies.checked import checked
from clray.types import Batch
from tests.core.tiny import prepare, tiny

BATCH = Batch(jnp.zeros((4, 6), jnp.uint8), jnp.zeros(4, jnp.int32), jnp.ones(4, jnp.float32))
STATE = {"n": jnp.zeros((), jnp.float32)}
PARAMS = {"w": jnp.zeros((6, 2), jnp.float32)}
CTX: Any = None


def hook(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """One hook of a strategy of which it is the only one."""
    return getattr(checked(Strategy(**{name: function}), "mine:Own"), name)  # type: ignore[no-any-return]


def more(**changes: Any) -> Callable[..., Any]:
    return lambda state, batch, ctx: (state, batch._replace(**changes))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (more(weights=jnp.ones((4, 1))), r"weights float32\[4, 1\]"),
        (more(weights=jnp.ones(3)), r"weights float32\[3\]"),
        (more(images=jnp.zeros((4, 6), jnp.float32)), r"images uint8\[rows, 6\].*got images float32\[4, 6\]"),
        (more(images=jnp.zeros((4, 5), jnp.uint8)), r"images uint8\[4, 5\]"),
        (
            lambda state, batch, ctx: (state, jax.tree.map(lambda leaf: leaf[:1], batch)),
            "the 4 rows of the task and those",
        ),
        (lambda state, batch, ctx: batch, r"\(state, batch\), got a Batch"),
        (lambda state, batch, ctx: None, r"\(state, batch\), got nothing \(None\)"),
        (lambda state, batch, ctx: (state, tuple(batch)), r"a clray.types.Batch\), got a tuple"),
        (lambda state, batch, ctx: ({**state, "m": 1.0}, batch), "a state of the same structure, shapes and dtypes"),
    ],
)
def test_a_batch_of_another_form_is_refused(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"strategy mine:Own: batch must return .*{told}"):
        hook("batch", function)(STATE, BATCH, CTX)


def test_rows_may_be_appended() -> None:
    longer = Batch(*(jnp.concatenate([leaf, leaf]) for leaf in BATCH))
    state, batch = hook("batch", lambda state, batch, ctx: (state, longer))(STATE, BATCH, CTX)
    assert state is STATE
    assert batch is longer


@pytest.mark.parametrize(
    ("name", "function", "told"),
    [
        ("end_task", lambda state, params, data, ctx: {"n": jnp.zeros(3)}, r"got float32\[3\] instead of float32\[\] at \['n'\]"),
        ("end_task", lambda state, params, data, ctx: {"n": jnp.zeros((), jnp.int32)}, r"int32\[\] instead of float32\[\]"),
        ("end_task", lambda state, params, data, ctx: None, r"nothing \(None\) instead of \{'n': \*\}"),
        ("after_step", lambda state, step, ctx: (state,), r"instead of \{'n': \*\}"),
        ("boundary", lambda state, before, params, ctx: {}, "a state of the same"),
        ("begin_task", lambda state, params, ctx: state, r"\(state, parameters\), got a dict"),
        ("begin_task", lambda state, params, ctx: (state, {}), "parameters of the same"),
        (
            "gradient",
            lambda state, gradient, params, batch, ctx: {"w": gradient["w"].sum()},
            r"a gradient of.*float32\[\] instead of",
        ),
        ("penalty", lambda state, params, logits, batch, ctx: jnp.zeros(4), r"a scalar, got float32\[4\]"),
        ("penalty", lambda state, params, logits, batch, ctx: None, "a scalar, got nothing"),
    ],
)
def test_a_hook_that_changes_a_form_is_refused(name: str, function: Callable[..., Any], told: str) -> None:
    arguments = {
        "end_task": (STATE, PARAMS, CTX, CTX),
        "after_step": (STATE, CTX, CTX),
        "boundary": (STATE, STATE, PARAMS, CTX),
        "begin_task": (STATE, PARAMS, CTX),
        "gradient": (STATE, PARAMS, PARAMS, BATCH, CTX),
        "penalty": (STATE, PARAMS, jnp.zeros((4, 2)), BATCH, CTX),
    }[name]
    with pytest.raises(ConfigError, match=rf"strategy mine:Own: {name} must return .*{told}"):
        hook(name, function)(*arguments)


@pytest.mark.parametrize(("built", "told"), [(None, "nothing"), ((), "a tuple"), ({}, "a dict")])
def test_what_is_no_strategy_is_refused(built: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"strategy mine:Own: build\(\) must return a clray.strategies.base.Strategy, got {told}"):
        checked(built, "mine:Own")


OWN = """
import jax.numpy as jnp
from clray.options import StrategyOptions
from clray.strategies.base import Strategy

class Own(StrategyOptions):
    def build(self):
        return Strategy(batch=lambda state, batch, ctx: (state, batch._replace(weights=jnp.ones((len(batch.labels), 1)))))
"""


def test_a_trial_fails_with_the_name_of_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broadcasting.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    (trial,) = prepare(tiny(strategy={"name": "broadcasting:Own"}), folder=tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"strategy broadcasting:Own: batch must return .* got .*weights float32\[16, 1\]"):
        trial.run()
    assert np.load(trial.folder / "classes.npy").shape == (3, 4, 2)  # what was written stays
