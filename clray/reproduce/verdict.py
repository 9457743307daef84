"""How far a measured mean is from a published one, and what that counts as. Numbers in, numbers out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

MOST_SEMS = 3.0
"""Combined standard errors that a measured mean may be away from a published one."""
MOST_POINTS = 1.5
"""Points (of percent) that it may be away whatever the standard errors: what is left open by a paper's text moves means by that."""
ROUNDING = 1e-9
"""Points: a difference of 1.5 may come out of a subtraction as 1.5000000000000142."""

Verdict = Literal["matches", "above", "below"]


class Comparison(NamedTuple):
    """One mean against another.

    Attributes:
        difference: measured minus published, points.
        sems: the same in combined standard errors; None where these are 0 or not known.
        limit: the largest difference that counts as a match, points.
        verdict: matches, or on which side the measured mean is.
    """

    difference: float
    sems: float | None
    limit: float
    verdict: Verdict


def compare(mean: float, sem: float | None, published_mean: float, published_sem: float) -> Comparison:
    """Compares two means, both sides alike: a match is ``|difference| <= max(3 combined SEM, 1.5 points)``.

    The combined standard error is ``sqrt(sem^2 + published_sem^2)``.

    Args:
        mean: measured, percent.
        sem: its standard error, points; None for a single repeat, which has none: then the limit is 1.5 points.
        published_mean: percent.
        published_sem: points.
    """
    difference = mean - published_mean
    combined = math.hypot(sem, published_sem) if sem is not None else 0.0
    limit = max(MOST_SEMS * combined, MOST_POINTS)
    side: Verdict = "above" if difference > 0.0 else "below"
    verdict: Verdict = "matches" if abs(difference) <= limit + ROUNDING else side
    return Comparison(difference, difference / combined if combined else None, limit, verdict)
