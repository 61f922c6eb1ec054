"What a drift does to the answers: against linear models, whose answer is known; and the verdicts"
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import mlnb
from mlnb.core.errors import MlnbError, ParameterError
from mlnb.core.events import feedback, log_predictions
from mlnb.core.profile import profile
from mlnb.core.registry import Deployment
from mlnb.monitor.drift import drift
from mlnb.monitor.impact import as_it_was, harm, impact, quantiles, verdict_of

RNG = np.random.default_rng(0)
OLD = pd.DataFrame({"x": RNG.normal(10, 2, 8_000), "z": RNG.lognormal(0, 1, 8_000), "n": RNG.poisson(4, 8_000), "c": RNG.choice(["a", "b", "c"], 8_000, p=[.5, .3, .2])})
NEW = pd.DataFrame({"x": RNG.normal(13, 1, 1_500), "z": RNG.lognormal(0, 1, 1_500), "n": RNG.poisson(7, 1_500), "c": RNG.choice(["a", "b", "d"], 1_500, p=[.2, .5, .3])})


@pytest.mark.parametrize("name", ["x", "z", "n"])
def test_quantiles_are_those_of_the_rows(name):
    p, q = profile(OLD)[name], np.array([0, .01, .1, .25, .5, .9, .99, 1])
    bins = np.diff(np.quantile(OLD[name], [.48, .52]))[0] + 1e-9
    assert np.allclose(quantiles(p, q)[1:-1], np.quantile(OLD[name], q[1:-1], method="inverted_cdf"), atol=max(bins, .05 * OLD[name].std()))
    assert (quantiles(p, q)[[0, -1]] == [OLD[name].min(), OLD[name].max()]).all() and (np.diff(quantiles(p, np.linspace(0, 1, 999))) >= 0).all()


def test_a_column_brought_back_has_not_drifted():
    report = drift(OLD, NEW)
    assert set(report.drifted) == {"x", "n", "c"}
    back = pd.DataFrame({c: as_it_was(NEW[c], profile(OLD)[c]) for c in NEW})
    assert not drift(OLD, back).alarm and not drift(OLD, back).table()["unseen"].any()
    assert (back["x"].rank() == NEW["x"].rank()).mean() > .99
    kept = (back["c"] == NEW["c"]).mean()
    assert kept == pytest.approx(1 - .5 * (abs(.5 - .2) + abs(.3 - .5) + .2 + .3), abs=.03)  # the least that has to change: the total variation


def test_linear_models_know_the_answer():
    found = impact(lambda d: .05 * d["x"] - .02 * d["z"] + .01 * (d["c"] == "a"), drift(OLD, NEW), NEW, labels=False, max_rows=1_500).table().set_index("feature")
    assert found.loc["x", "shift"] == pytest.approx(.05 * (NEW["x"].mean() - OLD["x"].mean()), abs=.002)
    assert found.loc["z", "moved"] == pytest.approx(0, abs=.002) and found.loc["n", "moved"] == 0
    assert found.loc["c", "shift"] == pytest.approx(.01 * ((NEW["c"] == "a").mean() - .5), abs=.0005)
    assert found["flips"].isna().all() and found.index[0] == "x"
    assert found.loc["(all that drifted)", "shift"] == pytest.approx(found.loc["x", "shift"] + found.loc["c", "shift"], abs=1e-9)


def test_many_classes_and_nulls():
    new = NEW.assign(x=NEW["x"].where(RNG.random(1_500) > .4))
    def predict(d):
        p = np.where(d["x"].isna().to_numpy()[:, None], [.2, .8, 0], [.7, .2, .1])
        return p
    found = impact(predict, drift(OLD, new), new, max_rows=1_500).table().set_index("feature")
    share = new["x"].isna().mean()
    assert found.loc["x", "moved"] == pytest.approx(.6 * share, abs=1e-9) and found.loc["x", "flips"] == pytest.approx(share)
    assert as_it_was(new["x"], profile(OLD)["x"]).notna().all()
    some = profile(OLD.assign(x=OLD["x"].where(RNG.random(8_000) > .25)))["x"]
    assert as_it_was(NEW["x"], some).isna().mean() == pytest.approx(.25, abs=.02)


@pytest.mark.parametrize("values", [pd.Series([1.0, 1.0, 1.0]), pd.Series([None, None], dtype=object), pd.Series([np.inf, 1.0, -np.inf]), pd.Series(pd.to_datetime(["2013-01-01", "2014-01-01"])), pd.Series([True, False]), pd.Series(["x"], dtype="category")])
def test_odd_columns_stay_columns(values):
    p = profile({"v": values})["v"]
    back = as_it_was(values, p)
    assert len(back) == len(values) and list(back.index) == list(values.index)


def test_bad_input():
    report = drift(OLD, NEW)
    with pytest.raises(ParameterError, match="rows is empty"): impact(lambda d: d["x"], report, NEW[:0])
    with pytest.raises(ParameterError, match="none of the features"): impact(lambda d: d["x"], report, pd.DataFrame({"other": [1]}))
    with pytest.raises(ParameterError, match="gave 3 answers to 1500 rows"): impact(lambda d: np.zeros(3), report, NEW)
    with pytest.raises(ParameterError, match="1500 of them null"): impact(lambda d: np.full(len(d), np.nan), report, NEW)


def test_levels_are_brought_back_however_they_are_kept():
    for values in ([1.0, 2.0, 3.0], [1, 2, 3], ["a", "b", "c"], [True, False, False]):
        def column(p, n, values=values): return pd.Series(pd.Categorical(RNG.choice(np.array(values, object), n, p=p)))
        old, new = pd.DataFrame({"g": column([.6, .3, .1], 4_000)}), pd.DataFrame({"g": column([.1, .0, .9], 1_000)})
        new["g"] = new["g"].cat.remove_unused_categories()
        report = impact(lambda d, first=values[0]: (d["g"].astype(object) == first).astype(float), drift(old, new), new, labels=False, max_rows=1_000)
        assert report.table()["shift"].iloc[0] == pytest.approx((new["g"].astype(object) == values[0]).mean() - (old["g"].astype(object) == values[0]).mean(), abs=.001)
        assert isinstance(as_it_was(new["g"], profile(old)["g"]).dtype, pd.CategoricalDtype)


@pytest.mark.parametrize("dtype", ["boolean", "string", "object", "category"])
def test_nulls_and_types_of_levels_are_kept(dtype):
    old = pd.Series([True, None, False, True] if dtype == "boolean" else ["a", None, "b", "a"]).astype(dtype)
    back = as_it_was(old[[0, 0, 0, 0]].reset_index(drop=True), profile({"v": old})["v"])
    assert back.dtype == old.dtype and back.isna().sum() == 1 and back.value_counts().to_dict() == old.value_counts().to_dict()


def test_times_keep_their_zone():
    for zone in (None, "UTC"):
        times = pd.Series(pd.date_range("2013-01-01", periods=400, freq="h", tz=zone))
        back = as_it_was(times + pd.Timedelta("100D"), profile({"t": times})["t"])
        assert getattr(back.dtype, "tz", None) == times.dt.tz and abs(back - times).max() < pd.Timedelta("6h")


def test_what_cannot_be_undone_is_named():
    old, new = OLD.assign(note=[f"{v:.12f}" for v in OLD["x"]]), NEW.assign(note="short").drop(columns="c").assign(n="many")
    report = impact(lambda d: d["x"], drift(old, new), new, labels=False)
    said = [r for r in report.reasons if "cannot be asked" in r]
    assert len(said) == 3 and all(any(n in r for r in said) for n in ("c:", "'n'", "note")) and "note" not in set(report.table()["feature"])


def performance(alarm=False, value=.7, low=.6, mature=True):
    table = pd.DataFrame({"metric": ["roc_auc"], "value": [value], "threshold_low": [low], "threshold_high": [np.nan], "mature": [mature], "alarm": [alarm]})
    return SimpleNamespace(alarm=alarm, reasons=["roc_auc is .5"], table=lambda: table)


@pytest.mark.parametrize("window,realised,verdict,alarm", [
    (OLD[:900], None, "no drift", False), (OLD[:900], performance(True), "harm without drift", True), (NEW, performance(), "drift without harm", False), (NEW, performance(True), "drift with harm", True),
    (NEW, None, "drift, harm not known yet", True), (NEW, performance(value=np.nan), "drift, harm not known yet", True), (NEW, performance(low=np.nan), "drift, harm not known yet", True),
    (NEW, performance(mature=False), "drift, harm not known yet", True)])
def test_verdicts(window, realised, verdict, alarm):
    d = drift(OLD, window)
    report = harm(d, impact(lambda r: np.full(len(r), .5), d, window), realised=realised)
    assert (report.verdict, report.alarm) == (verdict, alarm) and verdict in repr(report)
    json.dumps(report.to_dict(), allow_nan=False), report._repr_html_(), report.plot()


def test_every_combination_has_a_verdict():
    found = {(d, h, k): verdict_of(d, h, k) for d in (False, True) for h in (False, True) for k in (False, True)}
    assert len(set(found.values())) == 5 and found[True, False, False] == "drift, harm not known yet"


# A deployment: what it can be asked depends on what is known

def asked_of(path: Path, *, turn: bool, scores: bool = True, labels: float = 1.0, keep: bool = True) -> Deployment:
    "A new deployment whose wind drifts up; with `turn` the world turns round as well. `labels`: share of the answers that get one"
    rng = np.random.default_rng(7)
    def days(start: str, n: int, sign: int, shift: float) -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
        X = pd.DataFrame({"wind": rng.normal(10 + shift, 3, 250 * n), "night": rng.integers(0, 2, 250 * n)})
        return X, rng.random(len(X)) < 1 / (1 + np.exp(-sign * (X["wind"] - 10) / 2)), pd.Series(pd.date_range(start, periods=len(X), freq=f"{1440 / 250}min", tz="UTC"))
    X, y, at = days("2013-01-01", 40, 1, 0)
    model = (LogisticRegression() if scores else LinearSVC()).fit(X, y)
    ws = mlnb.open(path)
    dep = ws.deploy("late", ws.register("late", model, X, y, time=at, at="2013-02-10", keep_data=keep), at="2013-02-10")
    X, y, at = days("2013-02-10", 14, -1 if turn else 1, 2)
    ids = log_predictions(dep, X, dep.champion.predict(X), at=at)
    got = rng.random(len(X)) < labels
    if got.any(): feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": at + pd.Timedelta("2h")})[got])
    return dep


@pytest.mark.parametrize("turn,labels,verdict", [(False, 1., "drift without harm"), (True, 1., "drift with harm"), (False, .1, "drift without harm"), (True, .1, "drift with harm"), (False, 0, "drift without harm")])
def test_harm_of_a_deployment_without_a_past(tmp_path, turn, labels, verdict):
    "There is no stretch before the window to compare labels with, so the estimate takes what is usual from the training rows"
    report = asked_of(tmp_path, turn=turn, labels=labels).harm("2013-02-10")
    assert report.verdict == verdict and set(report.drift.drifted) == {"wind", "score", "prediction"} and report.estimated is not None, report
    assert report.alarm == turn and report.impact.table()["feature"].iloc[0] in ("wind", "(all that drifted)")


def test_harm_says_what_cannot_be_known(tmp_path):
    report = asked_of(tmp_path, turn=False, scores=False, keep=False, labels=0).harm("2013-02-10")
    said = "\n".join(report.reasons)
    assert report.verdict == "drift, harm not known yet" and report.alarm
    assert "impact: late v1 gives labels only, and no scores that could move" in said and "estimated performance: there is no reference for an estimate" in said


def test_harm_keeps_to_the_budget_for_the_data_too(tmp_path):
    dep = asked_of(tmp_path, turn=False)
    assert dep.harm("2013-02-10", budget="1 per 90 days").drift.budget == dep.drift("2013-02-10", budget="1 per 90 days").budget < dep.harm("2013-02-10").drift.budget


def test_slices_and_pairs_need_the_training_rows(tmp_path):
    dep = asked_of(tmp_path / "kept", turn=False)
    assert dep.drift_segments("2013-02-10").table()["of"].iloc[0] == "wind" and dep.multivariate_drift("2013-02-10").alarm
    lost = asked_of(tmp_path / "lost", turn=False, keep=False)
    for ask in (lost.drift_segments, lost.multivariate_drift):
        with pytest.raises(ParameterError, match=r"the training rows of late v1 were not kept.*register with keep_data=True"): ask("2013-02-10")
    with pytest.raises(MlnbError, match="there is no column 'wnid'"): dep.drift_segments(columns=["wnid"])
