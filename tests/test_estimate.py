"Performance before the labels: coverage, shifts, false alarms, tasks, odd tables. Simulated rates have their tolerance beside them"
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlnb.core.errors import ParameterError
from mlnb.core.result import dumps
from mlnb.monitor.answers import Answers
from mlnb.monitor.backtest import expect
from mlnb.monitor.estimate import COLUMNS, EstimateReport, estimate_performance
from mlnb.monitor.expected import EXPECTED
from mlnb.monitor.metrics import METRICS
from mlnb.monitor.study import outcomes


def sigmoid(z): return 1 / (1 + np.exp(-z))


def world(n, seed, shift=0., drift=0.):
    "The score ignores b, which is harmless until b shifts; drift moves the labels in a way that no feature shows"
    r = np.random.default_rng(seed)
    a, b = r.normal(size=n), r.normal(size=n) + shift
    return pd.DataFrame({"a": a, "b": b, "p": sigmoid(1.5 * a - 1), "y": (r.random(n) < sigmoid(1.5 * a - b / 2 - 1 + drift)).astype(int)})


BINARY = {"y_true": "y", "y_proba": "p", "task": "binary"}


def realised(frame, metrics, n):
    "Every metric of every chunk of n rows, with all labels"
    out = []
    for i in range(0, len(frame), n):
        g = frame.iloc[i:i + n]
        out += [e.value for e in expect("binary", metrics, g["y"].to_numpy(float), {"score": g["p"].to_numpy(), "label": (g["p"] >= .5).to_numpy().astype(int)})]
    return np.array(out)


def simulate(reps, metrics, n_ref=3000, n=500, chunks=8, labels=0., method="reweighted", seed=0, **change):
    "Tables of estimates beside what was realised"
    out = []
    for i in range(reps):
        current = pd.concat([world(n, (seed, i, 1, j), **change) for j in range(chunks)], ignore_index=True)
        given = current.assign(y=current["y"].where(np.random.default_rng((seed, i, 2)).random(len(current)) < labels))
        t = estimate_performance(world(n_ref, (seed, i, 0)), given, **BINARY, chunk=n, metrics=metrics, method=method).table()
        out.append(t.assign(rep=i, truth=realised(current, metrics, n)))
    t = pd.concat(out, ignore_index=True)
    return t.assign(error=t["estimate"] - t["truth"], inside=t["truth"].between(t["lower"], t["upper"]), reach=(t["upper"] - t["lower"]) / 2)


MAIN = ["roc_auc", "log_loss", "accuracy", "f1"]


@pytest.fixture(scope="module")
def stable(): return simulate(25, MAIN, method="plain")


@pytest.fixture(scope="module")
def shifted(): return {m: simulate(8, MAIN, method=m, shift=1.3, chunks=12, seed=1) for m in ("plain", "reweighted")}


# three standard errors of a share of .95 over 200 and 96 chunks: .046 and .067
def test_intervals_cover_when_nothing_changes(stable):
    assert (stable.groupby("metric")["inside"].mean() >= .95 - .046).all()
    assert stable["inside"].mean() >= .95


def test_intervals_cover_under_covariate_shift_only_with_weights(shifted):
    covered = {m: t.groupby("metric")["inside"].mean() for m, t in shifted.items()}
    assert (covered["reweighted"] >= .95 - .067).all() and shifted["reweighted"]["inside"].mean() >= .95
    assert covered["plain"]["log_loss"] < .95 - .067


def test_weights_beat_plain_estimates_under_covariate_shift(shifted):
    error = {m: t.groupby("metric")["error"].apply(lambda e: e.abs().mean()) for m, t in shifted.items()}
    assert error["reweighted"]["log_loss"] < .75 * error["plain"]["log_loss"]
    assert error["reweighted"]["accuracy"] < .9 * error["plain"]["accuracy"]
    assert abs(shifted["plain"].groupby("metric")["error"].mean()["log_loss"]) > 2 * abs(shifted["reweighted"].groupby("metric")["error"].mean()["log_loss"])


def test_false_alarms_stay_within_the_budget(stable):
    labelled = simulate(25, MAIN, method="plain", labels=.3, seed=3)
    for t in (stable, labelled):  # the budget is .05 per chunk; three standard errors over 200 chunks are .046
        chunks = t.groupby(["rep", "chunk"]).agg({"alarm": "sum", "contradicted": "max"})
        assert (chunks["alarm"] + chunks["contradicted"]).mean() <= .05 + .046
    assert labelled["inside"].mean() >= .94 and (labelled.groupby("metric")["inside"].mean() >= .95 - .046).all()


def test_labels_reveal_a_change_that_no_feature_shows():
    t = simulate(8, ["log_loss", "bias"], labels=.4, method="plain", drift=-1.2, seed=4)
    assert t["contradicted"].mean() > .9
    assert t["reason"].str.contains("the labels that have arrived contradict the estimate: ").loc[t["contradicted"]].all()
    assert t["inside"].mean() > .9
    blind = simulate(8, ["log_loss", "bias"], method="plain", drift=-1.2, seed=4)
    mean = {k: v.groupby("metric")["error"].mean() for k, v in {"labels": t, "blind": blind}.items()}
    assert (abs(mean["labels"]) < .15 * abs(mean["blind"])).all()  # unbiased again
    assert not blind["contradicted"].any()


def test_labels_shrink_the_interval_where_the_world_wobbles():
    r = np.random.default_rng(5)
    levels = r.normal(size=20) * .5
    reference = pd.concat([world(500, (6, i), drift=d) for i, d in enumerate(levels)], ignore_index=True)
    current = pd.concat([world(500, (7, i), drift=d) for i, d in enumerate(r.normal(size=30) * .5)], ignore_index=True)
    truth, metrics = realised(current, ["log_loss", "bias"], 500), ["log_loss", "bias"]
    few = current.assign(y=current["y"].where(r.random(len(current)) < .3))
    blind, helped = (estimate_performance(reference, f, **BINARY, chunk=500, metrics=metrics, method="plain").table() for f in (current.drop(columns="y"), few))
    assert (helped["upper"] - helped["lower"]).mean() < .75 * (blind["upper"] - blind["lower"]).mean()
    assert (helped["estimate"] - truth).abs().mean() < .7 * (blind["estimate"] - truth).abs().mean()
    for t in (blind, helped): assert np.mean((t["lower"] <= truth) & (truth <= t["upper"])) >= .9  # 60 dependent intervals
    assert abs((helped["estimate"] - truth).mean()) < .01


def test_known_probabilities_give_the_closed_forms():
    r = np.random.default_rng(8)
    n, d = 40_000, 1.2
    x = r.normal(size=n) + d * (r.random(n) < .3)
    q = sigmoid(np.log(3 / 7) + d * x - d**2 / 2)
    frame = pd.DataFrame({"x": x, "p": q, "y": (r.random(n) < q).astype(int)})
    t = estimate_performance(frame[:20_000], frame[20_000:].drop(columns="y"), **BINARY, metrics=["roc_auc", "log_loss", "brier"]).table().set_index("metric")["estimate"]
    now = q[20_000:]
    assert t["roc_auc"] == pytest.approx(stats.norm.cdf(d / np.sqrt(2)), abs=.01)
    assert t["brier"] == pytest.approx((now * (1 - now)).mean(), abs=.004)
    assert t["log_loss"] == pytest.approx(-(now * np.log(now) + (1 - now) * np.log(1 - now)).mean(), abs=.01)


def three_classes(n, seed, shift=0.):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 2)) + [shift, 0]
    z = np.c_[x[:, 0], x[:, 1], np.zeros(n)]
    true, said = (np.exp(k * z) / np.exp(k * z).sum(1, keepdims=True) for k in (1, 2))  # the model is too sure of itself
    y = np.array(["ant", "bee", "cat"])[(r.random((n, 1)) > np.cumsum(true, 1)).sum(1)]
    return pd.DataFrame({"u": x[:, 0], "v": x[:, 1], "ant": said[:, 0], "bee": said[:, 1], "cat": said[:, 2], "y": y})


MANY = {"y_true": "y", "y_proba": {c: c for c in ("ant", "bee", "cat")}, "task": "multiclass"}


def test_many_classes_are_estimated_and_covered():
    reference, current = three_classes(4000, 9), three_classes(10 * 600, 10, shift=.5)
    full = estimate_performance(reference, current, **MANY, chunk=600, method="plain").table()
    t = estimate_performance(reference, current.drop(columns="y"), **MANY, chunk=600).table()
    assert list(t["metric"].unique()) == [m for m in METRICS["multiclass"] if m in EXPECTED["multiclass"]]
    assert np.allclose(full["estimate"], full["realised"])  # all labels are known
    assert np.mean((t["lower"] <= full["realised"]) & (full["realised"] <= t["upper"])) >= .9
    assert ((t["estimate"] - full["realised"]).abs().groupby(t["metric"]).mean() < (t["upper"] - t["lower"]).groupby(t["metric"]).mean() / 4).all()


def numbers(n, seed, shift=0., drift=0.):
    r = np.random.default_rng(seed)
    x, hard = r.normal(size=n), r.random(n) ** (1 / (1 + shift))
    return pd.DataFrame({"x": x, "hard": hard, "guess": 2 * x, "y": 2 * x + drift + (.3 + 2 * hard) * r.normal(size=n)})


REGRESSION = {"y_true": "y", "y_pred": "guess", "task": "regression"}


def test_regression_errors_are_estimated_and_covered():
    reference, current = numbers(4000, 11), numbers(12 * 500, 12, shift=3)
    t = estimate_performance(reference, current.drop(columns="y"), **REGRESSION, chunk=500).table()
    truth = estimate_performance(reference, current, **REGRESSION, chunk=500, method="plain").table()["realised"]
    assert set(t["metric"]) == {"mae", "rmse", "bias", "pinball"}
    assert np.mean((t["lower"] <= truth) & (truth <= t["upper"])) >= .9
    for m in ("mae", "rmse"):
        rows = t["metric"] == m
        assert (t["estimate"] - truth)[rows].abs().mean() < .4 * (t["baseline"] - truth)[rows].abs().mean()


def test_regression_labels_contradict_a_drift():
    current = numbers(4000, 13, drift=1.)
    few = current.assign(y=current["y"].where(np.random.default_rng(0).random(4000) < .1))
    report = estimate_performance(numbers(4000, 11), few, **REGRESSION, chunk=1000, metrics=["bias", "rmse", "r2"])
    t = report.table().set_index(["metric", "chunk"])
    assert report.alarm and "contradict" in report.reasons[0]
    assert t.loc["bias", "contradicted"].all() and t.loc["bias", "estimate"].mean() == pytest.approx(-1, abs=.2)
    assert t.loc["r2", "estimate"].isna().all() and t.loc["r2", "reason"].str.contains("r2 cannot be estimated before the labels").all()


def test_expected_metrics_of_labels_are_the_realised_ones():
    r = np.random.default_rng(14)
    for task in METRICS:
        y = r.normal(size=400) if task == "regression" else r.integers(0, 2 if task == "binary" else 3, 400)
        given = {"value": r.normal(size=400), "label": r.integers(0, 2 if task == "binary" else 3, 400), "score": r.random(400) if task == "binary" else r.dirichlet([1, 1, 1], 400)}
        a = Answers(y, np.ones(400, bool), given)
        for m, e in zip(EXPECTED[task], expect(task, list(EXPECTED[task]), outcomes(a, task), given), strict=True):
            assert e.value == pytest.approx(METRICS[task][m].estimate(y, given[METRICS[task][m].needs]).value, abs=1e-12), (task, m)


@pytest.fixture(scope="module")
def small(): return world(1500, 15), world(400, 16)


@pytest.mark.parametrize("change,kw,texts", [
    ({"p": 2.}, {}, ["current rows", "column 'p' is outside [0, 1] in 400 rows"]),
    ({"p": np.nan}, {}, ["column 'p' is null or infinite in 400 rows"]),
    ({"y": 7}, {"classes": [0, 1]}, ["column 'y' has '7', which is not a class of the model"]),
    ({"a": "far"}, {}, ["column 'a' holds numbers in the reference and levels in the current rows"]),
    ({}, {"features": ["a", "gone"]}, ["column 'gone' is missing in the reference", "column 'gone' is missing in the current rows"]),
    ({}, {"y_proba": "q"}, ["reference: the frame lacks 'q'", "current rows: the frame lacks 'q'"]),
    ({}, {"y_proba": None, "y_pred": "p"}, ["binary needs y_proba"]),
    ({}, {"task": "ranking"}, ["task='ranking' is unknown; known: binary, multiclass, regression"]),
    ({}, {"chunk": "7D"}, ["chunks and blocks of time need the column 'at'"]),
    ({"at": "noon"}, {"chunk": "7D"}, ["'at' does not hold times only"]),
    ({}, {"chunk": 0, "budget": 2, "level": 0, "method": "best", "metrics": ["auc"]},
     ["chunk=0 is not a number of rows", "budget=2", "level=0", "method='best'", "metrics has 'auc', which is no metric of a binary task"]),
])
def test_bad_input_is_one_error_that_says_it_all(small, change, kw, texts):
    with pytest.raises(ParameterError) as e: estimate_performance(small[0], small[1].assign(**change), **{**BINARY, **kw})
    assert str(e.value).startswith("performance cannot be estimated:")
    for text in texts: assert text in str(e.value)


@pytest.mark.parametrize("reference,text", [
    (lambda f: f.head(0), "reference: the frame is empty"), (lambda f: f.head(90), "reference: 90 labelled rows are too few"),
    (lambda f: f.assign(y=None), "reference: 0 labelled rows are too few"), (lambda f: f.assign(y=1), "are of one class"),
    (lambda f: f.drop(columns="y"), "reference: the frame lacks 'y'"), (lambda f: 7, "reference: "),
])
def test_a_useless_reference_is_refused(small, reference, text):
    with pytest.raises(ParameterError, match="performance cannot be estimated") as e: estimate_performance(reference(small[0]), small[1], **BINARY)
    assert text in str(e.value)


def test_odd_tables_give_numbers_or_reasons(small):
    r = np.random.default_rng(17)
    def odd(f):
        n = len(f)
        return f.assign(same=1, none=None, gaps=np.where(r.random(n) < .5, np.nan, 1.), huge=np.where(r.random(n) < .1, np.inf, -np.inf), text=[f"row {i}" for i in range(n)],
                        level=pd.Categorical(r.integers(0, 400, n)), when=pd.Timestamp("2013-01-01"), id=np.arange(n), flag=pd.array(r.random(n) < .5, "boolean"))
    report = estimate_performance(odd(small[0]), odd(small[1]).drop(columns="y"), **BINARY, chunk=390)
    t = report.table()
    assert set(report.features) == {"a", "b", "p", "same", "none", "gaps", "huge", "level", "flag"}
    assert list(t.columns) == COLUMNS and list(t["n"].unique()) == [390, 10]
    assert (t["estimate"].notna() & t["lower"].notna() | (t["reason"] != "")).all()
    assert t["threshold_low"].notna().all() | (t["reason"] != "").all()
    json.loads(dumps(report.to_dict()))


def test_chunks_without_rows_or_with_too_few_have_a_reason(small):
    at = pd.Timestamp("2013-03-01", tz="UTC") + pd.to_timedelta(np.arange(400), unit="h")
    late = pd.concat([small[1].assign(at=at), small[1].head(1).assign(at=pd.Timestamp("2013-05-09", tz="UTC"))], ignore_index=True)
    t = estimate_performance(small[0], late.drop(columns="y"), **BINARY, chunk="MS", metrics=["brier"]).table()
    assert list(t["chunk"]) == ["2013-03", "2013-04", "2013-05"]
    assert list(t["reason"]) == ["", "no prediction", "1 row is too few, 10 are needed"]
    assert list(t["estimate"].notna()) == [True, False, False] and not t["alarm"].any()


def test_constant_scores_and_answers_have_reasons(small):
    flat = estimate_performance(small[0].assign(p=.3), small[1].assign(p=.3).drop(columns="y"), **BINARY).table().set_index("metric")
    assert flat.loc["roc_auc", "estimate"] == pytest.approx(.5)
    assert "not defined: no row is, or is expected to be, positive" in flat.loc["precision", "reason"]
    assert (flat["estimate"].notna() | (flat["reason"] != "")).all()
    assert (flat["threshold_low"].notna() | (flat["reason"] != "")).all()


def test_the_same_call_gives_the_same_table_and_kinds_of_tables_do_not_matter(small):
    kw = {**BINARY, "chunk": 200, "metrics": ["roc_auc", "bias"]}
    first = estimate_performance(*small, **kw).table()
    pd.testing.assert_frame_equal(first, estimate_performance(*small, **kw).table())
    import pyarrow as pa
    pd.testing.assert_frame_equal(first, estimate_performance(pa.table(small[0]), small[1].to_dict("list"), **kw).table())
    text = [f.assign(y=f["y"].map({0: "no", 1: "yes"})) for f in small]
    pd.testing.assert_frame_equal(first, estimate_performance(*text, **kw, classes=["no", "yes"]).table())


def test_time_orders_the_reference(small):
    at = pd.Timestamp("2013-01-01", tz="UTC") + pd.to_timedelta(np.arange(1500), unit="h")
    reference = small[0].assign(at=at)
    kw = {**BINARY, "metrics": ["brier"], "method": "plain"}
    a, b = (estimate_performance(r, small[1], **kw) for r in (reference, reference.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(a.past, b.past)


def test_a_picture_of_each_metric(small):
    report = estimate_performance(small[0], small[1], **BINARY, chunk=100)
    assert isinstance(report, EstimateReport) and "Estimated performance" in repr(report)
    for m in report.table()["metric"].unique(): assert report.plot(m).axes[0].get_ylabel() == m
    with pytest.raises(ParameterError, match="metric='mae' is not in the report"): report.plot("mae")
