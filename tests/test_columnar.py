"A batch that is answered without a frame says what the frame would have said, and says nothing where the frame would complain."
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

import mlnb
from mlnb.core.errors import SchemaError
from mlnb.core.schema import Column, Schema
from mlnb.deploy import columnar, task
from mlnb.deploy.columnar import arrow_matrix, columnar_answer
from mlnb.deploy.compiled import Encoder
from mlnb.deploy.parts import frame_of

SCHEMA = Schema((
    Column("wind", "numeric", "float64", nullable=True, low=0., high=50.), Column("visib", "numeric", "float64", low=0., high=10.), Column("short", "numeric", "float32", nullable=True, low=-5., high=5.),
    Column("hour", "integer", "int64", low=0, high=23), Column("small", "integer", "int8", low=-3, high=100), Column("late", "boolean", "bool"),
    Column("dest", "categorical", "category", nullable=True, levels=("LAX", "ORD", "SFO")), Column("carrier", "categorical", "category", levels=("AA", "UA")),
    Column("plane", "categorical", "object", nullable=True, levels=("A320", "B737"))))

FLOATS = st.one_of(st.floats(-10, 60), st.sampled_from([0., -0., 1e300, -1e39, 3.4e38, float("inf"), float("-inf"), float("nan")]), st.none())
WHOLE = st.one_of(st.integers(0, 23), st.sampled_from([-129, 127, 128, 2**53 + 1, -2**63, 2**63 - 1]), st.none())
TEXT = st.sampled_from(["LAX", "ORD", "SFO", "AA", "UA", "A320", "B737", "", "JFK", None])
PLAIN = {"wind": st.floats(0, 50), "visib": st.floats(0, 10), "short": st.floats(-5, 5), "hour": st.integers(0, 23), "small": st.integers(-3, 100), "late": st.booleans(),
         "dest": st.sampled_from(["LAX", "ORD", None]), "carrier": st.sampled_from(["AA", "UA"]), "plane": st.sampled_from(["A320", None])}
ODD = {"wind": FLOATS, "visib": FLOATS, "short": FLOATS, "hour": WHOLE, "small": WHOLE, "late": st.sampled_from([True, False, None]), "dest": TEXT, "carrier": TEXT, "plane": TEXT}
TYPES = {"numeric": [pa.float64(), pa.float32(), pa.int64(), pa.int16()], "integer": [pa.int64(), pa.int8(), pa.uint64(), pa.float64()], "boolean": [pa.bool_(), pa.int64()],
         "categorical": [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())]}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    "A table that may be odd in some columns, each in any type that holds its values, in one or two chunks"
    n, odd = draw(st.integers(1, 6)), draw(st.sets(st.sampled_from(SCHEMA.names), max_size=2))
    columns = {}
    for c in SCHEMA.columns:
        values = draw(st.lists((ODD if c.name in odd else PLAIN)[c.name], min_size=n, max_size=n))
        kind = draw(st.sampled_from(TYPES[c.kind])) if c.name in odd else TYPES[c.kind][0]
        try: made = pa.array(values, kind)
        except (pa.ArrowInvalid, OverflowError, pa.ArrowTypeError): made = pa.array(values)
        columns[c.name] = pa.chunked_array([made[:k], made[k:]]) if (k := draw(st.integers(0, n))) else pa.chunked_array([made])
    names = draw(st.permutations(SCHEMA.names)) if draw(st.booleans()) else SCHEMA.names
    return pa.table({k: columns[k] for k in names})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.booleans())
def test_matrix_is_that_of_the_frame(table: pa.Table, strict: bool) -> None:
    encoder = Encoder(SCHEMA)
    mine = arrow_matrix(encoder, table, strict)
    try: theirs = encoder.frame(SCHEMA.conform(frame_of(table, SCHEMA, frozenset()), strict))
    except SchemaError:
        assert mine is None  # the frame says what is wrong
        return
    if mine is not None: np.testing.assert_array_equal(mine, theirs)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ordinary_tables_are_not_left_to_the_frame(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    table = pa.table({c.name: pa.array(data.draw(st.lists(PLAIN[c.name], min_size=n, max_size=n)), TYPES[c.kind][0]) for c in SCHEMA.columns})
    for strict in (False, True): assert arrow_matrix(Encoder(SCHEMA), table, strict) is not None


@pytest.mark.parametrize("values", [pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["LAX", None])), pa.array(["LAX", None]), pa.array([b"LAX", b"ORD"]), pa.array([1, 2])])
def test_levels_that_are_odd(values: pa.Array) -> None:
    schema = Schema((Column("dest", "categorical", "category", levels=("LAX", "ORD")),))
    assert arrow_matrix(Encoder(schema), pa.table({"dest": values})) is None


def test_sliced_dictionaries_keep_their_place() -> None:
    schema = Schema((Column("dest", "categorical", "category", nullable=True, levels=("LAX", "ORD")),))
    table = pa.table({"dest": pa.array(["ORD", "ORD", None, "LAX", "JFK"]).dictionary_encode()}).slice(1)
    assert arrow_matrix(Encoder(schema), table)[:, 0].tolist() == [1., 2., 0., 2.]


def flights(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"wind": np.where(rng.random(n) < .1, np.nan, rng.gamma(4, 3, n)), "hour": rng.integers(0, 24, n), "dest": pd.Categorical(rng.choice(["LAX", "ORD", "SFO"], n))})


def made(folder: Path, kind: str) -> mlnb.Deployment:
    X = flights(800)
    score = X.wind.fillna(30) + X.hour + 5 * (X.dest == "ORD")
    y = {"two": score > 25, "three": np.digitize(score, [15, 30]).astype(str), "number": score}[kind]
    model = (HistGradientBoostingRegressor if kind == "number" else HistGradientBoostingClassifier)(max_iter=10, categorical_features="from_dtype", random_state=0).fit(X, y)
    ws = mlnb.open(folder / "work")
    ws.deploy("delays", ws.register("delays", model, X, pd.Series(y)))
    return ws.deployment("delays")


@pytest.mark.parametrize("kind", ["two", "three", "number"])
def test_a_job_writes_the_same_either_way(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep, rows = made(tmp_path, kind), flights(5_000, 1)
    rows.assign(id=range(len(rows))).to_parquet(source := tmp_path / "rows.parquet", row_group_size=1_200)
    answers, asked = {}, []
    real = columnar_answer
    monkeypatch.setattr(task, "columnar_answer", lambda *a: asked.append(r := real(*a)) or r)
    for way in ("quick", "frame"):
        if way == "frame": monkeypatch.setattr(task, "columnar_answer", lambda *a: None)
        dep.score(source, out := tmp_path / f"{way}.parquet", id="id", log=False, progress=False, batch_rows=1_000)
        answers[way] = pq.read_table(out)
    assert asked and all(r is not None for r in asked)
    assert answers["quick"].equals(answers["frame"])


@pytest.mark.parametrize("strict", [False, True])
def test_bad_rows_are_set_aside_as_ever(strict: bool, tmp_path: Path) -> None:
    dep, rows = made(tmp_path, "two"), flights(3_000, 1).assign(id=range(3_000))
    table = pa.Table.from_pandas(rows, preserve_index=False)
    hours = [None if i == 1_500 else h for i, h in enumerate(rows.hour.tolist())]
    pq.write_table(table.set_column(1, "hour", pa.array(hours, pa.int64())), source := tmp_path / "rows.parquet")
    if strict:
        with pytest.raises(SchemaError, match="column 'hour' is null in 1 of"): dep.score(source, tmp_path / "out.parquet", id="id", log=False, progress=False, batch_rows=1_000, strict=True)
        return
    result = dep.score(source, tmp_path / "out.parquet", id="id", log=False, progress=False, batch_rows=1_000)
    assert (result.rows, result.rejected) == (2_999, 1)
    assert 1_500 not in pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()


def test_a_failing_engine_leaves_the_rows_to_the_ordinary_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    dep, table = made(tmp_path, "two"), pa.Table.from_pandas(flights(50, 2), preserve_index=False)
    monkeypatch.setattr(columnar, "arrow_matrix", lambda *a: 1 / 0)
    assert columnar_answer(dep.champion, table) is None
    assert "the ordinary way answers" in caplog.text


