"Plans of experiments: against tea-tasting, closed forms and simulated experiments. The tolerance of a rate is three standard errors"
import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlnb.core.errors import ParameterError
from mlnb.core.result import dumps
from mlnb.rollout.planner import any_time_for, cluster_variance, one_look, plan_experiment, planned_looks, ratio_variance, smallest_effect

ONE, PLANNED, ANY = range(3)


# One look, against others


@pytest.mark.parametrize("side", ["two-sided", "greater"])
@pytest.mark.parametrize("ratio", [1, .25])
@pytest.mark.parametrize("effect,variance", [(.1, 1.), (1., 1.), (3., 900.)])
def test_mean_like_tea_tasting(side, ratio, effect, variance):
    tt = pytest.importorskip("tea_tasting")
    data = tt.aggr.Aggregates(count_=1000, mean_={"x": 10.}, var_={"x": variance}, cov_={})
    plan = plan_experiment("mean", 10., effect, variance=variance, traffic=100, weights=(1, ratio), alpha=.01, power=.9, alternative=side)
    for n, found in ((plan.rows[ONE].units - 1, False), (plan.rows[ONE].units, True)):  # its search for n stops at NaN when arms are unequal, so its power is asked
        theirs = tt.Mean("x", alternative=side, ratio=ratio, alpha=.01, effect_size=effect, n_obs=n)
        assert (theirs.solve_power_from_aggregates(data, "power")[0].power >= .9) == found
    assert plan.rows[ONE].days == math.ceil(plan.rows[ONE].units / 100)
    mine = plan_experiment("mean", 10., variance=variance, traffic=500, days=2, weights=(1, ratio), alpha=.01, power=.9, alternative=side).rows[ONE].mde
    theirs = tt.Mean("x", alternative=side, ratio=ratio, power=.9, alpha=.01, n_obs=1000)
    assert mine == pytest.approx(theirs.solve_power_from_aggregates(data, "effect_size")[0].effect_size, rel=1e-4)


def test_covariate_like_tea_tasting():
    tt = pytest.importorskip("tea_tasting")
    data = tt.aggr.Aggregates(count_=1000, mean_={"x": 10., "z": 5.}, var_={"x": 4., "z": 9.}, cov_={("x", "z"): .6 * 2 * 3})
    n = tt.Mean("x", covariate="z", effect_size=.2, power=.8, alpha=.05).solve_power_from_aggregates(data, "n_obs")[0].n_obs
    assert abs(plan_experiment("mean", effect=.2, variance=4., correlation=.6, traffic=10).rows[ONE].units - n) <= 1


def test_ratio_like_tea_tasting():
    tt = pytest.importorskip("tea_tasting")
    data = tt.aggr.Aggregates(count_=1000, mean_={"errors": .5, "requests": 10.}, var_={"errors": .8, "requests": 30.}, cov_={("errors", "requests"): 2.})
    n = tt.RatioOfMeans("errors", "requests", effect_size=.005, power=.8, alpha=.05).solve_power_from_aggregates(data, "n_obs")[0].n_obs
    plan = plan_experiment("ratio", .05, .005, variance=ratio_variance(.5, 10., .8, 30., 2.), traffic=1000)
    assert abs(plan.rows[ONE].units - n) <= 1


def test_proportion_closed_form():
    n = (stats.norm.isf(.025) + stats.norm.isf(.2)) ** 2 * (.1 * .9 + .12 * .88) / .02**2
    assert plan_experiment("proportion", .1, .02, traffic=100).rows[ONE].units == pytest.approx(2 * n, rel=1e-3)
    assert plan_experiment("proportion", .1, .2, relative=True, traffic=100).rows[ONE].units == pytest.approx(2 * n, rel=1e-3)


def test_margin_closed_form():
    "Show that errors rise by less than a point, when they do not rise"
    n = 2 * (stats.norm.isf(.05) + stats.norm.isf(.1)) ** 2 * 2 * .05 * .95 / .01**2
    plan = plan_experiment("proportion", .05, margin=.01, alternative="less", power=.9, traffic=1000)
    assert plan.rows[ONE].units == pytest.approx(n, rel=1e-3)
    assert plan_experiment("proportion", .05, margin=.2, relative=True, alternative="less", power=.9, traffic=1000).rows == plan.rows and plan.rows[ONE].mde == 0
    worse = plan_experiment("proportion", .05, .005, margin=.01, alternative="less", power=.9, traffic=1000)
    assert worse.rows[ONE].units == pytest.approx(n * 4 * (.05 * .95 + .055 * .945) / (2 * .05 * .95), rel=1e-3)


def test_arms():
    "Three treatments: alpha is shared, and each comparison has the control and a treatment of a tenth"
    z = stats.norm.isf(.025 / 3) + stats.norm.isf(.2)
    plan = plan_experiment("mean", effect=.05, variance=1., traffic=1000, weights=(70, 10, 10, 10))
    assert plan.rows[ONE].units == pytest.approx(z**2 * (1 / .7 + 1 / .1) / .05**2, rel=1e-3)


def test_clusters_simulated():
    rng = np.random.default_rng(0)
    user = rng.normal(0, math.sqrt(.3), (40_000, 1)) + rng.normal(0, math.sqrt(.7), (40_000, 8))
    assert user.mean(1).var() == pytest.approx(cluster_variance(1., 8, .3), rel=3 * math.sqrt(2 / 40_000))


# The other ways


def test_what_it_costs_to_look():
    one, planned, anytime = plan_experiment("mean", effect=.1, variance=1., traffic=100).rows
    assert 1 < planned.units / one.units < 1.04 and planned.average_days < .9 * one.days
    assert 1.5 < anytime.units / one.units < 1.9 and one.days < anytime.average_days < anytime.days
    assert [r.mde for r in (one, planned, anytime)] == pytest.approx([.1] * 3, rel=1e-4)


@pytest.mark.parametrize("margin,side", [(None, "two-sided"), (None, "less"), (.3, "greater")])
def test_power_and_average_days_simulated(margin, side):
    reps, effect = 10_000, {"two-sided": .2, "less": -.2, "greater": -.05}[side]
    plan = plan_experiment("mean", effect=effect, variance=1., traffic=40, margin=margin, alternative=side, looks=4)
    d, rng = plan.design, np.random.default_rng(0)
    for way, row in zip((one_look(d), planned_looks(d, 4), any_time_for(d, effect)), plan.rows, strict=True):
        t = way.looks.fractions
        b = rng.normal(size=(reps, len(t))) * np.sqrt(np.diff(t, prepend=0))
        z = np.cumsum(b, 1) / np.sqrt(t) + d.z(effect, row.units) * np.sqrt(t)
        stop = (np.abs(z) if side == "two-sided" else z) > way.looks.z
        first = np.where(stop.any(1), t[stop.argmax(1)], 1) * row.days
        assert stop.any(1).mean() == pytest.approx(.8, abs=3 * .4 / math.sqrt(reps))
        assert row.power == pytest.approx(.8, abs=1e-5)
        assert row.average_days == pytest.approx(first.mean(), abs=.05 + 3 * first.std() / math.sqrt(reps))


@pytest.mark.parametrize("horizon", [None, 1, 300, 20_000])
def test_any_time_holds_its_risk_whatever_the_horizon(horizon):
    plan = plan_experiment("mean", effect=.2, variance=1., traffic=20, horizon=horizon)
    assert any_time_for(plan.design, .2, horizon).looks.crossing().sum() < .05
    assert all(r.power == pytest.approx(.8, abs=1e-3) for r in plan.rows)
    assert plan.horizon == (horizon or pytest.approx(plan.rows[ANY].units, abs=1))


def test_days_that_are_available():
    enough = plan_experiment("proportion", .1, .02, traffic=1000, days=30)
    late = plan_experiment("proportion", .1, .02, traffic=1000, days=3)
    assert late.alarm and not enough.alarm and all(r.units == 3000 and r.days == 3 for r in late.rows)
    assert late.rows[ONE].power > late.rows[PLANNED].power > late.rows[ANY].power > .05
    found = plan_experiment("proportion", .1, traffic=1000, days=3)
    for row, r in zip(found.rows, late.rows, strict=True):
        assert row.mde == r.mde > .02 and row.power == pytest.approx(.8, abs=1e-5)
        assert plan_experiment("proportion", .1, row.mde, traffic=1000).rows[found.rows.index(row)].units == pytest.approx(3000, rel=.01)


def test_no_effect_is_large_enough():
    plan = plan_experiment("proportion", .01, traffic=10, days=3, alternative="less")
    assert plan.alarm and "none" in plan.reasons[0]
    assert json.loads(dumps(plan.to_dict()))["table"][0]["mde"] is None
    plan.plot(), plan._repr_html_()


# Properties


@settings(max_examples=12)
@given(effect=st.floats(.001, 3), variance=st.floats(.01, 100), traffic=st.floats(.1, 1e6), alpha=st.sampled_from([.001, .05, .2]), power=st.sampled_from([.5, .8, .99]),
       side=st.sampled_from(["two-sided", "greater", "less"]), share=st.floats(.02, .98), days=st.sampled_from([None, .5, 14.]))
def test_any_plan_is_whole(effect, variance, traffic, alpha, power, side, share, days):
    effect = -effect if side == "less" else effect
    plan = plan_experiment("mean", effect=effect, variance=variance, traffic=traffic, alpha=alpha, power=power, alternative=side, weights=(share, 1 - share), days=days)
    one, planned, anytime = plan.rows
    assert np.isfinite([r.power for r in plan.rows]).all() and all(0 <= r.power <= 1 for r in plan.rows)
    assert all(0 < r.average_days <= r.days for r in plan.rows)
    if days is None:
        assert all(r.power >= power - 1e-5 for r in plan.rows) and not plan.alarm
        assert planned.units <= anytime.units
    assert plan.reasons and plan.course.notna().all().all()


@settings(max_examples=20)
@given(baseline=st.floats(.02, .9), units=st.integers(50, 100_000), sign=st.sampled_from([1, -1]))
def test_the_smallest_effect_is_found_with_the_power(baseline, units, sign):
    d = plan_experiment("proportion", baseline, traffic=1, days=10).design
    for way in (one_look(d), planned_looks(d, 5)):
        effect = smallest_effect(way, d, units, sign)
        if np.isfinite(effect): assert way.power(d, units, effect) == pytest.approx(.8, abs=1e-6) and effect * sign > 0
        else: assert way.power(d, units, sign * ((1 - baseline if sign > 0 else baseline) - 1e-6)) < .8


@pytest.mark.parametrize("settings", [{}, {"effect": .0005}, {"days": 7}, {"days": 7, "effect": .001}, {"horizon": 5000, "effect": .001}, {"looks": 20}, {"effect": .0005, "horizon": 100_000}])
def test_an_answer_is_quick(settings):
    plan_experiment("proportion", .1, .01, traffic=2000)
    start = time.process_time()
    plan_experiment("proportion", .1, **({} if "days" in settings else {"effect": .01}) | settings, traffic=2000)
    assert time.process_time() - start < (2 if "horizon" in settings else 1)


GOOD = {"metric": "proportion", "baseline": .1, "effect": .01, "traffic": 1000}


@pytest.mark.parametrize("change,words", [
    ({"metric": "median", "baseline": np.nan, "traffic": -1, "days": 0, "alpha": 0, "power": 1, "looks": 2.5, "horizon": 0, "weights": (1, 0), "correlation": 1},
     ["metric='median'", "baseline=nan", "traffic=-1", "days=0", "alpha=0", "power=1", "looks=2.5", "horizon=0", "weights=(1, 0)", "correlation=1"]),
    ({"effect": 0}, ["effect=0 can never be found"]), ({"effect": .95}, ["from 0.1 to 1.05"]), ({"effect": None}, ["effect=None and days=None"]), ({"effect": np.nan}, ["effect=nan"]),
    ({"baseline": 1}, ["baseline=1 is no proportion"]), ({"baseline": None}, ["baseline=None"]), ({"margin": .01}, ["margin needs a side"]), ({"margin": -.01, "alternative": "less"}, ["margin=-0.01"]),
    ({"metric": "mean"}, ["variance=None, but a mean needs"]), ({"metric": "ratio", "variance": 0}, ["variance=0 must be positive"]), ({"metric": "mean", "baseline": 0, "relative": True}, ["has no multiples"]),
    ({"alternative": "less"}, ["wrong side of 0"]), ({"alternative": "less", "margin": .01, "effect": .01}, ["wrong side of 0.01"]), ({"spending": "fast"}, ["spending='fast'"]), ({"weights": (1,)}, ["weights=(1,)"]),
])
def test_all_that_is_wrong_is_said_at_once(change, words):
    with pytest.raises(ParameterError) as e: plan_experiment(**GOOD | change)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_the_report_is_plain_data():
    plan = plan_experiment(**GOOD)
    data = json.loads(dumps(plan.to_dict()))
    assert data["effect"] == .01 and data["horizon"] > 0 and [r["look"] for r in data["table"]] == ["one look at the end", "5 planned looks", "any time"]
    assert "Plan: enough time" in repr(plan) and "<table" in plan._repr_html_()
