"""Which compiled form of a model serves: right on rows made to break it, refused when it is wrong, and found again."""
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from sklearn.compose import make_column_transformer
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingRegressor, HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

import mlnb
from mlnb.core import store as st
from mlnb.deploy import certificate as ce
from mlnb.deploy.compiled import Encoder, answered, as_onnx, as_skl2onnx
from mlnb.deploy.graph import Uncompiled

NUMBERS = ["wind", "temp", "seats", "night"]


def frame(n: int = 1500, seed: int = 0) -> pd.DataFrame:
    "Numbers of all kinds, text and categories; `temp` and `gate` have nulls"
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "wind": rng.gamma(4, 3, n).round(1), "temp": np.where(rng.random(n) < .2, np.nan, rng.normal(15, 8, n)), "seats": rng.integers(50, 300, n), "night": rng.random(n) < .3,
        "carrier": rng.choice(["AA", "UA", "DL", "B6"], n), "dest": pd.Categorical(rng.choice([f"D{i:02}" for i in range(60)], n)),
        "gate": pd.Series(rng.choice(["a", "b", None], n), dtype=object)})


def target(X: pd.DataFrame, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return X["wind"].to_numpy() + 10 * X["night"].to_numpy() + 3 * (X["carrier"] == "UA").to_numpy() + X["dest"].isin(["D01", "D07", "D33"]).to_numpy() * 6 + rng.normal(0, 4, len(X))


def encoded(*numeric: Any) -> Any:
    "A transformer before a model: the steps for numbers, and encoders for the rest"
    return make_column_transformer((make_pipeline(*numeric), NUMBERS), (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "dest"]),
                                   (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-2, encoded_missing_value=-1), ["gate"]))


MODELS = {
    "boosting": make_pipeline(encoded("passthrough"), HistGradientBoostingClassifier(max_iter=30, random_state=0)),
    "native categories": make_pipeline(make_column_transformer(("passthrough", ["wind", "temp", "dest"]), verbose_feature_names_out=False).set_output(transform="pandas"),
                                       HistGradientBoostingClassifier(max_iter=30, categorical_features="from_dtype", random_state=0)),
    "forest behind a scaler": make_pipeline(encoded(SimpleImputer(), StandardScaler()), RandomForestClassifier(20, random_state=0)),
    "extra trees": make_pipeline(encoded(SimpleImputer(strategy="median"), RobustScaler()), ExtraTreesClassifier(15, random_state=0)),
    "a tree": make_pipeline(encoded(SimpleImputer(strategy="constant", fill_value=-9)), DecisionTreeClassifier(max_depth=6, random_state=0)),
    "logistic": make_pipeline(encoded(SimpleImputer(), MinMaxScaler()), LogisticRegression(max_iter=2000)),
    "network": make_pipeline(encoded(SimpleImputer(), StandardScaler()), MLPClassifier((16, 8), max_iter=60, random_state=0)),
    "searched": GridSearchCV(make_pipeline(encoded(SimpleImputer(), StandardScaler()), LogisticRegression(max_iter=2000)), {"logisticregression__C": [.1, 1.]}, cv=2),
    "three classes": make_pipeline(encoded(SimpleImputer()), RandomForestClassifier(15, max_depth=8, random_state=0)),
    "three classes boosted": make_pipeline(encoded("passthrough"), HistGradientBoostingClassifier(max_iter=10, random_state=0)),
    "regression": make_pipeline(encoded("passthrough"), HistGradientBoostingRegressor(max_iter=30, random_state=0)),
    "counts": make_pipeline(encoded("passthrough"), HistGradientBoostingRegressor(loss="poisson", max_iter=30, random_state=0)),
    "forest of numbers": make_pipeline(encoded(SimpleImputer()), RandomForestRegressor(10, random_state=0)),
    "old boosting": make_pipeline(encoded(SimpleImputer()), GradientBoostingRegressor(n_estimators=30, random_state=0)),
    "ridge": make_pipeline(encoded(SimpleImputer(), StandardScaler()), Ridge())}


def labels(name: str, X: pd.DataFrame) -> np.ndarray:
    y = target(X)
    if name.startswith("three"): return np.digitize(y, [12, 18])
    return np.maximum(y, 0) if name in ("regression", "counts", "forest of numbers", "old boosting", "ridge") else np.where(y > 16, "late", "on time")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_is_certified_says_what_the_original_says(tmp_path: Path, name: str) -> None:
    X = frame()
    ws = mlnb.open(tmp_path / "work")
    version = ws.register("late", MODELS[name].fit(X, labels(name, X)), X, labels(name, X))
    c = version.certificate()
    assert c.few == "onnx" and "onnx" in c.candidates and not c.alarm, c.reasons
    verdict = c.verdicts_[1]
    assert verdict.certified and verdict.flips == 0 and verdict.difference < 1e-12 and verdict.rows > 500
    # rows that the certificate has not seen, with levels that nobody has
    fresh = version.schema.conform(frame(3000, seed=7).assign(carrier=lambda f: np.where(f.index % 9 == 0, "new", f["carrier"])))
    engine = ce.engine(version)
    y, said = engine.answer(engine.encoder.frame(fresh)), version.predict(fresh)
    assert y is not None
    scores = [s for s in said if s != "prediction"]
    assert np.abs(y - said[scores or ["prediction"]].to_numpy(float)).max() < 1e-9
    assert version.task == "regression" or (engine.labels(y) == said["prediction"]).all()


def wrong(version: Any, model: Any, X: pd.DataFrame) -> ce.Verdict:
    "The verdict on what a converter makes of a model"
    exact = as_onnx(model, version.schema)
    return ce.compare(version, as_skl2onnx(model, version.schema), ce.probes(version.schema, version.schema.conform(X).head(500), exact.turning))


def test_native_categories_that_a_converter_takes_for_numbers_are_caught(tmp_path: Path) -> None:
    X = frame()[["wind", "dest"]]
    y = np.where(target(frame()) > 16, "late", "on time")
    model = HistGradientBoostingClassifier(max_iter=30, categorical_features="from_dtype", random_state=0).fit(X, y)
    version = mlnb.open(tmp_path / "work").register("late", model, X, y)
    verdict = wrong(version, model, X)
    assert not verdict.certified and verdict.difference > .1 and verdict.flips > 0 and "changes" in verdict.why
    assert version.certificate().few == "onnx"


def test_a_scaler_before_a_forest_in_single_precision_is_caught(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"opened": rng.integers(1_356_998_400, 1_388_534_400, 2000), "rooms": rng.integers(1, 9, 2000)})
    y = (X["opened"] % 97 + X["rooms"] > 50).astype(str)
    model = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0)).fit(X, y)
    version = mlnb.open(tmp_path / "work").register("houses", model, X, y)
    assert not (verdict := wrong(version, model, X)).certified and verdict.difference > 1e-3
    assert version.certificate().few == "onnx" and version.certificate().verdicts_[1].difference < 1e-12


def test_what_the_original_refuses_is_not_answered(tmp_path: Path) -> None:
    X = frame()[["wind", "carrier"]]
    y = (target(frame()) > 16).astype(str)
    model = make_pipeline(make_column_transformer((StandardScaler(), ["wind"]), (OneHotEncoder(handle_unknown="error"), ["carrier"])), RandomForestClassifier(5, random_state=0)).fit(X, y)
    ws = mlnb.open(tmp_path / "work")
    dep = ws.deploy("late", ws.register("late", model, X, y))
    engine = ce.engine(dep.champion)
    assert engine.few is not None and engine.few.refused == {1: {4, 5}}
    with pytest.raises(mlnb.MlnbError, match="unknown categories"): dep.predict([{"wind": 3., "carrier": "ZZ"}])
    with pytest.raises(mlnb.MlnbError, match="too large for dtype"): dep.predict([{"wind": 1e300, "carrier": "UA"}])
    assert len(dep.predict([{"wind": 3., "carrier": "UA"}])) == 1 == len(dep.predictions())


def test_a_candidate_that_answers_what_the_original_refuses_is_refused(tmp_path: Path) -> None:
    X = frame()[["wind", "carrier"]]
    model = make_pipeline(make_column_transformer((StandardScaler(), ["wind"]), (OneHotEncoder(handle_unknown="error"), ["carrier"])), LogisticRegression()).fit(X, X["wind"] > 12)
    version = mlnb.open(tmp_path / "work").register("late", model, X, (X["wind"] > 12).astype(str))
    good = as_onnx(model, version.schema)
    careless = ce.Candidate("careless", good.files, good.columns)
    verdict = ce.compare(version, careless, ce.probes(version.schema, X.head(100), {}))
    assert not verdict.certified and "it answers a row that the original refuses" in verdict.why
    assert ce.compare(version, good, ce.probes(version.schema, X.head(100), {})).certified


def test_models_without_a_compiled_form_are_served_as_they_are(tmp_path: Path) -> None:
    X = frame()[["wind", "seats"]]
    y = np.where(X["wind"] > 12, "late", "on time")
    ws = mlnb.open(tmp_path / "work")
    for model, why in ((make_pipeline(SelectKBest(k=1), LogisticRegression()), "SelectKBest has no compiled form"), (LinearSVC(), "")):
        version = ws.register("late", model.fit(X, y), X, y)
        c = version.certificate()
        assert why in str(c) and len(ws.deploy(f"d{version.number}", version).predict(X.head(3))) == 3
        assert np.array_equal(ws.deployment(f"d{version.number}").predict(X)["prediction"], model.predict(X))
    with pytest.raises(Uncompiled): as_onnx(make_pipeline(SelectKBest(k=1), LogisticRegression()).fit(X, y), version.schema)


def test_a_converter_that_fails_prevents_no_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, schema: Any) -> Any: raise RuntimeError("no memory\nsecond line")
    monkeypatch.setattr(ce, "MAKERS", {"onnx": broken})
    X = frame()[["wind"]]
    ws = mlnb.open(tmp_path / "work")
    version = ws.register("late", LogisticRegression().fit(X, X["wind"] > 12), X, X["wind"] > 12)
    assert version.certificate().few == "original" and "onnx is refused: it failed: RuntimeError: no memory" in version.certificate().reasons
    assert len(ws.deploy("late", version).predict(X.head(2))) == 2


def rows_of(ws: Any) -> list[Any]: return ws.rows(sa.select(st.CERTIFICATES))


def test_certificates_are_made_again_for_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = frame()[["wind", "dest"]]
    ws = mlnb.open(tmp_path / "work")
    version = ws.register("late", HistGradientBoostingClassifier(max_iter=5).fit(X[["wind"]], X["wind"] > 12), X[["wind"]], X["wind"] > 12)
    assert [r.environment for r in rows_of(ws)] == [ce.environment()]
    real = ce.about.installed
    monkeypatch.setattr(ce.about, "installed", lambda p: "99.0" if p == "onnxruntime" else real(p))
    later = mlnb.open(tmp_path / "work")
    assert later.version("late").certificate().few == "onnx" and len(rows_of(later)) == 2
    assert len({r.environment for r in rows_of(later)}) == 2 and version.certificate().environment != later.version("late").certificate().environment


def test_a_read_only_workspace_is_certified_in_memory(tmp_path: Path) -> None:
    X = frame()[["wind"]]
    with mlnb.open(tmp_path / "work") as ws:
        ws.register("late", LogisticRegression().fit(X, X["wind"] > 12), X, X["wind"] > 12)
        with ws.store.write() as c: c.execute(st.CERTIFICATES.delete())
    looking = mlnb.open(tmp_path / "work", read_only=True)
    assert looking.version("late").certificate().few in ("onnx", "arrays") and not rows_of(looking)


def test_without_its_rows_a_version_is_examined_with_drawn_ones(tmp_path: Path) -> None:
    X = frame()
    y = labels("boosting", X)
    ws = mlnb.open(tmp_path / "work")
    version = ws.register("late", MODELS["boosting"].fit(X, y), X, y, keep_data=False)
    with ws.store.write() as c: c.execute(st.CERTIFICATES.delete())
    again = mlnb.open(tmp_path / "work").version("late", version.number).certificate()
    assert again.few == "onnx" and again.verdicts_[1].rows > 500


SCRIPT = """
import json, sys
import mlnb
c = mlnb.open(sys.argv[1]).version("late").certificate()
print(json.dumps([c.few, [v.name for v in c.verdicts_], "sklearn" in sys.modules]))
"""


def test_processes_that_certify_at_once_keep_one_certificate(tmp_path: Path) -> None:
    X = frame()[["wind", "dest"]]
    ws = mlnb.open(tmp_path / "work")
    ws.register("late", HistGradientBoostingClassifier(max_iter=20, categorical_features="from_dtype").fit(X, X["wind"] > 12), X, X["wind"] > 12)
    with ws.store.write() as c: c.execute(st.CERTIFICATES.delete())
    def start() -> Any: return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "work")], stdout=subprocess.PIPE, text=True)
    said = [json.loads(p.communicate(timeout=120)[0]) for p in [start(), start()]]
    assert [s[0] for s in said] == ["onnx", "onnx"] and len(rows_of(ws)) == 1


def test_the_encoder_makes_one_matrix_of_frames_and_rows() -> None:
    X = frame(300).assign(short=lambda f: f["wind"].astype("float32"), small=lambda f: f["seats"].astype("int16"), many=lambda f: pd.array(f["temp"].round(), dtype="Float64"))
    schema = mlnb.Schema.capture(X)
    fit = schema.conform(X.assign(carrier=lambda f: f["carrier"].where(f.index % 7 > 0, "new")))
    encoder = Encoder(schema)
    assert np.array_equal(encoder.frame(fit), encoder.rows(ce.plain(fit)), equal_nan=True)


def same(a: pd.DataFrame, b: pd.DataFrame) -> None: pd.testing.assert_frame_equal(a.drop(columns="id"), b.drop(columns="id"), rtol=1e-4)


def test_a_damaged_answer_goes_to_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = frame()[["wind"]]
    ws = mlnb.open(tmp_path / "work")
    dep = ws.deploy("late", ws.register("late", LogisticRegression().fit(X, X["wind"] > 12), X, X["wind"] > 12))
    honest = dep.predict(X.head(5), log=False)
    for y in (np.full((5, 1), np.nan), np.full((5, 1), np.inf)):
        monkeypatch.setattr(ce.Candidate, "run", lambda self, x, y=y: y)
        same(dep.predict(X.head(5), log=False), honest)
    assert answered(ce.engine(dep.champion).few, np.zeros((5, 1))) is None
    def crash(self: Any, x: Any) -> Any: raise RuntimeError("in the compiled code")
    monkeypatch.setattr(ce.Candidate, "run", crash)
    same(dep.predict(X.head(5), log=False), honest)

