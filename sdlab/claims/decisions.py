"""How a figure decides a claim.

Every claim is turned into numbers that are positive if it holds: differences between two methods on the same object and
seed, or a figure less the number that the paper states. It is decided by their mean and its 95 % interval by Student's
t: the claim holds if the interval lies above 0, does not hold if it lies below, and cannot be decided by these runs if
it contains 0. Exact statements, such as an equal number of evaluations, need no interval.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be decided here"
LEVEL = 0.95
Rows = Sequence[Mapping[str, Any]]


class Verdict(NamedTuple):
    """Outcome of a claim, one of HOLDS, FAILS and OPEN; the figure with its spread; and why."""

    outcome: str
    figure: str
    why: str


class Spread(NamedTuple):
    """Mean, its standard error and the half-width of its 95 % interval, over `n` values."""

    mean: float
    error: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{number(self.mean)} ± {number(self.error)}"


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of `values`. Raises ValueError for fewer than two: one value has none."""
    from scipy.stats import t

    found = [float(value) for value in values]
    if len(found) < 2:
        raise ValueError(f"{len(found)} values have no spread")
    error = statistics.stdev(found) / math.sqrt(len(found))
    return Spread(statistics.fmean(found), error, float(t.ppf((1 + LEVEL) / 2, len(found) - 1)) * error, len(found))


def positive(values: Iterable[float], what: str, over: str = "pairs") -> Verdict:
    """Decide that the mean of `values` is above 0; `what` names the figure, `over` what its spread is over."""
    found = [float(value) for value in values]
    if len(found) < 2:
        return Verdict(OPEN, f"{what}: {', '.join(map(number, found)) or 'not measured'}", f"{len(found)} {over}")
    s = spread(found)
    figure = f"{what}: {s} ({s.n} {over})"
    ends = f"[{number(s.mean - s.half)}, {number(s.mean + s.half)}]"
    if s.mean - s.half > 0:
        return Verdict(HOLDS, figure, f"the 95 % interval {ends} lies above 0")
    if s.mean + s.half < 0:
        return Verdict(FAILS, figure, f"the 95 % interval {ends} lies below 0")
    return Verdict(OPEN, figure, f"the 95 % interval {ends} contains 0")


def above(values: Iterable[float], bound: float, what: str, over: str = "pairs") -> Verdict:
    """Decide that the mean of `values` is above the paper's number `bound`."""
    found = [float(value) for value in values]
    verdict = positive([value - bound for value in found], what, over)
    if len(found) < 2:
        return verdict
    s = spread(found)
    ends = f"[{number(s.mean - s.half)}, {number(s.mean + s.half)}]"
    where = {HOLDS: "lies above", FAILS: "lies below", OPEN: "contains"}[verdict.outcome]
    return Verdict(verdict.outcome, f"{what}: {s} ({s.n} {over})", f"the 95 % interval {ends} {where} {number(bound)}")


def exactly(holds: bool, figure: str, why: str) -> Verdict:
    """Decide a statement that has no spread."""
    return Verdict(HOLDS if holds else FAILS, figure, why)


def one(rows: Rows, key: str, value: Any) -> Mapping[str, Any]:
    """Return the row whose `key` is `value`; KeyError if there is none."""
    for row in rows:
        if row[key] == value:
            return row
    raise KeyError(f"{key} = {value}")


def paired(rows: Rows, variant: str, first: Any, other: Any, measure: str, same: Sequence[str]) -> list[float]:
    """Return `measure` of `other` minus that of `first` for each pair of rows that agree in the keys `same`.

    `variant` is the key that holds `first` or `other`. Rows without the measure do not count.
    """

    def by_run(value: Any) -> dict[tuple[Any, ...], float]:
        own = (row for row in rows if row[variant] == value and row.get(measure) is not None)
        return {tuple(row[key] for key in same): float(row[measure]) for row in own}

    before, after = by_run(first), by_run(other)
    return [after[at] - before[at] for at in after if at in before]


def any_scale(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows with variants such as "sds:cfg=2" named "sds", whatever scale suited the prior."""
    return [{**row, "variant": re.sub(r":cfg=[0-9.]+$", "", row["variant"])} for row in rows]


def slopes(rows: Rows, over: str, measure: str, same: Sequence[str]) -> list[float]:
    """Return for each run, rows that agree in the keys `same`, the least-squares slope of `measure` over `over`.

    Runs with fewer than two different values of `over` do not count.
    """
    runs: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row.get(measure) is not None:
            runs.setdefault(tuple(row[key] for key in same), []).append((float(row[over]), float(row[measure])))
    points = [list(zip(*run, strict=True)) for run in runs.values() if len({x for x, _ in run}) > 1]
    return [statistics.linear_regression(x, y).slope for x, y in points]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 for a constant."""
    from scipy.stats import rankdata

    ranks = [list(map(float, rankdata(values))) for values in (x, y)]
    if any(len(set(each)) == 1 for each in ranks):
        return 0.0
    return statistics.correlation(*ranks)


def number(value: float) -> str:
    """Write a number with three significant digits, as short as possible."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
