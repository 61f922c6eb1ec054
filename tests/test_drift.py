"Drift: distances against scipy, calibration and power by simulation, bad input"
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial import distance as spatial

from mlnb.core.errors import NotFound, ParameterError, SchemaError
from mlnb.core.profile import BLOCK, CategoricalProfile, bin_edges, count_levels, count_numbers, profile
from mlnb.monitor.distances import (homogeneity, jensen_shannon, ks_distance, ks_p_value, lump, new_levels_p_value, nulls_p_value, population_stability, total_variation,
                                     wasserstein)
from mlnb.monitor.drift import drift
from mlnb.monitor.feature import _coarse, _points, compare, measure

COUNTS = st.integers(2, 40).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 500), min_size=k, max_size=k).filter(any)] * 2))
SHAPES = {"normal": lambda r, n: r.normal(size=n), "lognormal": lambda r, n: r.lognormal(0, 2, n), "t2": lambda r, n: r.standard_t(2, n), "atoms": lambda r, n: r.poisson(2, n).astype(float),
          "half zeros": lambda r, n: np.where(r.random(n) < .5, 0, r.normal(size=n)), "far": lambda r, n: 1e9 + r.normal(size=n)}


@given(COUNTS)
def test_distances_are_scipys_on_the_binned_data(counts):
    a, b = map(np.array, counts)
    p, q, points = a / a.sum(), b / b.sum(), np.arange(len(a)) ** 1.5
    assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(np.repeat(points, a), np.repeat(points, b), method="asymp").statistic, abs=1e-12)
    assert total_variation(a, b) == pytest.approx(spatial.minkowski(p, q, 1) / 2, abs=1e-12)
    assert jensen_shannon(a, b) == pytest.approx(spatial.jensenshannon(p, q, base=2), abs=1e-7)
    assert wasserstein(points, a, b) == pytest.approx(stats.wasserstein_distance(points, points, a, b), abs=1e-9)
    p, q = (a + .5) / (a + .5).sum(), (b + .5) / (b + .5).sum()
    assert population_stability(a, b) == pytest.approx((special.rel_entr(p, q) + special.rel_entr(q, p)).sum(), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0, .3])
def test_distances_are_near_those_of_the_rows(shape, shift):
    rng = np.random.default_rng(0)
    x, y = SHAPES[shape](rng, 20_000), SHAPES[shape](rng, 3_000) + shift
    a = count_numbers(x, edges := bin_edges(x))
    b = count_numbers(y, edges)
    m, raw = measure(a, b), stats.ks_2samp(x, y, method="asymp").statistic
    widest = max((a.counts / a.finite).max(), (b.counts / b.finite).max())
    assert raw - widest - 1e-12 <= m["ks"] <= raw + 1e-12
    fences = np.concatenate([[min(a.low, b.low)], edges, [max(a.high, b.high)]])
    bound = (np.diff(fences).clip(0) @ (a.counts / a.finite + b.counts / b.finite) / 2 + np.diff(fences)[[0, -1]].clip(0) @ (b.counts / b.finite)[[0, -1]]) / a.sd
    assert m["wasserstein"] == pytest.approx(stats.wasserstein_distance(x, y) / x.std(), abs=bound + 1e-6)
    assert bound < .4 and (np.diff(_points(a, b)) >= 0).all()
    assert m["mean_shift"] == pytest.approx((y.mean() - x.mean()) / x.std(), abs=1e-6)
    assert m["outside"] == ((y < x.min()) | (y > x.max())).sum()
    coarse = _coarse(a, b)
    assert len(coarse[0]) <= 17 and coarse[0].sum() == len(x) and coarse[1].sum() == len(y)


@pytest.mark.parametrize("n,m", [(100, 5), (1000, 20), (30, 30), (50, 50), (200, 1000), (101, 100), (5000, 200)])
def test_ks_p_value_is_an_upper_bound(n, m):
    rng = np.random.default_rng(n)
    for shift in np.linspace(0, 2, 9):
        exact = stats.ks_2samp(rng.normal(size=n), rng.normal(shift, 1, m), method="exact")
        if exact.pvalue < .2: assert exact.pvalue * .99 <= ks_p_value(exact.statistic, n, m)
        if 1e-6 < exact.pvalue < .2 and min(n, m) >= 50: assert ks_p_value(exact.statistic, n, m) <= 2.5 * exact.pvalue
    assert ks_p_value(special.kolmogi(.001) / np.sqrt(n * m / (n + m)), n, m) >= .001 - 1e-9


def test_homogeneity_is_scipys():
    a, b = np.array([50, 30, 20, 0]), np.array([400, 350, 250, 0])
    test, scipys = homogeneity(a, b), stats.chi2_contingency([a[:3], b[:3]], correction=False)
    assert test.statistic == pytest.approx(scipys.statistic) and test.p_value == pytest.approx(scipys.pvalue, rel=.02)
    assert homogeneity(a, b)._replace(statistic=test.critical(.003)).p_value == pytest.approx(.003)
    for a, b in (([7, 0], [9, 0]), ([5], [3]), ([1, 0], [0, 1])): assert homogeneity(np.array(a), np.array(b)).p_value == 1
    assert len(lump(np.array([100, 100, 1, 1, 1]), np.array([100, 100, 1, 1, 1]))[0]) == 2  # the rare ones join the smaller of the large
    assert len(lump(np.full(50, 200), np.full(50, 4))[0]) == 25  # fifty levels too rare alone


def test_homogeneity_has_the_moments_of_all_tables():
    "Exactly, by enumeration"
    c, n = np.array([4, 3, 1, 1]), 5
    total, tables = int(c.sum()), [np.array(t) for t in np.ndindex(*(c + 1)) if sum(t) == n]
    weight = np.array([math.prod(math.comb(int(k), int(i)) for k, i in zip(c, t, strict=True)) for t in tables]) / math.comb(total, n)
    tests = [homogeneity(t, c - t) for t in tables]
    x = np.array([t.statistic for t in tests])
    assert weight.sum() == pytest.approx(1) and (weight @ x, weight @ x**2 - (weight @ x) ** 2) == pytest.approx((tests[0].mean, tests[0].variance))


@pytest.mark.parametrize("a,n,b,m", [(5, 1000, 3, 100), (0, 500, 4, 60), (30, 100, 2, 90), (600, 10_000, 40, 1_000)])
def test_nulls_against_fisher(a, n, b, m):
    fisher = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert fisher * .999 <= nulls_p_value(a, n, b, m) <= 2 * fisher + 1e-12


def test_nulls_large_samples_agree_with_the_exact_test():
    a, n, b, m = 52_000, 1_000_000, 51_000, 1_000_000
    tails = stats.hypergeom(n + m, a + b, m)
    assert nulls_p_value(a, n, b, m) == pytest.approx(2 * min(tails.cdf(b), tails.sf(b - 1)), rel=.05)


def test_new_levels_is_an_upper_bound():
    "Against a permutation of all rows, for long tails"
    rng = np.random.default_rng(0)
    levels = np.minimum(rng.zipf(1.5, 2_200), 10_000)
    totals = np.unique(levels, return_counts=True)[1]
    found = []
    for _ in range(2_000):
        mixed = rng.permutation(levels)
        found.append((~np.isin(mixed[2_000:], mixed[:2_000])).sum())
    found = np.array(found)
    for rows in (10, 20, 25, 30, 35):
        share = (found >= rows).mean()
        assert new_levels_p_value(rows, totals, 2_000, 200) >= share - 3 * math.sqrt(share / len(found))
    assert new_levels_p_value(45, totals, 2_000, 200) < .01 and new_levels_p_value(0, totals, 10, 10) == 1


# -- simulations: rates per check, with seeds; the tolerance is three standard errors


def numbers(rng, n, m, shift=0.0, shape="normal"):
    x, y = SHAPES[shape](rng, n), SHAPES[shape](rng, m) + shift
    edges = bin_edges(x)
    return count_numbers(x, edges), count_numbers(y, edges)


def levels(rng, n, m, shares):
    names = [f"l{i}" for i in range(len(shares))]
    like = CategoricalProfile("categorical", tuple(names), np.zeros(len(names), np.int64))
    ref, cur = rng.multinomial(n, shares), rng.multinomial(m, shares)
    like = CategoricalProfile("categorical", tuple(k for k, c in zip(names, ref, strict=True) if c), np.zeros(int((ref > 0).sum()), np.int64))
    return tuple(count_levels({k: int(c) for k, c in zip(names, side, strict=True) if c}, like) for side in (ref, cur))


@pytest.mark.parametrize("n,m,shape", [(10_000, 1_000, "normal"), (10_000, 200, "normal"), (1_000, 1_000, "atoms"), (1_000, 50, "half zeros"), (200, 20, "t2")])
def test_false_alarms_of_twenty_numeric_columns(n, m, shape):
    "Nothing drifted: at most the budget of 0.05 false alarms in a check; uncorrected it would be more than 0.6"
    rng, checks, columns = np.random.default_rng(1), 60, 20
    found = [[compare("x", *numbers(rng, n, m, shape=shape), .05 / columns, 0.0) for _ in range(columns)] for _ in range(checks)]
    false = sum(f.alarm for check in found for f in check) / checks
    assert false <= .05 + 3 * math.sqrt(.05 / checks)
    if shape == "normal": assert sum(any(f.p_value < .05 for f in check) for check in found) / checks > .4  # the test could fail


@pytest.mark.parametrize("n,m,shares", [(10_000, 1_000, "few"), (10_000, 200, "zipf"), (1_000, 1_000, "zipf"), (1_000, 50, "few"), (10_000, 200, "fifty"), (500, 500, "fifty")])
def test_false_alarms_of_levels(n, m, shares):
    p = {"few": np.array([.5, .3, .15, .05]), "zipf": 1 / np.arange(1, 300), "fifty": np.ones(50)}[shares]
    rng, columns, level = np.random.default_rng(2), 1_000, .01
    false = np.mean([compare("c", *levels(rng, n, m, p / p.sum()), level, 0.0).alarm for _ in range(columns)])
    assert false <= level + 3 * math.sqrt(level / columns)


def test_false_alarms_of_nulls():
    rng, columns, level = np.random.default_rng(3), 1_500, .01
    for share in (.001, .02):
        a, b = rng.binomial(10_000, share, columns), rng.binomial(500, share, columns)
        pairs, times = np.unique(np.stack([a, b]), axis=1, return_counts=True)
        false = sum(t for i, j, t in zip(*pairs.tolist(), times, strict=True) if nulls_p_value(i, 10_000, j, 500) < level) / columns
        assert false <= level + 3 * math.sqrt(level / columns)


@pytest.mark.parametrize("m,shift,least", [(1_000, .2, .93), (5_000, .2, .999), (500, .3, .9)])
def test_power_for_one_column_of_twenty(m, shift, least):
    "A shift of 0.2 sd, 10,000 against 1,000 rows: KS with Bonferroni on all rows finds .97"
    rng, checks = np.random.default_rng(4), 200
    found = np.mean([compare("x", *numbers(rng, 10_000, m, shift), .05 / 20, .03).alarm for _ in range(checks)])
    assert found >= least


def test_real_but_too_small_to_matter():
    rng = np.random.default_rng(5)
    x = rng.normal(size=200_000)
    report = drift({"x": x}, {"x": rng.normal(.02, 1, 200_000)})
    assert not report.alarm and any("certain but too small to matter: x" in r for r in report.reasons)
    assert report.table()["p_value"][0] < .01


def test_one_column_of_twenty_is_not_averaged_away():
    rng = np.random.default_rng(6)
    frame = pd.DataFrame(rng.normal(size=(5_000, 20))).add_prefix("x")
    window = pd.DataFrame(rng.normal(size=(500, 20))).add_prefix("x").assign(x3=rng.normal(3, 1, 500))
    report = drift(frame, window)
    assert report.drifted == ["x3"] and report.table()["feature"][0] == "x3" and report.reasons[0].startswith("worst of 20: x3: the mean rose")
    nulls = window.assign(x3=rng.normal(size=500), x4=np.where(rng.random(500) < .4, np.nan, rng.normal(size=500)))
    report = drift(frame, nulls)
    assert report.drifted == ["x4"] and "of the rows are null" in report.reasons[0]


# -- what is always reported


def test_reported_even_if_no_test_fires():
    frame = pd.DataFrame({"x": np.arange(1000.0), "c": ["a", "b"] * 500, "y": np.arange(1000.0), "b": [True] * 1000})
    window = pd.DataFrame({"x": [*np.linspace(0, 999, 199), 2000], "c": ["a"] * 100 + ["b"] * 99 + ["new"], "y": [*np.linspace(0, 999, 199), None], "b": [True] * 199 + [False]})
    report = drift(frame, window)
    assert not report.alarm
    text = "\n".join(report.reasons)
    assert "new levels: " in text and "c 'new' (0.5 %)" in text and "b 'False' (0.5 %)" in text
    assert "out of the reference's range: x 0.5 %, up to 2,000 > 999" in text and "nulls where the reference has none: y 0.5 %" in text
    table = report.table().set_index("feature")
    assert (table["unseen"]["c"], table["outside"]["x"], table["nulls_current"]["y"]) == (1, 1, .005)


def test_type_change_and_missing_column():
    frame = pd.DataFrame({"x": np.arange(100.0), "c": ["a", "b"] * 50, "t": pd.date_range("2013", periods=100)})
    report = drift(frame, pd.DataFrame({"x": ["1.0"] * 50, "c": [1, 2] * 25, "extra": 1}))
    assert report.alarm and set(report.drifted) == {"x", "c", "t"}
    table = report.table().set_index("feature")
    assert table["aspect"].to_dict() == {"x": "type", "c": "type", "t": "missing"} and (table["distance"] == 1).all()
    assert any("'x' was numeric" in r and "'1.0'" in r for r in report.reasons) and any(r.endswith("t: the column is missing from the window") for r in report.reasons)
    assert drift(frame, frame[["x"]], columns=["x"]).alarm is False
    other = drift(profile(frame), profile(frame.assign(c=np.arange(100.0))))
    assert other.drifted == ["c"] and "was categorical and is numeric" in other.reasons[0]


def test_empty_and_tiny_windows():
    frame = pd.DataFrame({"x": np.arange(1000.0), "c": ["a", "b"] * 500})
    empty = drift(frame, frame[:0])
    assert not empty.alarm and empty.reasons == ["the window has no rows, so nothing was compared"] and len(empty.table()) == 2
    for i in (0, 500): assert not drift(frame, frame[i:i + 1]).alarm
    row = pd.DataFrame({"x": [1e9], "c": ["new"]})
    assert not drift(frame[:30], row).alarm and len(drift(frame[:30], row).reasons) == 4  # one row proves nothing against 30, but is reported
    assert drift(frame, row).drifted == ["c"]  # against 1,000 it has p = .001, within the budget
    assert not drift(frame[:1], frame[1:2]).alarm
    for report in (empty, drift(frame, frame[:1])): json.dumps(report.to_dict(), allow_nan=False); report.plot(); report.plot_feature("x"); report.plot_feature("c"); report._repr_html_()


def test_constant_null_and_infinite_columns():
    n = 200
    frame = pd.DataFrame({"k": np.ones(n), "null": np.full(n, np.nan), "inf": np.r_[np.inf, np.zeros(n - 1)], "o": pd.Series([None] * n, dtype=object), "c": ["one"] * n})
    same = drift(frame, frame)
    assert not same.alarm and same.table()["distance"].max() == 0
    window = pd.DataFrame({"k": np.full(n, 2.0), "null": np.zeros(n), "inf": np.full(n, np.inf), "o": ["x"] * n, "c": ["two"] * n})
    report = drift(frame, window)
    assert len(report.drifted) == 5 and (report.table()["distance"] > .99).all()
    for name in frame: report.plot_feature(name); same.plot_feature(name)
    json.dumps(report.to_dict(), allow_nan=False)
    odd = drift(frame[["inf"]], pd.DataFrame({"inf": [-np.inf] + [0.0] * 199}))
    assert not odd.alarm


@pytest.mark.parametrize("k,n,m", [(1_000, 5_000, 2_000), (5_000, 10_000, 1_000), (5_000, 4_000, 4_000)])
def test_no_false_alarm_for_very_many_levels(k, n, m):
    "The most frequent levels of the reference are so partly by luck, which must not look like drift"
    rng, level, alarms = np.random.default_rng(8), .01, 0
    names = np.array([f"id {i}" for i in range(k)], dtype=object)
    for _ in range(100):
        x, y = (pd.Series(names[rng.integers(0, k, size)]).astype("category") for size in (n, m))
        p = profile({"c": x})
        alarms += compare("c", p["c"], profile({"c": y}, like=p)["c"], level, 0.0).alarm
    assert alarms <= 100 * level + 3 * math.sqrt(100 * level)


def test_many_levels_drift_is_seen():
    rng = np.random.default_rng(9)
    names = np.array([f"id {i}" for i in range(3_000)], dtype=object)
    p = profile({"c": pd.Series(names[rng.integers(0, 3_000, 20_000)]).astype("category")})
    assert drift(p, {"c": pd.Series(names[rng.integers(0, 1_500, 4_000)]).astype("category")}).alarm
    few = profile({"c": [f"l{i % 50}" for i in range(10_000)]})
    assert drift(few, {"c": [f"l{i % 35}" for i in range(200)]}).alarm  # fifty levels of four rows each, fifteen vanish


def test_a_million_levels():
    frame = pd.DataFrame({"c": [f"id {i}" for i in range(50_000)]}).astype("category")
    report = drift(frame[:40_000], frame[40_000:])
    assert not math.isnan(report.table()["p_value"][0])
    assert report.table()["kind"][0] == "categorical"
    known = drift(pd.DataFrame({"c": ["a", "b"] * 500}), pd.DataFrame({"c": [f"id {i}" for i in range(5_000)]}))
    assert known.drifted == ["c"] and "and 997 more" in known.reasons[0]


def test_mixed_zones_and_times():
    t = pd.Series(pd.date_range("2013-01-01", periods=2_000, freq="h"))
    same = drift({"t": t}, {"t": t.dt.tz_localize("UTC").dt.tz_convert("America/New_York").sample(500, random_state=0)})
    assert not same.alarm
    later = drift({"t": t}, {"t": t + pd.Timedelta("200D")})
    assert later.drifted == ["t"] and "2013-" in later.reasons[0]
    later.plot_feature("t")


def test_profiles_and_frames_agree():
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"x": rng.normal(size=2 * BLOCK), "c": rng.choice(list("abc"), 2 * BLOCK), "n": rng.integers(0, 9, 2 * BLOCK)})
    window = frame.sample(2_000, random_state=0).assign(n=lambda d: d["n"] + 1)
    reference = profile(frame)
    tables = [drift(a, b).table() for a in (frame, reference) for b in (window, profile(window, like=reference))]
    for t in tables[1:]: pd.testing.assert_frame_equal(t, tables[0])
    days = sum(profile(window[i::5], like=reference) for i in range(5))
    pd.testing.assert_frame_equal(drift(reference, days).table(), tables[0])


def test_bad_arguments():
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1, 2, 3]})
    for options in ({"budget": 0}, {"budget": "1 per fortnight"}, {"budget": True}, {"tolerance": -1}, {"tolerance": {"x": 2}}, {"tolerance": {"x": "much"}}):
        with pytest.raises(ParameterError): drift(frame, frame, **options)
    with pytest.raises(NotFound, match="'z'"): drift(frame, frame, columns=["z"])
    with pytest.raises(NotFound, match="'z'"): drift(frame, frame, tolerance={"z": .1})
    with pytest.raises(ParameterError, match="no column in common"): drift(frame, frame.add_prefix("q"))
    with pytest.raises(ParameterError, match="no column in common"): drift(profile(frame), frame.add_prefix("q"))
    with pytest.raises(ParameterError, match="no rows"): drift(frame[:0], frame)
    with pytest.raises(ParameterError, match="'x'.*different bins"): drift(profile(frame), profile(frame * 2))
    with pytest.raises(SchemaError, match="no kind that can be profiled"): drift({"x": [[1], [2]]}, {"x": [[1]]})
    with pytest.raises(SchemaError): drift(3, frame)
    assert drift(frame, frame + 100, tolerance={"x": 1.0, "y": .5}, budget=1.0).table().set_index("feature")["tolerance"].to_dict() == {"x": 1.0, "y": .5}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 1.0, -5.5, 1e308, -1e308]), min_size=1, max_size=20),
       st.lists(st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 2.0, 1e308]), max_size=20))
def test_any_numbers_give_a_defined_result(x, y):
    report = drift({"x": pd.Series(x, dtype=float)}, {"x": pd.Series(y, dtype=float)})
    row = report.table().iloc[0]
    assert not y or (0 <= row["distance"] <= 1 and 0 <= row["p_value"] <= 1 and 0 <= row["threshold"])
    assert report.reasons
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("x,y", [([1e308, -1e308, 0], [0.0]), ([0.0, 1e308, -1e308], []), ([5e-324, 0], [1]), ([1e300], [1e300]), ([None], [1.0]), ([math.inf], [-math.inf]), ([3, 3, 4], [1e9])])
def test_any_numbers_can_be_drawn(x, y):
    report = drift({"x": pd.Series(x, dtype=float)}, {"x": pd.Series(y, dtype=float)})
    report.plot_feature("x"), report.plot()


# -- budgets, and the course of the reference


def test_a_budget_is_shared_by_features_and_checks():
    rng = np.random.default_rng(10)
    frame = pd.DataFrame(rng.normal(size=(5_000, 10))).add_prefix("x")
    window = frame.sample(1_000, random_state=0).assign(x3=lambda d: d["x3"] + .12)
    spent = [drift(frame, window, budget=b, every=e).budget for b, e in ((.5, "1D"), ("1 per 90 days", "1D"), ("1 per 90 days", "30D"), ("1 per year", "1h"))]
    assert spent == pytest.approx([.5, 1 / 90, 1 / 3, 1 / 365.25 / 24])
    thresholds = [drift(frame, window, budget=b)["x5"].aspects[0].threshold for b in (1, .1, .001, "1 per 10 years")]
    assert thresholds == sorted(thresholds) and thresholds[-1] > 1.3 * thresholds[0]
    assert "false alarms to expect in a check like this: 0.0111 (1 per 90 days, at a check every 1 day), shared by 10 features" in drift(frame, window, budget="1 per 90 days").reasons
    json.dumps(drift(frame, window, budget="1 per 90 days").to_dict(), allow_nan=False)


def test_a_reference_that_wanders_is_not_sure_of_its_windows():
    rng = np.random.default_rng(11)
    slow = np.repeat(rng.normal(size=60), 100) + .3 * rng.normal(size=6_000)
    window = pd.DataFrame({"x": .8 + .3 * rng.normal(size=300)})
    report = drift({"x": slow}, window)
    assert not report.alarm and any("windows of the reference itself differ as much" in r and "x (values)" in r for r in report.reasons)
    assert drift({"x": slow}, window, ordered=False).drifted == ["x"]
    assert drift({"x": rng.permutation(slow)}, window).drifted == ["x"]
    assert drift({"x": slow}, window + 6).drifted == ["x"]  # beyond anything that it was: certain all the same
    kept = profile({"x": slow})
    assert not drift(type(kept).from_json(kept.to_json()), window).alarm  # the course is kept with the profile


def test_a_sorted_reference_does_not_hide_a_drift():
    rng = np.random.default_rng(12)
    x, c = np.sort(rng.normal(size=2_000)), np.repeat(["a", "b", "c"], [1_000, 700, 300])
    window = pd.DataFrame({"x": rng.normal(.6, 1, 400), "c": rng.choice(["a", "b", "c"], 400, p=[.3, .3, .4])})
    assert set(drift({"x": x, "c": c}, window).drifted) == {"x", "c"}
    assert not drift({"x": x, "c": c}, {"x": rng.normal(size=400), "c": rng.choice(["a", "b", "c"], 400, p=[.5, .35, .15])}).alarm


def test_shapes_that_the_distribution_function_hardly_shows():
    rng = np.random.default_rng(13)
    x = rng.normal(20, 5, 20_000)
    y = rng.normal(20, 5, 4_000)
    stuck = np.where(rng.random(4_000) < .05, 20.5, y)
    report = drift({"x": x}, {"x": stuck})
    assert report.alarm and "of the rows are" in report.reasons[0] and "20." in report.reasons[0]
    assert drift({"x": x}, {"x": 2 * (y / 2).round()}).alarm
    assert not drift({"x": x}, {"x": y}).alarm


def test_tails_of_rank_tests_are_those_of_all_tables():
    "Exactly, by enumeration of every table with these margins"
    from mlnb.monitor.ranks import moves
    c, m = np.array([3, 4, 2, 3, 2]), 6
    tables = [np.array(t) for t in np.ndindex(*(c + 1)) if sum(t) == m]
    weight = np.array([math.prod(math.comb(int(k), int(i)) for k, i in zip(c, t, strict=True)) for t in tables]) / math.comb(int(c.sum()), m)
    for which in ("location", "scale"):
        found = [getattr(moves(c - t, t), which) for t in tables]
        z, p = np.array([t.z for t in found]), np.array([t.p_value for t in found])
        assert (weight @ z, weight @ z**2, weight @ z**3) == pytest.approx((0, 1, found[0].skew), abs=1e-9)
        for level in (.2, .1, .05): assert weight[p <= level].sum() <= 1.35 * level
