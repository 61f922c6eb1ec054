"""A workspace in a PostgreSQL database: it says what the same one in a folder says, several processes use it at once, and it is told plainly when the server fails."""
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from cluster import PASSWORD, Cluster
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import mlnb
from mlnb.core import outcomes, postgres, store as st, windows
from mlnb.core.errors import ArtefactError, MissingExtra, NotFound, ParameterError, WorkspaceError
from mlnb.core.events import log_predictions, tables
from mlnb.core.exposures import read_exposed, read_shadowed
from mlnb.deploy import processes
from mlnb.deploy.serve import listen

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(server: Cluster) -> str:
    "The address of a new database"
    return server.database()


@pytest.fixture
def ws(url, tmp_path):
    with mlnb.open(url, folder=tmp_path / "files") as ws: yield ws


def rows(n=2000):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"x": rng.normal(size=n), "city": pd.Categorical(rng.choice(["Ulm", "Ö'\"%s \\"], n)), "when": pd.date_range("2013-01-01", periods=n, freq="h", tz="UTC"),
                      "flag": rng.random(n) > .5, "k": rng.integers(0, 9, n)})
    X.loc[3, "x"] = np.nan
    return X, np.where(X["x"] > 0, "yes", "no")


def fitted(X, y, c=1.): return make_pipeline(make_column_transformer((SimpleImputer(), ["x", "k"])), LogisticRegression(C=c)).fit(X, y)


def small(ws, name="d"):
    "A deployment with one feature"
    X, y = pd.DataFrame({"x": np.arange(100.)}), np.arange(100) > 50
    return ws.deploy(name, ws.register("m", LogisticRegression().fit(X, y), X, y, at="2013-01-01"), at="2013-01-01")


def clients(code, *args, n=1, **options):
    "Python processes that run `code`"
    return [subprocess.Popen([sys.executable, "-c", code, *map(str, args), str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) for i in range(n)]


def ended(processes):
    "What processes printed; fails if one of them failed"
    try:
        said = [p.communicate(timeout=180) for p in processes]
        assert [p.returncode for p in processes] == [0] * len(processes), said
        return [out for out, _ in said]
    finally:
        for p in processes: p.kill()


# The same life in a folder and in a database

def life(ws):
    "What a workspace says in the course of a life, by name"
    X, y = rows()
    v1, v2 = (ws.register("m", fitted(X, y, c), X, y, at="2013-01-01", time=X["when"]) for c in (1., .01))
    dep, n, say = ws.deploy("d", v1, at="2013-01-01"), len(X), {}
    said = dep.predict(X, ids=[f"i{i}" for i in range(n)], at=X["when"], unit=[f"u{i % 100}" for i in range(n)])
    say["receipt"] = dep.feedback(pd.DataFrame({"id": said["id"], "y": y, "at": X["when"]}).iloc[:1500])
    say["receipt again"] = dep.feedback([{"id": "i0", "y": "yes", "at": "2013-05-01"}, {"id": "nobody", "y": "no", "at": "2013-05-01"}])
    say["predictions"], say["some"] = dep.predictions(), dep.predictions("2013-02-01", "2013-02-02", ["id", "x"])
    say["labelled"], say["as of"], say["summary"] = dep.labelled(), dep.labelled(as_of="2013-02-01"), dep.feedback_summary()
    say["drift"] = dep.drift("2013-02-01", "2013-03-01").table()
    say["performance"] = dep.performance("2013-01-01", "2013-03-01", chunk="7D").table()
    say["outcomes"] = dep.record_outcomes({"unit": ["u1", "u2"], "revenue": [3.5, np.nan], "at": ["2013-02-01"] * 2}), outcomes.outcomes(dep)
    say["scored"] = dep.score(X.head(100), ws.path / "scored.parquet", at="when", progress=False).read().drop(columns="id")
    say["precomputed"] = dep.precompute(X.assign(key=range(n)), "key", at="when", log=False, progress=False), dep.precompute(X.head(5).assign(key=range(5)), "key", at="when", log=False, progress=False)
    say["lookup"] = {k: v for k, v in dep.lookup(7).items() if k not in ("id", "computed_at", "age_seconds")}
    r = dep.rollout(v2, {"shadow": True, "canary": [.5]}, at="2013-04-01", salt="s")
    def ask(name, day):
        for a in range(0, 60, 20):
            part = X.iloc[a:a + 20].reset_index(drop=True)
            dep.predict(part, ids=[f"{name}{a}-{i}" for i in range(20)], at=day, unit=[f"u{a + i}" for i in range(20)])
        dep.feedback({"id": [f"{name}0-{i}" for i in range(20)], "y": y[:20], "at": [day] * 20})
    ask("s", "2013-04-01T12:00")
    say["lag"] = dep.mirror()
    say["shadowed"] = [f.drop(columns="ms") for f in read_shadowed(dep, r.id, 2)]
    say["where"] = r.where
    r.next("enough", at="2013-04-03")
    ask("c", "2013-04-03T12:00")
    say["exposed"] = read_exposed(dep, r.id, [1]).drop(columns="ms")
    r.promote("better", at="2013-04-05")
    say["moves"], say["history"], say["decisions"], say["champion"] = r.moves(), dep.history(), dep.decisions(), dep.champion.label
    run = ws.run("drift", deployment="d", since="2013-02-01", until="2013-03-01", harm=False, segments=False, multivariate=False, progress=False)
    say["report"] = run.verdict, run.params, run.result["reasons"], run.html.exists(), run.notebook.exists()
    say["reports"] = ws.reports()[["name", "deployment", "status", "verdict", "decision"]]
    say["models"] = ws.models(), [repr(v) for v in ws.versions("m")], v2.training_data()
    return say


def same(a, b):
    "Fail if two results are not the same"
    if isinstance(a, pd.DataFrame): return pd.testing.assert_frame_equal(a, b)
    if isinstance(a, (list, tuple)): return [same(x, y) for x, y in zip(a, b, strict=True)]
    assert a == b


@pytest.fixture(scope="module")
def lived(server, tmp_path_factory):
    "The workspace after its life, its address and what it said"
    url, files = server.database(), tmp_path_factory.mktemp("lived") / "files"
    with mlnb.open(url, folder=files) as ws: yield ws, url, life(ws)


def test_a_database_says_what_a_folder_says(lived, tmp_path):
    with mlnb.open(tmp_path / "folder") as other: want = life(other)
    got = lived[2]
    assert list(want) == list(got) and len(want["predictions"]) == 2000
    for name in want:
        try: same(want[name], got[name])
        except AssertionError as e: raise AssertionError(f"{name}: {e}") from e


def texts(server, url):
    "All that is kept in a database as text"
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(url) as c:
        tables = [r[0] for r in c.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")]
        assert {"models", "artefacts", "log_1"} <= set(tables), name
        return "\n".join(str(r) for t in tables if t != "artefacts" for r in c.execute(f'SELECT * FROM "{t}"'))


def test_text_is_in_order_of_its_bytes_and_numbers_have_64_bits(lived):
    with psycopg.connect(lived[1]) as c:
        columns = c.execute("SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns WHERE table_schema = 'public'").fetchall()
    assert {r[3] for r in columns if r[2] == "text"} == {"C"} and len(columns) > 100
    assert {r[2] for r in columns if r[1] in ("id", "seq") and r[2] != "text"} == {"bigint"}


def test_the_password_is_nowhere(lived, server, capfd):
    ws, url, _ = lived
    held = "".join(p.read_bytes().decode("latin-1") for p in ws.path.rglob("*") if p.is_file())
    assert "postgresql://mlnb@127.0.0.1" in held
    print(ws, repr(ws.store), ws.store.engine, ws.deployments(), ws.store.name)
    for text in (held, texts(server, url), *capfd.readouterr()):
        for secret in (PASSWORD, url.split(":")[2].split("@")[0]): assert secret not in text


def test_the_folder_of_a_database_is_opened_like_a_workspace(lived, server, monkeypatch):
    ws, url, _ = lived
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with mlnb.open(ws.path, read_only=True) as again:
        assert again.store.name == ws.store.name and again.deployment("d").champion.label == "m v2"
        assert len(again.deployment("d").predictions()) > 2000
    for where in (str(ws.path), url):
        done = subprocess.run([str(Path(sys.executable).with_name("mlnb")), "ls", "deployments", "-w", where, "--json"], capture_output=True, text=True, timeout=120)
        assert json.loads(done.stdout)["deployments"][0]["champion"] == "m v2", done.stderr
    with pytest.raises(WorkspaceError, match="belongs to postgresql://mlnb@127.0.0.1:.*; give the files of postgresql://mlnb@127.0.0.1:.* another folder="):
        mlnb.open(server.database(), folder=ws.path)


# Several at once

WORK = """
import sys, numpy as np, pandas as pd, mlnb
from sklearn.linear_model import LogisticRegression
url, folder, who = sys.argv[1:4]
ws = mlnb.open(url, folder=folder)
X, y = pd.DataFrame({"x": np.arange(100.)}), np.arange(100) > 50
model = LogisticRegression().fit(X, y)
for i in range(5): ws.register("m", model, X, y)
dep = ws.deployment("d")
for i in range(40):
    said = dep.predict(X.head(5), ids=[f"{who}-{i}-{j}" for j in range(5)], at="2013-02-01")
    dep.feedback({"id": said["id"], "y": [True] * 5})
"""


def test_processes_register_predict_and_label_at_once(ws, url):
    dep = small(ws)
    ended(clients(WORK, url, ws.path, n=3))
    assert [v.number for v in ws.versions("m")] == list(range(1, 17))
    rows = dep.labelled()
    assert len(rows) == rows["id"].nunique() == 600 and rows["y_true"].notna().all()
    assert dep.feedback_summary() == {"labels": 600, "labelled": 600, "unknown": 0, "repeated": 0, "disagree": 0}


OPEN = "import sys, mlnb; ws = mlnb.open(sys.argv[1], folder=sys.argv[2] + sys.argv[3]); print(ws.models())"


def test_processes_make_one_new_workspace_at_once(url, tmp_path):
    assert ended(clients(OPEN, url, tmp_path / "files", n=4)) == ["[]\n"] * 4


ROLL = """
import sys, mlnb
dep = mlnb.open(sys.argv[1], folder=sys.argv[2]).deployment("d")
print(dep.rollout(2, {"shadow": False, "canary": [.5]}, reason=sys.argv[3]).id)
"""


def test_one_rollout_begins_and_one_move_is_made(ws, url):
    dep = small(ws)
    X, y = pd.DataFrame({"x": np.arange(100.)}), np.arange(100) > 50
    ws.register("m", LogisticRegression(C=.1).fit(X, y), X, y)
    assert len(set(ended(clients(ROLL, url, ws.path, n=3)))) == 1
    with ThreadPoolExecutor(8) as pool: done = list(pool.map(lambda i: attempt(lambda: mlnb.open(url, folder=ws.path).deployment("d").rollout().hold(f"hold {i}")), range(8)))
    moves = dep.rollout().moves()
    assert len(moves) == 2 + done.count(None) and moves["number"].is_unique and done.count(None) >= 1
    with pytest.raises(sa.exc.IntegrityError, match="one_active_rollout"), ws.store.write() as c:
        c.execute(st.ROLLOUTS.insert().values(deployment_id=dep.id, versions="[]", plan="{}", salt="", state="draft", stage=0, moves=0, active=1, started=0))


def attempt(f):
    "None, or the error"
    try: f()
    except mlnb.MlnbError as e: return e


def test_an_id_is_logged_once_by_whoever_comes_first(ws, url):
    dep, X = small(ws), pd.DataFrame({"x": np.arange(20.)})
    def log(i): return attempt(lambda: dep.predict(X, ids=[f"same{j}" for j in range(20)]))
    with ThreadPoolExecutor(4) as pool: errors = [e for e in pool.map(log, range(4)) if e]
    assert len(errors) == 3 and all("20 of 20 prediction ids are in the log of 'd' already" in str(e) for e in errors), errors
    assert len(dep.predictions()) == 20


KILLED = """
import sys, numpy as np, pandas as pd, mlnb
dep = mlnb.open(sys.argv[1], folder=sys.argv[2]).deployment("d")
X = pd.DataFrame({"x": np.arange(50.)})
for i in range(100000):
    dep.predict(X, ids=[f"{sys.argv[3]}-{i}-{j}" for j in range(50)])
    print(i, flush=True)
"""


def test_a_killed_client_loses_nothing_that_it_was_told_is_kept(ws, url):
    dep, told = small(ws), []
    for attempt in range(3):
        p = clients(KILLED.replace("sys.argv[3]", f"'k{attempt}'"), url, ws.path)[0]
        try:
            said = list(itertools.islice(p.stdout, 10 * (attempt + 1)))
            os.kill(p.pid, signal.SIGKILL)
            said += p.stdout.readlines()
        finally:
            p.kill()
            p.wait(30)
        told += [f"k{attempt}-{int(line)}" for line in said if line.endswith("\n")]
    assert len(told) >= 60
    kept = dep.predictions()["id"].str.rsplit("-", n=1).str[0].value_counts()
    assert set(told) <= set(kept.index) and set(kept) == {50}  # all of a batch, or none


# Who waits for whom

def test_those_who_log_wait_neither_for_each_other_nor_for_a_writer(ws):
    dep = small(ws)
    log = tables(dep)[0]
    with ws.store.write() as c, ws.store.append() as first, ws.store.append() as second:
        c.execute(st.MODELS.insert().values(name="other", created=0))
        for i, a in enumerate((second, first)): st.insert(a, log.name, ["id", "at", "logged", "version", "source"], [(f"i{i}", 0, 0, 1, "python")])
        assert ws.models() == ["m"]
    assert ws.models() == ["m", "other"] and list(dep.predictions()["id"]) == ["i0", "i1"]


def test_one_writes_at_a_time(ws):
    order, begun = [], threading.Event()
    def second():
        begun.set()
        with ws.store.write(): order.append("second")
    thread = threading.Thread(target=second)
    with ws.store.write():
        thread.start()
        assert begun.wait(10)
        thread.join(.5)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_rows_that_appear_late_are_counted(ws):
    "A row may appear after one with a larger number; windows, which count each row once, must not pass it by"
    dep = small(ws)
    log = tables(dep)[0]
    day = 1_360_000_000_000_000
    def add(c, id): st.insert(c, log.name, ["id", "at", "logged", "version", "source", *log.c.keys()[7:]], [(id, day, day, 1, "python", 1., "True", .5)])
    late, entered = ws.store.append(), threading.Event()
    def look():
        entered.set()
        return windows.window_profile(dep, dep.champion)[1]
    with late as c, ThreadPoolExecutor(1) as pool:
        add(c, "early number")
        with ws.store.append() as other: add(other, "late number")
        counting = pool.submit(look)
        assert entered.wait(10)
        with pytest.raises(TimeoutError): counting.result(.5)
        c.commit()
        assert counting.result(30) == 2
    assert list(dep.predictions()["id"]) == ["early number", "late number"]


# What is kept comes back

def test_every_kind_of_column_comes_back_as_it_went(ws):
    n = 60
    X = pd.DataFrame({
        "Temp": np.linspace(-1, 1, n), "temp": np.arange(n), "f32": np.arange(n, dtype="float32") / 3, "flag": np.arange(n) % 2 == 0,
        "city": pd.Categorical(np.where(np.arange(n) % 3, "New York", 'O\'Hare "x"')), "when": pd.date_range("2013-01-01", periods=n, freq="h", tz="UTC"),
        "note": [f"note {i}; drop table log_1 -- é \\ %s %(x)s" for i in range(n)], "100 % (of) é" * 20: np.arange(n) * 1e15, "ü" * 100: np.arange(n) * 1., "ü" * 99 + "x": np.arange(n) * 2.,
    })
    X.loc[3, "Temp"] = np.nan
    X.loc[4, "city"] = None
    dep = ws.deploy("d", ws.register("m", DummyRegressor().fit(X, np.arange(n)), X, np.arange(n, dtype=float)), at="2013-01-01")
    log_predictions(dep, X, dep.champion.predict(X), at=X["when"])
    back = dep.predictions()
    for name in X:
        want, got = X[name].astype(object).where(X[name].notna(), None), back[name].astype(object).where(back[name].notna(), None)
        assert list(got) == list(want), name
    log = tables(dep)[0]
    with ws.store.read() as c: assert c.scalar(sa.select(sa.func.count()).where(log.c.x0_Temp.is_(None))) == 1  # missing numbers are NULL, not NaN
    assert dep.precompute(X.assign(key=[f"{i} %" for i in range(n)]), "key", progress=False) == n
    assert dep.lookup("7 %")["prediction"] == back["prediction"].iloc[0]


def test_bulk_reads_are_equal(ws, tmp_path):
    t = sa.Table("readings", sa.MetaData(), sa.Column("seq", st.NUMBER, primary_key=True), sa.Column("small", sa.Integer), sa.Column("big", sa.BigInteger), sa.Column("wind", sa.Float), sa.Column("note", st.TEXT))
    odd = [None, "", "é", "a'b\\c", "%s", "%%", "x" * 10_000]
    data = [(i, i % 7 if i % 3 else None, 2**62 + i, [np.nan, np.inf, -np.inf, 1 / 3, 5e-324][i % 5], odd[i % len(odd)]) for i in range(1, 5001)]
    got = []
    for store in (ws.store, st.open_store(tmp_path / "folder")):
        with store.write() as c:
            t.create(c)
            assert st.insert(c, "readings", list(t.c.keys()), data) == 5000
        query = sa.select(t.c.seq, t.c.small, t.c.big, t.c.wind, t.c.note, (t.c.seq % 2 == 0).label("even"), sa.func.count().over().label("n"))
        found = [st.fetch(store, q) for q in (query, query.where(t.c.note.in_(["%s", "a'b\\c"]), t.c.seq > 9), query.where(t.c.seq < 0), query.where(t.c.note.like("%é")))]
        got.append([f.sort_by("seq") for f in found])
    assert [f.num_rows for f in got[0]] == [5000, 1426, 0, 715]
    for a, b in zip(*got, strict=True): assert a.schema == b.schema and a.equals(b)


def test_text_with_nul_is_refused_and_service_continues(ws):
    X = pd.DataFrame({"note": ["a", "b"] * 20, "x": np.arange(40.)})
    model = make_pipeline(make_column_transformer((SimpleImputer(), ["x"])), LogisticRegression()).fit(X, np.arange(40) > 20)
    dep = ws.deploy("d", ws.register("m", model, X, np.arange(40) > 20))
    for f in (lambda: dep.predict(X.head(2), ids=["i", "a\0b"]), lambda: dep.predict(X.head(2), unit="u\0"), lambda: dep.feedback([{"id": "a\0", "y": True}]), lambda: dep.lookup("k\0"),
              lambda: dep.labelled("2013-01-01").pipe(lambda _: st.fetch(ws.store, sa.select(st.MODELS).where(st.MODELS.c.name == "\0")))):
        with pytest.raises(ParameterError, match="NUL"): f()
    assert len(dep.predict(X.head(2))) == len(dep.predictions()) == 2
    with dep.serve() as server:
        assert post(server.url + "/predict/d", {"records": [{"note": "n", "x": 1.}], "unit": "a\0"})[0] == 400
        status, said = post(server.url + "/predict/d", {"records": [{"note": "n", "x": 1.}]})
        assert status == 200 and said["predictions"][0]["prediction"] == "False"


def post(url, content):
    "Status and answer of a request"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"}), timeout=60) as r: return r.status, json.load(r)
    except urllib.error.HTTPError as e: return e.code, json.load(e)


def test_artefacts_are_kept_in_pieces_once_and_checked(ws):
    data = np.random.default_rng(0).bytes(40 * 2**20)
    sha = st.put(ws.store, data)
    assert st.put(ws.store, data) == sha and st.get(ws.store, sha) == data
    assert st.get(ws.store, st.put(ws.store, b"")) == b""
    with ws.store.engine.begin() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM artefacts WHERE sha = %s", (sha,)).scalar() == 3
        c.exec_driver_sql("UPDATE artefacts SET data = 'x' WHERE sha = %s AND piece = 1", (sha,))
    with pytest.raises(ArtefactError, match="was changed after it was registered"): st.get(ws.store, sha)
    with pytest.raises(ArtefactError, match="artefact abc is missing from postgresql://mlnb@127.0.0.1"): st.get(ws.store, "abc")
    assert not (ws.path / "artefacts").exists()


# What is refused

@pytest.mark.parametrize("user,password,database,said", [
    ("mlnb", "wr0ng", "postgres", "password authentication failed for user .*; give the right one in the address, in PGPASSWORD or in ~/.pgpass"),
    ("stranger", PASSWORD, "postgres", "password authentication failed"),
    ("mlnb", PASSWORD, "nowhere", 'database "nowhere" does not exist.*; make it with createdb'),
])
def test_an_address_that_is_wrong_is_told_without_its_password(server, tmp_path, user, password, database, said):
    with pytest.raises(WorkspaceError, match=f"postgresql://{user}@127.0.0.1:{server.port}/{database} cannot be reached .*{said}") as caught:
        mlnb.open(server.url(database, user, password), folder=tmp_path / "files")
    assert password not in "".join(map(str, (caught.value, caught.value.__cause__, caught.value.__context__)))
    assert not (tmp_path / "files").exists()


def test_databases_that_are_not_ours_are_left_alone(server, tmp_path):
    def refused(url, said, **options):
        with pytest.raises(WorkspaceError, match=said): mlnb.open(url, folder=tmp_path / "files", **options)
    def there(url):
        with psycopg.connect(url) as c: return sorted(r[0] for r in c.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
    url = server.database()
    refused(url, "there is no workspace in postgresql://mlnb@.*; open it without read_only=True to make one", read_only=True)
    assert there(url) == []
    with psycopg.connect(url) as c: c.execute("CREATE TABLE meta (x int)")
    refused(url, "has tables that mlnb did not make, such as 'meta'; nothing was changed")
    assert there(url) == ["meta"]
    with mlnb.open(newer := server.database(), folder=tmp_path / "newer") as ws, ws.store.write() as c: c.execute(st.META.update().values(value="99"))
    for read_only in (False, True): refused(newer, "has format 99, and this mlnb knows formats up to 1", read_only=read_only)
    latin = server.database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    refused(latin, "is encoded in LATIN1; make one with createdb --encoding=UTF8")
    assert there(latin) == []


def test_looking_changes_nothing_and_needs_no_right_to_write(ws, url, server):
    dep = small(ws)
    dep.predict(pd.DataFrame({"x": [1., 2.]}))
    name = url.rsplit("/", 1)[1]
    server.sql("DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN PASSWORD 'only looks'")
    server.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database=name)
    reader = server.url(name, "reader", "only looks")
    with mlnb.open(reader, read_only=True, folder=ws.path / "none") as looking:
        seen = looking.deployment("d")
        assert len(seen.labelled()) == 2 and looking.deployment("d").champion.load() and not (ws.path / "none").exists()
        with pytest.raises(WorkspaceError, match="postgresql://reader@.* was opened read-only"): seen.predict(pd.DataFrame({"x": [1.]}))
        with pytest.raises(NotFound, match="no precomputed prediction"): seen.lookup("x")
    with mlnb.open(reader, folder=ws.path / "none") as writing, pytest.raises(WorkspaceError, match="the user has not the right to do this; grant it, or open it with read_only=True"):
        writing.deployment("d").predict(pd.DataFrame({"x": [1.]}))
    server.sql("DROP OWNED BY reader", database=name)
    server.sql("DROP ROLE reader")


def test_processes_of_a_service_and_of_a_batch_open_the_database(ws, tmp_path):
    dep = small(ws)
    with listen("127.0.0.1", 0, None) as sock:
        worker = processes.Worker(dep, processes.Setup(), sock)
        try:
            worker.start()
            assert post(f"http://127.0.0.1:{sock.getsockname()[1]}/predict", {"x": 3.})[0] == 200
        finally: worker.stop()
    pq.write_table(pa.table({"x": np.arange(4000.)}), tmp_path / "rows.parquet", row_group_size=1000)
    done = dep.score(tmp_path / "rows.parquet", tmp_path / "said.parquet", workers=2, batch_rows=100, progress=False)
    assert done.rows == 4000 and len(dep.predictions()) == 4001
    done = dep.score(tmp_path / "rows.parquet", tmp_path / "again.parquet", engine="dask", workers=2, batch_rows=1000, log=False, progress=False)
    assert done.rows == 4000 and pq.read_table(tmp_path / "again.parquet")["score"].equals(pq.read_table(tmp_path / "said.parquet")["score"])


def test_schemas_hold_workspaces_apart(url, tmp_path):
    with psycopg.connect(url) as c: c.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    for schema in ("one", "two"):
        with mlnb.open(f"{url}?options=-csearch_path%3D{schema}", folder=tmp_path / schema) as ws:
            small(ws, schema).predict(pd.DataFrame({"x": [1.]}))
            assert [d.name for d in ws.deployments()] == [schema] and len(ws.deployment(schema).predictions()) == 1


@pytest.mark.parametrize("module", ["psycopg", "adbc_driver_postgresql"])
def test_a_missing_driver_names_the_extra(monkeypatch, module, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'mlnb\[postgres\]'"): mlnb.open("postgresql://me:secret@127.0.0.1/x", folder=tmp_path)


# A server that fails

def test_a_connection_that_dies_in_a_transaction_keeps_nothing(ws):
    def end(c): return c.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    def kill(pid):
        with ws.store.engine.connect() as c: c.exec_driver_sql("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    def add(c, name): c.execute(st.MODELS.insert().values(name=name, created=0))
    with pytest.raises(WorkspaceError, match="was lost .*; nothing of this change was kept, try again when the server is back"), ws.store.write() as c:
        add(c, "half")
        kill(end(c))
        add(c, "other half")
    with pytest.raises(WorkspaceError, match="was lost at the end of a change .*; it may have been kept or not"), ws.store.write() as c:
        add(c, "half")
        kill(end(c))
    with ws.store.write() as c: add(c, "whole")
    assert ws.models() == ["whole"]


def test_service_continues_when_the_server_is_back(tmp_path, server):
    "Stopped politely, and as if it had crashed; between the two, what was answered is in the log"
    url = server.database()
    with mlnb.open(url, folder=tmp_path / "files") as ws:
        dep, asked, answered = small(ws), {"records": [{"x": 1.}]}, []
        with dep.serve(tick=.2) as service:
            def ask(want):
                status, said = post(service.url + "/predict/d", asked)
                assert status == want, said
                if status == 200: answered.append(said["predictions"][0]["id"])
                return said
            for how in (signal.SIGINT, signal.SIGQUIT):
                ask(200)
                server.stop(how)
                try:
                    for _ in range(2):
                        said = ask(503)["error"]
                        assert "postgresql://mlnb@127.0.0.1" in said and PASSWORD not in said and ("cannot be reached" in said or "was lost" in said), said
                    with pytest.raises(WorkspaceError, match="cannot be reached"): dep.predictions()
                    with pytest.raises(WorkspaceError, match="cannot be reached"): mlnb.open(url, folder=tmp_path / "files")
                finally: server.start()
                ask(200)
            server.stop()  # and nobody notices
            server.start()
            ask(200)
            assert set(answered) == set(dep.predictions()["id"]) and len(answered) == 5


# The fast path of a server

def test_requests_that_wait_are_logged_together_and_a_promotion_is_seen_at_once(ws, url):
    dep, n = small(ws), 8
    X, y = pd.DataFrame({"x": np.arange(100.)}), np.arange(100) > 50
    v2 = ws.register("m", LogisticRegression(C=.1).fit(X, y), X, y)
    answered, groups = [], []
    def ask():
        status, said = post(service.url + "/predict/d", {"records": [{"x": 1.}]})
        assert status == 200, said
        answered.append(said["predictions"][0]["id"])
        return answered[-1], said["version"]
    with dep.serve(tick=None) as service, ThreadPoolExecutor(n) as pool:
        ask()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(g <= n // 2 for g in groups):  # the first requests go the general way
            with postgres.locked(ws.store.engine, postgres.APPEND):  # nobody can log now, so they gather
                asked = [pool.submit(ask) for _ in range(n)]
                waiting(ws)
                time.sleep(.3)
            mine = [f.result(60)[0] for f in asked]
            log = tables(dep)[0]
            groups.append(len({r[0] for r in ws.rows(sa.select(log.c.logged).where(log.c.id.in_(mine)))}))
        assert min(groups) <= n // 2, groups
        assert ask()[1] == 1
        with mlnb.open(url, folder=ws.path) as other: other.deployment("d").promote(v2, "simpler")
        assert ask()[1] == 2
    kept = list(dep.predictions()["id"])
    assert sorted(kept) == sorted(answered) and len(set(kept)) == len(kept)


def waiting(ws):
    "Wait until somebody waits for a lock"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with ws.store.engine.connect() as c:
            if c.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").scalar(): return
        time.sleep(.02)
    raise AssertionError("nobody waits")
