"Results that others have published, recomputed"
import numpy as np
import pytest

from mlnb.monitor.performance import performance
from mlnb.monitor.thresholds import worse_than


@pytest.fixture(scope="module")
def penguins():
    "Rows of bill length and depth, species as codes; the split and the tree of alibi-detect's example on supervised drift (Seldon, 2022)"
    from palmerpenguins import load_penguins as load
    from sklearn.model_selection import train_test_split
    from sklearn.tree import DecisionTreeClassifier
    data = load().dropna()
    X, y = data[["bill_length_mm", "bill_depth_mm"]].to_numpy(), data["species"].map({"Adelie": 0, "Gentoo": 1, "Chinstrap": 2}).to_numpy()
    X_train, X_rest, y_train, y_rest = train_test_split(X, y, train_size=60, random_state=42)
    X_ref, X_test, y_ref, y_test = train_test_split(X_rest, y_rest, train_size=.5, random_state=42)
    return DecisionTreeClassifier(max_depth=5, random_state=42).fit(X_train, y_train), (X_ref, y_ref), (X_test, y_test)


def windows(test):
    "The window as it was; with shallower bills for one species, which the tree does not mind; with two species exchanged, which it does"
    X, y = test
    shallow, exchanged = X.copy(), np.array([0, 2, 1])[y]
    shallow[y == 1, 1] -= 5
    return {"no drift": (X, y), "covariate drift": (shallow, y), "concept drift": (X, exchanged)}


def test_penguins_test_accuracy(penguins):
    model, _, (X, y) = penguins
    assert model.score(X, y) == pytest.approx(.883, abs=5e-4)


@pytest.mark.parametrize(("name", "published"), [("no drift", 0.15596677330906383), ("covariate drift", 0.2672809517932724), ("concept drift", 1.6510876695574494e-18)])
def test_penguins_fisher(penguins, name, published):
    model, (X_ref, y_ref), test = penguins
    X, y = windows(test)[name]
    right = [int((model.predict(a) == b).sum()) for a, b in ((X_ref, y_ref), (X, y))]
    assert worse_than(right[0], len(y_ref), right[1], len(y)) == pytest.approx(published, rel=1e-12)


def test_penguins_concept_drift_is_an_alarm_and_covariate_drift_is_none(penguins):
    import pandas as pd
    model, (X_ref, y_ref), test = penguins
    def frame(X, y): return pd.DataFrame({"species": y, "said": model.predict(X)})
    alarms = {}
    for name, (X, y) in windows(test).items():
        report = performance(frame(X, y), y_true="species", y_pred="said", task="multiclass", metrics=["accuracy"], chunk=len(y), reference=frame(X_ref, y_ref)[:135], limits={"accuracy": .8})
        alarms[name] = report.alarm
    assert alarms == {"no drift": False, "covariate drift": False, "concept drift": True}
