"The log and the labels: every kind of column, other processes, odd feedback"
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression

import mlnb
from mlnb.core.errors import ParameterError, SchemaError
from mlnb.core.events import log_predictions


def workspace(path, X, model, y, **kw):
    ws = mlnb.open(path)
    return ws.deploy("d", ws.register("m", model.fit(X, y), X, y, **kw), at="2013-01-01")


@pytest.fixture
def dep(tmp_path):
    X = pd.DataFrame({"x": np.arange(100.0)})
    return workspace(tmp_path, X, LogisticRegression(), np.arange(100) > 50)


def log(dep, n, at="2013-02-01", **kw):
    X = pd.DataFrame({"x": np.arange(float(n))})
    return log_predictions(dep, X, dep.champion.predict(X), at=at, **kw)


def test_every_kind_of_column_comes_back_as_it_went(tmp_path):
    n = 60
    X = pd.DataFrame({
        "Temp": np.linspace(-1, 1, n), "temp": np.arange(n), "f32": np.arange(n, dtype="float32") / 3,
        "flag": np.arange(n) % 2 == 0, "city": pd.Categorical(np.where(np.arange(n) % 3, "New York", 'O\'Hare "x"')),
        "when": pd.date_range("2013-01-01", periods=n, freq="h", tz="UTC"), "note": [f"note {i}; drop table log_1 -- é" for i in range(n)],
        "a very long name " * 10: np.arange(n) * 1e15,
    })
    X.loc[3, "Temp"] = np.nan
    X.loc[4, "city"] = None
    dep = workspace(tmp_path, X, DummyRegressor(), np.arange(n, dtype=float))
    log_predictions(dep, X, dep.champion.predict(X), at=X["when"])
    back = dep.predictions()
    assert len(back) == n
    for name in X:
        want, got = X[name].astype(object).where(X[name].notna(), None), back[name].astype(object).where(back[name].notna(), None)
        assert list(got) == list(want), name
    assert (back["at"] == X["when"]).all()


def test_multiclass_and_regression_labels(tmp_path):
    X = pd.DataFrame({"x": np.arange(90.0)})
    dep = workspace(tmp_path / "c", X, LogisticRegression(max_iter=1000), np.repeat([1, 2, 3], 30))
    log_predictions(dep, X, dep.champion.predict(X), ids=range(90))
    assert dep.outputs.names == ["prediction", "score_1", "score_2", "score_3"]
    assert dep.feedback({"id": [0, 1, 2], "y": [1.0, 2, np.int64(3)]}).matched == 3
    assert list(dep.labelled()["y_true"][:3]) == ["1", "2", "3"]
    dep = workspace(tmp_path / "r", X, LinearRegression(), np.arange(90) / 7)
    log_predictions(dep, X, dep.champion.predict(X), ids=range(90))
    assert dep.feedback([{"id": "5", "y": 2}]).matched == 1
    assert dep.labelled()["y_true"].dropna().tolist() == [2.0]
    with pytest.raises(SchemaError, match="1 of 1 labels are not a finite number, for example 'many'"):
        dep.feedback([{"id": "5", "y": "many"}])


def test_labels_before_their_prediction_twice_and_in_any_order(dep):
    assert tuple(dep.feedback([{"id": "p", "y": True, "at": "2013-02-02"}])) == (1, 0, 1, 0, 0)
    log(dep, 1, ids=["p"])
    assert tuple(dep.feedback([{"id": "p", "y": False, "at": "2013-02-01 12:00"}])) == (1, 1, 0, 1, 1)  # sent later, known earlier
    assert dep.labelled()["y_true"].tolist() == ["True"]
    assert dep.labelled(as_of="2013-02-01 18:00")["y_true"].tolist() == ["False"]
    same = dep.feedback([{"id": "p", "y": False, "at": "2013-02-03"}, {"id": "p", "y": True, "at": "2013-02-03"}])
    assert tuple(same) == (2, 2, 0, 2, 1)  # at the same moment the one sent last counts
    assert dep.labelled()["y_true"].tolist() == ["True"]
    assert dep.feedback_summary() == {"labels": 4, "labelled": 1, "unknown": 0, "repeated": 1, "disagree": 1}


def test_refused_batches_leave_nothing(dep):
    log(dep, 3, ids=["a", "b", "c"])
    for ids in (["d", "a"], ["d", "d"]):
        with pytest.raises(ParameterError, match="nothing was logged"):
            log(dep, 2, ids=ids)
    with pytest.raises(SchemaError):
        dep.feedback([{"id": "a", "y": True}, {"id": "b", "y": "perhaps"}])
    assert len(dep.predictions()) == 3 and dep.feedback_summary()["labels"] == 0


def test_windows_tile(dep):
    log(dep, 48, at=pd.date_range("2013-02-01", periods=48, freq="h", tz="UTC"))
    days = [len(dep.predictions(a, b)) for a, b in [(None, "2013-02-01"), ("2013-02-01", "2013-02-02"), ("2013-02-02", None)]]
    assert days == [0, 24, 24]


WRITER = """
import sys, numpy as np, pandas as pd, mlnb
from mlnb.core.events import log_predictions
dep = mlnb.open(sys.argv[1]).deployment("d")
X = pd.DataFrame({"x": np.arange(5.)})
for i in range(40):
    ids = log_predictions(dep, X, dep.champion.predict(X), ids=[f"{sys.argv[2]}-{i}-{j}" for j in range(5)])
    dep.feedback({"id": ids, "y": [True] * 5})
"""


def test_two_processes_log_and_label_at_once(dep):
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(dep.ws.path), who]) for who in "ab"]
    try:
        assert [p.wait(120) for p in both] == [0, 0]
    finally:
        for p in both:
            p.kill()
    rows = dep.labelled()
    assert len(rows) == 400 and rows["id"].nunique() == 400 and rows["y_true"].notna().all()


def test_a_new_class_of_labels_is_refused_by_name(tmp_path):
    X = pd.DataFrame({"x": np.arange(10.0)})
    dep = workspace(tmp_path, X, DummyClassifier(), ["on time", "late"] * 5)
    log_predictions(dep, X, dep.champion.predict(X), ids=range(10))
    with pytest.raises(SchemaError, match="1 of 2 labels are not one of 'late', 'on time', for example 'cancelled'"):
        dep.feedback({"id": [1, 2], "y": ["late", "cancelled"]})


def test_reading_a_workspace_read_only(dep):
    log(dep, 2, ids=["a", "b"])
    dep.feedback({"id": ["a"], "y": [True]})
    dep.ws.close()
    again = mlnb.open(dep.ws.path, read_only=True).deployment("d")
    assert again.labelled()["y_true"].notna().sum() == 1
    with pytest.raises(mlnb.MlnbError, match="opened read-only"):
        log(again, 1)
