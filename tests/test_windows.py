"Kept days: any order of rows, looks, crashes and processes gives the profile of the rows"
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyRegressor

import mlnb
from mlnb.core import store, windows
from mlnb.core.events import log_predictions, predictions, tables
from mlnb.core.profile import NumericProfile, profile
from mlnb.core.windows import DAY, fold, forget, kept, reference, window_profile, window_profiles

START = pd.Timestamp("2013-07-01", tz="UTC")


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"x": np.where(rng.random(n) < .1, np.nan, rng.normal(size=n)), "k": rng.poisson(2, n), "c": pd.Categorical.from_codes(rng.integers(-1, 4, n), ["a", "b", "é", "d"]),
                         "level": pd.Categorical(rng.integers(0, 3, n), categories=[0, 1, 2]), "b": rng.random(n) < .3, "t": START + pd.to_timedelta(rng.integers(0, 9, n), unit="h")})


def deployment(path):
    X = rows(300)
    ws = mlnb.open(path)
    v = ws.register("m", DummyRegressor().fit(X, X["k"]), X, X["k"])
    ws.register("m", DummyRegressor().fit(X[:100], X["k"][:100]), X[:100], X["k"][:100])
    return ws.deploy("d", v, at="2013-01-01")


def log(dep, seconds, seed=1):
    X = rows(len(seconds), seed)
    if len(X): log_predictions(dep, X, dep.champion.predict(X), at=START + pd.to_timedelta(np.asarray(seconds), unit="s"))


def check(dep, since=None, until=None, version=None):
    "The profile of a window from kept days is that of its rows"
    version = version or dep.champion
    found, n = window_profile(dep, version, since, until)
    like = reference(dep, version)
    whole = profile(predictions(dep, since, until, columns=list(like.columns))[list(like.columns)], like=like)
    assert n == found.n == whole.n and list(found.columns) == list(whole.columns)
    for name, p in found.columns.items():
        q = whole[name]
        if not isinstance(p, NumericProfile): assert p == q
        else:
            assert np.array_equal(p.counts, q.counts) and (p.nulls, p.neg_inf, p.pos_inf, p.low, p.high) == (q.nulls, q.neg_inf, q.pos_inf, q.low, q.high)
            assert p.mean == pytest.approx(q.mean, rel=1e-12, abs=1e-12) and p.m2 == pytest.approx(q.m2, rel=1e-9, abs=1e-9)
    return found


@pytest.fixture
def dep(tmp_path):
    return deployment(tmp_path / "work")


SECONDS = st.lists(st.integers(-2 * 86_400, 3 * 86_400) | st.sampled_from([0, 86_399, 86_400, 2 * 86_400]), max_size=8)
STEPS = st.lists(st.tuples(st.just("log"), SECONDS) | st.tuples(st.just("look"), st.lists(st.integers(-30, 90), min_size=2, max_size=2, unique=True).map(sorted)) | st.tuples(st.just("fold"), st.none()), min_size=1, max_size=10)


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    return deployment(tmp_path_factory.mktemp("play") / "work")


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, piece=st.sampled_from([1, 3, 1_000]))
def test_any_order_of_rows_and_looks(playground, steps, piece):
    dep, t = playground, tables(playground)[0]
    with dep.ws.store.write() as c:
        c.execute(t.delete())
        forget(c, dep)
    old, windows.PIECE = windows.PIECE, piece
    try:
        for i, (what, how) in enumerate(steps):
            if what == "log": log(dep, how, i)
            elif what == "fold": fold(dep, dep.champion)
            else: check(dep, *(START + pd.Timedelta(hours=h) for h in how))
        check(dep)
        check(dep, since=START)
        check(dep, until=START + pd.Timedelta(hours=7))
    finally: windows.PIECE = old


def test_late_rows_join_their_day(dep):
    log(dep, np.arange(0, 3 * 86_400, 600))
    assert fold(dep, dep.champion) == 432 and fold(dep, dep.champion) == 0
    log(dep, [5, 86_400 + 5, -1], 2)
    check(dep)
    days = kept(dep, dep.champion).days
    assert [p.n for p in days.values()] == [1, 145, 145, 144] and list(days) == sorted(days)
    other = dep.ws.version("m", 2)
    check(dep, version=other)
    assert len(kept(dep, other).days) == 4


def test_only_new_rows_are_read(dep, monkeypatch):
    log(dep, np.arange(0, 5 * 86_400, 600))
    read = []
    def counting(*args, **kw):
        frame, seq = reader(*args, **kw)
        read.append(len(frame))
        return frame, seq
    reader = windows.read_log
    monkeypatch.setattr(windows, "read_log", counting)
    window_profile(dep, dep.champion, START, START + pd.Timedelta(days=5))
    assert sum(read) == 720
    log(dep, np.arange(5 * 86_400, 6 * 86_400, 600), 2)
    read.clear()
    window_profile(dep, dep.champion, START + pd.Timedelta(days=1), START + pd.Timedelta(days=6))
    assert sum(read) == 144
    read.clear()
    window_profile(dep, dep.champion, START + pd.Timedelta(hours=23), START + pd.Timedelta(days=6))
    assert sum(read) == 6


def test_timelines(dep):
    log(dep, np.sort(np.random.default_rng(0).integers(0, 20 * 86_400, 2_000)))
    since, until = START + pd.Timedelta(hours=30), START + pd.Timedelta(days=17, hours=3)
    for days in (1, 7, 30):
        found = window_profiles(dep, dep.champion, since, until, days)
        assert found[0].start == since and found[-1].end == until and all(a.end == b.start for a, b in zip(found, found[1:], strict=False))
        assert all(w.end.hour == 0 for w in found[:-1])
        for w in found: assert w.profile.n == len(predictions(dep, w.start, w.end)) and np.array_equal(w.profile["x"].counts, check(dep, w.start, w.end)["x"].counts)
    assert len(window_profiles(dep, dep.champion)) == 20
    assert [w.profile.n for w in window_profiles(dep, dep.champion, "2012-01-01", "2012-01-03")] == [0, 0]


def test_a_crash_while_writing_changes_nothing(dep, monkeypatch):
    log(dep, np.arange(0, 3 * 86_400, 3_600))
    calls = []
    def fails(*args):
        calls.append(1)
        if len(calls) == 2: raise RuntimeError("the power is gone")
        add(*args)
    add = windows._add_day
    with monkeypatch.context() as m:
        m.setattr(windows, "_add_day", fails)
        with pytest.raises(RuntimeError): fold(dep, dep.champion)
    assert kept(dep, dep.champion) == (0, {})
    assert fold(dep, dep.champion) == 72
    check(dep)


def test_somebody_else_is_faster(dep, monkeypatch):
    log(dep, np.arange(0, 3 * 86_400, 3_600))
    reader, other = windows.read_log, mlnb.open(dep.ws.path)
    def slow(*args, **kw):
        got = reader(*args, **kw)
        monkeypatch.setattr(windows, "read_log", reader)
        there = other.deployment("d")
        assert fold(there, there.champion) == 72  # while this one still counts
        return got
    monkeypatch.setattr(windows, "read_log", slow)
    assert fold(dep, dep.champion) == 0
    check(dep)


@pytest.mark.parametrize("again", [False, True])
def test_rows_that_are_taken_out(dep, monkeypatch, again):
    "A batch job that fails while its rows are being counted; its running numbers are given anew"
    log(dep, np.arange(0, 86_400, 3_600))
    t, reader = tables(dep)[0], windows.read_log
    def slow(*args, **kw):
        got = reader(*args, **kw)
        monkeypatch.setattr(windows, "read_log", reader)
        with dep.ws.store.write() as c:
            c.execute(t.delete().where(t.c.seq > 12))
            forget(c, dep)
        if again: log(dep, np.arange(7 * 86_400, 8 * 86_400, 7_200), 5)
        return got
    monkeypatch.setattr(windows, "read_log", slow)
    check(dep)
    assert sum(p.n for p in kept(dep, dep.champion).days.values()) == (24 if again else 12)


def test_a_log_that_lost_its_last_rows(dep):
    log(dep, np.arange(0, 86_400, 3_600))
    fold(dep, dep.champion)
    t = tables(dep)[0]
    with dep.ws.store.write() as c: c.execute(t.delete().where(t.c.seq > 20))
    check(dep)
    assert kept(dep, dep.champion).upto == 20


def test_a_failed_batch_job_forgets(dep, tmp_path, monkeypatch):
    from mlnb.deploy import batch, logged
    frame = rows(100, 3)
    def fails(*args, **kw):
        if kw["ids"][0] == "50": raise OSError("the disk is full")
        real(*args, **kw)
        fold(dep, dep.champion)
    def run(**options): return batch.score(dep, frame.assign(id=np.arange(100)), tmp_path / "out.parquet", id="id", at="2013-07-01", batch_rows=50, progress=False, **options)
    real = logged.log_predictions
    log(dep, [0, 1])
    monkeypatch.setattr(logged, "log_predictions", fails)
    with pytest.raises(OSError): run()
    assert check(dep).n == 52
    with pytest.raises(OSError): run(resume=False)
    assert check(dep).n == 52
    monkeypatch.undo()
    run()
    assert check(dep).n == 102


def test_read_only_and_old_workspaces(dep, tmp_path):
    log(dep, np.arange(0, 2 * 86_400, 3_600))
    path = dep.ws.path
    def look(): return check((there := mlnb.open(path, read_only=True)).deployment("d"), START + pd.Timedelta(hours=3), None) and there
    look()
    assert kept(dep, dep.champion) == (0, {})
    fold(dep, dep.champion)
    log(dep, [7, 86_400 * 3], 4)
    look()
    assert sum(p.n for p in kept(dep, dep.champion).days.values()) == 48
    with dep.ws.store.write() as c:  # as an older version left it
        for t in (store.WINDOWS, store.FOLDED): t.drop(c)
    look()
    dep.ws.close()
    again = mlnb.open(path).deployment("d")
    check(again)
    assert kept(again, again.champion).upto == 50


WORKER = """
import sys, mlnb
from mlnb.core.windows import fold
from mlnb.core import windows
windows.PIECE = 40
ws = mlnb.open(sys.argv[1])
dep = ws.deployment("d")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30): fold(dep, dep.champion)
"""


def test_processes_at_once(dep):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(dep.ws.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for w in workers: assert w.stdout.readline() == "ready\n"
        for w in workers:
            w.stdin.write("\n")
            w.stdin.flush()
        for i in range(30): log(dep, np.random.default_rng(i).integers(0, 4 * 86_400, 40), i)
        for w in workers: assert w.wait(120) == 0
    finally:
        for w in workers:
            if w.poll() is None: w.kill()
            w.wait(20)
            for pipe in (w.stdin, w.stdout): pipe.close()
    check(dep)
    state = kept(dep, dep.champion)
    assert state.upto == 1_200 and sum(p.n for p in state.days.values()) == 1_200
    with dep.ws.store.read() as c:
        assert c.scalar(sa.select(sa.func.sum(store.WINDOWS.c.rows))) == 1_200 and c.scalar(sa.select(sa.func.count()).select_from(store.FOLDED)) == 1
        assert c.scalar(sa.select(sa.func.max(store.WINDOWS.c.day))) == (START.value // 1_000 // DAY) + 3


def test_days_are_small(dep):
    log(dep, np.repeat(np.arange(0, 86_400, 3_600), 50))
    fold(dep, dep.champion)
    size = partial(sa.select, sa.func.max(sa.func.length(store.WINDOWS.c.profile)))
    with dep.ws.store.read() as c: assert c.scalar(size()) < 1_000 * len(reference(dep, dep.champion).columns)
