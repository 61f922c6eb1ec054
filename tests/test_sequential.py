"Confidence sequences: the numbers that other programs publish, and simulated experiments that are watched. The tolerance of a rate is three standard errors"
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from mlnb.core.errors import ParameterError
from mlnb.rollout.sequential import (anytime_p, beta_binomial, concentration, confidence_sequence, critical, normal_mixture, rare_difference, rate_sequence,
                                     sample_ratio_p, share_p, tuning)

SIDES = "two-sided", "greater", "less"


def at_most(rate, reps):
    "A simulated rate may be this large when its promise is `rate`"
    return rate + 3 * math.sqrt(rate * (1 - rate) / reps)


# Other programs


def moments(total, squares, n):
    return total / n, (squares - total**2 / n) / (n - 1), n


def rate(k, n):
    return k / n, k / n * (1 - k / n), n


def relative(a, b):
    "(b - a) / a with its standard error by the delta method, and the units of both"
    (ma, va, na), (mb, vb, nb) = a, b
    return (mb - ma) / ma, math.sqrt(vb / nb / ma**2 + va / na * mb**2 / ma**4), na + nb


def absolute(a, b):
    (ma, va, na), (mb, vb, nb) = a, b
    return mb - ma, math.sqrt(va / na + vb / nb), na + nb


A, B = moments(1396.87, 52377.9767, 3000), moments(2422.7, 134698.29, 3461)


def test_gbstats_two_sided():
    estimate, se, n = relative(A, B)
    assert (estimate, se) == pytest.approx((.50336, .33341), abs=5e-6)
    assert confidence_sequence(estimate, se, n, horizon=1000) == pytest.approx((-.55844, 1.56516), abs=5e-6)
    assert anytime_p(estimate, se, n, horizon=1000) == 1


def test_gbstats_proportion():
    estimate, se, n = relative(rate(1396, 3000), rate(2422, 3461))
    assert (estimate, se) == pytest.approx((.50386, .03386), abs=5e-6)
    assert confidence_sequence(estimate, se, n) == pytest.approx((.40098, .60675), abs=6e-6)


@pytest.mark.parametrize("kind,lower", [(relative, -.42356454602790883), (absolute, -.12656844172804982)])
def test_gbstats_one_sided(kind, lower):
    assert confidence_sequence(*kind(A, B), alternative="greater") == (pytest.approx(lower, rel=1e-12), np.inf)
    estimate, se, n = kind(A, B)
    assert confidence_sequence(-estimate, se, n, alternative="less") == (-np.inf, pytest.approx(-lower, rel=1e-12))


def test_gbstats_width_is_smallest_at_the_horizon():
    small, large, at = (np.diff(confidence_sequence(0, 1, 6461, horizon=h), axis=0)[0] for h in (10, 10_000, 6461))
    assert small > large > at


def test_confseq_normal_mixture():
    rho = 1 / tuning(.05, 100)
    assert rho == pytest.approx(12.60056, abs=5e-6)
    assert normal_mixture(10, 100, rho) == pytest.approx(-.6510052, abs=5e-8)
    assert critical(100, .05, 100) * math.sqrt(100) == pytest.approx(30.35209, abs=5e-6)
    rho = 1 / tuning(.05, 100, "greater")
    assert normal_mixture(10, 100, rho, "greater") == pytest.approx(-.06502391, abs=5e-9)
    assert brentq(lambda s: normal_mixture(s, 100, rho, "greater") - math.log(20), 0, 99) == pytest.approx(27.66071, abs=5e-6)


@pytest.mark.parametrize("side,expected", [("two-sided", -.6941012), ("greater", -.07134019)])
def test_confseq_beta_binomial(side, expected):
    "s = 10 and v = 100 with g = .2, h = .8 are 135 successes of 625 trials against a rate of .2; the variance 100 at which it is best are 625 trials"
    assert beta_binomial(135, 625, .2, concentration(.05, 625, side), side) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("k,n,horizon,ends", [(700, 1000, 100, (.651629, .745949)), (5, 50, 50, (.013021, .269264))])
def test_confseq_bernoulli_interval(k, n, horizon, ends):
    "Its second one has a mixture of concentration 5.3 too; both agree to a unit of the last digit"
    assert rate_sequence(k, n, horizon=horizon) == pytest.approx(ends, abs=1e-6)


def test_msprt():
    "The statistic of the mixture sequential probability ratio test for a mean difference of n pairs; V: variance of one pair, tau: spread of effects"
    rng = np.random.default_rng(0)
    assert math.exp(normal_mixture(500 * .15 / math.sqrt(2), 500, 2 / .1**2)) == pytest.approx(3.985038953321, abs=1e-12)
    for n, d, v, tau in zip(rng.integers(10, 10_000, 20), rng.normal(0, .1, 20), rng.uniform(.5, 4, 20), rng.uniform(.01, 1, 20), strict=True):
        ratio = math.sqrt(v / (v + n * tau**2)) * math.exp(n**2 * tau**2 * d**2 / (2 * v * (v + n * tau**2)))
        assert math.exp(normal_mixture(n * d / math.sqrt(v), n, v / tau**2)) == pytest.approx(ratio)
        assert anytime_p(d, math.sqrt(v / n), n, horizon=v / tau**2 * tuning(.05, 1)) == pytest.approx(min(1, 1 / ratio))


def test_price_of_looking():
    ratio = critical(5000 * np.array([.1, .5, 1, 2, 10])) / stats.norm.isf(.025)
    assert ratio == pytest.approx([1.967, 1.573, 1.549, 1.562, 1.654], abs=5e-4)


# Properties


@given(estimate=st.floats(-50, 50), se=st.floats(1e-3, 1e3), n=st.integers(0, 10**7), alpha=st.floats(1e-6, .49), horizon=st.floats(1, 1e7), side=st.sampled_from(SIDES))
def test_interval_and_p_agree(estimate, se, n, alpha, horizon, side):
    lower, upper = confidence_sequence(estimate, se, n, alpha, horizon, side)
    p = anytime_p(estimate, se, n, alpha, horizon, side)
    assert 0 <= p <= 1 and lower <= upper
    if abs(p - alpha) > 1e-9 * alpha: assert (p < alpha) == (lower > 0 or upper < 0)


@given(n=st.integers(0, 2000), m=st.integers(0, 2000), x=st.floats(0, 1), y=st.floats(0, 1), share=st.sampled_from([.01, .2, .5, .9]), alpha=st.floats(1e-4, .4), side=st.sampled_from(SIDES))
def test_rare_interval_and_p_agree(n, m, x, y, share, alpha, side):
    lower, upper, p = rare_difference(round(x * n), n, round(y * m), m, alpha, share=share, alternative=side)
    assert 0 <= p <= 1 and lower < upper
    assert (p <= alpha) == (lower > 0 or upper < 0)


@given(k=st.integers(0, 300), more=st.integers(0, 300), side=st.sampled_from(SIDES), alpha=st.floats(1e-3, .4), horizon=st.floats(5, 1e5))
def test_rate_sequence_inverts_the_test(k, more, side, alpha, horizon):
    n = k + more
    lower, upper = rate_sequence(k, n, alpha, horizon, side)
    assert 0 <= lower <= (k / n if n else 0) <= upper <= 1
    other = {"two-sided": "two-sided", "greater": "less", "less": "greater"}[side]
    for end, inside in ((lower, 1e-6), (upper, -1e-6)):
        if not 1e-5 < end < 1 - 1e-5: continue
        assert share_p(k, n, float(end), side, alpha, horizon) <= alpha * (1 + 1e-6)
        assert share_p(k, n, float(end) + inside, side, alpha, horizon) > alpha
    assert rate_sequence(more, n, alpha, horizon, other) == pytest.approx((1 - upper, 1 - lower), abs=1e-9)


def test_nothing_known_is_never_a_verdict():
    for side in SIDES:
        assert confidence_sequence([0, 1, 1, np.nan], [0, np.nan, 1, 1], [50, 50, 1, 50], alternative=side)[0].tolist() == [-np.inf] * 4
        assert confidence_sequence([0, 1, 1, np.nan], [0, np.nan, 1, 1], [50, 50, 1, 50], alternative=side)[1].tolist() == [np.inf] * 4
        assert anytime_p([0, 1, 1, np.nan], [0, np.nan, 1, 1], [50, 50, 1, 50], alternative=side).tolist() == [1] * 4
        assert rare_difference(0, 0, 0, 0, alternative=side)[2] == 1
    assert sample_ratio_p([0, 0], [1, 1]) == 1


@pytest.mark.parametrize("call,words", [
    (lambda: tuning(0, -5, "up"), ["alpha=0 ", "horizon=-5 ", "alternative='up' "]),
    (lambda: critical(10, alpha=.5, alternative="greater"), ["alpha=0.5 "]),
    (lambda: rare_difference(3, 2, -1, 5, share=0), ["x_control is 3 of 2", "x_treatment is -1 of 5", "share=0 "]),
    (lambda: rate_sequence([1, np.nan], 5, horizon=np.inf), ["horizon=inf", "successes is nan"]),
    (lambda: sample_ratio_p([1, 2, np.nan], [1, 0]), ["weights=[1.0, 0.0]", "counts has 1 "]),
    (lambda: sample_ratio_p([1, 2, 3], [1, 1]), ["shape (3,)", "2 weights"]),
])
def test_all_that_is_wrong_is_said_at_once(call, words):
    with pytest.raises(ParameterError) as e: call()
    assert all(word in str(e.value) for word in words)


def test_a_check_of_one_canary_is_quick():
    rare_difference(3, 400, 9, 400)
    start = time.process_time()
    for _ in range(10): rare_difference(3, 400, 9, 400)
    assert (time.process_time() - start) / 10 < .1


# Simulations


def watched(draw, reps, looks, per_look, seed=1):
    "Difference, standard error and units at each look, shape (reps, looks); `draw(rng, shape)` for both arms"
    rng, parts, n = np.random.default_rng(seed), [], per_look * np.arange(1, looks + 1)
    for _ in range(reps // 50):
        y = draw(rng, (50, 2, looks, per_look))
        s, ss = np.cumsum(y.sum(-1, dtype=float), -1), np.cumsum((y**2).sum(-1, dtype=float), -1)
        parts.append(np.stack([(s[:, 1] - s[:, 0]) / n, np.sqrt(np.maximum((ss - s**2 / n) / (n - 1) / n, 0).sum(1))]))
    return *np.concatenate(parts, 1), 2 * n


DRAWS = {
    "rate": lambda rng, shape: (rng.random(shape, dtype="f4") < .1).astype("f4"),
    "lognormal": lambda rng, shape: np.exp(rng.standard_normal(shape, dtype="f4")),
    "zero-inflated": lambda rng, shape: rng.standard_exponential(shape, dtype="f4") * (rng.random(shape, dtype="f4") < .1),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_equal_arms_watched_100_times(kind):
    reps = 1000
    d, se, n = watched(DRAWS[kind], reps, 100, 50)
    assert (np.abs(d) > 1.96 * se).any(1).mean() > .3
    for side in SIDES:
        for horizon in (500, 5000):
            assert (anytime_p(d, se, n, horizon=horizon, alternative=side) <= .05).any(1).mean() <= at_most(.05, reps)
    lower, upper = confidence_sequence(d + .1, se, n)
    assert ((lower > .1) | (upper < .1)).any(1).mean() <= at_most(.05, reps)


def test_an_effect_is_found():
    "Half a standard deviation in 10 x 50 units an arm"
    d, se, n = watched(lambda rng, shape: rng.standard_normal(shape) + np.array([0, .5])[:, None, None], 200, 10, 50)
    assert (anytime_p(d, se, n, horizon=1000) < .05).any(1).mean() == 1
    assert (anytime_p(d, se, n, horizon=1000, alternative="less") < .05).any(1).mean() == 0


def canaries(control, treatment, share=.5, reps=1000, requests=1000, every=20, seed=2):
    "Counts at each look: events and trials of the control, then of the treatment"
    rng = np.random.default_rng(seed)
    treated = rng.random((reps, requests)) < share
    hit = rng.random((reps, requests)) < np.where(treated, treatment, control)
    return [np.cumsum(m, 1)[:, every - 1::every] for m in (hit & ~treated, ~treated, hit & treated, treated)]


@pytest.mark.parametrize("rate,share", [(.005, .5), (.05, .5), (.05, .1)])
def test_healthy_canaries_are_not_accused(rate, share):
    reps = 400
    for side in SIDES[:2]:
        assert (rare_difference(*canaries(rate, rate, share, reps), horizon=1000, share=share, alternative=side)[2] <= .05).any(1).mean() <= at_most(.05, reps)


def test_healthy_canaries_with_a_changing_error_rate():
    "The rate of both arms rises from 0 to 10 per cent: each error's arm is still a fair coin"
    rate = np.linspace(0, .1, 1000)
    assert (rare_difference(*canaries(rate, rate, reps=400), horizon=1000, alternative="greater")[2] <= .05).any(1).mean() <= at_most(.05, 400)


def test_bad_canaries_are_caught_within_500_requests_an_arm():
    p = rare_difference(*canaries(.005, .05, reps=400), horizon=1000, alternative="greater")[2]
    assert (p <= .05).any(1).mean() >= .9
    assert (rare_difference(*canaries(.05, .005, reps=100), horizon=1000, alternative="greater")[2] <= .05).any(1).mean() == 0


def test_the_rare_interval_covers():
    lower, upper, _ = rare_difference(*canaries(.01, .04, reps=400), horizon=1000)
    assert ((lower > .03) | (upper < .03)).any(1).mean() <= at_most(.05, 400)


def test_a_rate_is_covered_at_all_looks():
    for rate, seed in ((.01, 1), (.3, 2)):
        k = np.random.default_rng(seed).binomial(20, rate, (1000, 100)).cumsum(1)
        lower, upper = rate_sequence(k, 20 * np.arange(1, 101), horizon=1000)
        assert ((lower > rate) | (upper < rate)).any(1).mean() <= at_most(.05, 1000)


@pytest.mark.parametrize("weights", [[.5, .5], [.9, .1], [.5, .3, .2]])
def test_sample_ratio_of_a_right_router(weights):
    counts = np.random.default_rng(5).multinomial(50, weights, (2000, 200)).cumsum(1)
    assert (sample_ratio_p(counts, weights) <= .05).any(1).mean() <= at_most(.05, 2000)


def test_sample_ratio_of_a_wrong_router():
    counts = np.random.default_rng(6).multinomial(50, [.48, .52], (500, 400)).cumsum(1)
    assert (sample_ratio_p(counts, [.5, .5]) <= .05).any(1).mean() > .95
