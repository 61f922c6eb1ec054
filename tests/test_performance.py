"Realised performance: properties, types of labels, deployments of every task"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from mlnb.core import registry
from mlnb.core.errors import ParameterError
from mlnb.core.events import feedback, log_predictions
from mlnb.core.result import dumps
from mlnb.monitor import metrics as mt
from mlnb.monitor import performance as pf
from mlnb.monitor.calibration import calibration_error, calibration_interval
from mlnb.monitor.thresholds import Bounds


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
    labelled = [r for r in rows if r["metric"] in mt.METRICS["binary"]]
    assert all(r["value"] is None and r["reason"] == "no label has arrived" for r in labelled)
    assert all(r["value"] is not None for r in rows if r not in labelled)  # proxies need no label
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
        proxies = {"binary": {"share_on time", "mean_score", "entropy"}, "multiclass": {"share_0", "share_1", "share_2", "mean_score", "entropy"}, "regression": {"mean_prediction"}}[task]
        assert set(report.table()["metric"]) == set(mt.METRICS[task]) | proxies
        assert report.table().groupby("metric")["n"].sum().eq(200).all()
        whole = pf.deployment_performance(dep, block=None).table().set_index("metric")
        assert whole["labelled"].eq(150).all() and whole["mature"].all()
        if task != "regression": assert whole.loc["accuracy", "value"] == pytest.approx((dep.champion.predict(X)["prediction"][:150] == registry.label_text(y[:150])).mean())
        assert pf.deployment_performance(dep, as_of="2013-03-02").table()["labelled"].iloc[0] == 25


@given(arrays(np.int8, 40, elements=st.integers(0, 6)), arrays(np.bool_, 40))
def test_average_precision_equals_sklearn_with_ties(s, y):
    if not y.any(): return
    e = mt.pr_auc(y.astype(int), s / 6)
    assert e.value == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert e.influence.sum() == pytest.approx(0, abs=1e-12)


@given(arrays(np.int8, 30, elements=st.integers(0, 3)), arrays(np.int8, 30, elements=st.integers(0, 3)))
def test_macro_averages_equal_sklearn(y, said):
    for ours, theirs in ((mt.precision_classes, precision_score), (mt.recall_classes, recall_score), (mt.f1_classes, f1_score)):
        e = ours(y.astype(int), said.astype(int))
        assert e.value == pytest.approx(theirs(y, said, average="macro", zero_division=0), abs=1e-12)
        assert e.influence.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [10, 19, 20, 300])
def test_calibration_does_not_depend_on_the_order_of_rows(n):
    rng = np.random.default_rng(n)
    p = rng.integers(0, 6, n) / 5
    y = (rng.random(n) < p).astype(int)
    i, day = rng.permutation(n), np.arange(n) % 7
    assert calibration_error(y, p).value == pytest.approx(calibration_error(y[i], p[i]).value, abs=1e-12)
    assert calibration_interval(y, p, blocks=day) == pytest.approx(calibration_interval(y[i], p[i], blocks=day[i]), abs=1e-9)


def weeks(seed, k=50, rows=80, repeat=0.0, spread=0.0):
    "A log of k chunks; the noise of the answers may differ between chunks, and resemble that of the chunk before"
    rng = np.random.default_rng(seed)
    level = rng.normal(size=k)
    for i in range(1, k): level[i] = repeat * level[i - 1] + np.sqrt(1 - repeat**2) * level[i]
    y = rng.normal(size=k * rows)
    return pd.DataFrame({"y": y, "guess": y + rng.normal(size=k * rows) * np.exp(spread * np.repeat(level, rows))})


def false_alarms(many, **how):
    "Alarms for each new chunk, when ten chunks are the reference and nothing changes"
    found = []
    for seed in range(many):
        log = weeks(seed, **how)
        t = pf.performance(log[960:], y_true="y", y_pred="guess", task="regression", chunk=80, reference=log[:800]).table()
        found.append(t["alarm"].sum() / (len(log[960:]) / 80))
    return np.mean(found)


@pytest.mark.parametrize("how", [{}, {"spread": .3}, {"spread": .2, "repeat": .5}], ids=["alike", "chunks differ", "neighbours alike"])
def test_learned_thresholds_keep_their_budget(how):
    assert false_alarms(20, **how) <= .05  # 760 chunks


def test_thresholds_without_the_correction_would_not(monkeypatch):
    def sigma(values, level, **_):
        v = np.asarray(values)
        reach = norm.isf((1 - level) / 2) * v.std()
        return Bounds(v.mean() - reach, v.mean() + reach, v.mean(), len(v))
    monkeypatch.setattr(pf, "prediction_bounds", sigma)
    assert false_alarms(10) > .1


def test_thresholds_see_what_matters():
    log = weeks(0)
    log.loc[40 * 80:, "guess"] = log["guess"] * 1.5 + .2  # scaled and shifted
    t = pf.performance(log[800:], y_true="y", y_pred="guess", task="regression", chunk=80, reference=log[:800]).table().query("metric == 'mae'")
    assert t["alarm"].tolist()[30:] == [True] * 10 and not t["alarm"].tolist()[:30].count(True)


def timed(n=600, labels=None):
    rng = np.random.default_rng(0)
    f = pd.DataFrame({"at": pd.date_range("2013-03-01", periods=n, freq="h", tz="UTC"), "p": rng.random(n)})
    return f.assign(y=np.where(rng.random(n) < f["p"], 1, 0) if labels is None else labels)


def test_immature_chunks_are_marked_and_never_alarm():
    report = pf.performance(timed(), y_true="y", y_proba="p", task="binary", chunk="5D", limits={"roc_auc": .999}, delay="6D", as_of="2013-03-23")
    t = report.table().query("metric == 'roc_auc'")
    assert t["mature"].tolist() == [True, True, True, False, False] and t["alarm"].tolist() == [True, True, True, False, False]
    assert sum("immature" in r for r in report.reasons) == 1 and report.plot("roc_auc") is not None
    assert report.table().query("metric == 'entropy'")["mature"].all()


def test_now_is_the_last_time_in_the_frame():
    f = timed()  # until 2013-03-25 23:00
    def ripe(frame, **kw): return pf.performance(frame, y_true="y", y_proba="p", task="binary", chunk="5D", metrics=["brier"], **kw).table().query("metric == 'brier'")["mature"].sum()
    assert [ripe(f), ripe(f, delay="0D"), ripe(f, delay="1D"), ripe(f, delay="5D")] == [5, 4, 4, 3]
    assert ripe(f.assign(labelled_at=f["at"] + pd.Timedelta("5D")), delay="5D") == 4


def test_a_learned_delay_knows_that_some_labels_never_come():
    f, rng = timed(), np.random.default_rng(1)
    f["labelled_at"] = (f["at"] + pd.Timedelta("1D") * rng.exponential(1, 600)).where(rng.random(600) > .2)
    def ripe(as_of):
        known = f["labelled_at"] <= pd.Timestamp(as_of, tz="UTC")
        seen = f.assign(y=f["y"].where(known), labelled_at=f["labelled_at"].where(known))
        return pf.performance(seen, y_true="y", y_proba="p", task="binary", chunk="5D", metrics=["brier"], delay="learn", as_of=as_of)
    assert ripe("2013-03-26").table().query("metric == 'brier'")["mature"].tolist() == [True] * 4 + [False]
    later = ripe("2013-04-20")
    assert later.table()["mature"].all() and any("of the answers get one" in r for r in later.reasons)


@pytest.mark.parametrize(("labels", "metric", "reason"), [
    ([None] * 600, "roc_auc", "no label has arrived"), ([1] * 600, "roc_auc", "all 600 labels are of one class"), ([1] * 600, "recall", ""), ([0] * 600, "recall", "it rests on 0 positive labels"),
    ([1] + [None] * 599, "accuracy", "1 labelled row is too few")])
def test_odd_windows_have_a_defined_result(labels, metric, reason):
    row = pf.performance(timed(labels=labels), y_true="y", y_proba="p", task="binary").table().set_index("metric").loc[metric]
    assert row["reason"].startswith(reason) and (reason == "") == np.isfinite(row["value"])


@pytest.mark.parametrize("task", mt.METRICS)
@pytest.mark.parametrize("n", [1, 12])
def test_constant_answers_and_single_rows(task, n):
    f = pd.DataFrame({"y": [0, 1, 0] * 4, "a": 0, "p": .5, "q": .5})[:n]
    how = {"binary": {"y_proba": "p"}, "multiclass": {"y_proba": {0: "p", 1: "q"}}, "regression": {"y_pred": "a"}}[task]
    t = pf.performance(f, y_true="y", task=task, **how).table()
    assert (t["value"].notna() | (t["reason"] != "")).all() and (t["lower"].notna() | (t["reason"] != "")).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"chunk": 0}, "chunk=0"), ({"chunk": True}, "chunk=True"), ({"delay": "soon"}, "delay='soon'"), ({"delay": "learn"}, "'labelled_at'"), ({"budget": 0}, "budget=0"),
    ({"as_of": "noon?", "delay": "1D"}, "as_of='noon?'"), ({"limits": {"entropy": .3}}, "(low, high)"), ({"limits": {"roc_auc": (.9, .1)}}, "(low, high)"), ({"metrics": ["auc"]}, "'auc'"),
    ({"classes": ["0", "2"]}, "column 'y' has '1', which is not a class"), ({"reference": timed(3).drop(columns="p")}, "lacks 'p'")])
def test_more_bad_parameters(change, said):
    with pytest.raises(ParameterError) as e: pf.performance(timed(), y_true="y", y_proba="p", task="binary", **change)
    assert said in str(e.value)


def test_chunks_of_rows_need_no_times():
    f = timed(1100).drop(columns="at")
    t = pf.performance(f, y_true="y", y_pred=None, y_proba="p", task="binary", chunk=500).table().query("metric == 'accuracy'")
    assert t["chunk"].tolist() == ["0:500", "500:1000", "1000:1100"] and t["n"].tolist() == [500, 500, 100] and t["start"].isna().all()


def test_arrow_tables_and_chunks_that_are_shorter_than_a_minute():
    import pyarrow as pa
    f = timed(120).assign(at=pd.date_range("2013-03-01", periods=120, freq="s", tz="UTC"))
    a, b = (pf.performance(x, y_true="y", y_proba="p", task="binary", chunk="30s").table() for x in (f, pa.Table.from_pandas(f)))
    pd.testing.assert_frame_equal(a, b)
    assert a.groupby("start")["n"].first().tolist() == [30] * 4


def test_proxies_alarm_before_a_label_has_come():
    f = timed(1600)
    f.loc[1200:, "p"] = f["p"] ** 3
    report = pf.performance(f[1000:].assign(y=None), y_true="y", y_proba="p", task="binary", chunk=100, reference=f[:1000])
    alarms = report.table().query("alarm")
    assert report.alarm and set(alarms["metric"]) >= {"share_1", "mean_score"} and set(alarms["chunk"]) == {"200:300", "300:400", "400:500", "500:600"}
    assert any("share_1" in r for r in report.reasons)


def test_too_few_reference_chunks_are_said_to_be_too_few():
    f = timed()
    report = pf.performance(f, y_true="y", y_proba="p", task="binary", chunk=100, reference=f[:400])
    assert not report.alarm and any(r.startswith("no threshold is learned for roc_auc, ") and "4 reference chunks have a value, 5 are needed" in r for r in report.reasons)


def test_a_deployment_learns_from_an_earlier_window(tmp_path):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=2400)})
    y = X["a"] + rng.normal(size=2400) / 2 > 0
    with registry.open(tmp_path / "ws") as ws:
        dep = registry.deploy(ws, "d", registry.register(ws, "m", LogisticRegression().fit(X[:300], y[:300]), X[:300], y[:300]), at="2013-01-01")
        at = pd.date_range("2013-03-01", periods=2400, freq="15min", tz="UTC")  # 25 days
        ids = log_predictions(dep, X, dep.champion.predict(X), at=at)
        feedback(dep, pd.DataFrame({"id": ids, "y": np.where(at < "2013-03-20", y, ~y), "at": at + pd.Timedelta("1h")}))
        kw = {"chunk": "D", "block": None, "reference": ("2013-03-01", "2013-03-16")}
        report = pf.deployment_performance(dep, "2013-03-16", **kw)
        bad = report.table().query("metric == 'roc_auc' and alarm")["chunk"]
        assert bad.tolist() == [f"2013-03-{d}" for d in range(20, 26)]
        assert report.table()["mature"].all() and "learned from" in " ".join(report.reasons)
        early = pf.deployment_performance(dep, "2013-03-16", "2013-03-21", as_of="2013-03-20 06:00", **kw).table().query("metric == 'roc_auc'")
        assert early["mature"].tolist() == [True] * 4 + [False] and not early["alarm"].any()


def test_intervals_of_macro_averages_cover():
    rng = np.random.default_rng(0)
    def rows(n):
        y = rng.choice(3, n, p=[.6, .3, .1])
        p = rng.dirichlet([1, 1, 1], n) / 2 + np.eye(3)[np.where(rng.random(n) < .8, y, rng.integers(0, 3, n))] / 2
        return y, p
    def answer(m, p): return p if m.needs == "score" else p.argmax(1)
    asked = [mt.METRICS["multiclass"][m] for m in ("roc_auc", "precision", "recall", "f1")]
    y, p = rows(10**6)
    truth = [m.estimate(y, answer(m, p)).value for m in asked]
    def one():
        y, p = rows(300)
        return [found.lower <= t <= found.upper for m, t in zip(asked, truth, strict=True) for found in [mt.measure(m, y, answer(m, p))]]
    assert np.mean([one() for _ in range(400)], axis=0) == pytest.approx([.95] * 4, abs=.033)  # three standard errors of the simulation
