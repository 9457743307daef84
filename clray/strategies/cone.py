"""GEM's quadratic program: the gradient nearest to g that raises the loss of no earlier task.

In the primal, over vectors as long as the parameters: minimise ``||x - g||^2`` subject to ``<g_k, x> >= 0`` for all earlier
tasks k. In the dual (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, eq. 11), over one number a task: minimise
``1/2 v' G G' v + g' G' v`` subject to ``v >= 0``, and ``x = G' v + g``. Their code asks for ``v >= margin``, which pushes x further
into the cone; so do we.

With ``z = v - margin`` this is the linear complementarity problem ``w = P z + q, w >= 0, z >= 0, w . z = 0`` with ``P = G G'``. It
is solved by principal pivoting with the rule of least index (Murty 1974), which ends at the solution for any positive definite
P. A pivot is a rank-one update of an (n, n + 1) table, so that lanes run in step and no linear solver is called. The number of
pivots is fixed, at more than any problem has needed that we met (2 n).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clray.types import Array

RIDGE = 1e-5
"""Added to the diagonal of P once it is scaled to 1: nearly parallel gradients leave P singular in float32."""
TOLERANCE = 1e-6
PIVOTS_PER_TASK = 3


def multipliers(gram: Array, dots: Array, margin: Array) -> Array:
    """The dual solution v.

    Args:
        gram: [n, n] inner products <g_j, g_k> of the gradients of n tasks. Rows of zeros: tasks that are not there; their v is 0.
        dots: [n] inner products <g_k, g>.
        margin: scalar, least value of v.

    Returns:
        v [n].
    """
    n = dots.shape[0]
    norms = jnp.sqrt(jnp.diagonal(gram))
    is_there = norms > 0.0
    units = jnp.where(is_there, norms, 1.0)
    # In units of each gradient's norm: P has a diagonal of 1, and z is a step along a unit vector.
    scaled = gram / (units[:, None] * units) + jnp.diag(jnp.where(is_there, RIDGE, 1.0))
    least = jnp.where(is_there, margin * norms, 0.0)
    offset = dots / units + scaled @ least
    size = jnp.maximum(jnp.max(jnp.abs(offset)), jnp.finfo(jnp.float32).tiny)
    z, _ = _complementary(scaled, offset / size, PIVOTS_PER_TASK * n)
    return jnp.where(is_there, (jnp.maximum(z, 0.0) * size + least) / units, 0.0)


def _complementary(matrix: Array, offset: Array, n_pivots: int) -> tuple[Array, Array]:
    """z and w = matrix z + offset with z, w >= 0 and z . w = 0, for a positive definite matrix [n, n] and offset [n]."""
    n = offset.shape[0]

    def pivot(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Rows: the basic variables as the other ones' linear functions; a variable z_i or w_i is basic, the other one is 0.
        table, z_is_basic = carry
        negative = table[:, n] < -TOLERANCE
        i = jnp.argmax(negative)
        row = table[i]
        new_row = (-row / row[i]).at[i].set(1.0 / row[i])
        pivoted = (table.at[:, i].set(0.0) + jnp.outer(table[:, i], new_row)).at[i].set(new_row)
        any_negative = negative.any()
        return jnp.where(any_negative, pivoted, table), jnp.where(any_negative & (jnp.arange(n) == i), ~z_is_basic, z_is_basic)

    start = jnp.concatenate([matrix, offset[:, None]], axis=1), jnp.zeros(n, bool)
    table, z_is_basic = jax.lax.fori_loop(0, n_pivots, pivot, start)
    return jnp.where(z_is_basic, table[:, n], 0.0), jnp.where(z_is_basic, 0.0, table[:, n])
