"""Whether the rounds of two servers differ by more than chance: the Mann-Whitney U test.

It takes only the order of the rounds, so that one round that something else disturbed counts no
more than any other. With few rounds the probability is exact: of all ways to deal the ranks to the
two servers, the share that lies as far from the middle as what was measured.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05
"""Below it a difference counts as one."""

_EXACT_MAX = 200_000


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the two-sided probability that no difference looks like this; 1 without rounds."""
    if not ours or not theirs:
        return 1.0
    ranks = _ranks([*ours, *theirs])
    middle = len(ours) * (len(ranks) + 1) / 2
    distance = abs(sum(ranks[: len(ours)]) - middle)
    if math.comb(len(ranks), len(ours)) > _EXACT_MAX:
        return _normal(ranks, len(ours), distance)
    sums = [sum(dealt) for dealt in itertools.combinations(ranks, len(ours))]
    # Ranks are multiples of a half: nothing is lost in the sums.
    return sum(abs(one - middle) >= distance for one in sums) / len(sums)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each, from 1; equal values have the mean of theirs."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in ordered}
    count = {value: ordered.count(value) for value in first}
    return [first[value] + (count[value] + 1) / 2 for value in values]


def _normal(ranks: Sequence[float], count: int, distance: float) -> float:
    """Approximate it for many rounds, corrected for continuity and for ties."""
    rest = len(ranks) - count
    deviation = math.sqrt(count * rest / (len(ranks) - 1) * statistics.pvariance(ranks))
    if deviation == 0:
        return 1.0
    return math.erfc(max(0.0, distance - 0.5) / deviation / math.sqrt(2))
