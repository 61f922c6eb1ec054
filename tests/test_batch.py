"""Scoring files: formats, keys, faults, and memory that does not grow with the file."""
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlnb.core import events, registry
from mlnb.core.errors import MlnbError, NotFound, ParameterError, SchemaError
from mlnb.core.registry import Deployment
from mlnb.deploy import batch


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    "Every kind of column, one of them with nulls, and keys beside them"
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "flight": [f"UA{seed}-{i}" for i in range(n)], "at": pd.date_range("2013-03-02", periods=n, freq="s", tz="UTC"), "tail": rng.choice(["N1", "N2"], n),
        "wind": rng.gamma(4, 3, n).round(1), "temp": np.where(rng.random(n) < .2, np.nan, rng.normal(15, 8, n).round(1)), "seats": rng.integers(50, 300, n),
        "night": rng.random(n) < .3, "carrier": rng.choice(["AA", "UA", "DL"], n), "gate": pd.Categorical(rng.integers(1, 5, n), categories=[1, 2, 3, 4]),
        "due": pd.date_range("2013-02-01", periods=n, freq="min", tz="UTC")})


FEATURES = ["wind", "temp", "seats", "night", "carrier", "gate", "due"]


@pytest.fixture
def dep(tmp_path: Path) -> Any:
    X = frame(400)[FEATURES]
    y = np.where(X["wind"] + 10 * X["night"] + 3 * (X["carrier"] == "UA") > 16, "late", "on time")
    model = make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "gate"]),
                                                  ("passthrough", ["wind", "temp", "seats", "night"])), HistGradientBoostingClassifier(max_iter=10))
    with registry.open(tmp_path / "work") as ws:
        yield registry.deploy(ws, "late", registry.register(ws, "late", model.fit(X, y), X, y, at="2013-03-01"), at="2013-03-01")


def direct(dep: Deployment, rows: pd.DataFrame) -> list[float]: return dep.champion.predict(dep.champion.schema.conform(rows[FEATURES]))["score"].tolist()


def files(folder: Path) -> list[str]: return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", ["parquet", "csv", "folder", "partitions", "csv folder", "frame", "arrow", "dataset"])
@pytest.mark.parametrize("sink", ["out.parquet", "out.csv"])
def test_every_source_gives_the_same_answers(dep: Deployment, tmp_path: Path, kind: str, sink: str) -> None:
    rows, given = frame(1000), tmp_path / "given"
    given.mkdir()
    source: Any = given
    if kind == "parquet": rows.to_parquet(source := given / "a.parquet", row_group_size=300)
    elif kind == "csv": rows.to_csv(source := given / "a.csv", index=False)
    elif kind == "folder":
        for i in range(3): rows[i * 400:(i + 1) * 400].to_parquet(given / f"{i}.parquet")
    elif kind == "csv folder":
        for i in range(3): rows[i * 400:(i + 1) * 400].to_csv(given / f"{i}.csv", index=False)
    elif kind == "partitions":
        rows = rows.sort_values(["tail", "flight"], ignore_index=True)
        for tail, part in rows.groupby("tail"):
            (given / f"tail={tail}").mkdir()
            part.drop(columns="tail").to_parquet(given / f"tail={tail}" / "a.parquet", index=False)
    elif kind == "frame": source = rows.set_index(np.arange(1000)[::-1])
    else: source = pa.Table.from_pandas(rows) if kind == "arrow" else ds.dataset(pa.Table.from_pandas(rows))
    done = batch.score(dep, source, tmp_path / sink, id="flight", at="at", unit="tail", batch_rows=256, progress=False)
    assert (done.rows, done.logged, done.version, done.sink) == (1000, 1000, 1, tmp_path / sink)
    out = done.read()
    assert list(out.columns) == ["flight", "at", "tail", "prediction", "score"]
    assert out["flight"].tolist() == rows["flight"].tolist() and out["tail"].tolist() == rows["tail"].tolist()
    assert out["score"].tolist() == direct(dep, rows)
    assert pd.to_datetime(out["at"], utc=True).tolist() == rows["at"].tolist()
    log = events.predictions(dep).set_index("id").loc[rows["flight"]]
    assert log["score"].tolist() == out["score"].tolist() and log["unit"].tolist() == rows["tail"].tolist() and set(log["source"]) == {"batch"}
    assert log["at"].tolist() == rows["at"].tolist() and log["due"].tolist() == rows["due"].tolist() and log["seats"].tolist() == rows["seats"].tolist()
    np.testing.assert_array_equal(log["temp"].to_numpy(float), rows["temp"].to_numpy())
    assert files(tmp_path / "given") == files(given) and not list(tmp_path.glob(".*"))


def test_without_keys_ids_are_made_and_are_in_the_log(dep: Deployment, tmp_path: Path) -> None:
    out = batch.score(dep, frame(300), tmp_path / "new" / "scores", progress=False)
    assert out.sink == tmp_path / "new" / "scores" / "scored.parquet"
    ids = out.read()["id"]
    assert ids.is_unique and set(ids) == set(events.predictions(dep)["id"])
    assert batch.score(dep, frame(300), tmp_path / "quiet.csv", log=False, progress=False).logged == 0
    assert len(events.predictions(dep)) == 300


def test_new_levels_are_answered_and_logged_as_they_were_sent(dep: Deployment, tmp_path: Path) -> None:
    rows = frame(20).astype({"gate": int}).assign(carrier="ZZ", gate=[9] * 5 + [1] * 15)
    rows.to_csv(tmp_path / "a.csv", index=False)
    batch.score(dep, tmp_path / "a.csv", tmp_path / "out.csv", id="flight", progress=False)
    log = events.predictions(dep)
    assert set(log["carrier"]) == {"ZZ"} and log["gate"].value_counts().to_dict() == {1: 15, 9: 5}


@pytest.mark.parametrize("form", ["csv", "parquet", "frame"])
def test_bad_rows_are_named_and_nothing_is_written(dep: Deployment, tmp_path: Path, form: str) -> None:
    rows = frame(1000).astype({"wind": object, "flight": object})
    rows.loc[[5, 6, 900], "wind"] = None
    rows.loc[700, "flight"] = rows.loc[3, "flight"]
    rows.loc[300, "at"] = pd.NaT
    if form != "parquet": rows.loc[999, "wind"] = "calm"
    source: Any = rows
    if form == "csv": rows.to_csv(source := tmp_path / "bad.csv", index=False)
    if form == "parquet": rows.astype({"wind": float}).to_parquet(source := tmp_path / "bad.parquet")
    (tmp_path / "out.parquet").write_text("the old one")
    with pytest.raises(SchemaError) as e: batch.score(dep, source, tmp_path / "out.parquet", id="flight", at="at", batch_rows=256, progress=False)
    if form == "frame":
        assert [(p.column, p.code) for p in e.value.problems] == [("wind", "type"), ("wind", "null")]
    else:
        text = str(e.value)
        assert "rows 1 to 256: column 'wind' is null in 2 of 256 rows" in text and "rows 769 to 1,000: column 'wind'" in text
        assert "rows 513 to 768: column 'flight' repeats 1 values, for example 'UA0-3'" in text and "rows 257 to 512: 'at' lacks a time in 1" in text
        assert ("'calm'" in text) == (form == "csv")
    assert (tmp_path / "out.parquet").read_text() == "the old one" and not list(tmp_path.glob(".*")) and len(events.predictions(dep)) == 0


def test_a_long_list_of_problems_is_cut(dep: Deployment, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="and 80 more") as e:
        batch.score(dep, frame(1000).assign(wind=np.nan), tmp_path / "a.csv", batch_rows=10, progress=False)
    assert len(e.value.problems) == 21


@pytest.mark.parametrize(("source", "sink", "options", "says"), [
    ("nowhere.parquet", "o.csv", {}, "no such file or folder"), ("work", "o.csv", {}, "give a .parquet or .csv file"), ("torn.parquet", "o.csv", {}, "cannot be read"),
    ("ragged.csv", "o.csv", {}, "cannot be read"), ("empty.csv", "o.csv", {}, "cannot be read"), ("a.parquet", "o.xlsx", {}, "ends in .parquet or .csv"), ("a.parquet", "a.parquet", {}, "the source itself"),
    ("a.parquet", "o.csv", {"id": "nobody"}, "id='nobody': the source"), ("a.parquet", "o.csv", {"batch_rows": 0}, "batch_rows=0"), ("score.csv", "o.csv", {"id": "score"}, "name of an output")])
def test_what_cannot_be_done_is_refused(dep: Deployment, tmp_path: Path, source: str, sink: str, options: dict[str, Any], says: str) -> None:
    rows = frame(50)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.assign(score=range(50)).to_csv(tmp_path / "score.csv", index=False)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:900])
    (tmp_path / "ragged.csv").write_text("wind,seats\n1,2\n3\n")
    (tmp_path / "empty.csv").write_text("")
    before = files(tmp_path)
    with pytest.raises(ParameterError) as e: batch.score(dep, tmp_path / source, tmp_path / sink, progress=False, **options)
    assert says in str(e.value)
    assert len(events.predictions(dep)) == 0 and files(tmp_path) == before


def test_missing_columns_and_no_rows(dep: Deployment, tmp_path: Path) -> None:
    for source, says in ((frame(10).drop(columns=["wind", "gate"]), "'gate' (categorical) is missing"), (frame(0), "no rows"), (frame(5).set_axis(["x"] * 10, axis=1), "'x' appears 10 times")):
        with pytest.raises(SchemaError) as e: batch.score(dep, source, tmp_path / "o.parquet", progress=False)
        assert says in str(e.value)
    frame(0).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(MlnbError, match="no rows"): batch.score(dep, tmp_path / "none.parquet", tmp_path / "o.parquet", progress=False)
    assert not (tmp_path / "o.parquet").exists()


def test_a_strict_deployment_refuses_what_it_does_not_know(dep: Deployment, tmp_path: Path) -> None:
    strict = registry.deploy(dep.ws, "strict", dep.champion, strict=True)
    rows = frame(400).head(50)
    assert batch.score(strict, rows.drop(columns="tail"), tmp_path / "o.csv", id="flight", at="at", progress=False).rows == 50
    with pytest.raises(SchemaError, match="column 'tail' is not one of the 7"): batch.score(strict, rows, tmp_path / "p.csv", at="at", unit="flight", progress=False)


def test_ids_in_the_log_are_refused_before_anything_is_logged(dep: Deployment, tmp_path: Path) -> None:
    rows = frame(2000)
    batch.score(dep, rows.tail(10), tmp_path / "a.parquet", id="flight", progress=False)
    with pytest.raises(ParameterError, match="10 of the ids in column 'flight' are in the log"): batch.score(dep, rows, tmp_path / "b.parquet", id="flight", batch_rows=100, progress=False)
    assert len(events.predictions(dep)) == 10 and not (tmp_path / "b.parquet").exists()


@pytest.mark.parametrize("when", ["answering", "logging"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, error: type[BaseException]) -> None:
    batch.score(dep, frame(50, seed=1), tmp_path / "before.parquet", id="flight", progress=False)
    name, calls = ("answer" if when == "answering" else "log_predictions"), []
    real = getattr(batch, name)
    def third_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3: raise error("now")
        return real(*args, **kwargs)
    monkeypatch.setattr(batch, name, third_fails)
    with pytest.raises(error): batch.score(dep, frame(1000), tmp_path / "out.parquet", id="flight", batch_rows=100, progress=False)
    monkeypatch.undo()
    assert len(events.predictions(dep)) == 50 and files(tmp_path) == ["before.parquet", *files(tmp_path)[1:]] and not list(tmp_path.glob("*out*"))
    assert batch.score(dep, frame(1000), tmp_path / "out.parquet", id="flight", batch_rows=100, progress=False).logged == 1000


def test_the_progress_goes_to_stderr(dep: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batch.score(dep, frame(300), tmp_path / "a.csv")
    out, err = capfd.readouterr()
    assert out == "" and "scoring" in err and "logging" in err and "300/300" in err.replace(".", "")


def test_precomputed_answers_are_replaced_key_by_key(dep: Deployment) -> None:
    with pytest.raises(NotFound, match="compute it with dep.precompute"): batch.lookup(dep, "N1")
    rows = frame(100).assign(number=range(100))
    assert batch.precompute(dep, rows, key="number", at="at", progress=False) == 100
    first = batch.lookup(dep, 7)
    assert first["score"] == direct(dep, rows)[7] and first["key"] == "7" and first["version"] == 1
    log = events.predictions(dep).set_index("id")
    assert log.loc[first["id"], "unit"] == "7" and log.loc[first["id"], "at"] == rows["at"][7]
    other = rows.assign(wind=rows["wind"] + 10).head(50)
    assert batch.precompute(dep, other, key="number", batch_rows=7, log=False, progress=False) == 50
    second, kept = batch.lookup(dep, "7"), batch.lookup(dep, 70)
    assert second["score"] == direct(dep, other)[7] and second["id"] != first["id"] and second["computed_at"] > kept["computed_at"]
    assert len(events.predictions(dep)) == 100
    with pytest.raises(SchemaError, match="repeats 99 values"): batch.precompute(dep, rows.assign(number=1), key="number", progress=False)
    with pytest.raises(SchemaError, match="is null in 1"): batch.precompute(dep, rows.assign(number=[None, *range(99)]), key="number", progress=False)
    assert batch.lookup(dep, 1)["id"] != first["id"] and len(events.predictions(dep)) == 100


MEMORY = """
import json, resource, sys, threading, time
import psutil
from mlnb.core import registry
from mlnb.deploy import batch
ws = registry.open(sys.argv[1])
dep = registry.deployment(ws, "twice")
batch.score(dep, sys.argv[2], sys.argv[4] + ".warm.parquet", id="id", batch_rows=16_384, progress=False, log=False)
peak, me, done = [0], psutil.Process(), threading.Event()
def watch():
    while not done.wait(.01): peak[0] = max(peak[0], me.memory_info().rss)
start = me.memory_info().rss
t = threading.Thread(target=watch, daemon=True); t.start()
result = batch.score(dep, sys.argv[3], sys.argv[4], id="id", batch_rows=16_384, progress=False, log=sys.argv[5] == "log")
done.set(); t.join()
print(json.dumps({"rows": result.rows, "growth": (peak[0] - start) / 2**20}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str) -> None:
    rng, names = np.random.default_rng(0), [f"x{i}" for i in range(8)]
    with registry.open(tmp_path / "work") as ws:
        X = pd.DataFrame(rng.normal(size=(200, 8)), columns=names)
        registry.deploy(ws, "twice", registry.register(ws, "twice", LinearRegression().fit(X, X["x0"] * 2), X))
    growth = {}
    for rows in (20_000, 200_000, 1_600_000):
        path = tmp_path / f"{rows}.parquet"
        schema = pa.schema([("id", pa.int64()), *((n, pa.float64()) for n in names)])
        with pq.ParquetWriter(path, schema) as parquet:
            for start in range(0, rows, 100_000):
                n = min(100_000, rows - start)
                parquet.write_table(pa.table([pa.array(range(rows * 10 + start, rows * 10 + start + n)), *(pa.array(rng.normal(size=n).round(3)) for _ in names)], schema=schema))
        if form == "csv":
            import pyarrow.csv
            with pyarrow.csv.CSVWriter(path.with_suffix(".csv"), schema) as out:
                for part in ds.dataset(path).to_batches(): out.write_batch(part)
            path = path.with_suffix(".csv")
        if rows == 20_000: continue
        p = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "work"), str(tmp_path / f"20000.{form}"), str(path), str(tmp_path / "out.parquet"), "log" if form == "parquet" else "quiet"],
                           capture_output=True, text=True, timeout=200)
        assert p.returncode == 0, p.stderr
        found = json.loads(p.stdout)
        assert found["rows"] == rows
        growth[rows] = found["growth"]
        print(form, rows, f"{found['growth']:.0f} MB")
    # the table alone has 110 MB, as text 200; ids are watched in 8 bytes each, which makes 11 MB, twice while they are merged; of a long CSV file, Arrow reads 30 MB ahead
    assert growth[1_600_000] < growth[200_000] + (50 if form == "parquet" else 90), growth
