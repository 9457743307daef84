"""The rule |difference| <= max(3 combined SEM, 1.5 points), on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.reproduce.verdict import Comparison, compare

Percent = st.floats(0.0, 100.0)
Sem = st.floats(0.0, 10.0)


@pytest.mark.parametrize(
    ("measured", "published", "expected"),
    [
        # SEM 0.3 and 0.4 combine to 0.5: 3 of them are the 1.5 points
        ((90.0, 0.3), (91.5, 0.4), (-1.5, -3.0, 1.5, "matches")),
        ((93.0, 0.3), (91.5, 0.4), (1.5, 3.0, 1.5, "matches")),
        ((89.75, 0.3), (91.5, 0.4), (-1.75, -3.5, 1.5, "below")),
        ((93.25, 0.3), (91.5, 0.4), (1.75, 3.5, 1.5, "above")),
        # SEM 3 and 4 combine to 5: 15 points
        ((45.0, 3.0), (60.0, 4.0), (-15.0, -3.0, 15.0, "matches")),
        ((75.0, 3.0), (60.0, 4.0), (15.0, 3.0, 15.0, "matches")),
        ((44.0, 3.0), (60.0, 4.0), (-16.0, -3.2, 15.0, "below")),
        ((76.0, 3.0), (60.0, 4.0), (16.0, 3.2, 15.0, "above")),
        # many SEM away, but within 1.5 points
        ((99.0, 0.0), (99.5, 0.125), (-0.5, -4.0, 1.5, "matches")),
        ((20.0, 0.0), (20.0, 0.0), (0.0, None, 1.5, "matches")),
        ((22.0, 0.0), (20.0, 0.0), (2.0, None, 1.5, "above")),
        # one repeat has no SEM: 1.5 points, whatever the published SEM
        ((58.5, None), (60.0, 2.0), (-1.5, None, 1.5, "matches")),
        ((58.0, None), (60.0, 2.0), (-2.0, None, 1.5, "below")),
        # 86.65 - 85.15 is 1.5000000000000000 and a bit
        ((86.65, 0.1), (85.15, 0.1), (1.5, 1.5 / math.sqrt(0.02), 1.5, "matches")),
    ],
)
def test_a_difference_counts_when_it_is_more_than_three_combined_errors_and_more_than_1_5_points(
    measured: tuple[float, float | None], published: tuple[float, float], expected: tuple[float, float | None, float, str]
) -> None:
    found = compare(*measured, *published)
    assert found.verdict == expected[3]
    assert found._replace(verdict="matches") == pytest.approx(Comparison(*expected[:3], "matches"))


@given(Percent, Sem, Percent, Sem)
def test_above_and_below_are_mirror_images(a: float, sem_a: float, b: float, sem_b: float) -> None:
    there, back = compare(a, sem_a, b, sem_b), compare(b, sem_b, a, sem_a)
    assert (there.difference, there.limit) == (-back.difference, back.limit)
    assert {"above": "below", "below": "above", "matches": "matches"}[there.verdict] == back.verdict
