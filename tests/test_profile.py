"Properties of profiles: exact counts, merging, and JSON"
import math
from functools import reduce
from operator import add

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import mlnb
from mlnb.core.course import BLOCKS, cuts, groups, regroup
from mlnb.core.errors import ParameterError, SchemaError
from mlnb.core.counting import BLOCK, MAX, bin_edges, count_by_grid, count_by_sorting, is_tame, make_grid, merge_moments
from mlnb.core.profile import EXTRA, Profile, count_numbers, profile

SPECIAL = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0, 2.0, 5e-324, 1.7e308, -1.7e308, float(np.nextafter(1.0, 0)), float(np.nextafter(1.0, 2))])
NUMBERS = st.lists(SPECIAL | st.floats() | st.integers(-3, 3).map(float), max_size=60)
LEVELS = st.lists(st.sampled_from(["a", "b", "c", "", "é", "nan", "None"]) | st.none() | st.text(max_size=3), max_size=60)
BINS = st.sampled_from([2, 4, 256])


def table(numbers, levels):
    n = min(len(numbers), len(levels))
    return pd.DataFrame({"x": np.array(numbers[:n], float), "c": pd.Categorical(pd.Series(levels[:n], dtype=object)),
                         "b": pd.array([None if v is None else v < "b" for v in levels[:n]], dtype="boolean"), "t": pd.Series(levels[:n], dtype=object).map(lambda v: v and "2013-07-01")})


def chunks(frame, cuts):
    at = sorted({0, len(frame), *(c % (len(frame) + 1) for c in cuts)})
    return [frame[i:j] for i, j in zip(at, at[1:], strict=False)]


def same(a, b):
    "Counts equal, moments to rounding"
    assert a.n == b.n and list(a.columns) == list(b.columns)
    for name in a.columns:
        p, q = a[name], b[name]
        if name == "x":
            assert np.array_equal(p.counts, q.counts) and (p.nulls, p.neg_inf, p.pos_inf, p.low, p.high) == (q.nulls, q.neg_inf, q.pos_inf, q.low, q.high)
            size = max(abs(p.low or 0), abs(p.high or 0))
            assert p.mean == pytest.approx(q.mean, rel=1e-12, abs=1e-14 * size)
            with np.errstate(over="ignore"): assert p.m2 == q.m2 or p.m2 == pytest.approx(q.m2, rel=1e-9, abs=float(1e-13 * np.float64(size) ** 2 * max(p.finite, 1)))
        else: assert p == q


@settings(max_examples=150, deadline=None)
@given(NUMBERS, LEVELS, NUMBERS, LEVELS, BINS, st.lists(st.integers(0, 60), max_size=6))
def test_merge_of_any_chunks_is_one_pass(ref_x, ref_c, cur_x, cur_c, bins, cuts):
    reference = profile(table(ref_x, ref_c), bins=bins)
    current = table(cur_x, cur_c)
    whole = profile(current, like=reference)
    parts = [profile(c, like=reference) for c in chunks(current, cuts)]
    same(reduce(add, parts, reference.empty()), whole)
    same(reduce(add, parts[::-1], reference.empty()), whole)
    if len(parts) > 2: same((parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2]))
    assert whole + whole.empty() == whole == whole.empty() + whole
    assert Profile.from_json(whole.to_json()) == whole


@settings(max_examples=150, deadline=None)
@given(NUMBERS, NUMBERS, BINS)
def test_counts_are_exact(reference, values, bins):
    edges = bin_edges(np.array(reference, float), bins)
    assert np.isfinite(edges).all() and (np.diff(edges) > 0).all() and len(edges) <= 2 * bins + 2
    x = np.array(values, float)
    p = count_numbers(x, edges)
    finite = x[np.isfinite(x)]
    assert p.counts.tolist() == np.bincount(np.searchsorted(edges, finite, side="left"), minlength=len(edges) + 1).tolist()
    assert (p.nulls, p.neg_inf, p.pos_inf, p.n) == (np.isnan(x).sum(), (x == -np.inf).sum(), (x == np.inf).sum(), len(x))
    assert (p.low, p.high) == ((finite.min(), finite.max()) if len(finite) else (None, None))


@settings(max_examples=300, deadline=None)
@given(st.lists(SPECIAL | st.floats() | st.floats(0, 1) | st.integers(-9, 9).map(float), min_size=4, max_size=80), NUMBERS, st.floats(-1e9, 1e9), st.sampled_from([1.0, 1e-9, 1e9, 1e-300]))
def test_a_grid_counts_as_sorting_does(reference, values, shift, scale):
    with np.errstate(over="ignore"): reference = np.array(reference) * scale + shift
    edges = bin_edges(reference)
    grid = make_grid(edges)
    if grid is None: return
    with np.errstate(over="ignore"): near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), edges[1:] / 2 + edges[:-1] / 2, np.array(values, float)])
    expected = count_by_sorting(near, edges)
    tame = np.isfinite(near).all() and is_tame(grid, near.min(), near.max())
    for blocks, way in ((1, False), (7, False), (1, tame), (7, tame)):
        found = count_by_grid(near, edges, grid, cuts(len(near), blocks), way)
        assert np.array_equal(found.sum(0), expected) and found.sum(1).tolist() == np.diff(cuts(len(near), blocks)).tolist()
    inside = edges[np.isfinite(edges)]
    assert np.array_equal(count_by_grid(inside, edges, grid, cuts(len(inside), 1), is_tame(grid, inside.min(), inside.max()))[0], count_by_sorting(inside, edges))


@pytest.mark.parametrize("shape", ["normal", "lognormal", "atoms", "far", "two heaps", "nulls", "constant"])
def test_large_columns_are_counted_exactly(shape):
    rng, n = np.random.default_rng(0), 9 * BLOCK + 5
    x = {"normal": rng.normal(size=n), "lognormal": rng.lognormal(0, 3, n), "atoms": rng.poisson(20, n).astype(float), "far": 1e12 + rng.normal(size=n),
         "two heaps": np.where(rng.random(n) < .5, rng.normal(size=n), 1e9 + rng.normal(size=n)), "nulls": np.where(rng.random(n) < .8, np.nan, rng.normal(size=n)),
         "constant": np.full(n, 3.0)}[shape]
    x[rng.integers(0, n, 50)] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0], 50)
    p, finite = count_numbers(x, edges := bin_edges(x)), x[np.isfinite(x)]
    assert p.counts.tolist() == np.bincount(np.searchsorted(edges, finite, side="left"), minlength=len(edges) + 1).tolist()
    assert (p.nulls, p.neg_inf, p.pos_inf) == (np.isnan(x).sum(), (x == -np.inf).sum(), (x == np.inf).sum()) and p.n == n
    parts = [count_numbers(c, edges) for c in np.array_split(x, 3)]
    assert np.array_equal(sum(q.counts for q in parts), p.counts) and (p.low, p.high) == (finite.min(), finite.max())


@given(NUMBERS)
def test_outer_bins_are_empty_in_the_reference(values):
    p = profile({"x": np.array([*values, 1.0])})["x"]
    outer = [p.counts[-1]] if p.edges[0] == p.low else [p.counts[0], p.counts[-1]]  # nothing lies below the least float
    assert not any(outer)


def by_hand(c, frame_column, n):
    "The course of a column, block by block and row by row"
    out = []
    for a, b in zip(cuts(n), cuts(n)[1:], strict=False):
        part = frame_column[a:b]
        if hasattr(c, "edges"):
            values = part.to_numpy(float)
            line = np.array([(values == -np.inf).sum(), *np.diff([((values <= e) & (values > -np.inf)).sum() for e in (*c.edges, MAX)], prepend=0), (values == np.inf).sum()])
            out.append([*regroup(line, c.groups), np.isnan(values).sum()])
        else:
            text = [None if pd.isna(v) else str(v) for v in part]
            known = [text.count(level) for level in c.levels[:15]]
            out.append([*known, len(text) - sum(known) - text.count(None), text.count(None)])
    return out


@settings(max_examples=60, deadline=None)
@given(NUMBERS, LEVELS, BINS, st.lists(st.integers(0, 60), max_size=6))
def test_a_course_counts_each_block(numbers, levels, bins, cuts_at):
    frame = table(numbers, levels)
    whole = profile(frame, bins=bins)
    for name in ("x", "c", "b"):
        c = whole[name]
        assert c.course.tolist() == by_hand(c, frame[name], len(frame)) and c.course.sum() == whole.n
        if name == "x": assert c.groups.shape == (len(c.counts) + 2,) and c.groups[0] == 0 and set(np.diff(c.groups)) <= {0, 1} and c.groups[-1] < 16
    parts = [profile(c, like=whole, course=True) for c in chunks(frame, cuts_at)]
    joined = reduce(add, parts, whole.empty())
    same(joined, whole)
    if not len(frame): return
    assert all(np.array_equal(joined[k].course.sum(0), whole[k].course.sum(0)) for k in whole.columns)
    read = Profile.from_json(joined.to_json())
    assert read == joined and all(np.array_equal(read[k].course, joined[k].course) for k in whole.columns)
    assert profile(frame, like=whole)["x"].course is None


@pytest.mark.parametrize("n", [1, 127, 128, 129, 1_000, 9 * BLOCK + 5])
def test_courses_of_long_columns(n):
    rng = np.random.default_rng(n)
    frame = pd.DataFrame({"x": np.where(rng.random(n) < .1, np.nan, rng.normal(size=n)), "k": pd.Categorical.from_codes(rng.integers(-1, 30, n), [f"l{i}" for i in range(30)])})
    p = profile(frame)
    assert p["x"].course.shape[0] == p["k"].course.shape[0] == min(n, BLOCKS)
    assert p["x"].course.tolist() == by_hand(p["x"], frame["x"], n) and p["k"].course.tolist() == by_hand(p["k"], frame["k"], n)
    assert p["k"].course.shape[1] == min(len(p["k"].levels), 15) + 2 and p["x"].course[:, -1].sum() == p["x"].nulls


def test_groups_have_about_equal_shares():
    x = np.random.default_rng(0).lognormal(size=300_000)
    c = profile({"x": x})["x"]
    assert c.groups.max() == 15 and abs(c.course.sum(0)[:16] / len(x) - 1 / 16).max() < .005
    assert groups(np.zeros(3)).tolist() == [0, 0, 0]
    atoms = profile({"x": np.repeat([0.0, 1.0, 2.0], 100)})["x"]
    assert atoms.course.sum(0).tolist() == [100, 100, 100, 0]
    infinite = profile({"x": [-np.inf] * 40 + [1.0] * 60})["x"]
    assert infinite.course.sum(0).tolist() == [40, 60, 0]


def test_what_becomes_of_a_course():
    x = np.arange(1000.0)
    p, q = profile({"x": x}), profile({"x": x[:500]}, like=profile({"x": x}))
    assert p["x"].course is not None and q["x"].course is None and (p + q)["x"].course is None
    assert np.array_equal((p + p.empty())["x"].course, p["x"].course) and p.empty()["x"].course is None
    old = p.to_dict() | {"version": 1}
    old["columns"] = [{k: v for k, v in c.items() if k not in ("course", "groups")} for c in old["columns"]]
    read = Profile.from_dict(old)
    assert read["x"].groups is None and read["x"].course is None and np.array_equal(read["x"].counts, p["x"].counts)
    assert profile({"x": x}, like=read, course=True)["x"].course is None
    long = sum(profile({"x": x}, like=p, course=True) for _ in range(10))
    assert BLOCKS / 2 <= len(long["x"].course) <= BLOCKS and np.array_equal(long["x"].course.sum(0), 10 * p["x"].course.sum(0))


def test_levels_with_the_same_text_are_one():
    c = profile({"c": pd.Categorical([1, "1", 2], categories=[1, "1", 2])})["c"]
    assert (c.n, c.levels, c.counts.tolist()) == (3, ("1", "2"), [2, 1])


def test_atoms_have_a_bin_of_their_own():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=5_000), np.zeros(3_000), np.full(2_000, -1.0)])
    p = profile({"x": x})["x"]
    bins = dict(zip(p.edges, p.counts, strict=False))
    assert bins[0.0] == 3_000 and bins[-1.0] == 2_000
    assert p.counts[np.diff(p.edges, prepend=-np.inf, append=np.inf) > 1e-9].max() <= 10_000 / 256 + 1


def test_blocks_and_strides_and_dtypes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=5 * BLOCK + 123)
    edges = bin_edges(x)
    expected = count_numbers(x, edges)
    assert expected.counts.tolist() == np.histogram(x, [-np.inf, *np.nextafter(edges, np.inf), np.inf])[0].tolist()
    assert count_numbers(np.repeat(x, 2)[::2], edges) == expected
    assert expected.mean == pytest.approx(x.mean(), abs=1e-15) and expected.sd == pytest.approx(x.std(), rel=1e-14)
    for dtype in ("float32", "int16", "int64", "uint8"):
        y = (np.abs(x) * 50).astype(dtype)
        assert count_numbers(y, edges) == count_numbers(y.astype(float), edges)


def test_large_reference_uses_a_stride_and_all_extremes():
    x = np.arange(1_000_001.0)
    x[777_777] = -5.0
    edges = bin_edges(x)
    assert edges[1] == -5.0 and edges[-1] == 1_000_000
    counts = count_numbers(x, edges).counts
    assert counts.sum() == len(x) and abs(counts[3:-1] - len(x) / 256).max() < 20


def test_moments_of_numbers_far_from_zero():
    x = 1e12 + np.random.default_rng(0).normal(size=200_000)
    whole = count_numbers(x, np.array([1e12]))
    assert whole.sd == pytest.approx(float((x - 1e12).std()), rel=1e-6)  # 2^-52 * 1e12 is 2e-4
    assert merge_moments(np.array([0.0]), np.array([5.0]), np.array([1.0])) == (0.0, 0.0)


@pytest.mark.parametrize("n", [EXTRA - 1, EXTRA, 4 * EXTRA])
def test_levels_beyond_the_cap_merge_exactly(n):
    rng = np.random.default_rng(0)
    reference = profile({"c": ["a", "b"] * 30})
    frame = pd.DataFrame({"c": [f"id {i}" for i in rng.integers(0, n, 4 * n)]})
    whole = profile(frame, like=reference)
    parts = [profile(frame[i::7], like=reference) for i in range(7)]
    assert sum(parts) == whole == sum(parts[::-1])
    p = whole["c"]
    counts = frame["c"].value_counts()
    assert p.n_extra == 4 * n and len(p.extra) == min(EXTRA, len(counts)) and all(counts[k] == v for k, v in p.extra.items())
    assert p.named == (len(counts) <= EXTRA)


@pytest.mark.parametrize("dtype", ["object", "string", "category", "str"])
def test_levels_of_every_text_dtype(dtype):
    reference = profile({"c": pd.Series(["a", "b", None, "b"] * 5, dtype=object)})
    p = profile({"c": pd.Series(["b", None, "new"], dtype=object).astype(dtype if dtype != "str" else "object")}, like=reference)["c"]
    assert (p.levels, p.counts.tolist(), p.extra, p.nulls) == (("b", "a"), [1, 0], {"new": 1}, 1)


def test_levels_that_are_numbers():
    reference = profile({"c": pd.Categorical([1, 2, 2])})
    p = profile({"c": pd.Series([2.0, 1.0, np.nan, 3.0])}, like=reference)["c"]
    assert (p.levels, p.counts.tolist(), p.extra, p.nulls) == (("2", "1"), [1, 1], {"3": 1}, 1)
    with pytest.raises(SchemaError, match="'c' was categorical"): profile({"c": ["1", "2"]}, like=reference)


def test_times_and_lengths():
    times = pd.to_datetime(["2013-07-01", "2013-07-02", None])
    reference = profile({"t": times})
    for unit in ("s", "ms", "us", "ns"):
        assert profile({"t": times.as_unit(unit).tz_localize("UTC").tz_convert("America/New_York")}, like=reference) == reference
    assert profile({"t": ["2013-07-01", "2013-07-02T00:00:00Z", None]}, like=reference) == reference
    assert reference["t"].low == 1372636800
    text = [f"{i:0{1 + i % 30}d} note" for i in range(100)]
    lengths = profile({"s": text})["s"]
    assert lengths.kind == "text" and lengths.mean == pytest.approx(np.mean([len(t) for t in text]))


def test_refusals():
    frame = pd.DataFrame({"x": [1.0, 2.0], "c": ["a", "b"]})
    reference = profile(frame)
    for other, what in ((profile(frame[["x"]]), "same columns"), (profile(frame * 2), "different bins"), (profile(frame.assign(c="b")), "different levels"), (3, "same columns")):
        with pytest.raises(ParameterError, match=what): reference + other
    with pytest.raises(SchemaError) as e: profile({"x": ["a"], "c": [1]}, like=reference)
    assert [p.column for p in e.value.problems] == ["x", "c"]
    with pytest.raises(SchemaError, match="more than once"): profile(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(ParameterError, match="newer"): Profile.from_dict(reference.to_dict() | {"version": 99})


@pytest.mark.parametrize("give", [lambda t: t, lambda t: t.astype(str).tolist(), lambda t: t.dt.tz_localize(None).to_numpy()])
def test_a_version_is_described_in_order_of_time(tmp_path, give):
    "Whatever the order in which the rows are given; everything else is kept as it was given"
    rng, n = np.random.default_rng(0), 3_000
    rows = pd.DataFrame({"x": np.sin(np.arange(n) / 200) + rng.normal(0, .1, n), "late": rng.random(n) < .3,
                         "at": pd.Timestamp("2013-01-01", tz="UTC") + pd.to_timedelta(np.arange(n) // 3, "h"), "carrier": np.repeat(["AA", "DL", "UA"], n // 3)})
    shuffled = rows.sample(frac=1, random_state=0)
    ordered, X = shuffled.sort_values("at", kind="stable"), ["x", "carrier"]
    model = make_pipeline(make_column_transformer((OneHotEncoder(), ["carrier"]), remainder="passthrough"), LogisticRegression()).fit(rows[X], rows["late"])
    with mlnb.open(tmp_path) as ws:
        one, two = (ws.register("m", model, r[X], r["late"], at="2013-06-01", time=give(r["at"])) for r in (shuffled, ordered))
        assert one.row.profile == two.row.profile
        assert all(np.array_equal(one.profile[c].course, two.profile[c].course) for c in ["x", "carrier", "prediction", "score"])
        assert (one.row.schema, one.row.outputs) == (two.row.schema, two.row.outputs)
        for v, r in ((one, shuffled), (two, ordered)):
            kept = v.training_data()
            assert kept["x"].tolist() == r["x"].tolist() and kept["y_true"].tolist() == r["late"].tolist() and (kept["at"] == r["at"].to_numpy()).all()
        unknown, known = ws.register("m", model, shuffled[X], shuffled["late"]), ws.register("m", model, ordered[X], ordered["late"])
        assert unknown.row.profile != known.row.profile == two.row.profile, "without times, the order of the rows is taken for that of time"


def test_times_of_training_are_checked_before_anything_is_kept(tmp_path):
    X = pd.DataFrame({"x": np.arange(4.)})
    with mlnb.open(tmp_path) as ws:
        for times, said in (["2013-01-01"] * 3, "time has 3 values for 4 rows"), (["2013-01-01", None] * 2, "'time' lacks a time in 2 of 4 rows"):
            with pytest.raises(mlnb.MlnbError, match=said): ws.register("m", LinearRegression().fit(X, X["x"]), X, time=times, keep_data=False)
        assert ws.models() == []
