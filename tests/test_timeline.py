"Drift over time: one pass over any source gives what each chunk would give by itself"
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from test_false_alarms import series

import mlnb
from mlnb.core.errors import NotFound, ParameterError
from mlnb.core.summary import profile
from mlnb.monitor.drift import drift
from mlnb.monitor.timeline import drift_over_time

RNG = np.random.default_rng(0)
OLD = pd.DataFrame({"x": RNG.normal(size=3_000), "n": RNG.poisson(3, 3_000), "c": RNG.choice(list("abc"), 3_000)})
NEW = pd.DataFrame({"at": pd.date_range("2013-03-01 05:00", periods=4_000, freq="7min"), "x": RNG.normal(np.repeat([0, 0, .5, 1], 1_000)), "n": RNG.poisson(3, 4_000), "c": RNG.choice(list("abc"), 4_000)})
COLUMNS = {"chunk", "start", "end", "n", "feature", "distance", "threshold", "tolerance", "alarm"}


@pytest.mark.parametrize("chunk", [700, "5D", "D", "MS"])
def test_each_chunk_is_what_drift_says_of_it(chunk):
    report, known = drift_over_time(OLD, NEW, "at", chunk), profile(OLD)
    table = report.table()
    assert set(table.columns) >= COLUMNS and table["n"].groupby(table["chunk"]).first().sum() == len(NEW)
    for c in report.chunks:
        rows = NEW[(NEW["at"] >= c.start.tz_localize(None)) & (NEW["at"] < c.end.tz_localize(None))] if isinstance(chunk, str) else NEW.iloc[(int(c.name) - 1) * chunk:int(c.name) * chunk]
        pd.testing.assert_frame_equal(report[c.name].table(), drift(known, rows[["x", "n", "c"]]).table())
    assert report.alarm and "x drifted in" in report.reasons[0]


def test_any_source_and_any_order_give_the_same_numbers(tmp_path):
    mixed = NEW.sample(frac=1, random_state=0)
    NEW.to_parquet(tmp_path / "new.parquet")
    NEW.iloc[:1_500].to_parquet(tmp_path / "part 1.parquet")
    sources = [NEW, pa.Table.from_pandas(NEW), tmp_path / "new.parquet", str(tmp_path / "new.parquet"), (NEW[i:i + 333] for i in range(0, 4_000, 333)), iter(pa.Table.from_pandas(NEW).to_batches(max_chunksize=900))]
    expected = drift_over_time(OLD, NEW, "at", "5D").table()
    for source in [*sources, mixed, [mixed[:2_000], mixed[2_000:]]]: pd.testing.assert_frame_equal(drift_over_time(OLD, source, "at", "5D").table(), expected)
    rows = drift_over_time(OLD, NEW, chunk=500).table()
    for source in ((NEW[i:i + 333] for i in range(0, 4_000, 333)), tmp_path / "new.parquet"): pd.testing.assert_frame_equal(drift_over_time(OLD, source, chunk=500).table(), rows)


def test_drift_of_any_source_is_drift_of_the_frame(tmp_path):
    OLD.to_parquet(tmp_path / "old.parquet")
    window = NEW[["x", "n", "c"]]
    expected = drift(OLD, window).table()
    for reference in (OLD, profile(OLD), pa.Table.from_pandas(OLD), tmp_path / "old.parquet"):
        for current in (window, pa.Table.from_pandas(window), (window[i:i + 999] for i in range(0, 4_000, 999))):
            pd.testing.assert_frame_equal(drift(reference, current).table(), expected, rtol=1e-9)


def test_a_column_that_is_lost_in_one_chunk():
    parts = [NEW[:1_000], NEW[1_000:2_000].drop(columns="n"), NEW[2_000:3_000].assign(c=1.5), NEW[3_000:]]
    table = drift_over_time(OLD, parts, chunk=1_000).table().set_index(["chunk", "feature"])
    assert table.loc[("2", "n"), "aspect"] == "missing" and table.loc[("3", "c"), "aspect"] == "type" and table.loc[("3", "c"), "alarm"]
    assert table.loc[("1", "n"), "aspect"] == "values" and not table.loc[("4", "c"), "alarm"]


def test_time_zones_duplicates_and_index():
    zoned = NEW.assign(at=NEW["at"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    expected = drift_over_time(OLD, NEW, chunk="5D").table()
    pd.testing.assert_frame_equal(drift_over_time(OLD, zoned, chunk="5D").table(), expected)
    pd.testing.assert_frame_equal(drift_over_time(OLD, NEW.set_index("at"), chunk="5D").table(), expected)
    same = NEW.assign(at=NEW["at"].dt.floor("D"))
    assert drift_over_time(OLD, same, chunk="D").table()["n"].sum() == 3 * len(NEW)


@pytest.mark.parametrize("options,error,words", [
    ({"chunk": 0}, ParameterError, "chunk=0"), ({"chunk": True}, ParameterError, "chunk=True"), ({"chunk": "soon"}, ParameterError, "chunk='soon'"), ({"chunk": 1.5}, ParameterError, "chunk=1.5"),
    ({"time": "when"}, NotFound, "'when'"), ({"columns": ["y"]}, NotFound, "'y'"), ({"budget": "often"}, ParameterError, "budget='often'"), ({"tolerance": {"y": .1}}, NotFound, "'y'")])
def test_bad_arguments(options, error, words):
    with pytest.raises(error, match=words): drift_over_time(OLD, NEW, **options)


def test_bad_times_and_empty_data():
    with pytest.raises(ParameterError, match="'at' is null in 1 of 4,000 rows"): drift_over_time(OLD, NEW.assign(at=NEW["at"].where(NEW.index > 0)), chunk="D")
    with pytest.raises(ParameterError, match="there is none"): drift_over_time(OLD, NEW.drop(columns="at"), chunk="D")
    with pytest.raises(ParameterError, match="are 2: 'at', 'then'"): drift_over_time(OLD, NEW.assign(then=NEW["at"]), chunk="D")
    with pytest.raises(ParameterError, match="no rows"): drift_over_time(OLD, iter([]))
    with pytest.raises(ParameterError, match="counts days"): drift_over_time(OLD, NEW.drop(columns="at"), chunk=100, budget="1 per 90 days")
    empty = drift_over_time(OLD, NEW[:0], chunk="D")
    assert not empty.alarm and not len(empty.table()) and empty.reasons == ["there are no rows, so nothing was compared"]
    empty.plot(), empty.to_dict(), empty._repr_html_()


@pytest.mark.parametrize("chunk", ["D", "5D", "MS", 700])
def test_a_deployment_says_what_its_rows_say(tmp_path, chunk):
    "From kept days, with rows that came late, and again after more were logged"
    ws = mlnb.open(tmp_path)
    X = OLD.astype({"c": "category"})
    y = OLD["x"] + RNG.normal(size=len(OLD)) > 0
    model = make_pipeline(ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["c"]), ("n", "passthrough", ["x", "n"])]), LogisticRegression()).fit(X, y)
    dep = ws.deploy("late", ws.register("late", model, X, y, at="2013-03-01"), at="2013-03-01")
    for rows in (NEW[1_000:2_500], NEW[:1_000], NEW[2_500:]):
        dep.predict(rows[["x", "n", "c"]], at=rows["at"])
        logged = dep.predictions()
        expected = drift_over_time(dep.champion.profile, logged[["at", *dep.champion.profile.columns]], "at", chunk).table()
        found = dep.drift_over_time(chunk=chunk).table()
        pd.testing.assert_frame_equal(found.sort_values(["chunk", "feature"], ignore_index=True), expected.sort_values(["chunk", "feature"], ignore_index=True), rtol=1e-9)
    since, until = "2013-03-02 07:30", "2013-03-09"
    for columns in (None, ["x", "score"]):
        window = dep.predictions(since, until)
        pd.testing.assert_frame_equal(dep.drift(since, until, columns=columns).table(), drift(dep.champion.profile, window, columns=columns, every="6.6875D").table(), rtol=1e-9)
    with pytest.raises(NotFound, match="'y'"): dep.drift(columns=["y"])
    assert not dep.drift("2014-01-01").alarm and dep.drift_over_time("2014-01-01", "2014-02-01").reasons == ["there are no rows, so nothing was compared"]
    dep.drift("2013-03-15", "2013-03-21").plot_feature("x")


def test_a_year_of_weeks():
    "Autocorrelated rows without drift: the promised false alarms, one a year here, on average over ten years"
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(10):
        rows = pd.DataFrame(series(rng, .9, 5_000 + 50 * 200, 10)).add_prefix("x")
        report = drift_over_time(rows[:5_000], rows[5_000:], chunk=200, budget="1 per 50 checks", tolerance=0.0)
        alarms += int(report.table()["alarm"].sum())
    assert alarms <= 10 + 3 * math.sqrt(10)
