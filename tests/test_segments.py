"Segments: what is planted is found, nothing else is, and small slices are left out"
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlnb.core.errors import NotFound, ParameterError
from mlnb.monitor.distances import homogeneity
from mlnb.monitor.segments import _lumped, _unordered, drift_segments
from mlnb.monitor.slices import groups, holm, list_slices, make_axes
from mlnb.monitor.weak import performance_segments


def world(rng, n, where=None, move=0.0):
    t = pd.DataFrame({"a": rng.choice(list("pqrs"), n, p=[.4, .3, .2, .1]), "b": rng.choice(["u", "v", None], n), "x": rng.normal(size=n), "k": rng.poisson(2, n), "flag": rng.random(n) < .3})
    t["score"] = rng.beta(2, 5, n)
    if where is not None: t.loc[where(t), "score"] += move
    return t


def scored(rng, n, where=None, worse=.3):
    t = world(rng, n)
    return t.assign(y=(rng.random(n) < t["score"] + (0 if where is None else worse * where(t))).astype(int))


def most(level, checks): return int(stats.binom.ppf(.995, checks, level))


ONE, TWO = (lambda t: t.a == "q"), (lambda t: (t.a == "q") & t.b.isna())


def test_slices_are_those_of_pandas():
    rng = np.random.default_rng(0)
    a, b = world(rng, 3000), world(rng, 1000)
    axes, _ = make_axes([a, b], least=50)
    made = list(groups(axes, [3000, 1000], 2, 50))
    rows = np.hstack([[np.bincount(c, minlength=len(g.cells) + 1)[:len(g.cells)] for c in g.codes] for g in made])
    names = list_slices(axes, [g._replace(codes=[]) for g in made]).names
    found = dict(zip(names, rows.T.tolist(), strict=True))
    quartiles = a["x"].quantile([.25, .5, .75], interpolation="lower")
    assert found["all rows"] == [3000, 1000] and found["a = q"] == [(a.a == "q").sum(), (b.a == "q").sum()]
    assert found["a = q and b is null"] == [TWO(a).sum(), TWO(b).sum()] and found["flag = True"] == [a.flag.sum(), b.flag.sum()]
    assert found[next(n for n in names if n.startswith("x <= "))] == [(a.x <= quartiles[.25]).sum(), (b.x <= quartiles[.25]).sum()]
    assert (rows >= 50).all() and len(set(names)) == len(names)


def test_small_slices_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    a, b = world(rng, 3000), world(rng, 1000)
    report = drift_segments(a, b, of="score", by=["a", "b"], min_rows=120)
    rows = {(p, q): min((a.a.eq(p) & a.b.fillna("-").eq(q)).sum(), (b.a.eq(p) & b.b.fillna("-").eq(q)).sum()) for p in a.a[b.a.value_counts()[a.a].to_numpy() >= 120].unique() for q in ("u", "v", "-")}
    assert report.small == sum(b.a.value_counts() < 120) + sum(r < 120 for r in rows.values()) and (report.rows[["rows_reference", "rows_current"]] >= 120).to_numpy().all()


def test_homogeneity_of_all_slices_at_once():
    rng = np.random.default_rng(0)
    a, b = rng.multinomial(600, [.4, .3, .2, .09, .01], 40), rng.multinomial(250, [.4, .3, .2, .09, .01], 40)
    lumped = _lumped(a, b)
    assert (lumped[0].sum(1) == 600).all() and (lumped[1].sum(1) == 250).all()
    moved = _unordered(a, b, np.full(40, 600 * 250 / 850), .01)
    np.testing.assert_allclose(moved.p, [homogeneity(x, y).p_value for x, y in zip(*lumped, strict=True)], rtol=1e-9)


def test_holm():
    p = np.random.default_rng(0).random(50) ** 4
    order = np.sort(p)
    rejected = next((i for i, v in enumerate(order) if v > .05 / (50 - i)), 50)
    assert (holm(p) <= .05).sum() == rejected


@pytest.mark.parametrize("where,name", [(ONE, "a = q"), (TWO, "a = q and b is null")])
def test_a_planted_drift_is_found(where, name):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        report = drift_segments(world(rng, 12_000), world(rng, 5_000, where, .15), of="score")
        found = report.rows[report.rows["alarm"]]
        assert found["slice"].iloc[0] == name and (found["explained"][1:] == name).all()
        assert name in report.reasons[0] and report.plot() and report.to_dict()["alarm"]


@pytest.mark.parametrize("where,name", [(ONE, "a = q"), (TWO, "a = q and b is null")])
def test_a_planted_weakness_is_found(where, name):
    rng = np.random.default_rng(0)
    for kw in ({}, {"reference": scored(rng, 12_000)}):
        report = performance_segments(scored(rng, 12_000, where), y_true="y", y_proba="score", task="binary", **kw)
        found = report.rows[report.rows["alarm"]]
        assert found["slice"].iloc[0] == name and (found["explained"][1:] == name).all() and report.plot()
    degraded = performance_segments(scored(rng, 12_000, where), y_true="y", y_proba="score", task="binary", reference=scored(rng, 12_000, where))
    assert not degraded.alarm


def test_a_slice_that_becomes_more_frequent():
    rng = np.random.default_rng(0)
    more = world(rng, 5000)
    report = drift_segments(world(rng, 10_000), more.drop(more.index[TWO(more)][::2]), of="score")
    found = report.rows[report.rows["alarm"]]
    assert set(found["of"]) == {"share of rows"} and "a = q and b is null" in set(found["slice"])


def test_a_drift_of_everything_is_no_news_for_slices():
    rng = np.random.default_rng(0)
    report = drift_segments(world(rng, 10_000), world(rng, 5_000, lambda t: t.k >= 0, .1), of="score")
    assert list(report.rows.loc[report.rows["alarm"], "slice"]) == ["all rows"]


def test_false_alarms_of_drift_are_at_most_nominal():
    checks, alarms, smallest = 40, 0, []
    for rng in map(np.random.default_rng, range(checks)):
        report = drift_segments(world(rng, 3000), world(rng, 1500), budget=.2, tolerance=0, min_rows=50)
        alarms, smallest = alarms + report.alarm, [*smallest, report.rows["p_value"].min()]
    assert alarms <= most(.2, checks) and sum(p <= .2 for p in smallest) <= most(.2, checks)


@pytest.mark.parametrize("kind", ["binary", "regression", "reference", "days"])
def test_false_alarms_of_weakness_are_at_most_nominal(kind):
    checks, alarms, smallest = 50, 0, []
    for rng in map(np.random.default_rng, range(checks)):
        t = scored(rng, 3000)
        if kind == "days":  # days of 60 rows that are bad in all slices, and a slice that comes in days
            t = t.assign(z=t["x"] + np.repeat(rng.exponential(size=50), 60) * rng.normal(size=3000), day=np.repeat(rng.choice(list("mnop"), 50), 60))
        how = {"y_true": "z", "y_pred": "x"} if kind == "days" else {"y_true": "x", "y_pred": "score"} if kind == "regression" else {"y_true": "y", "y_proba": "score"}
        report = performance_segments(t, **how, task="regression" if "y_pred" in how else "binary", reference=scored(rng, 3000) if kind == "reference" else None,
                                      metric={"reference": "accuracy"}.get(kind), level=.8, tolerance=0, min_rows=50)
        alarms, smallest = alarms + report.alarm, [*smallest, report.rows["p_value"].min()]
    assert alarms <= most(.2, checks) and sum(p <= .2 for p in smallest) <= most(.2, checks), (alarms, np.sort(smallest)[:20])


def test_the_numbers_are_those_of_pandas():
    rng = np.random.default_rng(0)
    t = scored(rng, 4000, ONE)
    t.loc[::7, "y"] = np.nan
    report = performance_segments(t, y_true="y", y_proba="score", task="binary", metric="accuracy", by=["a"], depth=1)
    known = t[t["y"].notna()]
    hit = known["y"] == (known["score"] >= .5)
    row = report.rows.set_index("slice").loc["a = q"]
    assert row["value"] == pytest.approx(hit[ONE(known)].mean()) and row["other"] == pytest.approx(hit[~ONE(known)].mean()) and row["rows"] == ONE(known).sum()
    assert row["gap"] == pytest.approx(row["other"] - row["value"]) and row["weight"] == pytest.approx(row["gap"] * row["share"]) and report.overall == pytest.approx(hit.mean())


def test_settings_and_odd_tables():
    t = world(np.random.default_rng(0), 500)
    with pytest.raises(ParameterError, match=r"depth=3.*min_rows=1.*tolerance=-1"): drift_segments(t, t, depth=3, min_rows=1, tolerance=-1)
    with pytest.raises(NotFound): drift_segments(t, t, by=["nothing"])
    with pytest.raises(ParameterError, match="no rows"): drift_segments(t[:0], t)
    assert not drift_segments(t, t[:0]).alarm and not drift_segments(t, t[:1]).alarm and not drift_segments(t, t[:1], by=[]).alarm
    changed = drift_segments(t, t.drop(columns="b").assign(a=1), of="score")
    assert len(changed.left) == 2 and not changed.alarm
    with pytest.raises(ParameterError, match="labels"): performance_segments(t.assign(y=np.nan), y_true="y", y_proba="score", task="binary", classes=[0, 1])
    with pytest.raises(ParameterError, match="roc_auc"): performance_segments(t.assign(y=1), y_true="y", y_proba="score", task="binary", metric="roc_auc")
    right = performance_segments(t.assign(y=1.0), y_true="y", y_pred="y", task="regression", by=["a"])
    assert not right.alarm and right.overall == 0 and math.isfinite(right.rows["gap"].abs().max())


def test_a_large_search_counts_and_does_not_loop():
    import time
    rng = np.random.default_rng(0)
    def table(n): return pd.DataFrame({f"n{i}": rng.normal(size=n) for i in range(9)} | {f"c{i}": pd.Categorical.from_codes(rng.integers(0, 6, n), list("abcdef")) for i in range(6)})
    a, b = table(100_000), table(100_000)
    start = time.process_time()
    report = drift_segments(a, b)
    assert report.slices > 2000 and not report.alarm and time.process_time() - start < 15  # 1.7 s where this was written
