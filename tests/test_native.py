"""Trees as machine code: the same answers on rows made to break them, a folder that nobody else can write, and no harm where there is no compiler."""
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingClassifier, HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier

import mlnb
from mlnb.deploy import certificate as ce
from mlnb.deploy import native
from mlnb.deploy.compiled import as_onnx


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlnb" / "native"


def frame(n: int = 2000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"wind": np.where(rng.random(n) < .1, np.nan, rng.gamma(4, 3, n)), "seats": rng.integers(50, 300, n), "dest": pd.Categorical(rng.choice([f"D{i:02}" for i in range(40)], n))})


MODELS = {
    "categories": (HistGradientBoostingClassifier(max_iter=15, categorical_features="from_dtype", random_state=0), ["wind", "seats", "dest"]),
    "regression": (HistGradientBoostingRegressor(max_iter=15, loss="poisson", random_state=0), ["wind", "seats"]),
    "three classes": (HistGradientBoostingClassifier(max_iter=5, random_state=0), ["wind", "seats"]),
    "forest": (RandomForestClassifier(10, max_depth=8, random_state=0), ["seats"]),
    "forest of numbers": (ExtraTreesRegressor(10, max_depth=8, random_state=0), ["seats"]),
    "old boosting": (GradientBoostingClassifier(n_estimators=10, random_state=0), ["seats"])}


def make(folder: Path, name: str = "categories") -> tuple[Any, pd.DataFrame]:
    model, columns = MODELS[name]
    X = frame()
    score = X["wind"].fillna(20) + X["dest"].isin(["D01", "D07"]) * 8 + X["seats"] / 50
    y = score if "numbers" in name or name == "regression" else np.digitize(score, [15, 20]) if name == "three classes" else np.where(score > 17, "late", "on time")
    return mlnb.open(folder).register("late", model.fit(X[columns], y), X[columns], y), X[columns]


@pytest.mark.parametrize("name", MODELS)
def test_machine_code_says_what_the_original_says(tmp_path: Path, name: str) -> None:
    version, X = make(tmp_path / "work", name)
    assert native.prepare(version, 10**10) and ce.engine(version).many.name == "native" and ce.engine(version).few.name == "onnx"
    assert "TreeEnsemble" not in {n.op_type for n in onnx.load_from_string(native.halves(version.load(), version.schema)[0]).graph.node} # the trees are not asked twice
    for group, fit in ce.probes(version.schema, version.schema.conform(X).head(500), as_onnx(version.load(), version.schema).turning).items():
        said, engine = version.predict(fit), ce.engine(version)
        y = engine.many.run(engine.encoder.frame(fit))
        scores = [s for s in said if s != "prediction"] or ["prediction"]
        assert np.abs(y - said[scores].to_numpy(float)).max() < 1e-7, group  # GTIL takes the exponentials of softmax in single precision


def test_numbers_that_look_missing_to_the_machine_code_are_answered_rightly(tmp_path: Path) -> None:
    version, X = make(tmp_path / "work", "regression")
    assert native.prepare(version, 10**10)
    odd = X.assign(wind=np.nextafter(2. ** (np.arange(len(X)) % 6), 0))
    assert native.taken_for_missing(odd.to_numpy(float)).all() and not native.taken_for_missing(odd.assign(wind=1.5).to_numpy(float)).any()
    fit, engine = version.schema.conform(odd), ce.engine(version)
    assert np.abs(engine.many.run(engine.encoder.frame(fit))[:, 0] - version.predict(fit)["prediction"]).max() < 1e-9
    broken = native.Native(next((Path(os.environ["XDG_CACHE_HOME"]) / "mlnb" / "native").glob("*.so"))).predictor
    assert np.abs(np.asarray(broken.predict(engine.many.model.code.DMatrix(odd.to_numpy(float)))).ravel() - version.predict(fit)["prediction"]).max() > 1e-3  # without the detour it is wrong: when this fails, the detour can go


def test_a_long_job_is_answered_by_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, X = make(tmp_path / "work")
    dep = version.ws.deploy("late", version)
    X.to_parquet(tmp_path / "rows.parquet")
    dep.score(tmp_path / "rows.parquet", tmp_path / "slow.parquet", log=False, progress=False)
    assert ce.engine(version).many.name == "onnx"  # too short to compile for
    monkeypatch.setattr(native, "COST", 0.)
    dep.score(tmp_path / "rows.parquet", tmp_path / "fast.parquet", log=False, progress=False)
    assert ce.engine(version).many.name == "native"
    slow, fast = (pd.read_parquet(tmp_path / f"{n}.parquet").drop(columns="id") for n in ("slow", "fast"))
    pd.testing.assert_frame_equal(slow, fast, rtol=1e-12)


def test_another_process_takes_what_was_certified(tmp_path: Path, own_cache: Path) -> None:
    version, _ = make(tmp_path / "work")
    assert native.prepare(version, 10**10)
    again = mlnb.open(tmp_path / "work").version("late")
    assert native.adopt(again) and not again.ws.loaded and ce.engine(again).many.name == "native"
    told = next(own_cache.glob("*.json"))
    told.write_text(json.dumps({"certified": False}))
    other = mlnb.open(tmp_path / "work").version("late")
    assert not native.adopt(other) and ce.engine(other).many.name == "onnx"


@pytest.mark.parametrize("how", ["writable folder", "writable file", "link"])
def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, own_cache: Path, how: str) -> None:
    version, _ = make(tmp_path / "work")
    assert native.prepare(version, 10**10)
    if how == "writable folder": own_cache.chmod(0o777)
    elif how == "writable file": next(own_cache.glob("*.so")).chmod(0o666)
    else: (own_cache / "other.so").symlink_to(next(own_cache.glob("*.so")))
    again = mlnb.open(tmp_path / "work").version("late")
    assert not native.adopt(again) and not native.prepare(again, 10**10) and ce.engine(again).many.name == "onnx"


def test_without_a_compiler_everything_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, X = make(tmp_path / "work")
    monkeypatch.setenv("PATH", "")
    assert not native.prepare(version, 10**10) and ce.engine(version).many.name == "onnx" and len(version.ws.deploy("late", version).predict(X.head(3))) == 3


def test_machine_code_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    version, _ = make(tmp_path / "work", "regression")
    monkeypatch.setattr(native, "taken_for_missing", lambda x: np.zeros(len(x), bool))  # as tl2cgen does by itself
    assert not native.prepare(version, 10**10) and "is refused" in caplog.text and ce.engine(version).many.name == "onnx"
