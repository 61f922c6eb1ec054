"The statistics of experiments against tea-tasting, SciPy, published numbers and their own promises. Tolerances of simulations are three standard errors"
import math
from functools import reduce
from operator import add

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mlnb.core.errors import ParameterError
from mlnb.rollout.boundaries import boundaries
from mlnb.rollout.comparison import compare, steady
from mlnb.rollout.declared import Mean, Proportion, Quantile, Ratio, Rows
from mlnb.rollout.effects import Effect, fieller, interval, mean_effect, p_value, proportion_effect, quantile_effect, quantile_of, ratio_effect, relative
from mlnb.rollout.experiment import Setting, experiment, planned_looks, shared_level
from mlnb.rollout.moments import Moments, from_dict, moments, moments_by, to_dict
from mlnb.rollout.sequential import confidence_sequence
from mlnb.rollout.tables import enrol, one_row_a_unit


def within(rate, expected, times):
    "Is a simulated rate within three standard errors?"
    return abs(rate - expected) <= 3 * math.sqrt(expected * (1 - expected) / times)


def summary(total, squares, n, column="x"):
    "Moments from sums, as published examples have them"
    return Moments((column,), n, np.array([total / n]), np.array([[squares - total**2 / n]]))


# ---------------------------------------------------------------------------------------------------------------- moments

@given(st.lists(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=30), min_size=1, max_size=8))
def test_merged_moments_are_those_of_one_pass(parts):
    whole = [row for part in parts for row in part]
    def of(rows): return moments({"x": [r[0] for r in rows], "y": [r[1] for r in rows]}, ["x", "y"])
    merged, once = reduce(add, map(of, parts)), of(whole)
    assert merged.n == once.n
    scale = 1 + max((abs(v) for row in whole for v in row), default=0)
    np.testing.assert_allclose(merged.mean, once.mean, atol=1e-12 * scale)
    np.testing.assert_allclose(merged.cross, once.cross, atol=1e-10 * scale**2)
    again = from_dict(to_dict(merged))
    assert (again.cross == merged.cross).all() and (again.mean == merged.mean).all() and (again.columns, again.n) == (merged.columns, merged.n)


def test_moments_keep_their_digits_far_from_zero():
    x = 1e9 + np.random.default_rng(0).normal(size=100_000)
    exact = np.var(x - 1e9, ddof=1)
    for m in (moments({"x": x}, ["x"]), reduce(add, (moments({"x": part}, ["x"]) for part in np.array_split(x, 1_000)))):
        assert m.cross[0, 0] / (m.n - 1) == pytest.approx(exact, rel=1e-7)


def test_moments_by_group_leave_out_nulls_of_the_group():
    frame = pd.DataFrame({"arm": ["a", "b", None, "a"], "x": [1, 2, 3, 5]})
    found = moments_by(frame, ["x"], "arm")
    assert {k: (m.n, m.mean[0]) for k, m in found.items()} == {"a": (2, 3.0), "b": (1, 2.0)}


# -------------------------------------------------------------------------------------------------- tea-tasting and SciPy

COLUMNS = ["sessions", "orders", "revenue", "sessions_covariate", "orders_covariate", "revenue_covariate"]


@pytest.fixture(scope="module")
def users():
    "The data of tea-tasting's documentation"
    tt = pytest.importorskip("tea_tasting")
    return tt.make_users_data(rng=42, covariates=True, return_type="pandas")


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("name", ["orders_per_user", "orders_per_session", "revenue_per_user", "cuped", "ratio_cuped"])
def test_tea_tasting_finds_the_same(users, name, alternative):
    import tea_tasting as tt
    theirs, ours = {"orders_per_user": (tt.Mean("orders", alternative=alternative), Mean("orders")),
                    "orders_per_session": (tt.RatioOfMeans("orders", "sessions", alternative=alternative), Ratio("orders", "sessions")),
                    "revenue_per_user": (tt.Mean("revenue", alternative=alternative), Mean("revenue")),
                    "cuped": (tt.Mean("revenue", "revenue_covariate", alternative=alternative), Mean("revenue", covariate="revenue_covariate")),
                    "ratio_cuped": (tt.RatioOfMeans("orders", "sessions", "orders_covariate", "sessions_covariate", alternative=alternative), Ratio("orders", "sessions", covariate=("orders_covariate", "sessions_covariate")))}[name]
    expected = tt.Experiment({name: theirs}).analyze(users)[name]
    arms = moments_by(users, COLUMNS, "variant")
    c = compare(ours, arms[0], arms[1], inference="fixed", alternative=alternative)
    found = c.control, c.treatment, c.difference, c.lower, c.upper, c.p, c.relative
    np.testing.assert_allclose(found, (expected.control, expected.treatment, expected.effect_size, expected.effect_size_ci_lower, expected.effect_size_ci_upper, expected.pvalue, expected.rel_effect_size), rtol=1e-10)


def test_numbers_of_tea_tasting_s_documentation(users):
    tt = pytest.importorskip("tea_tasting")
    plain = moments_by(tt.make_users_data(rng=42, return_type="pandas"), COLUMNS[:3], "variant")
    orders = compare(Mean("orders"), plain[0], plain[1], inference="fixed")
    np.testing.assert_allclose((orders.control, orders.treatment, orders.p, orders.lower, orders.upper), (.5304003954522986, .5730905412240769, .11773177998716207, -.010800201598205522, .09618049314176216), rtol=1e-12)
    p = [compare(m, plain[0], plain[1], inference="fixed").p for m in (Ratio("orders", "sessions"), Mean("revenue"))]
    np.testing.assert_allclose(p, (.0762, .123), atol=5e-4)
    arms = moments_by(users, COLUMNS, "variant")
    cuped = [Mean("sessions", covariate="sessions_covariate"), Ratio("orders", "sessions", covariate=("orders_covariate", "sessions_covariate")), Mean("orders", covariate="orders_covariate"), Mean("revenue", covariate="revenue_covariate")]
    np.testing.assert_allclose([compare(m, arms[0], arms[1], inference="fixed").p for m in cuped], (.603, .00229, .00733, .00674), atol=5e-4)


def test_relative_intervals_of_the_published_example():
    "gbstats' Taylor interval is (-.035, 1.450) and tea-tasting's (.105, 1.638), for an absolute interval that excludes 0"
    a, b = summary(1396.87, 52377.9767, 3407), summary(2422.7, 134698.29, 3461)
    c = compare(Mean("x"), a, b, inference="fixed")
    np.testing.assert_allclose((c.lower, c.upper, c.p), (.04538, .53462, .02016), atol=1e-5)
    assert c.relative_lower > 0
    tt = pytest.importorskip("tea_tasting")
    theirs = tt.Experiment(x=tt.Mean("x")).analyze({k: tt.aggr.Aggregates(count_=m.n, mean_={"x": m.mean[0]}, var_={"x": m.cross[0, 0] / (m.n - 1)}) for k, m in enumerate((a, b))})["x"]
    np.testing.assert_allclose((theirs.rel_effect_size_ci_lower, theirs.rel_effect_size_ci_upper), (.10517, 1.63754), atol=1e-4)
    np.testing.assert_allclose((c.relative_lower, c.relative_upper), (theirs.rel_effect_size_ci_lower, theirs.rel_effect_size_ci_upper), atol=.08)


def test_one_sided_sequence_of_gbstats():
    a, b = summary(1396.87, 52377.9767, 3000), summary(2422.7, 134698.29, 3461)
    e = mean_effect(a, b, "x")
    lower, upper = confidence_sequence(e.estimate, e.se, 6461, .05, 5000, "greater")
    assert lower == pytest.approx(-.12656844172804982, abs=1e-9) and upper == np.inf
    c = compare(Mean("x"), a, b, alternative="greater", horizon=5000)  # which draws the variances towards each other, by the weight of 100 units
    assert c.lower == pytest.approx(-.12656844172804982, abs=2e-3) and c.upper == np.inf


@pytest.mark.parametrize("kind", ["exponential", "lognormal", "3 % buyers", "more variance in the small arm"])
@pytest.mark.parametrize("times_larger", [3, 9])
def test_sequences_hold_when_one_arm_is_small_and_values_are_skewed(kind, times_larger):
    "Looks at every unit of the small arm, from the 10th on"
    rng, times, most = np.random.default_rng(17), 300, 300
    draw = {"exponential": lambda s, k: rng.exponential(size=s), "lognormal": lambda s, k: rng.lognormal(0, 1.5, s), "3 % buyers": lambda s, k: rng.exponential(size=s) * (rng.random(s) < .03),
            "more variance in the small arm": lambda s, k: (1 + k) * (rng.exponential(size=s) - 1)}[kind]
    n = np.arange(10, most + 1)
    parts = []
    for k, size in enumerate((n * times_larger, n)):
        x = draw((times, size[-1]), k)
        s, q = (np.cumsum(v, axis=1)[:, size - 1] for v in (x, x**2))
        parts.append((size, s / size, (q - s**2 / size) / (size - 1) / size))
    (na, a, va), (nb, b, vb) = parts
    lower, upper = confidence_sequence(b - a, steady(Effect(a, b, b - a, np.sqrt(va + vb), np.inf, na, nb, va, vb)), na + nb, horizon=4_000)
    assert ((lower > 0) | (upper < 0)).any(1).mean() <= .05 + 3 * math.sqrt(.05 * .95 / times)


@given(st.integers(0, 10_000), st.integers(10, 60), st.integers(10, 60), st.floats(-1, 1), st.sampled_from(["two-sided", "greater", "less"]), st.floats(.001, .3))
def test_welch_is_scipy_s(seed, n, m, shift, alternative, alpha):
    rng = np.random.default_rng(seed)
    x, y = rng.gamma(1.5, 2, n), shift + rng.gamma(1.5, 3, m)
    e, theirs = mean_effect(moments({"v": x}, ["v"]), moments({"v": y}, ["v"]), "v"), stats.ttest_ind(y, x, equal_var=False, alternative=alternative)
    ends = theirs.confidence_interval(1 - alpha)
    np.testing.assert_allclose((p_value(e, alternative), *interval(e, alpha, alternative), e.df), (theirs.pvalue, ends.low, ends.high, theirs.df), rtol=1e-8, atol=1e-12)


def test_closed_forms_of_shares_and_ratios():
    rng = np.random.default_rng(1)
    x, y = rng.random(700) < .1, rng.random(500) < .13
    e = proportion_effect(*(moments({"v": v}, ["v"]) for v in (x, y)), "v")
    assert e.se == pytest.approx(math.sqrt(x.mean() * (1 - x.mean()) / 700 + y.mean() * (1 - y.mean()) / 500), rel=1e-12) and e.df == np.inf
    top, bottom = rng.poisson(2, (2, 400)).astype(float), 1 + rng.poisson(5, (2, 400)).astype(float)
    e = ratio_effect(*(moments({"a": a, "b": b}, ["a", "b"]) for a, b in zip(top, bottom, strict=True)), "a", "b")
    r = [a.mean() / b.mean() for a, b in zip(top, bottom, strict=True)]
    by_definition = sum((a - k * b).var(ddof=1) / b.mean()**2 / 400 for a, b, k in zip(top, bottom, r, strict=True))  # Deng, Knoblich and Lu 2018
    assert (e.estimate, e.se) == pytest.approx((r[1] - r[0], math.sqrt(by_definition)), rel=1e-10)


@pytest.mark.parametrize("q", [.1, .5, .9])
def test_the_bootstrap_of_a_quantile_without_resampling(q):
    x = np.random.default_rng(2).lognormal(0, 1, 800)
    drawn = np.quantile(np.random.default_rng(3).choice(x, (4_000, 800)), q, axis=1)
    assert math.sqrt(quantile_of(x, q)[1]) == pytest.approx(drawn.std(), rel=.06)
    assert math.sqrt(quantile_of(x, q)[1]) == pytest.approx(stats.mstats.mjci(x, [q])[0], rel=.1)


# --------------------------------------------------------------------------------------------------------------- coverage

def covered(make, truth, times, alpha=.05):
    "How often intervals contain the truth"
    found = [interval(make(), alpha) for _ in range(times)]
    return np.mean([low < truth < high for low, high in found])


def of(frames, columns): return [moments(f, columns) for f in frames]


def skewed(rng): return mean_effect(*of(({"v": rng.lognormal(0, 1, 400)}, {"v": 1.2 * rng.lognormal(0, 1, 600)}), ["v"]), "v")


def people(rng, n, lift):
    "Numbers of requests that differ much, and failures that depend on the person"
    requests = 1 + rng.negative_binomial(1, .1, n)
    return {"requests": requests, "failed": rng.binomial(requests, rng.beta(lift, 10 - lift, n))}


def clustered(rng): return ratio_effect(*of((people(rng, 500, 1), people(rng, 500, 1.3)), ["failed", "requests"]), "failed", "requests")


def with_covariate(rng):
    before = [rng.gamma(1, 5, 300) for _ in range(2)]
    return mean_effect(*of(({"before": b, "v": b + shift + rng.gamma(1, 3, 300)} for shift, b in zip((0, 1), before, strict=True)), ["before", "v"]), "v", "before")


def shares(rng): return proportion_effect(*of(({"v": rng.random(400) < p} for p in (.05, .08)), ["v"]), "v")


def quantiles(rng): return quantile_effect(rng.lognormal(0, 1, 500), 1.2 * rng.lognormal(0, 1, 500), .9)


def clustered_quantiles(rng):
    "Values of a person resemble each other; the marginal distribution is lognormal with variance 1"
    units = np.repeat(np.arange(120), 8)
    x, y = (np.exp(math.sqrt(.5) * (rng.normal(size=120)[units] + rng.normal(size=960))) for _ in range(2))
    return quantile_effect(x, 1.2 * y, .75, units, units)


TRUTHS = {skewed: .2 * math.exp(.5), clustered: .3 * .1, with_covariate: 1.0, shares: .03, quantiles: .2 * math.exp(stats.norm.ppf(.9)), clustered_quantiles: .2 * math.exp(stats.norm.ppf(.75))}


@pytest.mark.parametrize("make", TRUTHS, ids=lambda f: f.__name__)
def test_intervals_cover_as_often_as_they_say(make):
    rng = np.random.default_rng(5)
    assert within(covered(lambda: make(rng), TRUTHS[make], 2_000), .95, 2_000)


def test_requests_taken_for_units_cover_far_less():
    "Why clusters matter: the interval that takes requests for units"
    rng, hits = np.random.default_rng(6), 0
    for _ in range(500):
        a, b = people(rng, 500, 1), people(rng, 500, 1.3)
        p, n = np.array([f["failed"].sum() / f["requests"].sum() for f in (a, b)]), np.array([f["requests"].sum() for f in (a, b)])
        hits += abs(p[1] - p[0] - .03) < 1.96 * math.sqrt((p * (1 - p) / n).sum())
    assert hits / 500 < .85


@pytest.mark.parametrize("kind", ["mean", "ratio", "cuped"])
def test_sequences_of_all_estimators_hold_at_all_looks(kind):
    "25 looks at a test of nothing"
    rng, wrong, looks = np.random.default_rng(7), 0, range(50, 1_251, 50)
    metric = {"mean": Mean("v"), "ratio": Ratio("failed", "requests"), "cuped": Mean("v", covariate="before")}[kind]
    def arm():
        before = rng.gamma(1, 5, 1_250)
        return {**people(rng, 1_250, 1), "before": before, "v": before + rng.lognormal(0, 1, 1_250)}
    for _ in range(120):
        parts = [[moments({c: a[c][k - 50:k] for c in metric.columns}, metric.columns) for k in looks] for a in (arm(), arm())]
        running = [[reduce(add, p[:k + 1]) for k in range(len(p))] for p in parts]
        wrong += any(compare(metric, a, b, horizon=2_000).verdict != "unclear" for a, b in zip(*running, strict=True))
    assert wrong / 120 <= .05 + 3 * math.sqrt(.05 * .95 / 120)


# ---------------------------------------------------------------------------------------------------------- contradictions

EFFECTS = st.builds(lambda c, d, u, v, n, m: Effect(c, c + d, d, math.sqrt(u + v), float(n + m - 2), n, m, u, v),
                    st.floats(-100, 100), st.floats(-20, 20), st.floats(1e-6, 50), st.floats(1e-6, 50), st.integers(10, 10**6), st.integers(10, 10**6))


@settings(max_examples=400)
@given(EFFECTS, st.floats(.001, .4), st.sampled_from(["two-sided", "greater", "less"]))
def test_absolute_and_relative_intervals_never_contradict_each_other(e, alpha, alternative):
    low, high = interval(e, alpha, alternative)
    rel_low, rel_high = fieller(e, low, high)
    assert (low > 0, high < 0) == (rel_low > 0, rel_high < 0) or (low > 0 and rel_low == 0) or (high < 0 and rel_high == 0)
    assert not (rel_low > 0 and low <= 0) and not (rel_high < 0 and high >= 0)
    if e.control: assert rel_low - 1e-9 <= relative(e) <= rel_high + 1e-9
    assert (p_value(e, alternative) < alpha) == (low > 0 or high < 0) or abs(p_value(e, alternative) - alpha) < 1e-9


@settings(max_examples=200)
@given(st.floats(-5, 5), st.floats(1, 100), st.floats(.5, 3), st.integers(20, 5_000), st.floats(.01, .3), st.sampled_from(["two-sided", "greater", "less"]), st.sampled_from(["always", "fixed"]))
def test_p_value_interval_and_verdict_of_a_comparison_agree(shift, level, spread, n, alpha, alternative, inference):
    a, b = (Moments(("x",), n, np.array([m]), np.array([[s**2 * (n - 1)]])) for m, s in ((level, 1.0), (level + shift, spread)))
    c = compare(Mean("x"), a, b, alpha=alpha, inference=inference, horizon=1_000, alternative=alternative)
    excludes = c.lower > 0 or c.upper < 0
    assert (c.p < alpha) == excludes or abs(c.p - alpha) < 1e-6
    assert (c.verdict in ("better", "worse")) == excludes
    assert not (c.relative_lower > 0 and c.lower <= 0) and not (c.relative_upper < 0 and c.upper >= 0) and c.relative_lower * c.lower >= 0


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(20, 2_000), st.integers(20, 2_000), st.sampled_from(["two-sided", "greater", "less"]))
def test_rare_events_do_not_contradict_themselves(x, y, n, m, alternative):
    x, y = min(x, n), min(y, m)
    a, b = (moments({"v": np.arange(size) < k}, ["v"]) for k, size in ((x, n), (y, m)))
    c = compare(Proportion("v", better="lower", rare=True), a, b, alternative=alternative, share=m / (n + m))
    assert c.verdict != "unknown" and (c.p <= .05) == (c.lower > 0 or c.upper < 0)
    assert not (c.relative_lower > 0 and c.lower <= 0) and not (c.relative_upper < 0 and c.upper >= 0)


# ------------------------------------------------------------------------------------------------------- several metrics

def test_false_discoveries_are_as_rare_as_promised():
    "Ten correlated metrics without any effect: every discovery is false"
    rng = np.random.default_rng(8)
    z = math.sqrt(.3) * rng.normal(size=(4_000, 1)) + math.sqrt(.7) * rng.normal(size=(4_000, 10))
    p = 2 * stats.norm.sf(abs(z))
    found = [(shared_level(row, .05)[1] <= .05).any() for row in p]
    assert np.mean(found) <= .05 + 3 * math.sqrt(.05 * .95 / 4_000) and np.mean((p <= .05).any(1)) > .25


@pytest.mark.parametrize("method,inference", [("bh", "fixed"), ("by", "fixed"), ("bh", "always")])
def test_intervals_and_discoveries_of_several_metrics_agree(method, inference):
    rng = np.random.default_rng(9)
    for _ in range(5):
        lift = np.r_[np.zeros(5), rng.uniform(0, .3, 5)]
        frame = pd.DataFrame({f"m{k}": rng.normal(size=2_000) for k in range(10)}).assign(arm=np.repeat(["control", "new"], 1_000))
        frame.loc[1_000:, [f"m{k}" for k in range(10)]] += lift
        rows = experiment(frame, [Mean(f"m{k}") for k in range(10)], inference=inference, horizon=2_000, fdr=method).rows
        np.testing.assert_array_equal((rows["lower"] > 0) | (rows["upper"] < 0), rows["p_adjusted"] <= .05)
        expected = stats.false_discovery_control([stats.ttest_ind(frame[f"m{k}"][1_000:], frame[f"m{k}"][:1_000], equal_var=False).pvalue for k in range(10)], method=method)
        if inference == "fixed": np.testing.assert_allclose(rows["p_adjusted"], expected, rtol=1e-9)


# --------------------------------------------------------------------------------------------------------- rows and units

def log_of(rng, n=400, rows=5):
    who = rng.integers(0, n, n * rows)
    arm = np.where(np.arange(n) % 2, "new", "control")[who]
    return pd.DataFrame({"who": who, "arm": arm, "at": rng.permutation(n * rows), "spent": rng.gamma(1, 5, n * rows), "late": rng.random(n * rows) < .05, "requests": 1, "before": (who % 17).astype(float), "ms": rng.lognormal(4, .5, n * rows)})


METRICS = [Mean("spent", covariate="before"), Proportion("late", better="lower"), Ratio("late", "requests", name="late share", better="lower", margin=.02), Quantile("ms", .9, better="lower")]


def test_units_are_what_pandas_sums_up():
    log = log_of(np.random.default_rng(10))
    ours = one_row_a_unit(log, "who", "arm", METRICS[:1]).set_index("who").sort_index()
    theirs = log.groupby("who").agg(arm=("arm", "first"), spent=("spent", "sum"), before=("before", "first"))
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)


@pytest.mark.parametrize("kind", ["shuffled", "arrow", "polars", "dict", "categories", "numbers as arms"])
def test_the_kind_and_the_order_of_the_table_do_not_matter(kind):
    log = log_of(np.random.default_rng(11))
    expected = experiment(log, METRICS, unit="who", time="at", points=5)
    control = None
    if kind == "shuffled": given = log.sample(frac=1, random_state=0)
    elif kind == "arrow": given = pytest.importorskip("pyarrow").Table.from_pandas(log)
    elif kind == "polars": given = pytest.importorskip("polars").from_pandas(log)
    elif kind == "dict": given = {c: log[c].tolist() for c in log}
    elif kind == "categories": given = log.assign(arm=log["arm"].astype("category"))
    else: given, control = log.assign(arm=(log["arm"] == "new").astype(int)), 0
    found = experiment(given, METRICS, unit="who", time="at", points=5, control=control)
    for a, b in ((found.rows, expected.rows), (found.course, expected.course)):
        numeric = b.select_dtypes("number").columns
        np.testing.assert_allclose(a[numeric].to_numpy(dtype=float), b[numeric].to_numpy(dtype=float), rtol=1e-9, atol=1e-12)


def test_the_course_ends_where_the_report_stands():
    log = log_of(np.random.default_rng(12))
    report = experiment(log, METRICS, unit="who", time="at", points=7)
    last = report.course.tail(len(METRICS)).drop(columns=["at", "units"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(last, report.rows[last.columns.tolist()], check_dtype=False)
    assert report.course["units"].is_monotonic_increasing and len(report.course) == 7 * len(METRICS)


def test_units_in_two_arms_and_units_without_a_value_are_left_out_and_said():
    log = log_of(np.random.default_rng(13))
    log.loc[log.index[log["who"] == 6][:1], "arm"] = "new"
    log.loc[log["who"] == 8, "spent"] = None
    report = experiment(log, METRICS[:2], unit="who")
    assert report.crossed == (6,) and "1 unit was seen in two arms and left out (0.25%): 6" in report.reasons[0]
    assert any("spent is not known for 1 of" in r for r in report.reasons)
    without = experiment(log[~log["who"].isin([6])], METRICS[:2], unit="who")
    pd.testing.assert_frame_equal(report.rows, without.rows)


def test_planned_looks_are_judged_with_the_data_of_those_looks():
    log = log_of(np.random.default_rng(14), n=1_000, rows=2).sort_values("at")
    settings = {"unit": "who", "time": "at", "inference": "planned", "horizon": 800, "looks": (.5, 1.)}
    seen = [log.iloc[:k]["who"].nunique() for k in range(len(log) + 1)]
    at_400 = next(k for k, n in enumerate(seen) if n == 400)
    rows = [experiment(log.iloc[:k], METRICS[:1], **settings).rows for k in (at_400, at_400 + 100)]
    pd.testing.assert_frame_equal(*rows)
    assert planned_looks(enrol(log["arm"], log["who"], ["control", "new"]), Setting(inference="planned", horizon=800, looks=(.5, 1.)))[0] == at_400


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_planned_looks_are_judged_by_their_boundaries(alternative, spending):
    "The p-value is below alpha exactly where the boundary is crossed"
    rng, looks = np.random.default_rng(15), (.3, .6, 1.)
    for k in (1, 2, 3):
        z = boundaries(looks[:k], .05, spending, alternative)[-1]
        for shift in z * rng.uniform(.8, 1.2, 6) * rng.choice([-1, 1], 6):
            n = round(400 * looks[k - 1])
            a, b = (Moments(("x",), n, np.array([m]), np.array([[n - 1.0]])) for m in (0, shift * math.sqrt(2 / n)))
            c = compare(Mean("x"), a, b, inference="planned", horizon=800, fractions=looks[:k], spending=spending, alternative=alternative)
            crossed = {"two-sided": abs(shift) > z, "greater": shift > z, "less": -shift > z}[alternative]
            assert (c.lower > 0 or c.upper < 0) == crossed == (c.p < .05)


def test_results_are_plain_json():
    report = experiment(log_of(np.random.default_rng(16)), METRICS, unit="who", time="at", points=3)
    out = report.to_dict()
    assert set(out) >= {"title", "alarm", "reasons", "table", "rows", "sample_ratio", "how"} and len(out["rows"]) == len(METRICS)
    assert "arms filled as planned" in report._repr_html_()


def test_a_quantile_needs_rows_and_a_mean_needs_moments():
    with pytest.raises(ParameterError, match="treatment is Rows; a Mean is found from Moments"):
        compare(Mean("x"), summary(1, 2, 30), Rows(np.ones(3)))
