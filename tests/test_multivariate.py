"Multivariate drift: the matrix, calibration and power by simulation, bad input"
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.signal import lfilter

from mlnb.core.errors import NotFound, ParameterError, SchemaError
from mlnb.monitor.matrix import LARGE, LEVELS, Encoder, level_codes
from mlnb.monitor.multivariate import area, autocorrelation_time, certainty, forward_splits, learn_forward, multivariate_drift, p_value, thin
from mlnb.monitor.metrics import roc_auc


def series(rng, n, k, phi=.0):
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], rng.normal(size=(n + 300, k)), axis=0)[300:]


def forward(a, b):
    folds = learn_forward(a, b, np.zeros(a.shape[1], bool))
    return area(folds, [f.score(f.X) for f in folds])


def most(level, checks): return int(stats.binom.ppf(.995, checks, level))


# The matrix

def test_any_column_becomes_numbers():
    frame = pd.DataFrame({"int": pd.array([1, None, 3], "Int64"), "float": [1.5, -np.inf, np.inf], "bool": pd.array([True, None, False], "boolean"), "object bool": [True, None, False],
                          "level": ["a", None, "b"], "category": pd.Categorical([2.0, 1.0, None]), "time": pd.to_datetime(["1970-01-01 00:01", None, "1969-12-31 23:59"]), "null": [None] * 3})
    X = Encoder.fit(frame)(frame)
    expected = [[1, np.nan, 3], [1.5, -LARGE, LARGE], [1, np.nan, 0], [1, np.nan, 0], [0, np.nan, 1], [1, 0, np.nan], [60, np.nan, -60], [np.nan] * 3]
    np.testing.assert_array_equal(X.T, np.array(expected))


@pytest.mark.parametrize("make", [lambda v: pd.Series(v), lambda v: pd.Series(v, dtype=object), lambda v: pd.Series(v, dtype="category"), lambda v: pd.Series(v, dtype="string")])
def test_levels_are_the_same_however_they_are_stored(make):
    codes, names, _ = level_codes(make(["x", "y", None, "x"]))
    assert [names[i] if i >= 0 else None for i in codes] == ["x", "y", None, "x"]


def test_levels_unknown_to_the_plan():
    few = Encoder.fit({"level": ["a", "b", "a"]})
    assert np.isnan(few({"level": ["new"]})).all()
    many = Encoder.fit({"level": [str(i) for i in range(400) for _ in range(400 - i)]})
    assert many({"level": ["0", "253", "399", "new", None]})[:4, 0].tolist() == [0, LEVELS - 1, LEVELS, LEVELS] and many.categorical.tolist() == [True]


def test_everything_wrong_is_said_at_once():
    encoder = Encoder.fit({"x": [1.0, 2.0], "y": ["a", "b"], "z": [1, 2]})
    with pytest.raises(SchemaError) as e: encoder({"x": ["one", "two"], "y": [1, "a"]})
    assert [(p.column, p.code) for p in e.value.problems] == [("z", "missing"), ("x", "type"), ("y", "type")]
    with pytest.raises(SchemaError, match="list"): Encoder.fit({"list": [[1], [2]], "x": [1, 2]})
    with pytest.raises(ParameterError, match="no table"): Encoder.fit()


# The statistics

@pytest.mark.parametrize("phi", [0, .5, .9])
def test_autocorrelation_time(phi):
    times = autocorrelation_time(series(np.random.default_rng(0), 20_000, 20, phi))
    assert times.mean() == pytest.approx((1 + phi) / (1 - phi), rel=.1)
    assert autocorrelation_time(np.ones((50, 1))) == 1 and autocorrelation_time(np.arange(50.0)[:, None]) > 10


def test_splits_never_learn_from_what_they_judge():
    for n in (70, 71, 1000):
        for gap in (0, 3, 10**6):
            splits = forward_splits(n, 5, gap)
            assert all(0 < s.learn.stop <= s.judge.start - min(gap, n // 14) and s.judge.stop - s.judge.start >= 10 for s in splits)
            assert [s.judge.start for s in splits[1:]] == [s.judge.stop for s in splits[:-1]] and splits[-1].judge.stop == n
    rows = thin(10**6, 1000, np.random.default_rng(0))
    assert len(rows) == 1000 and (np.diff(rows) > 0).all() and abs(np.diff(rows).mean() - 1000) < 5


def test_the_area_has_delongs_error_when_rows_are_independent():
    rng = np.random.default_rng(0)
    folds = learn_forward(rng.normal(size=(1400, 1)), rng.normal(size=(1400, 1)) + 1, np.zeros(1, bool))
    made = area(folds, [f.X[:, 0] for f in folds])  # scores that were not learned
    each = [roc_auc(np.repeat([0, 1], [f.n, len(f.X) - f.n]), f.X[:, 0]) for f in folds]
    assert made.value == pytest.approx(np.mean([e.value for e in each]))
    assert certainty(made).error == pytest.approx(math.sqrt(sum((e.influence**2).sum() for e in each)) / 5, rel=.15)
    assert made.value == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=4 * certainty(made).error)


@pytest.mark.parametrize("n,m,k,phi", [(700, 300, 2, 0), (1500, 150, 12, 0), (900, 450, 3, .8)])
def test_false_alarms_are_at_most_nominal(n, m, k, phi):
    checks = 70
    p = np.array([p_value(forward(series(r, n, k, phi), series(r, m, k, phi))) for r in map(np.random.default_rng, range(checks))])
    assert (p <= .1).sum() <= most(.1, checks) and (p <= .02).sum() <= most(.02, checks)


def test_a_million_levels_give_nothing_away():
    alarms = 0
    for r in map(np.random.default_rng, range(10)):
        a, b = (pd.DataFrame({"id": pd.Categorical(r.integers(0, size, n).astype(str)), "x": r.normal(size=n)}) for size, n in ((600, 4000), (600, 3000)))
        alarms += multivariate_drift(a, b, tolerance=0).alarm
    assert alarms <= most(.05, 10)


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_correlation_is_found_and_named(seed):
    r = np.random.default_rng(seed)
    def table(n, rho):
        x = r.normal(size=(n, 6))
        x[:, 3] = rho * x[:, 1] + np.sqrt(1 - rho**2) * x[:, 3]
        return pd.DataFrame(x, columns=list("abcdef"))
    report = multivariate_drift(table(5000, .5), table(1500, -.5))
    assert report.alarm and not report.margins.alarm and set(report.table()["feature"][:2]) == {"b", "d"}
    assert [{p.first, p.second} for p in report.pairs if p.combined] == [{"b", "d"}] and "how b and d go together" in report.reasons[-1]
    assert report.to_dict()["auc"] == pytest.approx(report.auc) and report.plot().axes


def test_the_same_seed_gives_the_same_report():
    r = np.random.default_rng(0)
    a, b = (pd.DataFrame(r.normal(size=(n, 3)), columns=list("xyz")) for n in (3000, 800))
    assert multivariate_drift(a, b, max_rows=500).to_dict() == multivariate_drift(a, b, max_rows=500).to_dict()


# Bad input

def test_settings_are_checked_together():
    with pytest.raises(ParameterError, match=r"folds=1.*max_rows=5.*tolerance=-1"): multivariate_drift({"x": [1]}, {"x": [1]}, folds=1, max_rows=5, tolerance=-1)
    with pytest.raises(ParameterError, match="budget"): multivariate_drift({"x": [1]}, {"x": [1]}, budget=-1)
    with pytest.raises(NotFound, match="nothing"): multivariate_drift({"x": [1]}, {"x": [1]}, columns=["nothing"])


@pytest.mark.parametrize("window", [{"x": []}, {"x": [1.0]}, {"x": [1.0] * 69}])
def test_too_few_rows_are_not_judged(window):
    report = multivariate_drift({"x": np.arange(100.0)}, window)
    assert not report.alarm and math.isnan(report.auc) and "not measured" in report.reasons[0] and len(report.table()) == 1
    assert report.to_dict()["auc"] is None and report.plot()


def test_lost_columns_are_an_alarm_and_the_rest_is_judged():
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"x": r.normal(size=300), "y": r.normal(size=300), "z": r.choice(list("ab"), 300)})
    report = multivariate_drift(frame, frame[["x"]].assign(z=1.5))
    assert report.alarm and 0 < report.auc < 1 and sum("'z'" in s or "y:" in s for s in report.reasons) == 2
    every = multivariate_drift(frame[["z"]], frame[["z"]].assign(z=1.5))
    assert every.alarm and math.isnan(every.auc)


def test_perfect_separation_is_certain():
    report = multivariate_drift({"x": np.arange(200.0)}, {"x": np.arange(1000.0, 1200)})
    assert report.alarm and report.auc == 1 and report.p_value < 1e-6


def test_nulls_that_appear_in_one_column_are_used():
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"x": r.normal(size=2000), "y": r.normal(size=2000)})
    window = frame.sample(1000, random_state=0).reset_index(drop=True)
    window.loc[window["y"] > 0, "x"] = np.nan
    report = multivariate_drift(frame, window)
    assert report.alarm and report.table()["feature"][0] == "x" and report.table()["drifted"][0]
