"How often the monitor alarms when nothing has drifted, and how often it sees what has; all by simulation, with seeds. The tolerance is three standard errors"
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from mlnb.core.course import groups, regroup
from mlnb.core.profile import NumericProfile, profile
from mlnb.monitor.budget import per_check, read_budget
from mlnb.monitor.drift import drift
from mlnb.monitor.feature import compare

EDGES = ndtri(np.arange(1, 256) / 256)


def series(rng, rho, n, k):
    "Normal columns of variance 1 whose neighbouring rows have the correlation rho, shape (n, k)"
    return rng.normal(size=(n, k)) if not rho else lfilter([math.sqrt(1 - rho**2)], [1, -rho], rng.normal(size=(n + 1_000, k)), axis=0)[1_000:]


def counted(rng, n, blocks=0):
    "The profile of n independent rows, without making them"
    parts = rng.multinomial(n // max(blocks, 1), np.full(256, 1 / 256), size=max(blocks, 1))
    counts = parts.sum(0)
    group = groups(np.r_[0, counts, 0])
    course = np.c_[regroup(np.c_[np.zeros(blocks, int), parts, np.zeros(blocks, int)], group), np.zeros(blocks, int)] if blocks else None
    return NumericProfile("numeric", EDGES, counts, low=-9.0, high=9.0, groups=group, course=course)


@cache
def p_values(n, m, rho, times):
    "Of `times` columns that have not drifted"
    rng = np.random.default_rng([n, m, int(1000 * rho)])
    if n * times > 4e7 or m * times > 4e7: return np.array([compare("x", counted(rng, n, 128), counted(rng, m), .05, 0.0).p_value for _ in range(times)])
    found = []
    for done in range(0, times, 50):
        rows = pd.DataFrame(series(rng, rho, n + m, min(50, times - done))).add_prefix("x")
        known = profile(rows[:n])
        window = profile(rows[n:], like=known)
        found += [compare(c, known[c], window[c], .05, 0.0).p_value for c in rows]
    return np.array(found)


SCENARIOS = [(10_000, 1_000, 0), (10_000, 200, 0), (10_000, 50, 0), (1_000, 1_000, 0), (200, 200, 0), (100, 100, 0), (50, 50, 0), (100, 5_000, 0), (1_000_000, 1_000_000, 0), (1_000_000, 100, 0),
             (10_000, 1_000, .5), (10_000, 1_000, .9), (10_000, 200, .97), (10_000, 1_000, .99), (1_000, 1_000, .9), (1_000, 100, .9), (300, 100, .5)]


@pytest.mark.parametrize("n,m,rho", SCENARIOS)
@pytest.mark.parametrize("features", [5, 20, 200])
def test_false_alarms_are_within_the_budget(n, m, rho, features):
    "A feature may alarm in budget / features of all checks; here for a budget of one false alarm in ten checks"
    level, p = .1 / features, p_values(n, m, rho, 2_000)
    assert (p <= level).mean() <= level + 3 * math.sqrt(level / len(p))


KINDS = {"lognormal": lambda z, rng: np.exp(1.5 * z), "counts": lambda z, rng: np.floor(np.exp(z)).astype(int), "mostly zero": lambda z, rng: np.where(z > 1, z, 0), "booleans": lambda z, rng: z > 1,
         "levels": lambda z, rng: np.array(list("abcde"))[np.digitize(z, [-1, 0, .5, 1.5])], "many levels": lambda z, rng: np.char.add("l", np.floor(20 * abs(z)).astype(int).astype(str)),
         "clustered nulls": lambda z, rng: np.where(z > 1.3, np.nan, rng.normal(size=z.shape)), "a daily cycle": lambda z, rng: z + 1.5 * np.sin(np.arange(len(z)) * 2 * np.pi / 100)[:, None]}


@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_of_columns_of_all_kinds_whose_rows_depend_on_each_other(kind):
    rng, n, m, level, found = np.random.default_rng(1), 2_000, 500, .01, []
    for _ in range(10):
        rows = pd.DataFrame(KINDS[kind](series(rng, .8, n + m, 50), rng)).add_prefix("x")
        known = profile(rows[:n])
        window = profile(rows[n:], like=known)
        found += [compare(c, known[c], window[c], .05, 0.0).p_value for c in rows]
    assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level / len(found))


@pytest.mark.parametrize("levels", [12, 40])
def test_false_alarms_of_many_levels_that_follow_a_slow_series(levels):
    "Few directions carry nearly all of the variance, which makes the tail heavy"
    rng, n, m, level, found = np.random.default_rng(levels), 10_000, 1_000, .005, []
    for _ in range(20):
        rows = pd.DataFrame(np.char.add("l", np.floor(ndtr(series(rng, .9, n + m, 50)) * levels).astype(int).astype(str))).add_prefix("x")
        known = profile(rows[:n])
        window = profile(rows[n:], like=known)
        found += [compare(c, known[c], window[c], .05, 0.0).p_value for c in rows]
    assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level / len(found))


@pytest.mark.parametrize("n,m", [(10_000, 1_000), (1_000, 1_000)])
def test_the_test_above_would_fail_without_the_corrections(n, m):
    p = p_values(n, m, 0, 2_000)
    assert (p <= .05).mean() > .02  # every column at 5 %, as is usual: of twenty at least a third of all checks would alarm
    assert 1 - (1 - (p <= .05).mean()) ** 20 > .3
    rng = np.random.default_rng(3)
    rows = pd.DataFrame(series(rng, .9, n + m, 50)).add_prefix("x")
    known = profile(rows[:n])
    blind = [compare(c, NumericProfile(**{**vars(known[c]), "course": None}), profile(rows[n:], like=known)[c], .05, 0.0).p_value for c in rows]
    assert np.mean(np.array(blind) <= .005) > .2  # without the course, rows that depend on each other alarm in a fifth of all columns at a level of 0.5 %


def test_a_thousand_looks():
    "A dashboard of twenty columns that is looked at a thousand times, with a budget of two false alarms: at most six, which chance exceeds once in 200"
    rng, level = np.random.default_rng(0), per_check(read_budget("2 per 1000 checks"), 1.0) / 20
    known = [counted(rng, 10_000, 128) for _ in range(20)]
    alarms = sum(compare("x", a, counted(rng, 1_000), level, 0.0).alarm for _ in range(1_000) for a in known)
    assert alarms <= 6


def power(n, m, features, checks=200, **change):
    "The share of checks that see the drifted column of so many, at a budget of 0.05"
    rng = np.random.default_rng([n, m])
    rows = pd.DataFrame(rng.normal(size=(n, checks))).add_prefix("x")
    window = pd.DataFrame(rng.normal(change.get("shift", 0), change.get("scale", 1), size=(m, checks))).add_prefix("x")
    known = profile(rows)
    now = profile(window, like=known)
    return np.mean([compare(c, known[c], now[c], .05 / features, .03).alarm for c in rows])


@pytest.mark.parametrize("m,change,least", [(1_000, {"shift": .2}, .93), (500, {"shift": .2}, .74), (500, {"shift": .3}, .97), (5_000, {"shift": .2}, .999), (1_000, {"scale": 1.25}, .95), (200, {"shift": .5}, .97)])
def test_power_for_one_column_of_twenty(m, change, least):
    "10,000 rows of reference. KS with Bonferroni on all rows sees a shift of 0.2 sd in .97 of all windows of 1,000 rows; here .97 and .80 at 500 rows, less three standard errors"
    assert power(10_000, m, 20, **change) >= least


def test_negligible_shifts_do_not_alarm_and_are_told():
    rng = np.random.default_rng(5)
    rows = pd.DataFrame(rng.normal(size=(200_000, 20))).add_prefix("x")
    report = drift(rows, pd.DataFrame(rng.normal(.02, 1, size=(200_000, 20))).add_prefix("x"))
    assert not report.alarm and any("certain but too small to matter: x" in r for r in report.reasons)
    assert (report.table()["p_value"] < .05 / 20).mean() > .8
