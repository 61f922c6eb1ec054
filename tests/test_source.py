"Profiles of what is not in memory: files, streams, clusters"
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_profile import BINS, LEVELS, NUMBERS, chunks, same, table

from mlnb.core.counting import SAMPLE, Sample, join_samples, take_sample
from mlnb.core.errors import ParameterError, SchemaError
from mlnb.core.summary import profile
from mlnb.core.source import BUFFER, open_source, open_table, read_csv
from mlnb.core.streamed import tree


def alike(a, b, numbers):
    "Same bins, groups and counts; moments to rounding"
    assert list(a.columns) == list(b.columns) and a.n == b.n
    for name in a.columns:
        p, q = a[name], b[name]
        if name not in numbers: assert p == q
        else:
            for f in ("kind", "nulls", "neg_inf", "pos_inf", "low", "high"): assert getattr(p, f) == getattr(q, f), (name, f)
            assert all(np.array_equal(getattr(p, f), getattr(q, f)) for f in ("edges", "counts", "groups"))
            assert p.mean == pytest.approx(q.mean, rel=1e-9, abs=1e-9 * max(1, p.sd)) and p.m2 == pytest.approx(q.m2, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(NUMBERS, LEVELS, BINS, st.lists(st.integers(0, 60), max_size=6))
def test_batches_are_profiled_as_the_whole(numbers, levels, bins, cuts):
    frame = table(numbers, levels)
    parts = chunks(frame, cuts)
    if not parts: return
    whole = profile(frame, bins=bins)
    for streamed in (profile(parts, bins=bins), profile(iter(parts), bins=bins), profile(iter(parts), like=whole, course=True)):
        same(streamed, whole)
        for name in whole.columns:
            p, q = streamed[name], whole[name]
            if name == "x": assert np.array_equal(p.edges, q.edges) and np.array_equal(p.groups, q.groups)
            assert np.array_equal(p.course.sum(0), q.course.sum(0))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3 * SAMPLE), min_size=1, max_size=6))
def test_samples_of_parts(sizes):
    x = np.arange(float(sum(sizes)))
    sofar = Sample(np.empty(0))
    for part in np.split(x, np.cumsum(sizes)[:-1]): sofar = join_samples(sofar, take_sample(part, sofar.n))
    whole = take_sample(x)
    assert np.array_equal(sofar.values, whole.values) and sofar.n == whole.n and len(whole.values) <= SAMPLE
    if len(x): assert sofar[1:] == whole[1:]
    far = tree((take_sample(part) for part in np.split(x, np.cumsum(sizes)[:-1])), join_samples)  # as partitions do
    assert far.n == len(x) and far.step == whole.step and abs(len(far.values) - len(whole.values)) <= len(sizes)


@pytest.mark.parametrize("n", range(1, 20))
def test_a_tree_keeps_the_order(n):
    assert tree(([i] for i in range(n)), lambda a, b: a + b) == list(range(n))


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    "A frame with every kind of column, several samples and batches large, and its files"
    rng, n = np.random.default_rng(0), 21_345
    frame = pd.DataFrame({"x": np.where(rng.random(n) < .1, np.nan, rng.lognormal(size=n)), "k": rng.poisson(3, n), "w": rng.choice(["a", "b", "c", None], n), "late": rng.random(n) < .3,
                          "prose": [f"note {i} {'!' * (i % 9)}" for i in range(n)], "f": rng.normal(size=n).astype("float32"), "u": pd.array(np.where(np.arange(n) % 9, np.arange(n) % 50, None), "Int64"),
                          "g": pd.Categorical.from_codes(rng.integers(-1, 40, n), [f"level {i}" for i in range(40)]), "t": pd.Timestamp("2013-01-01") + pd.to_timedelta(np.arange(n), unit="s")})
    folder = tmp_path_factory.mktemp("big")
    frame.to_parquet(folder / "many.parquet", row_group_size=5_000)
    frame.to_parquet(folder / "one.parquet", row_group_size=10 * n)
    frame.to_csv(folder / "all.csv", index=False)
    (folder / "parts").mkdir()
    for i, a in enumerate(range(0, n, 9_000)): frame[a:a + 9_000].to_parquet(folder / "parts" / f"{i}.parquet", row_group_size=700)
    return frame, folder


@pytest.fixture
def small(monkeypatch):
    "Small samples and batches, so that a small table is a large one"
    monkeypatch.setattr("mlnb.core.counting.SAMPLE", 4_096)
    monkeypatch.setattr("mlnb.core.source.frame_rows", lambda columns: 3_000)


NUMERIC = {"x", "k", "prose", "f", "u", "t"}


@pytest.mark.parametrize("name", ["many.parquet", "one.parquet", "parts"])
def test_parquet(big, name, small):
    frame, folder = big
    whole = profile(frame)
    alike(profile(folder / name), whole, NUMERIC)
    alike(profile(ds.dataset(folder / name)), whole, NUMERIC)
    alike(profile(str(folder / name), like=whole), whole, NUMERIC)
    assert profile(folder / name, like=whole)["x"].course is None and profile(folder / name)["x"].course.sum() == len(frame)


def test_csv(big, small):
    frame, folder = big
    text = read_csv(folder / "all.csv")
    whole = profile(frame)
    alike(profile(folder / "all.csv", like=whole), profile(text.assign(u=text["u"].astype("Int64")), like=whole), NUMERIC)
    own = profile(folder / "all.csv")
    assert {k: c.kind for k, c in own.columns.items()} == {"x": "numeric", "k": "integer", "w": "categorical", "late": "boolean", "prose": "text", "f": "numeric", "u": "integer", "g": "categorical", "t": "text"}
    assert np.array_equal(own["x"].edges, whole["x"].edges) and own["g"].levels == whole["g"].levels and own["w"].nulls == whole["w"].nulls


def test_streams(big, small, monkeypatch):
    frame, folder = big
    whole = profile(frame)
    reader = pq.ParquetFile(folder / "many.parquet").iter_batches(4_000)
    alike(profile(pa.RecordBatchReader.from_batches(pq.read_schema(folder / "many.parquet"), reader), like=whole), whole, NUMERIC)
    alike(profile((frame[a:a + 7_000] for a in range(0, len(frame), 7_000)), like=whole), whole, NUMERIC)
    monkeypatch.setattr("mlnb.core.streamed.SAMPLE", 2_048)
    once = profile(frame[a:a + 1_500] for a in range(0, len(frame), 1_500))  # the first three batches decide
    assert np.array_equal(once["x"].edges, profile(frame[:4_500])["x"].edges) and once.n == len(frame) and once["x"].counts.sum() == whole["x"].counts.sum()
    alike(profile([frame[:99], frame[99:]]), whole, NUMERIC)
    alike(profile(frame, like=folder / "one.parquet"), profile(frame, like=whole), NUMERIC)


def test_texts_and_categories_are_the_same():
    words = pd.Series(["a", "b", None, "b"] * 30)
    parts = [pd.DataFrame({"c": words}), pd.DataFrame({"c": words.astype("category")}), pd.DataFrame({"c": words.astype(object)}), pa.table({"c": pa.array(words.astype(object)).dictionary_encode()})]
    whole = profile({"c": pd.concat([words] * 4)})
    for order in (parts, parts[::-1], parts[1:] + parts[:1]): assert profile(order) == whole == profile(iter(order)) == profile(iter(order), like=whole)


def test_parts_of_nulls_and_wider_numbers():
    empty, ints, floats = ({"x": v} for v in (pd.Series([None, None], dtype=object), [1, 2], [1.5, np.nan]))
    assert {profile([pd.DataFrame(p) for p in parts])["x"].kind for parts in ([empty, ints, floats], [ints, empty, floats], [floats, ints])} == {"numeric"}
    assert profile([pd.DataFrame({"x": [np.nan]}), pd.DataFrame({"x": ["a"]})])["x"].kind == "categorical"
    with pytest.raises(SchemaError, match=r"batch 2 \(rows 3 to 4\): column 'x' is boolean here and integer before"): profile([pd.DataFrame(ints), pd.DataFrame({"x": [True, False]})])
    with pytest.raises(SchemaError, match=r"batch 2 \(rows 3 to 4\): column 'x' is missing"): profile([pd.DataFrame(ints), pd.DataFrame({"y": [1, 2]})])
    with pytest.raises(SchemaError, match="batch 2: this is not a table"): profile(iter([pd.DataFrame(ints), 7]))
    with pytest.raises(SchemaError, match="no batches"): profile(iter([]))
    assert profile(iter([]), like=profile(ints)).n == 0
    with pytest.raises(SchemaError, match="more than once"): profile([pd.DataFrame([[1, 2]], columns=["a", "a"])])


def test_a_wrong_batch_is_named_in_a_file(big, tmp_path):
    frame, _ = big
    reference = profile(frame[["x", "w"]])
    frame[["x"]].assign(w=7).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"batch 1 \(rows 1 to .*column 'w' was categorical in the reference"): profile(tmp_path / "a.parquet", like=reference)
    with pytest.raises(SchemaError, match="column 'w' is missing"): profile(ds.dataset(pa.table({"x": [1.0]})), like=reference)
    with pytest.raises(ParameterError, match="no such file"): profile(tmp_path / "nowhere.parquet")
    with pytest.raises(SchemaError, match="not a table"): open_table(iter([frame]))


def test_many_levels_and_short_row_groups(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": pd.Categorical([f"id {i}" for i in rng.integers(0, 30_000, 60_000)]), "x": rng.normal(size=60_000)})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "ids.parquet", row_group_size=500)
    a, b = profile(frame), profile(tmp_path / "ids.parquet")
    assert a["id"] == b["id"] and np.array_equal(a["x"].counts, b["x"].counts)
    assert [len(f) for f in open_source(tmp_path / "ids.parquet").frames(rows=25_000)] == [25_000, 25_000, 10_000]


PEAK = """
import re, sys
from mlnb.core.summary import profile
p = profile(sys.argv[1])
print(p.n, len(p.columns), int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_row_group_takes_little_memory(tmp_path):
    rng, n = np.random.default_rng(0), 2_000_000
    words = pa.array(["north", "south", "east"])
    x, c = rng.normal(size=n), pa.DictionaryArray.from_arrays(rng.integers(0, 3, n).astype("int32"), words).cast(pa.string())
    columns = {f"x{i}": pa.array(np.roll(x, i)) for i in range(16)} | {f"c{i}": c for i in range(4)}
    pq.write_table(pa.table(columns), tmp_path / "one.parquet", row_group_size=n, compression="none", use_dictionary=[f"c{i}" for i in range(4)])
    out = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "one.parquet"], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    rows, width, peak = map(int, out.stdout.split())
    assert (rows, width) == (n, 20) and peak < (500 if BUFFER else 700), f"{peak} MB; the table has {n * 130 // 1_000_000} MB in memory"


def test_two_workers_give_the_same_to_the_last_bit():
    dd, distributed = pytest.importorskip("dask.dataframe"), pytest.importorskip("distributed")
    import dask
    rng = np.random.default_rng(0)
    n = 140_000
    frame = pd.DataFrame({"x": rng.normal(1e6, 1, n), "c": rng.choice(["a", "b", None], n), "k": rng.integers(0, 9, n)})
    spread = dd.from_pandas(frame, npartitions=7)
    with dask.config.set(scheduler="synchronous"): here, like = profile(spread), profile(spread, like=profile(frame))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None)
    try:
        with distributed.Client(cluster, timeout=60):
            there, also = profile(spread), profile(spread, like=profile(frame))
    finally: cluster.close(timeout=30)
    assert here == there and like == also and here.to_json() == there.to_json() and like.to_json() == also.to_json()
    alike(here, profile(frame), {"x", "k"})
    alike(like, profile(frame), {"x", "k"})
