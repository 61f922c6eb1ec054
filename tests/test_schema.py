"The schema on every dtype that pandas 2.2 to 3.1, Arrow and polars bring"
import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlnb.core.errors import ParameterError, SchemaError
from mlnb.core.columns import as_frame, kind_of
from mlnb.core.schema import Schema

PANDAS3 = int(pd.__version__.split(".")[0]) >= 3
T = ["2013-07-01 05:15:00", "2013-07-02 06:00:00", "2013-07-03 07:00:00"]

# values of training, dtype, kind, values that fit, values that do not
DTYPES = [
    ("float64", [1.5, 2.5, 3.5], "numeric", [1, 2, 3], ["1", "2", "3"]),
    ("float32", [1.5, 2.5, 3.5], "numeric", [1, 2.5, 3], [True, False, True]),
    ("Float64", [1.5, None, 3.5], "numeric", [1, None, 3], ["a", None, "b"]),
    ("int64", [1, 2, 3], "integer", [1.0, 2.0, 3.0], [1.5, 2, 3]),
    ("int8", [1, 2, 3], "integer", [-128, 127, 0], [128, 1, 2]),
    ("uint8", [1, 2, 3], "integer", [255, 0, 1], [-1, 1, 2]),
    ("uint64", [1, 2, 2**63 + 1], "integer", [2**63 + 1, 0, 1], [-1, 1, 2]),
    ("Int64", [1, None, 2**60 + 1], "integer", [2**60 + 1, 0, 1], ["1", "2", None]),
    ("int64[pyarrow]", [1, None, 3], "integer", [1, None, 3], [1.5, None, 3]),
    ("double[pyarrow]", [1.5, None, 3], "numeric", [1, None, 3], ["x", None, "y"]),
    ("bool", [True, False, True], "boolean", [False, False, False], [1, 0, 1]),
    ("boolean", [True, None, False], "boolean", [False, None, True], ["True", None, "False"]),
    ("bool[pyarrow]", [True, None, False], "boolean", [False, None, True], [1.0, None, 0.0]),
    ("object", [True, None, False], "boolean", [False, None, True], [1.0, None, 0.0]),
    ("object", ["a", None, "b"], "categorical", ["b", None, "zz"], [1, None, 2]),
    ("object", [Decimal("1.5"), None, Decimal("2")], "numeric", [1.5, None, Decimal("7")], ["1.5", None, "x"]),
    ("object", [1, 2, 3], "integer", [3, 2, 1], ["a", 1, 2]),
    ("object", [dt.date(2013, 7, 1), None, dt.date(2013, 7, 2)], "datetime", ["2013-07-01", None, "2013-07-03"], [1, None, 2]),
    ("object", [dt.datetime(2013, 7, 1, 5), None, dt.datetime(2013, 7, 2)], "datetime", ["2013-07-01T05:00", None, dt.date(2013, 7, 2)], ["soon", None, "2013"]),
    ("string", ["a", None, "b"], "categorical", ["b", None, "zz"], [1, None, 2]),
    ("string[pyarrow]", ["a", None, "b"], "categorical", ["b", None, "zz"], [1, None, 2]),
    ("category", ["a", None, "b"], "categorical", ["b", None, "zz"], [1, None, 2]),
    ("category", [1, None, 2], "categorical", [2, None, 3], ["1", None, "2"]),
    ("category", [True, None, False], "categorical", [True, None, False], ["1", None, "2"]),
    ("datetime64[ns]", T, "datetime", T, ["soon", "2013-13-01", "x"]),
    ("datetime64[s]", T, "datetime", T, [1, 2, 3]),
    ("datetime64[us, UTC]", T, "datetime", ["2013-07-01T05:15:00-04:00", *T[1:]], [1, 2, 3]),
    ("datetime64[ms, America/New_York]", T, "datetime", ["2013-07-01T05:15:00Z", *T[1:]], ["x", "y", "z"]),
    ("datetime64[ns, UTC]", T, "datetime", T, ["1200-01-01", *T[1:]]),
    ("timestamp[us][pyarrow]", T, "datetime", T, [1, 2, 3]),
]
if PANDAS3: DTYPES.append(("str", ["a", None, "b"], "categorical", ["b", None, "zz"], [1, None, 2]))


def column(values, dtype):
    if dtype.startswith("datetime64") and "," in dtype: return pd.to_datetime(pd.Series(values), utc=True).astype(dtype)
    if "timestamp" in dtype: return pd.to_datetime(pd.Series(values)).astype("datetime64[us]").astype(dtype)
    return pd.Series(values, dtype=dtype)


@pytest.mark.parametrize("dtype,values,kind,good,bad", DTYPES, ids=[f"{d[0]}-{d[2]}-{i}" for i, d in enumerate(DTYPES)])
def test_dtype(dtype, values, kind, good, bad):
    train = pd.DataFrame({"x": column(values, dtype)})
    schema = Schema.capture(train)
    assert schema["x"].kind == kind
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    same = schema.conform(train, strict=True)
    if schema["x"].dtype == str(train["x"].dtype): pd.testing.assert_frame_equal(same, train, check_dtype=dtype != "string[pyarrow]")
    for form in (pd.Series(good, dtype=object), pd.Series(good)):
        fit = schema.conform(pd.DataFrame({"x": form}))
        assert fit["x"].dtype == same["x"].dtype
        expected = [v is None or (kind == "categorical" and v == "zz" and dtype == "category") or (dtype == "category" and v == 3) for v in good]
        assert fit["x"].isna().tolist() == expected
    for form in (pd.Series(bad, dtype=object), pd.Series(bad)):
        found = schema.problems(pd.DataFrame({"x": form}))
        assert [p.code for p in found] == ["type"], found
        assert "'x'" in found[0].message
        with pytest.raises(SchemaError): schema.conform(pd.DataFrame({"x": form}))


def test_values_survive_conforming():
    big = 2**60 + 1
    schema = Schema.capture(pd.DataFrame({"n": pd.Series([1, None], dtype="Int64"), "t": pd.to_datetime(["2013-07-01", "2013-07-02"])}))
    fit = schema.conform(pd.DataFrame({"n": pd.Series([big, None], dtype=object), "t": ["2013-07-01T04:00:00-04:00", "2013-07-01T08:00:00"]}))
    assert fit["n"][0] == big
    assert fit["t"].tolist() == [pd.Timestamp("2013-07-01 08:00")] * 2
    fit = schema.conform(pa.table({"t": pa.array([0, 1], pa.timestamp("s", "UTC")), "n": pa.array([big, None])}))
    assert fit["n"][0] == big and list(fit.columns) == ["n", "t"]


def test_mixed_zones_are_one_time():
    schema = Schema.capture(pd.DataFrame({"t": pd.to_datetime(["2013-07-01"], utc=True)}))
    mixed = pd.Series([pd.Timestamp("2013-07-01 12:00", tz="America/New_York"), pd.Timestamp("2013-07-01 16:00", tz="UTC"),
                       dt.datetime(2013, 7, 1, 16), np.datetime64("2013-07-01T16:00")], dtype=object)
    assert schema.conform(pd.DataFrame({"t": mixed}))["t"].nunique() == 1


def test_all_problems_at_once():
    train = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "c": [1, 2], "d": [True, False], "e": [1.0, 2.0]})
    schema = Schema.capture(train)
    bad = pd.DataFrame([[np.nan, 3, 1.5, np.inf, np.inf, 0]], columns=["a", "b", "c", "e", "e", "z"])
    found = {(p.column, p.code) for p in schema.problems(bad, strict=True)}
    assert found == {("a", "null"), ("b", "type"), ("c", "type"), ("d", "missing"), ("e", "duplicate"), ("z", "unexpected")}
    assert {p.code for p in schema.problems(train.assign(a=[9.0, np.inf], b=["q", "x"]), strict=True)} == {"range", "infinite", "unseen"}
    assert schema.problems(train.assign(a=[9.0, -9.0], b=["q", "x"])) == []
    assert [p.code for p in schema.problems(train[:0])] == ["empty"]
    assert [p.code for p in schema.problems([])] == ["empty", "empty"] + ["missing"] * 5


def test_examples_are_capped_and_named():
    schema = Schema.capture(pd.DataFrame({"a": [1.0, 2.0]}))
    message = schema.problems(pd.DataFrame({"a": [f"v{i}" for i in range(1000)]}))[0].message
    assert "1,000 of 1,000 rows" in message and "'v0', 'v1', 'v2';" in message and "v3" not in message
    long = schema.problems(pd.DataFrame({"a": ["y" * 10_000]}))[0].message
    assert len(long) < 250


def test_capture_refuses():
    with pytest.raises(SchemaError) as e: Schema.capture(pd.DataFrame({"x": [[1], [2]], "y": [b"a", b"b"], "z": pd.period_range("2013", periods=2), "w": [1j, 2j],
                                                                       "v": pd.to_timedelta([1, 2]), "u": pd.cut([1, 2], 2)}))
    assert [p.column for p in e.value.problems] == list("xyzwvu")
    for empty in (pd.DataFrame(), pd.DataFrame({"a": []}), []):
        with pytest.raises(SchemaError, match="no rows"): Schema.capture(empty)
    with pytest.raises(SchemaError, match="appears 2 times"): Schema.capture(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_all_null_and_constant():
    frame = pd.DataFrame({"o": pd.Series([None, None], dtype=object), "f": [np.nan, np.nan], "c": [1.0, 1.0], "i": [np.inf, -np.inf]})
    schema = Schema.capture(frame)
    assert [c.kind for c in schema.columns] == ["categorical", "numeric", "numeric", "numeric"]
    assert (schema["f"].low, schema["c"].low, schema["i"].high, schema["i"].infinite) == (None, 1.0, None, True)
    assert schema.problems(frame, strict=True) == []


def test_nullable_dtypes_and_relaxed_integers():
    schema = Schema.capture(pd.DataFrame({"n": [1, 2], "b": [True, False], "i16": np.array([1, 2], "int16")}))
    relaxed = schema.relax("n", nullable=True).relax("b", nullable=True)
    fit = relaxed.conform([{"n": 1, "b": True, "i16": 3}, {"n": None, "b": None, "i16": 4}])
    assert fit["n"].isna().tolist() == fit["b"].isna().tolist() == [False, True]
    assert fit["n"].dtype == "float64" and fit["i16"].dtype == "int16"
    assert [p.code for p in schema.problems([{"n": 1, "b": True, "i16": 3}, {"n": None, "b": None, "i16": 4}])] == ["null", "null"]


def test_none_or_nan_as_in_training():
    "scikit-learn's encoders take None and NaN for two different levels"
    for blank in (None, np.nan):
        schema = Schema.capture(pd.DataFrame({"s": pd.Series(["a", blank], dtype=object)}))
        for empty in (None, np.nan, pd.NA):
            out = schema.conform(pd.DataFrame({"s": pd.Series(["a", empty], dtype=object)}))["s"]
            assert out[1] is None if blank is None else (isinstance(out[1], float) and np.isnan(out[1]))


def test_category_codes_are_those_of_training():
    train = pd.DataFrame({"c": pd.Categorical(["b", "a"], categories=["b", "a", "never"], ordered=True)})
    schema = Schema.capture(train)
    fit = schema.conform(pd.DataFrame({"c": pd.Categorical(["a", "zz", "b"])}))
    assert fit["c"].cat.codes.tolist() == [1, -1, 0] and fit["c"].dtype == train["c"].dtype
    assert [p.code for p in schema.problems(pd.DataFrame({"c": ["a", "zz"]}), strict=True)] == ["unseen"]
    with pytest.raises(ParameterError, match="new levels need a new model"): schema.relax("c", levels=None)


def test_text_or_categorical():
    assert kind_of(pd.Series([f"t{i}" for i in range(20)])) == "categorical"
    assert kind_of(pd.Series([f"t{i}" for i in range(21)])) == "text"
    assert kind_of(pd.Series([f"t{i % 100}" for i in range(500)])) == "categorical"
    assert kind_of(pd.Series([f"t{i % 1001}" for i in range(10_000)])) == "text"


def test_index_and_column_names():
    schema = Schema.capture(pd.DataFrame(np.arange(4.0).reshape(2, 2)))
    fit = schema.conform(pd.DataFrame({"1": [5, 6], "0": [7, 8]}, index=[10, 20]))
    twice = schema.conform(pd.DataFrame({"1": [5, 6], "0": [7, 8]}, index=[1, 1]))
    assert list(twice.index) == [1, 1] and twice["0"].tolist() == [7, 8]
    assert list(fit.columns) == ["0", "1"] and list(fit.index) == [10, 20] and fit.iloc[0].tolist() == [7, 5]


def test_given_frame_is_untouched():
    frame = pd.DataFrame({"a": [1.0, 2.0], "s": pd.Series(["x", None], dtype=object), "n": [1, 2]})
    schema, before = Schema.capture(frame), frame.copy(deep=True)
    fit = schema.conform(frame)
    fit.loc[0, "a"], fit.loc[0, "s"], fit.loc[0, "n"] = 9.0, "changed", 7
    if PANDAS3: pd.testing.assert_frame_equal(frame, before)


def test_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"f": [1.5, None], "n": [2**60 + 1, None], "s": ["a", "b"], "c": pl.Series(["u", "v"], dtype=pl.Categorical), "b": [True, None],
                          "t": [dt.datetime(2013, 7, 1), dt.datetime(2013, 7, 2)], "d": [dt.date(2013, 7, 1), dt.date(2013, 7, 2)]})
    schema = Schema.capture(frame)
    assert [c.kind for c in schema.columns] == ["numeric", "integer", "categorical", "categorical", "boolean", "datetime", "datetime"]
    assert schema.problems(frame, strict=True) == [] and schema.conform(frame)["n"][0] == 2**60 + 1


ODD = st.sampled_from([None, float("nan"), float("inf"), 1e300, 2**70, 300, -1, True, "a", "1", "2013-07-01", "", [1], np.float64(2), Decimal("1.5")])
ROW = st.fixed_dictionaries({}, optional={"f": ODD | st.floats(width=32), "f32": ODD | st.integers(), "n": ODD | st.integers(-9, 9), "i8": ODD | st.integers(-129, 128), "b": ODD | st.booleans(),
                                          "s": ODD | st.sampled_from("abz"), "o": ODD | st.sampled_from("abz"), "c": ODD | st.sampled_from("abz"), "t": ODD, "N": ODD | st.integers(-9, 9)})
FULL = {"f": 1.5, "f32": 2, "n": 1, "i8": 2, "b": True, "s": "a", "o": None, "c": "b", "t": "2013-07-01", "N": None}


@given(st.lists(ROW.map(lambda r: FULL | r) | ROW.map(lambda r: {k: FULL[k] for k in FULL if k != "zz"} | r), min_size=1, max_size=3), st.booleans())
def test_rows_conform_as_frames_do(rows, nulls):
    train = pd.DataFrame({"f": [1.5, 2], "f32": np.array([1, 2], "float32"), "n": [1, 2], "i8": np.array([1, 2], "int8"), "b": [True, False], "s": ["a", "b"],
                          "o": pd.Series(["a", None], dtype=object), "c": pd.Categorical(["a", "b"]), "t": pd.to_datetime(["2013-07-01"] * 2), "N": pd.array([1, None], dtype="Int64")})
    schema = Schema.capture(train)
    if nulls: schema = schema.relax("f", nullable=True).relax("s", nullable=True).relax("c", nullable=True).relax("n", nullable=True)
    general = _attempt(lambda: schema.conform(pd.DataFrame({k: pd.Series([r.get(k) for r in rows], dtype=object) for k in FULL})))
    quick = _attempt(lambda: schema.conform(rows))
    if isinstance(general, pd.DataFrame): pd.testing.assert_frame_equal(quick, general)
    else: assert [(p.column, p.code) for p in quick] == [(p.column, p.code) for p in general]


def _attempt(f):
    try: return f()
    except SchemaError as e: return e.problems


def test_arrow_shapes():
    table = pa.table({"a": pa.array([1, None], pa.int8()), "s": pa.array(["x", "y"]).dictionary_encode(), "d": pa.array([dt.date(2013, 7, 1)] * 2)})
    for x in (table, table.to_batches()[0], pa.RecordBatchReader.from_batches(table.schema, table.to_batches())):
        frame = as_frame(x)
        assert str(frame["a"].dtype) == "Int8" and str(frame["s"].dtype) == "category"
