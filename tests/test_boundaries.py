"Planned looks: published boundaries, exact probabilities, simulated experiments. The tolerance of a rate is three standard errors"
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlnb.core.errors import ParameterError
from mlnb.rollout.boundaries import boundaries, looks, repeated_interval, repeated_p, spending
from mlnb.rollout.sequential import critical

FIVE = np.arange(1, 6) / 5
SIDES = "two-sided", "greater", "less"


@pytest.mark.parametrize("kind,z", [("obrien-fleming", [4.877, 3.357, 2.680, 2.290, 2.031]), ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386])])
def test_published_boundaries(kind, z):
    assert boundaries(FIVE, kind=kind) == pytest.approx(z, abs=6e-4)


@pytest.mark.parametrize("k,pocock,obrien", [(2, 2.178, 1.977), (5, 2.413, 2.040), (10, 2.555, 2.087), (20, 2.672, 2.126)])
def test_published_constants(k, pocock, obrien):
    "The tables of Jennison and Turnbull for two-sided alpha = .05; a rounded constant moves the risk by 1e-4"
    t = np.arange(1, k + 1) / k
    assert [looks(t, z).crossing().sum() for z in (pocock, obrien / np.sqrt(t))] == pytest.approx([.05, .05], abs=2e-4)


@pytest.mark.parametrize("z,inflation", [(np.full(5, 2.413), 1.228), (2.040 / np.sqrt(FIVE), 1.028)])
def test_published_inflation_of_the_sample_size(z, inflation):
    "At a power of .8"
    assert looks(FIVE, z).crossing(math.sqrt(inflation) * (stats.norm.isf(.025) + stats.norm.isf(.2))).sum() == pytest.approx(.8, abs=2e-3)


def test_risk_of_repeated_usual_tests():
    "Armitage, McPherson and Rowe 1969, table 2: 1.96 at each of k looks"
    risk = [looks(np.arange(1, k + 1) / k, 1.959964).crossing().sum() for k in (1, 2, 5, 10, 50)]
    assert risk == pytest.approx([.05, .083, .142, .193, .320], abs=6e-4)


@settings(max_examples=40)
@given(steps=st.lists(st.floats(.001, 1), min_size=1, max_size=8), alpha=st.floats(.001, .4), kind=st.sampled_from(["obrien-fleming", "pocock"]), side=st.sampled_from(SIDES))
def test_all_of_the_risk_is_spent_and_no_more(steps, alpha, kind, side):
    t = np.cumsum(steps) / np.sum(steps)
    p = looks(t, boundaries(t, alpha, kind, side), side).crossing()
    half = alpha / 2 if side == "two-sided" else alpha
    assert np.cumsum(p) == pytest.approx(spending(t, half, kind) * alpha / half, rel=1e-6, abs=1e-12)


def test_two_looks_are_a_bivariate_normal():
    t, z, drift = np.array([.3, 1]), np.array([2.2, 2.0]), 2.5
    both = stats.multivariate_normal([drift * math.sqrt(.3), drift], [[1, math.sqrt(.3)], [math.sqrt(.3), 1]])
    stays = both.cdf(z, lower_limit=-z)
    assert looks(t, z).crossing(drift).sum() == pytest.approx(1 - stays, abs=1e-7)
    assert looks(t, z, "greater").crossing(drift).sum() == pytest.approx(1 - both.cdf(z), abs=1e-7)


@settings(max_examples=25)
@given(z=st.floats(-4, 4), k=st.integers(1, 4), alpha=st.sampled_from([.01, .05, .2]), kind=st.sampled_from(["obrien-fleming", "pocock"]), side=st.sampled_from(SIDES))
def test_interval_and_p_agree(z, k, alpha, kind, side):
    t = FIVE[:k]
    lower, upper = repeated_interval(np.full(k, z), np.ones(k), t, alpha, kind, side)
    p = repeated_p(z, t, kind, side)
    if abs(p / alpha - 1) > 1e-4: assert (p < alpha) == (lower[-1] > 0 or upper[-1] < 0)


def test_nothing_known_is_never_a_verdict():
    lower, upper = repeated_interval([0, 1, np.nan, 1, 1], [0, np.nan, 1, 1, np.inf], FIVE)
    assert np.isfinite(lower).tolist() == np.isfinite(upper).tolist() == [False, False, False, True, False]
    assert repeated_p(np.nan, FIVE) == 1


@pytest.mark.parametrize("call,words", [
    (lambda: boundaries([.5, .2], -1, "evenly", "up"), ["alpha=-1 ", "fractions=[0.5, 0.2]", "kind='evenly'", "alternative='up'"]),
    (lambda: boundaries([0, 1]), ["fractions=[0.0, 1.0]"]), (lambda: boundaries([]), ["fractions=[]"]), (lambda: looks([.5, np.nan], 2), ["fractions=[0.5, nan]"]),
])
def test_all_that_is_wrong_is_said_at_once(call, words):
    with pytest.raises(ParameterError) as e: call()
    assert all(word in str(e.value) for word in words)


def test_20_planned_looks_simulated():
    "No effect, and one that one look finds in 80 % of all experiments: planned looks .78, any time .49"
    reps, t = 20_000, np.arange(1, 21) / 20
    drift = stats.norm.isf(.025) + stats.norm.isf(.2)
    noise = np.random.default_rng(0).normal(size=(reps, 20)).cumsum(1) / np.sqrt(np.arange(1, 21))
    planned, anytime = looks(t, boundaries(t)), looks(t, critical(20_000 * t, horizon=10_000))
    for rule in (planned, anytime):
        for d in (0, drift):
            stop = np.abs(noise + d * np.sqrt(t)) > rule.z
            first = np.where(stop.any(1), t[stop.argmax(1)], 1)
            p = rule.crossing(d).sum()
            assert stop.any(1).mean() == pytest.approx(p, abs=3 * math.sqrt(p * (1 - p) / reps))
            assert first.mean() == pytest.approx(rule.average(d), abs=3 * first.std() / math.sqrt(reps) + 1e-9)
    assert planned.crossing().sum() == pytest.approx(.05, abs=1e-6)
    assert planned.crossing(drift).sum() == pytest.approx(.79, abs=.01)
    assert anytime.crossing(drift).sum() == pytest.approx(.49, abs=.01)


def test_unplanned_numbers_of_looks_with_skewed_values():
    "Looks at uneven times, lognormal values: the rate of false decisions stays"
    reps, at = 4000, np.array([50, 80, 200, 210, 400])
    y = np.exp(np.random.default_rng(1).standard_normal((reps, 2, 400), dtype="f4"))
    s, ss = np.cumsum(y, -1, dtype=float)[..., at - 1], np.cumsum(y**2, -1, dtype=float)[..., at - 1]
    z = (s[:, 1] - s[:, 0]) / at / np.sqrt(((ss - s**2 / at) / (at - 1) / at).sum(1))
    assert (np.abs(z) > boundaries(at / 400)).any(1).mean() <= .05 + 3 * math.sqrt(.05 * .95 / reps)
