"Realised performance: properties, types of labels, deployments of every task"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score

from mlnb.core import registry
from mlnb.core.errors import ParameterError
from mlnb.core.events import feedback, log_predictions
from mlnb.core.result import dumps
from mlnb.monitor import metrics as mt
from mlnb.monitor import performance as pf


@given(arrays(np.int8, 40, elements=st.integers(0, 6)), arrays(np.bool_, 40))
def test_auc_equals_sklearn_with_ties(s, y):
    if y.sum() < 2 or (~y).sum() < 2: return
    e = mt.roc_auc(y.astype(int), s / 6)
    assert e.value == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert e.influence.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("task", mt.METRICS)
def test_influences_sum_to_zero_and_match_the_jackknife(task):
    rng = np.random.default_rng(1)
    n = 400
    for name, m in mt.METRICS[task].items():
        if m.interval: continue  # not smooth, and therefore with an interval of its own
        y = rng.normal(size=n) if task == "regression" else rng.integers(0, 2 if task == "binary" else 3, n)
        x = {"value": y + rng.normal(size=n), "label": rng.integers(0, 2, n),
             "score": rng.random(n) if task == "binary" else rng.dirichlet([1, 1, 1], n)}[m.needs]
        e = m.estimate(y, x)
        out = np.array([m.estimate(np.delete(y, i, 0), np.delete(x, i, 0)).value for i in range(n)])
        error = np.sqrt((n - 1) / n * ((out - out.mean()) ** 2).sum())
        assert abs(e.influence.sum()) < 1e-9, name
        assert mt.spread(e.influence)[0] == pytest.approx(error, rel=.03), name


def frame(y, n=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"y": y, "p": rng.random(n)})


@pytest.mark.parametrize("make", [
    lambda b: pd.Series(b), lambda b: pd.Series(b).astype("boolean"), lambda b: pd.Series(b).astype(int), lambda b: pd.Series(b).astype("Int64"),
    lambda b: pd.Series(b).astype(float), lambda b: pd.Series(b).astype(int).astype(str), lambda b: pd.Series(b).astype(int).astype("category"),
    lambda b: pd.Series(b).astype(object)])
def test_labels_of_any_type_mean_the_same(make):
    b = np.arange(60) % 3 == 0
    expected = pf.performance(frame(b), y_true="y", y_proba="p", task="binary").table()["value"]
    got = pf.performance(frame(make(b)), y_true="y", y_proba="p", task="binary").table()["value"]
    assert list(got) == list(expected)


@pytest.mark.parametrize("null", [None, np.nan, pd.NA])
def test_nulls_are_labels_that_have_not_arrived(null):
    y = pd.Series([0, 1] * 30, dtype=object)
    y[:10] = null
    row = pf.performance(frame(y), y_true="y", y_proba="p", task="binary").table().iloc[0]
    assert (row["n"], row["labelled"]) == (60, 50)


def test_result_is_standard_json_even_where_nothing_was_measured():
    report = pf.performance(frame([None] * 60), y_true="y", y_proba="p", task="binary")
    rows = json.loads(dumps(report.to_dict()))["table"]
    assert all(r["value"] is None and r["reason"] == "no label has arrived" for r in rows)
    assert not report.alarm and report.plot() is not None and "no label has arrived" in report._repr_html_()


@pytest.mark.parametrize(("change", "said"), [
    ({"task": "binary", "y_proba": "q"}, "lacks 'q'"),
    ({"task": "binary"}, "needs y_pred or y_proba"),
    ({"task": "regression", "y_proba": "p", "y_pred": "p"}, "None for regression"),
    ({"task": "multiclass", "y_proba": "p"}, "{class: column}"),
    ({"task": "binary", "y_proba": "p", "level": 95}, "level=95"),
    ({"task": "binary", "y_proba": "p", "chunk": "7 moons"}, "need the column 'at'"),
    ({"task": "binary", "y_proba": "p", "classes": ["a", "b"]}, "not a class of the model")])
def test_bad_parameters(change, said):
    with pytest.raises(ParameterError, match=said.replace("{", r"\{")): pf.performance(frame([0, 1] * 30), y_true="y", **change)


def test_block_intervals_cover_when_days_differ():
    def one(seed):
        rng = np.random.default_rng(seed)
        day = np.repeat(np.arange(20), 30)
        x = rng.normal(size=600) + rng.normal(size=20)[day]
        return [lo < 0 < hi for lo, hi in (mt.t_interval(*(e.value, *mt.spread(e.influence, b))) for e in [mt.mean_estimate(x)] for b in (None, day))]
    plain, blocks = np.mean([one(s) for s in range(600)], axis=0)
    assert plain < .6 and abs(blocks - .95) < .03  # three standard errors of the simulation


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_deployments_of_every_task(tmp_path, task):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=200), "b": rng.normal(size=200)})
    y = {"binary": np.where(X["a"] > 0, "late", "on time"), "multiclass": np.digitize(X["a"] + X["b"] / 2, [-.5, .5]), "regression": X["a"] * 2}[task]
    model = (LinearRegression() if task == "regression" else LogisticRegression()).fit(X, y)
    with registry.open(tmp_path / "ws") as ws:
        dep = registry.deploy(ws, "d", registry.register(ws, "m", model, X, y), at="2013-01-01")
        at = pd.date_range("2013-03-01", periods=200, freq="1h", tz="UTC")
        ids = log_predictions(dep, X, dep.champion.predict(X), at=at)
        feedback(dep, pd.DataFrame({"id": ids[:150], "y": y[:150], "at": at[:150]}))
        report = pf.deployment_performance(dep, "2013-03-01", "2013-04-01", chunk="D")
        assert set(report.table()["metric"]) == set(mt.METRICS[task])
        assert report.table()["n"].sum() == 200 * len(mt.METRICS[task])
        whole = pf.deployment_performance(dep, block=None).table().set_index("metric")
        assert whole["labelled"].eq(150).all()
        if task != "regression": assert whole.loc["accuracy", "value"] == pytest.approx((dep.champion.predict(X)["prediction"][:150] == registry.label_text(y[:150])).mean())
        assert pf.deployment_performance(dep, as_of="2013-03-02").table()["labelled"].iloc[0] == 25
