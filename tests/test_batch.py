"""Scoring: formats, keys, bad rows, faults, kills, clusters, and memory that does not grow with the source."""
import json
import os
import signal
import sqlite3
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
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlnb.core import events, registry
from mlnb.core.errors import MlnbError, NotFound, ParameterError, SchemaError
from mlnb.core.registry import Deployment
from mlnb.deploy import batch, lookup as looked, task as tasks
from mlnb.deploy.sql import Sql, write_table


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


@pytest.mark.parametrize("kind", ["parquet", "csv", "folder", "partitions", "csv folder", "frame", "arrow", "arrow file", "dataset", "filtered", "sql", "query"])
@pytest.mark.parametrize("sink", ["out.parquet", "out.csv", "out.arrow", "out", "sqlite"])
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
    elif kind == "arrow file":
        with pa.ipc.new_file(source := given / "a.arrow", (table := pa.Table.from_pandas(rows, preserve_index=False)).schema) as file: file.write_table(table, 300)
    elif kind in ("sql", "query"):
        rows = rows.sort_values("flight", ignore_index=True)
        write_table(Sql(url := f"sqlite:///{given}/air.db", "flights"), "test", {"flights": [pa.Table.from_pandas(rows.assign(gate=rows["gate"].astype(int)).sample(frac=1, random_state=0), preserve_index=False)]})
        source = Sql(url, "flights" if kind == "sql" else "SELECT * FROM flights WHERE wind > -1;", order="flight")
    elif kind == "filtered": source = ds.dataset(pa.Table.from_pandas(pd.concat([rows, frame(10, 1)]))).filter(ds.field("flight") < "UA1")
    else: source = pa.Table.from_pandas(rows) if kind == "arrow" else ds.dataset(pa.Table.from_pandas(rows))
    there: Any = f"sqlite:///{tmp_path}/out.db#scores" if sink == "sqlite" else tmp_path / sink
    done = batch.score(dep, source, there, id="flight", at="at", unit="tail", batch_rows=100, progress=False)
    assert (done.rows, done.rejected, done.logged, done.version, done.sink, done.side) == (1000, 0, 1000, 1, there, None)
    out = done.read()
    assert list(out.columns) == ["flight", "at", "tail", "prediction", "score"] and done.parts >= 2
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
    assert out.sink == tmp_path / "new" / "scores" and files(out.sink) == ["_manifest.json", "part-00000.parquet"]
    assert json.loads((out.sink / "_manifest.json").read_text())["parts"][0]["rows"] == 300
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


FORMS = ["csv", "parquet", "frame", "sql"]


def spoiled(form: str, folder: Path) -> Any:
    "A thousand rows of which seven are bad, five of them in two ways"
    rows = frame(1000).astype({"wind": object, "flight": object})
    rows.loc[[5, 6, 900], "wind"] = None
    rows.loc[700, "flight"] = rows.loc[3, "flight"]
    rows.loc[300, "at"] = pd.NaT
    if form != "parquet": rows.loc[999, "wind"] = "calm"
    if form == "csv": rows.to_csv(path := folder / "bad.csv", index=False)
    elif form == "parquet": rows.astype({"wind": float}).to_parquet(path := folder / "bad.parquet")
    elif form == "sql":
        write_table(Sql(url := f"sqlite:///{folder}/bad.db", "flights"), "test", {"flights": [pa.Table.from_pandas(rows.assign(gate=rows["gate"].astype(int), n=range(1000), wind=[None if w is None else str(w) for w in rows["wind"]]))]})
        return Sql(url, "flights", order="n")
    return path if form != "frame" else rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_set_aside(dep: Deployment, tmp_path: Path, form: str, workers: int) -> None:
    if workers == 2 and form not in ("csv", "sql"): return
    done = batch.score(dep, spoiled(form, tmp_path), tmp_path / "out.parquet", id="flight", at="at", batch_rows=50, workers=workers, progress=False)
    bad = [5, 6, 300, 700, 900, *([999] if form != "parquet" else [])]
    assert (done.rows, done.rejected, done.logged, done.side) == (1000 - len(bad), len(bad), 1000 - len(bad), tmp_path / "out.rejected.parquet")
    rows, good = frame(1000), [i for i in range(1000) if i not in bad]
    assert done.read()["flight"].tolist() == rows["flight"].iloc[good].tolist() and done.read()["score"].tolist() == direct(dep, rows.iloc[good])
    side = pd.read_parquet(done.side).set_index("row")
    assert side.index.tolist() == [i + 1 for i in bad]
    why = side["reason"].to_dict()
    assert why[6] == "column 'wind' is null" and why[301] == "column 'at' lacks a time" and why[701] == "column 'flight' repeats a value of an earlier row"
    assert side.loc[701, "flight"] == "UA0-3" and side["carrier"].tolist() == rows["carrier"].iloc[bad].tolist()
    if form != "parquet": assert why[1000] == "column 'wind' should hold a number" and side.loc[1000, "wind"] == "calm"
    assert done.reasons["column 'wind' is null"] == 3 and done.table()["rows"].sum() == 2 * done.rows + done.rejected
    assert sorted(events.predictions(dep)["id"]) == sorted(done.read()["flight"])


@pytest.mark.parametrize("form", FORMS)
def test_bad_rows_are_named_and_nothing_is_written(dep: Deployment, tmp_path: Path, form: str) -> None:
    source = spoiled(form, tmp_path)
    (tmp_path / "out.parquet").write_text("the old one")
    with pytest.raises(SchemaError) as e: batch.score(dep, source, tmp_path / "out.parquet", id="flight", at="at", batch_rows=256, strict=True, progress=False)
    text = str(e.value)
    assert "rows 1 to 256: column 'wind' is null in 2 of 256 rows" in text and "rows 769 to 1,000: column 'wind'" in text
    assert "rows 513 to 768: column 'flight' repeats 1 values, for example 'UA0-3'" in text and "rows 257 to 512: 'at' lacks a time in 1" in text
    assert ("'calm'" in text) == (form != "parquet")
    assert (tmp_path / "out.parquet").read_text() == "the old one" and not list(tmp_path.glob(".*")) and len(events.predictions(dep)) == 0


def test_bad_rows_go_to_a_table_beside_a_table(dep: Deployment, tmp_path: Path) -> None:
    rows = frame(50)
    rows.loc[[3, 4], "wind"] = np.nan
    done = batch.score(dep, rows, f"sqlite:///{tmp_path}/out.db#scores", id="flight", batch_rows=5, progress=False)
    assert (done.rows, done.rejected, len(done.read())) == (48, 2, 48)
    with sqlite3.connect(tmp_path / "out.db") as c: assert c.execute("SELECT row, reason FROM scores_rejected ORDER BY row").fetchall() == [(4, "column 'wind' is null"), (5, "column 'wind' is null")]
    with pytest.raises(ParameterError, match="there is a table 'scores' already, and it is kept"): batch.score(dep, frame(5, 1), f"sqlite:///{tmp_path}/out.db#scores", id="flight", progress=False)
    assert len(events.predictions(dep)) == 48


def test_ragged_rows_keep_the_numbers_of_the_others(dep: Deployment, tmp_path: Path) -> None:
    rows = frame(300).astype({"gate": int}).assign(carrier=["A\n,A" if i == 7 else "UA" for i in range(300)])
    lines = rows.to_csv(index=False).splitlines(keepends=True)
    lines[20] = lines[20].rpartition(",")[0] + "\n"  # the text of row 8 takes two lines, so this is row 19
    lines[201] = lines[201].replace("UA0-199,", "UA0-199,,")
    lines[211] = lines[211].replace(rows["due"].dt.strftime("%Y")[209], "soon", 2)
    (tmp_path / "a.csv").write_text("".join(lines))
    done = batch.score(dep, tmp_path / "a.csv", tmp_path / "o.csv", id="flight", batch_rows=16, progress=False)
    assert (done.rows, done.rejected) == (297, 3) and done.parts == 5
    side = pd.read_csv(done.side).set_index("row")
    assert "has 9 cells instead of 10: UA0-18," in side["reason"][19] and "has 11 cells instead of 10" in side["reason"][200] and side["reason"][210] == "column 'due' should hold a time"
    assert done.read()["flight"].tolist() == [f for i, f in enumerate(rows["flight"]) if i not in (18, 199, 209)]
    with pytest.raises(ParameterError, match="cannot be read"): batch.score(dep, tmp_path / "a.csv", tmp_path / "p.csv", id="flight", strict=True, log=False, progress=False)


def test_rows_that_a_model_cannot_answer_are_set_aside(dep: Deployment, tmp_path: Path) -> None:
    X = pd.DataFrame({"carrier": ["AA", "UA", "DL", "AA"] * 5})
    fussy = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(X, X["carrier"] == "AA")
    other = registry.deploy(dep.ws, "fussy", registry.register(dep.ws, "fussy", fussy, X, X["carrier"] == "AA"))
    rows = pd.DataFrame({"n": range(1000), "carrier": "UA"})
    rows.loc[[77, 500], "carrier"] = "ZZ"
    done = batch.score(other, rows, tmp_path / "o.csv", id="n", batch_rows=64, progress=False)
    assert (done.rows, done.rejected, done.logged) == (998, 2, 998) and pd.read_csv(done.side)["n"].tolist() == [77, 500] and "unknown categories" in pd.read_csv(done.side)["reason"][0]
    with pytest.raises(MlnbError, match="fussy v1 failed to answer 64 rows"): batch.score(other, rows.assign(n=rows["n"] + 5000), tmp_path / "p.csv", id="n", batch_rows=64, strict=True, progress=False)
    with pytest.raises(MlnbError, match="fussy v1 failed"): batch.score(other, rows.assign(carrier="ZZ", n=rows["n"] + 5000), tmp_path / "p.csv", id="n", batch_rows=500, progress=False)
    assert len(events.predictions(other)) == 998 and not (tmp_path / "p.csv").exists()


def test_a_source_without_a_good_row_is_refused(dep: Deployment, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="every row is bad; 100 rows: column 'wind' is null"): batch.score(dep, frame(100).assign(wind=np.nan), tmp_path / "o.csv", batch_rows=10, progress=False)
    rows = frame(100)
    rows.loc[40:79, "wind"] = np.nan  # all of the second part
    done = batch.score(dep, rows, tmp_path / "o.csv", id="flight", batch_rows=10, progress=False)
    assert (done.rows, done.rejected, done.parts) == (60, 40, 3) and len(done.read()) == 60
    batch.score(dep, rows.head(40), tmp_path / "o.csv", id="flight", log=False, progress=False)
    assert files(tmp_path) == ["o.csv", *files(tmp_path)[1:]] and not (tmp_path / "o.rejected.csv").exists()


def test_a_long_list_of_problems_is_cut(dep: Deployment, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="and 80 more") as e:
        batch.score(dep, frame(1000).assign(wind=np.nan), tmp_path / "a.csv", batch_rows=10, strict=True, progress=False)
    assert len(e.value.problems) == 21


@pytest.mark.parametrize(("source", "sink", "options", "says"), [
    ("nowhere.parquet", "o.csv", {}, "no such file or folder"), ("work", "o.csv", {}, "give a .parquet, .csv or .arrow file"), ("torn.parquet", "o.csv", {}, "cannot be read"),
    ("empty.csv", "o.csv", {}, "cannot be read"), ("a.parquet", "o.xlsx", {}, "ends in .parquet, .csv or .arrow"), ("a.parquet", "a.parquet", {}, "the source itself"),
    ("a.parquet", "o.csv", {"id": "nobody"}, "id='nobody': the source"), ("a.parquet", "o.csv", {"batch_rows": 0}, "batch_rows=0"), ("score.csv", "o.csv", {"id": "score"}, "name of an output")])
def test_what_cannot_be_done_is_refused(dep: Deployment, tmp_path: Path, source: str, sink: str, options: dict[str, Any], says: str) -> None:
    rows = frame(50)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.assign(score=range(50)).to_csv(tmp_path / "score.csv", index=False)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:900])
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
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_interruption_is_gone_on_from(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, error: type[BaseException]) -> None:
    batch.score(dep, frame(50, seed=1), tmp_path / "before.parquet", id="flight", progress=False)
    where, name, calls = (tasks, "answer", []) if when == "answering" else (batch, "log_part", [])
    real = getattr(where, name)
    def third_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3: raise error("now")
        return real(*args, **kwargs)
    monkeypatch.setattr(where, name, third_fails)
    def run(**options: Any) -> batch.BatchResult: return batch.score(dep, frame(1000), tmp_path / "out.parquet", id="flight", strict=True, **{"batch_rows": 50, "progress": False} | options)
    with pytest.raises(error) as e: run(batch_rows=12 if when == "answering" else 50)
    kept = 0 if when == "answering" else 5
    assert len(events.predictions(dep)) == 50 + 400 * (kept > 0) and not (tmp_path / "out.parquet").exists()
    assert (tmp_path / ".out.parquet.mlnb").exists() == bool(kept) and (not kept or "5 of 5 parts are finished" in e.value.__notes__[0])
    before = len(calls)
    if when == "logging":
        with pytest.raises(ParameterError, match="batch_rows was 50, and is 100"): run(batch_rows=100)
        assert len(events.predictions(dep)) == 450
    assert run().logged == 1000 and sorted(events.predictions(dep)["id"]) == sorted([*frame(50, 1)["flight"], *frame(1000)["flight"]])
    assert pd.read_parquet(tmp_path / "out.parquet")["score"].tolist() == direct(dep, frame(1000)) and not list(tmp_path.glob(".*"))
    assert len(calls) - before == (20 if when == "answering" else 5)


def test_what_an_abandoned_run_logged_is_taken_back(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = batch.log_part
    def third_fails(*args: Any) -> int:
        calls.append(1)
        if len(calls) == 3: raise OSError("the disk is full")
        return real(*args)
    monkeypatch.setattr(batch, "log_part", third_fails)
    with pytest.raises(OSError): batch.score(dep, frame(1000), tmp_path / "out.csv", batch_rows=50, progress=False)
    assert len(events.predictions(dep)) == 400
    done = batch.score(dep, frame(700), tmp_path / "out.csv", batch_rows=50, resume=False, progress=False)
    assert done.logged == 700 and set(events.predictions(dep)["id"]) == set(done.read()["id"]) and not dep.ws.rows(batch.marks.__globals__["MARKS"].select())


def test_a_changed_source_or_version_is_not_gone_on_with(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame(1000).to_parquet(tmp_path / "a.parquet", row_group_size=100)
    calls: list[int] = []
    real = tasks.answer
    def breaks(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 7: raise MemoryError
        return real(*args)
    def run() -> batch.BatchResult: return batch.score(dep, tmp_path / "a.parquet", tmp_path / "out.csv", id="flight", batch_rows=50, strict=True, progress=False)
    monkeypatch.setattr(tasks, "answer", breaks)
    with pytest.raises(MemoryError): run()
    frame(1000).assign(wind=1.).to_parquet(tmp_path / "a.parquet", row_group_size=100)
    with pytest.raises(ParameterError, match=r"was interrupted after 1 of 5 parts, and it was another one: file .*a\.parquet was changed"): run()
    frame(1000).to_parquet(tmp_path / "a.parquet", row_group_size=100)
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    registry.promote(dep, registry.register(dep.ws, "late", dep.champion.load(), frame(400)[FEATURES], np.where(frame(400)["wind"] > 12, "late", "on time")), "same again")
    with pytest.raises(ParameterError, match='version was "late v1", and is "late v2"'): run()
    assert len(events.predictions(dep)) == 0


def test_one_output_has_one_owner(dep: Deployment, tmp_path: Path) -> None:
    ledger = batch.Ledger(tmp_path / ".out.csv.mlnb")
    with pytest.raises(ParameterError, match="another process is at work on this output"): batch.score(dep, frame(10), tmp_path / "out.csv", log=False, progress=False)
    ledger.close()
    assert batch.score(dep, frame(10), tmp_path / "out.csv", log=False, progress=False).rows == 10


def test_a_folder_is_replaced_only_if_it_is_ours(dep: Deployment, tmp_path: Path) -> None:
    for n in (1000, 300): assert batch.score(dep, frame(n), tmp_path / "out", id="flight", batch_rows=50, log=False, progress=False).rows == n
    assert files(tmp_path / "out") == ["_manifest.json", "part-00000.parquet", "part-00001.parquet"] and len(pd.read_parquet(tmp_path / "out")) == 300
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ParameterError, match="holds other files \\(thesis.txt\\)"): batch.score(dep, frame(10), tmp_path / "out", log=False, progress=False)
    assert len(batch.read_answers(batch.target_of(tmp_path / "out", tmp_path))) == 300 and not list(tmp_path.glob(".*"))


KINDS = ["here", "processes", "dask"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_engines_give_the_same_bytes(dep: Deployment, tmp_path: Path) -> None:
    rows = frame(2000).astype({"gate": int})
    rows.loc[[70, 1400], "wind"] = np.nan
    rows.to_csv(tmp_path / "a.csv", index=False)
    options: dict[str, dict[str, Any]] = {"here": {"workers": 1}, "processes": {"workers": 2}, "dask": {"workers": 2, "engine": "dask"}}
    for kind in KINDS:
        for sink in ("csv", "parquet"):
            done = batch.score(dep, tmp_path / "a.csv", tmp_path / f"{kind}.{sink}", id="flight", at="at", batch_rows=50, log=kind == "dask" and sink == "csv", progress=False, **options[kind])
            assert (done.rows, done.rejected, done.parts) == (1998, 2, 10)
    for sink in ("csv", "parquet", "rejected.csv", "rejected.parquet"):
        assert len({(tmp_path / f"{kind}.{sink}").read_bytes() for kind in KINDS}) == 1, sink
    assert sorted(events.predictions(dep)["id"]) == sorted(pd.read_csv(tmp_path / "dask.csv")["flight"])


def children(name: str) -> list[int]:
    "The processes below this one whose command line has a text"
    import psutil
    return [p.pid for p in psutil.Process().children(recursive=True) if p.is_running() and name in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_the_death_of_a_worker_is_survived(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rows = frame(3000)
    batch.score(dep, rows, tmp_path / "calm.csv", id="flight", batch_rows=50, log=False, progress=False)
    killed: list[int] = []
    real = batch.accept
    def accept(ledger: Any, report: Any) -> Any:
        if len(killed) < 2 and report.number >= 1 + 4 * len(killed) and (found := [p for p in workers() if p not in killed]):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)
        return real(ledger, report)
    monkeypatch.setattr(batch, "accept", accept)
    if kind == "processes":
        def workers() -> list[int]: return children("mlnb.deploy.workers")
        done = batch.score(dep, rows, tmp_path / "out.csv", id="flight", batch_rows=50, workers=2, progress=False)
    else:
        import distributed
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
            def workers() -> list[int]: return [int(w["pid"]) for w in client.run(lambda: {"pid": os.getpid()}).values()]
            done = batch.score(dep, rows, tmp_path / "out.csv", id="flight", batch_rows=50, engine="dask", client=client, progress=False)
    assert len(killed) == 2 and done.logged == 3000 and not children("mlnb.deploy.workers")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "calm.csv").read_bytes() and sorted(events.predictions(dep)["id"]) == sorted(rows["flight"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_that_die_again_and_again_end_the_job(dep: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import mlnb.deploy.runtime as r, os\nreal = r.answer\ndef answer(v, fit):\n    if len(fit) < 50: os.kill(os.getpid(), 9)\n    return real(v, fit)\nr.answer = answer\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(MlnbError, match="3 workers died while they answered part 4; the last one was killed by signal 9") as e: batch.score(dep, frame(990), tmp_path / "out.csv", id="flight", batch_rows=50, workers=2, progress=False)
    assert "parts are finished and kept" in e.value.__notes__[0] and len(events.predictions(dep)) == 0
    monkeypatch.undo()
    assert batch.score(dep, frame(990), tmp_path / "out.csv", id="flight", batch_rows=50, progress=False).logged == 990


RUN = """
import os, signal, sys
from mlnb.core import events, registry
from mlnb.deploy import batch, ledger, lookup, sinks
point, seen = int(sys.argv[4]), [0]
def here():
    seen[0] += 1
    if seen[0] == point: os.kill(os.getpid(), signal.SIGKILL)
def around(owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        ends = name == "discard" or str(args[-1]).endswith(".gone")  # then all is done, and a kill cannot be told from the end
        here()
        out = real(*args, **kwargs)
        if not ends: here()
        return out
    setattr(owner, name, wrapped)
for owner, name in ((ledger.os, "replace"), (ledger.Ledger, "record"), (ledger.Ledger, "set"), (batch, "log_part"), (batch, "drop_marks"), (batch, "discard"), (sinks, "publish_side"), (sinks.db, "write_table"), (ledger, "keep")): around(owner, name)
dep = registry.deployment(registry.open(sys.argv[1]), "late")
if sys.argv[3] == "lookup": print(lookup.precompute(dep, sys.argv[2], key="flight", at="at", batch_rows=25, progress=False, log=True))
else: print(batch.score(dep, sys.argv[2], sys.argv[3], at="at", unit="flight", batch_rows=25, progress=False, workers=int(sys.argv[5])).rows)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sink", "first", "workers"), [("out.parquet", 1, 1), ("out", 2, 1), ("sqlite", 3, 2), ("lookup", 2, 1)])
def test_killed_at_many_points_each_row_is_there_once(dep: Deployment, tmp_path: Path, sink: str, first: int, workers: int) -> None:
    rows = frame(300)
    rows.to_csv(tmp_path / "a.csv", index=False)
    where = f"sqlite:///{tmp_path}/out.db#scores" if sink == "sqlite" else sink if sink == "lookup" else str(tmp_path / sink)
    good, kills, p = direct(dep, rows), 0, None
    while p is None or p.returncode:  # each call goes on from what the one before left, and is killed a little later
        p = subprocess.run([sys.executable, "-c", RUN, str(dep.ws.path), str(tmp_path / "a.csv"), where, str(first + 2 * kills), str(workers)], capture_output=True, text=True, timeout=120)
        assert p.returncode in (0, -signal.SIGKILL), p.stderr
        kills += p.returncode != 0
        log = events.predictions(dep)["id"]
        assert log.is_unique and len(log) % 25 == 0
        if sink == "out.parquet" and (tmp_path / sink).exists(): assert len(pd.read_parquet(tmp_path / sink)) == 300
    assert p.stdout.strip() == "300" and kills >= 6
    log = events.predictions(dep).sort_values("unit", key=lambda u: u.str[4:].astype(int))
    assert log["unit"].tolist() == rows["flight"].tolist() and log["score"].tolist() == good
    if sink == "lookup": assert [looked.lookup(dep, f)["score"] for f in rows["flight"]] == good
    else:
        out = batch.read_answers(batch.target_of(where, tmp_path))
        assert out["flight"].tolist() == rows["flight"].tolist() and out["score"].tolist() == good and out["id"].tolist() == log["id"].tolist()
    assert not [p for p in (*tmp_path.iterdir(), *(dep.ws.path / "scoring").glob("*")) if p.name.startswith(".") or p.is_dir() and p.parent.name == "scoring"]


def test_the_progress_goes_to_stderr(dep: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batch.score(dep, frame(300), tmp_path / "a.csv")
    out, err = capfd.readouterr()
    assert out == "" and "scoring" in err and "logging" in err and "300/300" in err.replace(".", "")


def test_precomputed_answers_are_replaced_key_by_key(dep: Deployment) -> None:
    with pytest.raises(NotFound, match="compute it with dep.precompute"): looked.lookup(dep, "N1")
    rows = frame(100).assign(number=range(100))
    assert looked.precompute(dep, rows, key="number", at="at", progress=False) == 100
    first = looked.lookup(dep, 7)
    assert first["score"] == direct(dep, rows)[7] and first["key"] == "7" and first["version"] == 1
    log = events.predictions(dep).set_index("id")
    assert log.loc[first["id"], "unit"] == "7" and log.loc[first["id"], "at"] == rows["at"][7]
    other = rows.assign(wind=rows["wind"] + 10).head(50)
    assert looked.precompute(dep, other, key="number", batch_rows=7, log=False, progress=False) == 50
    second, kept = looked.lookup(dep, "7"), looked.lookup(dep, 70)
    assert second["score"] == direct(dep, other)[7] and second["id"] != first["id"] and second["computed_at"] > kept["computed_at"]
    assert len(events.predictions(dep)) == 100
    with pytest.raises(SchemaError, match="repeats 99 values"): looked.precompute(dep, rows.assign(number=1), key="number", progress=False)
    with pytest.raises(SchemaError, match="is null in 1"): looked.precompute(dep, rows.assign(number=[None, *range(99)]), key="number", progress=False)
    assert looked.lookup(dep, 1)["id"] != first["id"] and len(events.predictions(dep)) == 100
    assert looked.precompute(dep, rows.assign(number=[None, *range(99)]), key="number", strict=False, log=False, progress=False) == 99


def test_a_lookup_says_how_fresh_it_is_and_falls_back(dep: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = frame(10)
    row = rows[FEATURES].assign(due=rows["due"].astype(str)).iloc[3].to_dict() | {"gate": 2}
    looked.precompute(dep, rows, key="flight", fresh="1h", log=False, progress=False)
    young = looked.lookup(dep, "UA0-3", row)
    assert young["source"] == "precomputed" and young["fresh"] and 0 <= young["age_seconds"] < 3000 and "why" not in young
    start = looked.clock.now()
    monkeypatch.setattr(looked.clock, "now", lambda: start + 2 * 3_600_000_000)
    old, new = looked.lookup(dep, "UA0-3"), looked.lookup(dep, "UA0-3", row)
    assert (old["source"], old["fresh"], old["score"]) == ("precomputed", False, young["score"]) and "counts for 3,600" in old["why"] and old["age_seconds"] >= 7200
    assert (new["source"], new["fresh"], new["age_seconds"]) == ("real time", True, 0) and new["why"] == old["why"] and new["id"] in set(events.predictions(dep)["id"])
    assert looked.lookup(dep, "nobody", row)["why"] == "there is no precomputed answer for it" and events.predictions(dep)["unit"].tolist()[-1] == "nobody"
    monkeypatch.undo()
    registry.promote(dep, registry.register(dep.ws, "late", dep.champion.load(), frame(400)[FEATURES], np.where(frame(400)["wind"] > 12, "late", "on time")), "same again")
    gone = looked.lookup(dep, "UA0-3")
    assert not gone["fresh"] and gone["why"] == "it was given by version 1, and version 2 is champion now" and looked.lookup(dep, "UA0-3", row)["version"] == 2
    with pytest.raises(SchemaError): looked.lookup(dep, "UA0-3", {"wind": 1})


def test_a_table_of_an_older_version_is_carried_on(dep: Deployment) -> None:
    looked.precompute(dep, frame(10), key="flight", log=False, progress=False)
    with dep.ws.store.write() as c: c.exec_driver_sql(f"ALTER TABLE lookup_{dep.id} DROP COLUMN fresh")
    looked._places.cache_clear()
    looked.precompute(dep, frame(5), key="flight", fresh="1D", log=False, progress=False)
    assert [looked.lookup(dep, f"UA0-{i}")["fresh"] for i in (2, 7)] == [True, True]


MEMORY = """
import json, resource, sys, threading, time
import psutil
from mlnb.core import registry
from mlnb.deploy import batch, lookup as looked, task as tasks
from mlnb.deploy.sql import Sql, write_table
ws = registry.open(sys.argv[1])
dep = registry.deployment(ws, "twice")
batch.score(dep, sys.argv[2], sys.argv[4] + ".warm.parquet", id="id", batch_rows=16_384, workers=1, progress=False, log=False)
peak, me, done = [0], psutil.Process(), threading.Event()
def watch():
    while not done.wait(.01): peak[0] = max(peak[0], me.memory_info().rss)
start = me.memory_info().rss
t = threading.Thread(target=watch, daemon=True); t.start()
result = batch.score(dep, sys.argv[3], sys.argv[4], id="id", batch_rows=16_384, workers=1, progress=False, log=sys.argv[5] == "log")
done.set(); t.join()
print(json.dumps({"rows": result.rows, "growth": (peak[0] - start) / 2**20}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("form", "small", "large", "most"), [("parquet", 1_200_000, 3_600_000, 40), ("logged", 200_000, 1_600_000, 90), ("csv", 200_000, 1_600_000, 90)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str, small: int, large: int, most: int) -> None:
    rng, names = np.random.default_rng(0), [f"x{i}" for i in range(8)]
    with registry.open(tmp_path / "work") as ws:
        X = pd.DataFrame(rng.normal(size=(200, 8)), columns=names)
        registry.deploy(ws, "twice", registry.register(ws, "twice", LinearRegression().fit(X, X["x0"] * 2), X))
    growth = {}
    for rows in (20_000, small, large):
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
        p = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "work"), str(tmp_path / f"20000{path.suffix}"), str(path), str(tmp_path / "out.parquet"), "log" if form == "logged" else "quiet"],
                           capture_output=True, text=True, timeout=200)
        assert p.returncode == 0, p.stderr
        found = json.loads(p.stdout)
        assert found["rows"] == rows
        growth[rows] = found["growth"]
        print(form, rows, f"{found['growth']:.0f} MB")
    # 1,600,000 rows are 110 MB as a table, 200 as text. A slice of the ids and a row group of the output are full from about a million rows on; pages of files that are
    # read back count as long as nobody else wants the memory; of a long CSV file, Arrow reads 30 MB ahead
    assert growth[large] < growth[small] + most, growth
