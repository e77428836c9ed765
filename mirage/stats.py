"""Intervals and tests of rates: Wilson, McNemar, Cohen's kappa. Pure functions, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

from mirage.text import first_names

Z_95 = NormalDist().inv_cdf(0.975)


class Rate(NamedTuple):
    """A share of scored questions as a fraction, with its Wilson 95 % interval; all None when nothing was scored."""

    rate: float | None
    low: float | None
    high: float | None


class McNemar(NamedTuple):
    """McNemar's test of one yes-or-no measure on the same questions, twice."""

    both: int
    only_before: int
    only_after: int
    neither: int
    p: float  # two-sided


class Kappa(NamedTuple):
    """Cohen's kappa with its 95 % interval; all None where chance alone would agree always.

    `agreement` leaves out an interval of no width: it would read as certainty.
    """

    kappa: float | None
    low: float | None
    high: float | None
    standard_error: float | None


def wilson(successes: float, n: int, design_effect: float = 1.0) -> Rate:
    """The share `successes / n` with its Wilson score interval at 95 % (Wilson 1927), without continuity correction.

    The ends are the two p that solve |successes / n - p| = z sqrt(p (1 - p) / n). `wilson(0, 20)` is 0 to 0.161. With a
    design effect the n under the root is n / design_effect, the effective sample size (Rao and Scott 1992; for Wilson's
    interval, Franco, Little, Louis and Slud 2019).

    Raises:
        ValueError: If not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson({successes}, {n}): successes must lie between 0 and n.")
    if n == 0:
        return Rate(None, None, None)
    share, size, z2 = successes / n, n / design_effect, Z_95**2
    centre = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = Z_95 * sqrt(share * (1 - share) / size + z2 / (4 * size * size)) / (1 + z2 / size)
    # The exact ends at 0 and n are 0 and 1; rounding would leave 1e-18 or 1 - 1e-16.
    return Rate(share, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def design_effect(values: Sequence[float], clusters: Sequence[object]) -> float:
    """How many times as much the mean of `values` varies as if all were independent, from the clusters' own totals.

    sum_c (sum_{i in c} (y_i - m))^2 / sum_i (y_i - m)^2, the sandwich variance of the mean m over that of independent
    values, and at least 1. It is 1 if no two values share a cluster. Equal values show no variance: there it is the mean
    size of a cluster, as if each cluster had answered once.
    """
    if len(values) == len(set(clusters)):
        return 1.0
    mean = sum(values) / len(values)
    totals: Counter[object] = Counter()
    for value, cluster in zip(values, clusters, strict=True):
        totals[cluster] += value - mean  # type: ignore[assignment]
    spread = sum((value - mean) ** 2 for value in values)
    if spread < 1e-12:
        return len(values) / len(totals)
    return max(1.0, sum(total**2 for total in totals.values()) / spread)


def mcnemar(
    before: Mapping[str, bool], after: Mapping[str, bool], clusters: Mapping[str, object] | None = None
) -> McNemar:
    """The exact two-sided McNemar test of two measurements of the same ids, by clusters if ids share some.

    Under the null each of the n discordant ids falls on either side with probability 1/2, so
    p = min(1, 2 P(Binomial(n, 1/2) <= the smaller count)). Counts 1 and 6 give 2 (1 + 7) / 2^7 = 0.125; none give 1.
    With clusters each one's difference d (ids only before, less those only after) has either sign with probability 1/2,
    and p is how often |sum of +-d| reaches the one observed (Fisher's randomisation test of the clusters): the same
    where every cluster has one id.

    Raises:
        ValueError: If an id is on one side only; such ids are named.
    """
    if before.keys() != after.keys():
        sides = {"first": sorted(before.keys() - after.keys()), "second": sorted(after.keys() - before.keys())}
        named = "; ".join(f"only in the {side}: {first_names(ids)}" for side, ids in sides.items() if ids)
        raise ValueError(f"A paired test needs the same questions on both sides, but {named}.")
    cells = Counter((before[id], after[id]) for id in before)
    only_before, only_after = cells[True, False], cells[False, True]
    differences: Counter[object] = Counter()
    for id in before:
        differences[id if clusters is None else clusters[id]] += before[id] - after[id]
    p = _sign_flips([abs(each) for each in differences.values() if each], abs(only_before - only_after))
    return McNemar(cells[True, True], only_before, only_after, cells[False, False], p)


def _sign_flips(sizes: Sequence[int], observed: int) -> float:
    """The probability that sizes with random signs add up to `observed` or more, or to minus that or less."""
    import numpy as np  # here: the command line starts sooner without

    chance = np.ones(1)  # of the sums -total, ..., total so far
    for size in sizes:
        chance = (np.pad(chance, (2 * size, 0)) + np.pad(chance, (0, 2 * size))) / 2
    sums = np.arange(len(chance)) - sum(sizes)
    return min(1.0, float(chance[np.abs(sums) >= observed].sum()))


def cohens_kappa(counts: Sequence[Sequence[int]]) -> Kappa:
    """Agreement beyond chance of a square confusion matrix: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    The interval is kappa +- 1.96 standard errors, the large-sample ones of Fleiss, Cohen and Everitt (1969, eq. 13), cut
    at -1 and 1. Counts [[20, 5], [10, 15]] give p_o = 35/50, p_e = 1/2 and kappa 0.4. Perfect agreement gives 1 with an
    interval of no width: the large-sample error of a handful of answers says little.

    Raises:
        ValueError: If the matrix is not square, or holds nothing.
    """
    import numpy as np  # here: the command line starts sooner without

    n = int(np.sum(counts))
    if not n or np.shape(counts) != (len(counts),) * 2:
        raise ValueError("A confusion matrix has one row and one column for each label, and holds at least one pair.")
    share = np.asarray(counts) / n
    rows, columns = share.sum(1), share.sum(0)
    chance = float(rows @ columns)
    if 1 - chance < 1e-12:
        return Kappa(None, None, None, None)
    kappa = (float(share.trace()) - chance) / (1 - chance)
    weights = (1 - kappa) ** 2 * (columns[:, None] + rows) ** 2  # of the pairs that differ; below, of those that agree
    np.fill_diagonal(weights, (1 - (rows + columns) * (1 - kappa)) ** 2)
    variance = float((share * weights).sum()) - (kappa - chance * (1 - kappa)) ** 2
    error = sqrt(max(0.0, variance) / n) / (1 - chance)
    return Kappa(kappa, max(-1.0, kappa - Z_95 * error), min(1.0, kappa + Z_95 * error), error)
