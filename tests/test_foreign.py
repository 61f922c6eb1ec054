"""Models of other frameworks: ONNX files as estimators, bad files refused, and boosters that say as ONNX what they said before."""
import json
import pickle
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import mlnb
from mlnb import OnnxModel
from mlnb.core import artefact
from mlnb.core.errors import ArtefactError, MlnbError, ParameterError
from mlnb.deploy import serve as serving
from mlnb.deploy.boosters import SINGLE
from mlnb.deploy.graph import Uncompiled

F, INT = TensorProto.FLOAT, TensorProto.INT64
Shapes = dict[str, tuple[int, list[Any]]]


def file(nodes: list[Any], inputs: Shapes, outputs: Shapes, constants: dict[str, Any] | None = None, domains: tuple[str, ...] = ("",)) -> Any:
    ends = [[helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    return helper.make_model(helper.make_graph(nodes, "g", *ends, tensors), opset_imports=[helper.make_opsetid(d, 18 if d == "" else 1) for d in domains], ir_version=9)


def linear(rows: Any = "n", width: Any = 3, columns: Any = 2) -> bytes:
    "Three numbers of two columns"
    weights = np.array([[1, 0, -1], [0, 1, 0]], "f4")
    return file([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (F, [rows, columns])}, {"y": (F, [rows, width])}, {"w": weights}).SerializeToString()


# An image model

def digits() -> tuple[pd.DataFrame, np.ndarray]:
    found = load_digits()
    return pd.DataFrame(found.data, columns=[f"p{i:02}" for i in range(64)]), found.target.astype(str)


def network(seed: int = 0) -> bytes:
    "Convolution, relu, pooling and a dense layer: filters by chance, the layer fitted to what they give"
    X, y = digits()
    filters = np.random.default_rng(seed).normal(0, .2, (8, 1, 3, 3)).astype("f4")
    front = [helper.make_node("Conv", ["x", "filters"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"]), helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
             helper.make_node("Flatten", ["p"], ["f"])]
    images: Shapes = {"x": (F, ["n", 1, 8, 8])}
    seen = ReferenceEvaluator(file(front, images, {"f": (F, ["n", 128])}, {"filters": filters})).run(None, {"x": X.to_numpy("f4").reshape(-1, 1, 8, 8)})[0]
    dense = LogisticRegression(max_iter=500, C=.001).fit(seen, y)
    more = {"filters": filters, "w": dense.coef_.T.astype("f4"), "b": dense.intercept_.astype("f4")}
    made = file([*front, helper.make_node("Gemm", ["f", "w", "b"], ["logits"])], images, {"logits": (F, ["n", 10])}, more)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


@pytest.fixture(scope="module")
def image_model() -> bytes: return network()


def reference(data: bytes, X: pd.DataFrame) -> np.ndarray:
    "Probabilities by the reference implementation of ONNX, and a softmax in double precision"
    z = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x": X.to_numpy("f4").reshape(-1, 1, 8, 8)})[0].astype(float)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def ask(url: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/predict", json.dumps(rows).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as r: return dict(json.loads(r.read()))


def only_the_fast_path(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    "From now on the general way refuses"
    async def refuse(scope: Any, receive: Any, send: Any) -> None: await serving.reply({"error": "the general way"}, 418)(scope, receive, send)
    monkeypatch.setattr(server.site.front, "app", refuse)


def test_an_image_model_is_registered_served_scored_and_shadowed(tmp_path: Path, image_model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = digits()
    ws = mlnb.open(tmp_path / "work")
    (tmp_path / "digits.onnx").write_bytes(image_model)
    v1 = ws.register("digits", OnnxModel(tmp_path / "digits.onnx", classes=sorted(set(y)), logits=True), X, y)
    assert v1.task == "multiclass" and v1.classes == [str(i) for i in range(10)]
    assert (v1.predict(X)["prediction"] == y).mean() > .95
    certificate = v1.certificate()
    assert certificate.few == "onnx" and certificate.candidates.keys() == {"onnx"}, certificate.reasons
    dep = ws.deploy("digits", v1)
    expected = reference(image_model, X)
    said = dep.predict(X.head(300))
    np.testing.assert_allclose(said[[f"score_{i}" for i in range(10)]], expected[:300], atol=1e-5)
    with dep.serve() as server:
        only_the_fast_path(server, monkeypatch)
        answer = ask(server.url, X.tail(5).to_dict("records"))
    assert [p["prediction"] for p in answer["predictions"]] == [str(i) for i in expected[-5:].argmax(axis=1)]
    v2 = ws.register("digits", OnnxModel(network(1), classes=sorted(set(y)), logits=True), X, y)
    dep.rollout(v2, {"shadow": True, "min_units": 10})
    with dep.serve() as server: assert ask(server.url, X.tail(5).to_dict("records"))["version"] == 1
    assert dep.mirror()[v2.number].waiting == 0
    X.head(700).to_parquet(tmp_path / "some.parquet")
    dep.score(tmp_path / "some.parquet", tmp_path / "scored", progress=False)
    scored = pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / "scored").rglob("*.parquet"))])
    assert (scored["prediction"].to_numpy() == expected[:700].argmax(axis=1).astype(str)).all()
    with mlnb.open(tmp_path / "work") as again: np.testing.assert_array_equal(again.version("digits", 1).load().predict_proba(X.head(50)), v1.load().predict_proba(X.head(50)))


@pytest.mark.parametrize("kind", ["matrix", "columns"])
def test_the_fast_path_answers_for_skl2onnx(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"wind": rng.gamma(4, 3, 500), "seats": rng.integers(50, 300, 500)})
    y = np.where(X["wind"] + X["seats"] / 50 > 15, "late", "on time")
    steps = [make_column_transformer((StandardScaler(), ["wind"]), ("passthrough", ["seats"]))] if kind == "columns" else [StandardScaler()]
    model = make_pipeline(*steps, LogisticRegression()).fit(X if kind == "columns" else X.to_numpy(), y)
    types = [("seats", Int64TensorType([None, 1])), ("wind", DoubleTensorType([None, 1]))] if kind == "columns" else [("x", DoubleTensorType([None, 2]))]
    data = convert_sklearn(model, initial_types=types, options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3}).SerializeToString()
    v = (ws := mlnb.open(tmp_path / "work")).register("late", OnnxModel(data, classes=["late", "on time"]), X, y)
    assert v.certificate().few == "onnx", v.certificate().reasons
    np.testing.assert_allclose(v.predict(X)["score"], model.predict_proba(X if kind == "columns" else X.to_numpy())[:, 1], atol=1e-6)
    dep = ws.deploy("late", v)
    with dep.serve() as server:
        only_the_fast_path(server, monkeypatch)
        answer = ask(server.url, X.head(3).to_dict("records"))
    np.testing.assert_allclose([p["score"] for p in answer["predictions"]], model.predict_proba(X.head(3) if kind == "columns" else X.head(3).to_numpy())[:, 1], atol=1e-6)


def test_a_regressor_with_one_output(tmp_path: Path) -> None:
    data = file([helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], {"x": (F, ["n", 2])}, {"y": (F, ["n"])}, {"axes": np.array([1])}).SerializeToString()
    X = pd.DataFrame({"a": [1., 2, 3], "b": [4., 5, 6]})
    v = mlnb.open(tmp_path / "work").register("sum", OnnxModel(data), X, [5., 7, 9])
    assert v.task == "regression" and v.predict(X)["prediction"].tolist() == [5, 7, 9]


def test_text_comes_as_text(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    X = pd.DataFrame({"dest": ["LAX", "ORD", "SFO"] * 20, "origin": ["JFK", "LGA"] * 30})
    y = np.where(X["dest"] == "LAX", "late", "on time")
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(X, y)
    v = mlnb.open(tmp_path / "work").register("late", OnnxModel(to_onnx(model, X.head(1), options={"zipmap": False}).SerializeToString(), classes=["late", "on time"]), X, y)
    np.testing.assert_allclose(v.predict(X)["score"], model.predict_proba(X)[:, 1], atol=1e-6)
    assert v.certificate().few == "original"


# Files that are refused

def outside(at: str) -> bytes:
    "A model whose weights are in a file beside it, as a constant of the graph, of an operation, of a branch, or of a function"
    w = TensorProto(name="w", dims=[2, 3], data_type=F, data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="/etc/passwd")
    m = onnx.load_from_string(linear())
    if at == "graph": m.graph.initializer[0].CopyFrom(w)
    if at == "operation": m.graph.node.append(helper.make_node("Constant", [], ["k"], value=w))
    if at == "branch": m.graph.node.append(helper.make_node("If", ["q"], ["k"], then_branch=helper.make_graph([], "t", [], [], [w]), else_branch=helper.make_graph([], "e", [], [])))
    if at == "function": m.functions.append(helper.make_function("own", "f", [], ["k"], [helper.make_node("Constant", [], ["k"], value=w)], [helper.make_opsetid("", 18)]))
    return bytes(m.SerializeToString())


def custom() -> bytes:
    return bytes(file([helper.make_node("Read", ["x"], ["y"], domain="my.lab")], {"x": (F, ["n", 2])}, {"y": (F, ["n", 3])}, domains=("", "my.lab")).SerializeToString())


CLASSES = {"classes": ["a", "b", "c"], "logits": True}


@pytest.mark.parametrize("data,options,message", [
    (b"", CLASSES, "no ONNX model"), (b"PK no model", CLASSES, "no ONNX model"), (pickle.dumps([1]), CLASSES, "no ONNX model"), (linear()[:40], CLASSES, "no ONNX model|cannot load"),
    *((outside(at), CLASSES, "in other files") for at in ("graph", "operation", "branch", "function")),
    (custom(), CLASSES, "'my.lab'"),
    (linear(rows=1), CLASSES, "1 row at a time"),
    (linear(), CLASSES | {"shape": (1, 8, 8)}, r"shape=\(1, 8, 8\) does not fit"),
    (linear(), CLASSES | {"classes": ["a", "b"]}, "not probabilities of 2 classes"),
    (linear(), CLASSES | {"classes": ["a", "b", "b"]}, "give two or more, each once"),
    (linear(), CLASSES | {"output": "z"}, "output='z'"),
    (linear(), {}, "give classes="),
    (linear(columns="c") + b"", CLASSES | {"shape": (2, 2)}, "does not fit"),
    (file([helper.make_node("Cast", ["x"], ["y"], to=INT)], {"x": (F, ["n", 3])}, {"y": (INT, ["n", 3])}).SerializeToString(), CLASSES, "floating-point"),
    (file([helper.make_node("Cast", ["x"], ["y"], to=F)], {"x": (TensorProto.COMPLEX64, ["n", 3])}, {"y": (F, ["n", 3])}).SerializeToString(), CLASSES, "cannot load|complex"),
    (file([helper.make_node("Identity", ["x"], ["y"])], {"x": (F, ["n", "c", 8, 8])}, {"y": (F, ["n", "c", 8, 8])}).SerializeToString(), CLASSES, "say which one a row has"),
])
def test_bad_files_are_refused(data: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message): OnnxModel(data, **options)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"lost.onnx.*cannot be read"): OnnxModel(tmp_path / "lost.onnx")


def test_everything_wrong_is_one_error() -> None:
    with pytest.raises(ArtefactError) as e: OnnxModel(linear(rows=1), ["a", "a"], shape=(4,))
    assert all(part in str(e.value) for part in ("1 row at a time", "each once", "not probabilities of 2 classes"))


@pytest.mark.parametrize("options,X,message", [
    (CLASSES, pd.DataFrame({"a": [1.], "b": [2.], "c": [3.]}), "takes 2 columns"),
    (CLASSES | {"logits": False}, pd.DataFrame({"a": [1.], "b": [2.]}), "say logits=True"),
    (CLASSES, pd.DataFrame({"a": [1., np.nan], "b": [2., 3]}), "for 1 of 2 rows"),
    (CLASSES, pd.DataFrame({"a": ["x"], "b": ["y"]}), "takes numbers"),
])
def test_a_model_that_does_not_answer_its_rows_is_not_registered(tmp_path: Path, options: dict[str, Any], X: pd.DataFrame, message: str) -> None:
    ws = mlnb.open(tmp_path / "work")
    with pytest.raises(ParameterError, match=message): ws.register("bad", OnnxModel(linear(), **options), X)
    assert ws.models() == []


def test_an_artefact_is_onnx_and_is_checked_when_it_is_loaded() -> None:
    model = OnnxModel(linear(), ["a", "b", "c"], logits=True)
    data = artefact.dumps(model)
    onnx.checker.check_model(onnx.load_from_string(data))
    assert artefact.dumps(artefact.loads(data)) == data == artefact.dumps(clone(model)) == artefact.dumps(pickle.loads(pickle.dumps(model)))  # noqa: S301
    m = onnx.load_from_string(data)
    m.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ArtefactError, match="in other files"): artefact.loads(m.SerializeToString())
    m = onnx.load_from_string(data)
    m.metadata_props[0].value = '{"model": "/etc/passwd"}'
    with pytest.raises(ArtefactError, match="damaged"): artefact.loads(m.SerializeToString())
    with pytest.raises(ArtefactError, match="no skops file|not a skops file"): artefact.loads(pickle.dumps(model))


# Boosters

def rows(n: int = 1200, categories: bool = True, missing: bool = True) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    wind, dest = rng.gamma(4, 3, n), rng.choice(list("ABCDEFGHIJ"), n)
    X = pd.DataFrame({"wind": np.where(rng.random(n) < .15, np.nan, wind) if missing else wind, "gusts": rng.poisson(3, n), "tenth": rng.integers(0, 50, n) / 10})
    if categories: X["dest"] = pd.Categorical(np.where(rng.random(n) < .1, None, dest) if missing else dest)
    return X, wind / 4 + 3 * np.isin(dest, ["A", "C", "J"]) + X["tenth"].to_numpy() + rng.normal(0, 1, n)


TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"binary": lambda s: np.where(s > 6, "late", "on time"), "three": lambda s: np.digitize(s, [5, 7]), "number": lambda s: s, "count": lambda s: np.round(np.exp(s / 5))}
X_OPTIONS: dict[str, Any] = {"n_estimators": 30, "max_depth": 4, "n_jobs": 1, "enable_categorical": True, "random_state": 0}
L_OPTIONS: dict[str, Any] = {"n_estimators": 30, "n_jobs": 1, "verbose": -1, "random_state": 0}


def make(library: str, target: str, X: pd.DataFrame, signal: np.ndarray, **more: Any) -> tuple[Any, np.ndarray]:
    y = TARGETS[target](signal)
    if library == "xgboost":
        given = np.unique(y, return_inverse=True)[1] if target in ("binary", "three") else y
        if target == "count": more = {"objective": "count:poisson"} | more
        return (xgboost.XGBClassifier if target in ("binary", "three") else xgboost.XGBRegressor)(**X_OPTIONS | more).fit(X, given), given
    if target == "count": more = {"objective": "poisson"} | more
    return (lightgbm.LGBMClassifier if target in ("binary", "three") else lightgbm.LGBMRegressor)(**L_OPTIONS | more).fit(X, y), y


def neighbours(X: pd.DataFrame, points: np.ndarray) -> pd.DataFrame:
    "Rows at each number and at its nearest ones, in single and in double precision"
    single = points[np.abs(points) < 1e30].astype("f4")
    near = [points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf), single, np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))]
    values = np.concatenate([np.asarray(v, float) for v in near])
    return X.iloc[np.arange(len(values)) % len(X)].reset_index(drop=True).assign(wind=values, tenth=values[::-1])


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("missing", [False, True])
def test_boosters_say_the_same_as_onnx(tmp_path: Path, library: str, target: str, missing: bool) -> None:
    X, signal = rows(missing=missing)
    booster, y = make(library, target, X, signal)
    v = mlnb.open(tmp_path / "work").register("late", booster, X, y)
    assert v.info["converted_from"] == type(booster).__name__ and v.info["rows_compared"] > len(X) and v.info["difference"] <= (SINGLE if library == "xgboost" else 1e-12)
    model = v.load()
    assert isinstance(model, OnnxModel)
    document = booster.get_booster().trees_to_dataframe() if library == "xgboost" else booster.booster_.trees_to_dataframe()
    at = pd.to_numeric(document["Split" if library == "xgboost" else "threshold"], errors="coerce").dropna().unique()
    for some in (X, neighbours(X, at)):
        if target in ("binary", "three"):
            theirs, mine = booster.predict_proba(some), model.predict_proba(some)
            assert (np.asarray(booster.predict(some)) == model.predict(some)).all()
        else: theirs, mine = booster.predict(some), model.predict(some)
        np.testing.assert_allclose(mine, theirs, atol=1e-5 if library == "xgboost" else 1e-12, rtol=1e-5 if library == "xgboost" else 1e-12)
    assert v.certificate().few == "onnx"


def test_categories_by_number_and_unseen_ones() -> None:
    X, signal = rows()
    X["dest"] = X["dest"].cat.codes.astype("int64").clip(lower=0)
    y = signal > 6
    booster = lightgbm.LGBMClassifier(**L_OPTIONS).fit(X, y, categorical_feature=["dest"])
    made = OnnxModel.from_booster(booster, X)
    strange = X.assign(dest=np.resize([-3, 7, 11, 500], len(X)))
    np.testing.assert_allclose(made.predict_proba(strange), booster.predict_proba(strange), atol=1e-12)


@pytest.mark.parametrize("options", [{"boosting_type": "dart"}, {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": .5}, {"use_missing": False}, {"objective": "binary", "sigmoid": 2.}])
def test_kinds_of_lightgbm(options: dict[str, Any]) -> None:
    X, signal = rows()
    booster, _ = make("lightgbm", "binary", X, signal, **options)
    np.testing.assert_allclose(OnnxModel.from_booster(booster, X).predict_proba(X), booster.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize("options", [{"booster": "dart", "rate_drop": .3}, {"base_score": .2}, {"num_parallel_tree": 3, "subsample": .5}, {"n_estimators": 200, "early_stopping_rounds": 3}])
def test_kinds_of_xgboost(options: dict[str, Any]) -> None:
    X, signal = rows()
    model = xgboost.XGBClassifier(**X_OPTIONS | options)
    model.fit(X, (signal > 6).astype(int), **({"eval_set": [(X.tail(300), (signal[-300:] > 7).astype(int))], "verbose": False} if "early_stopping_rounds" in options else {}))
    np.testing.assert_allclose(OnnxModel.from_booster(model, X).predict_proba(X), model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("objective,k", [("binary:logistic", 2), ("multi:softprob", 3), ("reg:squarederror", 0)])
def test_plain_boosters_of_xgboost(objective: str, k: int) -> None:
    X, signal = rows(categories=False)
    y = np.digitize(signal, [5, 7][:k - 1]) if k else signal
    data = xgboost.DMatrix(X, y)
    booster = xgboost.train({"objective": objective, "nthread": 1, **({"num_class": 3} if k == 3 else {})}, data, 10)
    made = OnnxModel.from_booster(booster, X, classes=["x", "y", "z"][:k] or None)
    said = made.predict_proba(X) if k else made.predict(X)
    np.testing.assert_allclose(said[:, 1] if k == 2 else said, booster.predict(data), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective,k", [("binary", 2), ("multiclass", 3), ("tweedie", 0)])
def test_plain_boosters_of_lightgbm(objective: str, k: int) -> None:
    X, signal = rows()
    y = np.digitize(signal, [5, 7][:k - 1]) if k else np.exp(signal / 5)
    booster = lightgbm.train({"objective": objective, "num_threads": 1, "verbose": -1, **({"num_class": 3} if k == 3 else {})}, lightgbm.Dataset(X, y), 10)
    made = OnnxModel.from_booster(booster, X)
    said = made.predict_proba(X) if k else made.predict(X)
    np.testing.assert_allclose(said[:, 1] if k == 2 else said, booster.predict(X), atol=1e-12)


@pytest.mark.parametrize("library,target,options,message", [
    ("xgboost", "binary", {"objective": "binary:hinge"}, "binary:hinge"), ("xgboost", "number", {"booster": "gblinear", "max_depth": None, "enable_categorical": False}, "gblinear"),
    ("xgboost", "binary", {"missing": 3.}, "missing=3"), ("lightgbm", "three", {"objective": "multiclassova"}, "multiclassova"), ("lightgbm", "binary", {"zero_as_missing": True}, "zero_as_missing"),
    ("lightgbm", "number", {"linear_tree": True}, "linear_tree"),
])
def test_boosters_without_such_a_form_are_refused_by_name(tmp_path: Path, library: str, target: str, options: dict[str, Any], message: str) -> None:
    X, signal = rows(categories=False, missing=False)
    booster, y = make(library, target, X, signal, **options)
    ws = mlnb.open(tmp_path / "work")
    with pytest.raises(Uncompiled, match=message): ws.register("late", booster, X, y)
    assert ws.models() == []


def test_a_conversion_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlnb.deploy import boosters
    X, signal = rows(categories=False)
    monkeypatch.setattr(boosters, "_LESS", -1)   # as if "less than" were "at most"
    monkeypatch.setattr(boosters, "_AT_MOST", 2)
    with pytest.raises(MlnbError, match=r"does not say what the original says: .*\(thresholds\)"): OnnxModel.from_booster(make("xgboost", "binary", X, signal)[0], X)


def test_without_treelite_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    X, signal = rows(categories=False)
    monkeypatch.setitem(__import__("sys").modules, "treelite", None)
    with pytest.raises(MlnbError, match=r"mlnb\[boosters\]"): OnnxModel.from_booster(make("lightgbm", "binary", X, signal)[0], X)


def test_a_forest_of_skl2onnx_answers_as_float(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    X, signal = rows(categories=False, missing=False)
    y = signal > 6
    forest = RandomForestClassifier(10, max_depth=4, random_state=0).fit(X.to_numpy("f4"), y)
    v = mlnb.open(tmp_path / "work").register("late", OnnxModel(to_onnx(forest, X.to_numpy("f4")[:1], options={"zipmap": False}).SerializeToString(), classes=[False, True]), X, y)
    np.testing.assert_allclose(v.predict(X)["score"], forest.predict_proba(X.to_numpy("f4"))[:, 1], atol=1e-5)
