"Retraining for every task, and what stops it"
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import LinearSVC

import mlnb
from mlnb.core.events import log_predictions


def deployment(path, model, label, days=20):
    "A model of a relation that turns round when it goes live"
    rng = np.random.default_rng(0)
    old, new = (pd.DataFrame({"x": rng.normal(size=600), "z": rng.normal(size=600)}) for _ in range(2))
    ws = mlnb.open(path)
    first = ws.register("m", model.fit(old, label(old)), old, label(old), time=pd.date_range("2013-01-01", periods=600, freq="h", tz="UTC"))
    dep = ws.deploy("d", first, at="2013-02-01")
    at = pd.date_range("2013-02-01", periods=600, freq=f"{days * 24 * 60 // 600}min", tz="UTC")
    ids = log_predictions(dep, new, dep.champion.predict(new), at=at)
    dep.feedback({"id": ids, "y": label(-new), "at": at})
    return dep


TASKS = {
    "binary": (LogisticRegression(), lambda X: (X.x > 0).to_numpy()),
    "binary without probabilities": (LinearSVC(), lambda X: np.where(X.x > 0, "late", "on time")),
    "multiclass": (LogisticRegression(), lambda X: np.digitize(X.x, [-0.5, 0.5])),
    "multiclass without probabilities": (LinearSVC(), lambda X: np.digitize(X.x, [-0.5, 0.5])),
    "regression": (LinearRegression(), lambda X: (3 * X.x + X.z).to_numpy()),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(tmp_path, task):
    model, label = TASKS[task]
    dep = deployment(tmp_path, model, label)
    result = dep.retrain("2013-02-21", holdout="7D", window="20D")
    assert result.decision.action == "promote", result
    assert result.challenger.task == task.split()[0] and result.challenger.classes == dep.champion.classes
    assert dep.champion.number == 1, "retraining proposes; it does not decide"
    dep.ws.decide(result.decision)
    assert dep.champion == result.challenger != dep.first
    again = dep.retrain("2013-02-21", holdout="7D", window="20D")
    assert again.decision.action == "refuse", again


def test_the_same_seed_and_data_give_the_same_challenger(tmp_path):
    model, label = TASKS["binary"]
    dep = deployment(tmp_path, model, label)
    one, two = (dep.retrain("2013-02-21", holdout="7D") for _ in range(2))
    X = dep.predictions()[["x", "z"]]
    assert one.challenger.predict(X).equals(two.challenger.predict(X)) and one.info == two.info and one.table().equals(two.table())


def test_labels_of_the_future_are_not_seen(tmp_path):
    model, label = TASKS["binary"]
    dep = deployment(tmp_path, model, label)
    before = dep.retrain("2013-02-15", holdout="5D").info
    late = dep.predictions("2013-02-01", "2013-02-05")["id"]
    dep.feedback({"id": late, "y": [False] * len(late), "at": ["2013-02-20"] * len(late)})
    assert dep.retrain("2013-02-15", holdout="5D").info["fingerprint"] == before["fingerprint"]
    assert dep.retrain("2013-02-21", holdout="5D").info["fingerprint"] != before["fingerprint"]


def test_nothing_to_learn_from_is_said(tmp_path):
    X = pd.DataFrame({"x": np.arange(100.0)})
    ws = mlnb.open(tmp_path)
    dep = ws.deploy("d", ws.register("m", LogisticRegression().fit(X, X.x > 50), X, X.x > 50, keep_data=False), at="2013-01-01")
    with pytest.raises(mlnb.SchemaError, match="the training part has 0 labelled rows"):
        dep.retrain("2013-02-01")
    assert len(ws.versions("m")) == 1


def test_rolling_back_twice_goes_further_back(tmp_path):
    X = pd.DataFrame({"x": np.arange(100.0)})
    ws = mlnb.open(tmp_path)
    v1, v2, v3 = (ws.register("m", LogisticRegression(C=c).fit(X, X.x > 50), X) for c in (1, 2, 3))
    dep = ws.deploy("d", v1, at="2013-01-01")
    dep.promote(v2, "better", at="2013-02-01")
    dep.promote(v3, "better still", at="2013-03-01")
    assert dep.rollback("no", at="2013-03-02") == v2
    assert dep.rollback("no again", at="2013-03-03") == v1 == dep.champion
    with pytest.raises(mlnb.MlnbError, match="nothing to roll back to"):
        dep.rollback("and again", at="2013-03-04")
