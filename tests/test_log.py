"""The upkeep of the log: no reader can tell that rows were moved to files, nothing is lost under SIGKILL, and what is forgotten is gone."""
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as h
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import mlnb
from mlnb.core import archive, events, windows
from mlnb.core.compaction import holdings, lasting_numbers
from mlnb.core.datasets import FLIGHT_FEATURES, flights
from mlnb.core.errors import ArtefactError, ParameterError, SchemaError
from mlnb.core.exposures import log_shadows, read_exposed, read_shadowed
from mlnb.core.privacy import hashed, keeper
from mlnb.core.retention import Removed
from mlnb.rollout.mirror import shadows, waiting
from mlnb.rollout.release import latest

ANN = "Ann Example of Cork"


def weeks(n: int = 3000) -> pd.DataFrame:
    "Flights of January to March, a few a day"
    f = flights()
    f = f[f["at"] < "2013-04-01"]
    f = f.iloc[np.linspace(0, len(f) - 1, n).astype(int)].reset_index(drop=True)
    return f.assign(late=np.where(f["arr_delay"] > 15, "late", "on time"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A workspace with a log of three months, labels, outcomes, a rollout with a shadow and an A/B stage, and lookups"
    folder, f = tmp_path_factory.mktemp("log") / "work", weeks()
    X = f[FLIGHT_FEATURES]
    with mlnb.open(folder) as ws:
        for i in (4, 2): ws.register("late", HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=i, random_state=0).fit(X, f["late"]), X, f["late"], time=f["at"], at="2013-01-01")
        dep = ws.deploy("late", ws.version("late", 1), at="2013-01-01")
        unit = [ANN if i % 97 == 0 else f"{c}{i % 400}" if i % 5 else None for i, c in enumerate(f["carrier"].astype(str))]
        def ask(a: int, b: int, **more: object) -> pd.DataFrame: return dep.predict(X[a:b], at=f["at"][a:b], unit=unit[a:b], **more)
        said = [ask(0, 800), ask(800, 1000, ids=[f"flight {i}" for i in range(800, 1000)])]
        rollout = dep.rollout(2, {"shadow": True, "canary": [.5], "ab": True, "min_units": 10}, at="2013-01-25", salt="s")
        said.append(ask(1000, 1600))
        ids = said[-1]["id"].tolist()
        log_shadows(dep, rollout.id, ws.version("late", 2), ids[:400], ws.version("late", 2).predict(X[1000:1400]), [.5] * 400)
        rollout.next("enough", at="2013-02-20")
        said.append(ask(1600, 3000))
        every = pd.concat(said, ignore_index=True)
        labels = pd.DataFrame({"id": every["id"], "y": f["late"], "at": f["label_at"].fillna(f["at"] + pd.Timedelta("1D"))})
        dep.feedback(labels[::3])
        dep.feedback(labels[::30].assign(y="late", at=labels["at"][::30] + pd.Timedelta("2D")))
        dep.feedback([{"id": "never asked", "y": "late", "at": "2013-01-05"}])
        dep.record_outcomes(pd.DataFrame({"unit": [u or "x" for u in unit[::7]], "refund": 1.5, "at": f["at"][::7]}))
        dep.record_outcomes(pd.DataFrame({"id": every["id"][::11], "rebooked": 1, "at": f["at"][::11]}))
        dep.precompute(X[:3].assign(who=[ANN, "Bob", "Cleo"]), key="who", at="2013-03-20", progress=False)
        windows.fold(dep, dep.champion)
    return folder


@pytest.fixture
def dep(template: Path, tmp_path: Path) -> mlnb.Deployment:
    shutil.copytree(template, tmp_path / "work")
    return mlnb.open(tmp_path / "work").deployment("late")


def everything(dep: mlnb.Deployment) -> dict[str, object]:
    "What every reader of the log says"
    rollout, v2 = latest(dep).id, dep.ws.version("late", 2)
    champion, challenger = read_shadowed(dep, rollout, 2, features=True)
    newest = int(events.read_log(dep, columns=["at"])[1].max())
    found: dict[str, object] = {
        "predictions": dep.predictions(), "window": dep.predictions("2013-01-20 07:00", "2013-02-11"), "columns": dep.predictions(columns=["unit", "score", "dest"]), "one": dep.predictions("2013-02-01", "2013-02-02"),
        "numbers": events.read_log(dep)[1], "part": events.read_log(dep, after=500, upto=1500)[0], "later": events.read_log(dep, columns=["id"], after=newest - 5)[0], "both": events.read_log(dep, "2013-01-15", None, ["at"], after=700)[1],
        "labelled": dep.labelled(), "as_of": dep.labelled("2013-01-10", "2013-02-15", as_of="2013-02-03", columns=["id", "at", "score"]), "summary": dep.feedback_summary(),
        "exposed": read_exposed(dep, rollout, [0, 1, 2, 3], features=True), "exposed then": read_exposed(dep, rollout, [0], until="2013-02-01", as_of="2013-02-03"), "champion": champion, "challenger": challenger,
        "extent": events.extent(dep), "counts": [events.count_log(dep, a, b) for a, b in [(None, None), ("2013-01-31", "2013-02-01 12:00"), ("2013-02-01", None), (None, "2013-01-01")]],
        "profile": windows.window_profile(dep, v2, "2013-01-03 11:00", "2013-03-02 13:00")[0].to_json(), "days": [(w.start, w.profile.n) for w in windows.window_profiles(dep, dep.champion)],
        "drift": dep.drift("2013-02-01", "2013-03-01").table(), "timeline": dep.drift_over_time(chunk="7D").table(), "performance": dep.performance(chunk="7D", as_of="2013-04-10").table(), "outcomes": dep.outcomes()}
    if tasks := shadows(dep): found["waiting"] = waiting(tasks[0], 0, 10_000)[0]
    return found


def same(a: dict[str, object], b: dict[str, object]) -> None:
    "Fails unless two readings are equal, with types and order"
    assert a.keys() == b.keys()
    for k, x in a.items():
        if isinstance(x, pd.DataFrame): pd.testing.assert_frame_equal(x, b[k], obj=k)
        elif isinstance(x, np.ndarray): np.testing.assert_array_equal(x, b[k], k)
        else: assert x == b[k], k


# -- one table


@pytest.mark.parametrize("how", [{"before": "2013-04-01"}, {"before": "2013-02-14"}, {"before": "2013-02-14", "by": "day"}, {"before": "2013-03-01", "most": 130}], ids=["all", "months", "days", "small files"])
def test_no_reader_can_tell(dep: mlnb.Deployment, how: dict[str, object]) -> None:
    before = everything(dep)
    done = dep.compact(how.pop("before"), **how)
    assert done.rows > 900 and done.files == len(archive.files(dep)) > 0
    same(before, everything(dep))
    again = mlnb.open(dep.ws.path, read_only=True).deployment("late")
    pd.testing.assert_frame_equal(again.labelled(), before["labelled"])
    dep.ws.close()
    same(before, everything(mlnb.open(dep.ws.path).deployment("late")))
    assert holdings(dep)["in_files"] == done.rows


def test_a_version_that_is_folded_from_files(dep: mlnb.Deployment) -> None:
    v2 = dep.ws.version("late", 2)
    expected = windows.window_profile(dep, v2)[0].to_json()
    with dep.ws.store.write() as c: windows.forget(c, dep)
    dep.compact("2013-03-01", most=400)
    assert windows.window_profile(dep, v2)[0].to_json() == expected
    assert windows.fold(dep, v2) == 0
    dep.compact("2013-04-01")
    assert windows.fold(dep, v2) == 0 and windows.window_profile(dep, v2)[0].to_json() == expected


def test_what_comes_after(dep: mlnb.Deployment, template: Path, tmp_path: Path) -> None:
    "Labels, predictions and repeated ids after a compaction fare as they do without one"
    shutil.copytree(template, tmp_path / "twin")
    twin = mlnb.open(tmp_path / "twin").deployment("late")
    dep.compact("2013-03-10", by="day", most=300)
    ids = twin.predictions(columns=["id"])["id"].tolist()
    labels = pd.DataFrame({"id": [*ids[1::17], "flight 801", "flight 801", "nobody"], "y": "late", "at": "2013-04-02"})
    assert dep.feedback(labels) == twin.feedback(labels)
    X = weeks(3000)[FLIGHT_FEATURES].head(4)
    for d in (dep, twin):
        d.predict(X, ids=list("abcd"), at="2013-01-09", unit=ANN)
        for taken in ([ids[0]], ["flight 999"], ["x1", "a"], ["x2", "x2"]):
            with pytest.raises(ParameterError, match=f"of {len(taken)} prediction ids are in the log of 'late' already or given twice.*nothing was logged"): d.predict(X.head(len(taken)), ids=taken)
    same(everything(twin), everything(dep))
    dep.compact("2013-03-10", by="day")
    same(everything(twin), everything(dep))


def test_running_numbers_are_used_once(dep: mlnb.Deployment) -> None:
    before = events.read_log(dep)[1]
    dep.compact("2013-04-01")
    assert dep.ws.rows(sa.select(sa.func.count()).select_from(events.tables(dep)[0]))[0][0] == 0
    dep.predict(weeks()[FLIGHT_FEATURES].head(2), at="2013-05-01")
    after = events.read_log(dep)[1]
    assert after[:-2].tolist() == before.tolist() and min(after[-2:]) > before.max()


def test_a_log_of_an_early_version(dep: mlnb.Deployment) -> None:
    "Its table would give a number twice, and is made anew"
    log, before = events.tables(dep)[0], everything(dep)
    with dep.ws.store.write() as c:
        rows = c.execute(log.select()).all()
        sql = c.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = ?", (log.name,)).scalar()
        c.exec_driver_sql(f"DROP TABLE {log.name}")
        c.exec_driver_sql(sql.replace(" AUTOINCREMENT", ""))
        c.exec_driver_sql(f"CREATE INDEX ix_{log.name}_at ON {log.name} (at)")
        c.execute(log.insert(), [dict(r._mapping) for r in rows])
    lasting_numbers(dep)
    same(before, everything(dep))
    dep.compact("2013-04-01")
    same(before, everything(dep))
    dep.predict(weeks()[FLIGHT_FEATURES].head(1), at="2013-05-01")
    assert events.read_log(dep)[1][-1] > max(before["numbers"])


@settings(max_examples=60, deadline=None)
@given(h.lists(h.one_of(h.text(alphabet=h.characters(exclude_categories=["Cs"]), max_size=40), h.text("0123456789abcdef", min_size=32, max_size=32), h.text("0123456789abcdefABCDEF", min_size=30, max_size=34)), min_size=1, max_size=50), h.integers(0, 2**52))
def test_any_id_comes_back(ids: list[str], logged: int) -> None:
    when = np.full(len(ids), logged)
    assert archive.join_ids(pa.table(archive.split_ids(ids, when)), when).to_pylist() == ids
    assert archive.among(archive.read_index(archive.pack_index(ids)), ids).all()


def test_old_rows_are_small(dep: mlnb.Deployment) -> None:
    db = dep.ws.store.file
    dep.ws.store.engine.dispose()
    before = db.stat().st_size
    done = dep.compact("2013-04-01", pack=True)
    assert done.shrunk and done.bytes / done.rows < 45  # 3,000 rows; a large log takes half of it, see bench_log.py
    assert before - db.stat().st_size > 100 * done.rows


# -- files that are not what they were


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated", "empty"])
def test_a_damaged_file_is_an_error_and_no_number(dep: mlnb.Deployment, damage: str) -> None:
    dep.compact("2013-03-01")
    march = dep.predictions("2013-03-01")
    file = next(f for f in archive.files(dep) if "2013-02" in f.file)
    path = dep.ws.path / file.file
    content = path.read_bytes()
    if damage == "missing": path.unlink()
    else: path.write_bytes({"changed": content[:100] + b"\xff" + content[101:], "truncated": content[:-20], "empty": b""}[damage])
    dep = mlnb.open(dep.ws.path).deployment("late")
    with dep.ws.store.write() as c: windows.forget(c, dep)
    readers = {"predictions": dep.predictions, "labelled": dep.labelled, "drift": dep.drift, "performance": lambda: dep.performance(chunk="7D"), "exposed": lambda: read_exposed(dep, latest(dep).id, [0, 1]),
               "count": lambda: events.count_log(dep, "2013-02-02", "2013-03-05"), "forget": lambda: dep.forget(ANN), "prune": lambda: dep.prune("2013-01-20") if file.since < 0 else dep.forget(ANN)}
    for read in readers.values():
        with pytest.raises(ArtefactError, match=f"{path.name}.*{file.rows:,} predictions of deployment 'late'.*restore the file from a copy"): read()
    pd.testing.assert_frame_equal(dep.predictions("2013-03-01"), march)  # what does not need it is answered
    path.write_bytes(content)
    assert len(dep.predictions()) == 3003


# -- crashes

DRIVER = """
    # Runs one verb in a child which kills itself before the n-th step, and says what is found afterwards
    import hashlib, json, os, shutil, signal, sys
    import sqlalchemy as sa
    import mlnb
    from mlnb.core import archive, events, store as st

    def digest(dep):
        log, got = dep.predictions(), dep.labelled(columns=["id"])
        return hashlib.sha256(repr((log.to_csv(), got["y_true"].tolist())).encode()).hexdigest(), len(log)

    def look(folder):
        with mlnb.open(folder) as ws:
            dep = ws.deployment("late")
            files = archive.files(dep)
            for f in files: archive.checked(dep, f)
            sha, n = digest(dep)
            audit = ws.audit()
            return {"sha": sha, "rows": n, "unique": bool(dep.predictions()["id"].is_unique), "in_files": sum(f.rows for f in files), "files": len(files), "audit": len(audit),
                    "labels": dep.feedback_summary()["labels"], "outcomes": len(dep.outcomes())}

    def dies(folder, verb, n):
        count = [0]
        def step(*_):
            count[0] += 1
            if count[0] > n: os.kill(os.getpid(), signal.SIGKILL)
        with mlnb.open(folder) as ws:
            dep = ws.deployment("late")
            events.tables(dep)
            for event in ("begin", "before_cursor_execute", "commit"): sa.event.listen(ws.store.engine, event, step)
            for name in ("fsync", "replace", "unlink"):
                def before(*a, real=getattr(os, name), **k):
                    step()
                    return real(*a, **k)
                setattr(os, name, before)
            run(dep, verb)
        return count[0]

    def run(dep, verb):
        if verb == "compact": dep.compact("2013-02-14", most=700)
        if verb == "prune": dep.prune("2013-01-20")
        if verb == "forget": dep.forget(sys.argv[4])

    base, verb, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])
    n = 0
    while True:
        folder = f"{base}-{verb}-{n}"
        shutil.copytree(base, folder)
        pid = os.fork()
        if not pid:
            code = 3
            try:
                dies(folder, verb, n)
                code = 0
            finally: os._exit(code)
        status = os.waitpid(pid, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or os.WEXITSTATUS(status) == 0
        after = look(folder)
        with mlnb.open(folder) as ws:
            dep = ws.deployment("late")
            run(dep, verb)
            archive.sweep(dep, hours=0)
        again = look(folder)
        left = len(list((__import__("pathlib").Path(folder) / "log").glob("*/*"))) + len(list((__import__("pathlib").Path(folder) / "log").glob("*/.*")))
        raw = b"".join(p.read_bytes() for p in __import__("pathlib").Path(folder).rglob("*") if p.is_file())
        print(json.dumps({"n": n, "killed": killed, "after": after, "again": again, "left": left, "named": sys.argv[4].encode() in raw}), flush=True)
        shutil.rmtree(folder)
        n += stride
        if not killed: break
"""


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["compact", "prune", "forget"])
def test_killed_at_every_statement(dep: mlnb.Deployment, tmp_path: Path, verb: str) -> None:
    latest(dep).rollback("over", at="2013-04-01")
    if verb != "compact": dep.compact("2013-02-14", most=700)
    dep.ws.close()
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(DRIVER))
    done = subprocess.run([sys.executable, str(driver), str(dep.ws.path), verb, "1", ANN], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not found[-1]["killed"] and len(found) > 20
    whole = found[0]["after"]  # killed before anything happened
    end = found[-1]["after"]
    for f in found:
        assert f["after"]["unique"] and f["again"]["unique"]
        if verb == "compact":
            assert (f["after"]["sha"], f["after"]["rows"]) == (whole["sha"], whole["rows"])  # nothing is lost and nothing double
            assert (f["again"]["sha"], f["again"]["in_files"]) == (whole["sha"], end["in_files"])
        else:
            key = ("sha", "rows", "labels", "outcomes", "files")
            assert tuple(f["after"][k] for k in key) in [tuple(w[k] for k in key) for w in (whole, end)]  # all or nothing
            assert f["after"]["audit"] == (f["after"]["sha"] == end["sha"])
            assert tuple(f["again"][k] for k in key) == tuple(end[k] for k in key)
        assert f["left"] == f["again"]["files"]  # no file without a record
        if verb == "forget": assert not f["named"]
    assert sum(f["killed"] for f in found) == len(found) - 1
    assert (end["sha"] == whole["sha"]) == (verb == "compact")


# -- at the same time

WRITER = """
import sys, time, numpy as np, pandas as pd, mlnb
from mlnb.core.events import log_predictions
dep = mlnb.open(sys.argv[1]).deployment("late")
v, X = dep.champion, pd.read_parquet(sys.argv[3])
said = v.predict(v.schema.conform(X))
for i in range(60):
    ids = log_predictions(dep, X, said, ids=[f"{sys.argv[2]}-{i}-{j}" for j in range(len(X))], at=pd.Timestamp("2013-01-02", tz="UTC") + i * pd.Timedelta("1D"))
    dep.feedback({"id": ids, "y": ["late"] * len(X)})
print("done")
"""


@pytest.mark.timeout(300)
def test_serving_while_compacting(dep: mlnb.Deployment, tmp_path: Path) -> None:
    "Two processes write, one compacts, one reads: nobody sees a row twice or misses one"
    weeks()[FLIGHT_FEATURES].head(5).to_parquet(tmp_path / "X.parquet")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(dep.ws.path), who, str(tmp_path / "X.parquet")], stdout=subprocess.PIPE, text=True) for who in "ab"]
    reader = mlnb.open(dep.ws.path).deployment("late")
    old = set(dep.predictions(columns=["id"])["id"])
    seen, moved, last = 0, 0, len(old)
    try:
        while any(p.poll() is None for p in writers) or seen < 3:
            moved += dep.compact("2013-03-05", by="day", most=200).rows
            rows = reader.labelled(columns=["id", "at"])
            assert rows["id"].is_unique and old <= set(rows["id"]) and len(rows) >= last
            assert rows["at"].is_monotonic_increasing
            assert events.count_log(reader) >= len(rows)
            last, seen = len(rows), seen + 1
        assert [p.communicate(timeout=60)[0].strip() for p in writers] == ["done"] * 2
    finally:
        for p in writers:
            if p.poll() is None: p.kill()
    assert moved > 1500 and len(dep.predictions()) == 3003 + 600
    assert dep.feedback_summary()["unknown"] == 1
    assert dep.labelled()["y_true"].notna().sum() >= 600


def test_two_compactions_at_once(dep: mlnb.Deployment) -> None:
    before = everything(dep)
    code = "import sys, mlnb; d = mlnb.open(sys.argv[1]).deployment('late'); sys.stdin.readline(); print(d.compact('2013-03-01', by='day', most=100).rows)"
    both = [subprocess.Popen([sys.executable, "-c", code, str(dep.ws.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try: rows = [int(p.communicate("go\n", timeout=100)[0]) for p in both]
    finally:
        for p in both:
            if p.poll() is None: p.kill()
    assert sum(rows) == sum(f.rows for f in archive.files(dep))
    same(before, everything(dep))
    assert {f.name for f in archive.folder(dep).iterdir()} == {Path(f.file).name for f in archive.files(dep)}


# -- retention


@pytest.mark.parametrize("compacted", [None, "2013-02-14", "2013-04-01"])
def test_prune(dep: mlnb.Deployment, compacted: str | None) -> None:
    if compacted: dep.compact(compacted, by="day" if compacted < "2013-03" else "month")
    before, cut, days = everything(dep), "2013-02-05 12:00", windows.kept(dep, dep.champion)
    with pytest.raises(ParameterError, match="a rollout of 'late' is under way since 2013-01-25"): dep.prune(cut)
    latest(dep).rollback("over", at="2013-04-01")
    log = before["predictions"]
    gone = set(log["id"][log["at"] < cut])
    plan = dep.prune(cut, try_only=True)
    assert plan.predictions == len(gone) and len(dep.predictions()) == len(log)
    assert dep.prune(cut) == plan
    pd.testing.assert_frame_equal(dep.predictions(), log[log["at"] >= cut].reset_index(drop=True))
    rest = before["labelled"][before["labelled"]["at"] >= cut].reset_index(drop=True)
    pd.testing.assert_frame_equal(dep.labelled(), rest)
    assert dep.feedback_summary()["unknown"] == 0  # the label of a prediction that was never made is as old
    exposed = before["exposed"]
    pd.testing.assert_frame_equal(read_exposed(dep, latest(dep).id, [0, 1, 2, 3], features=True), exposed[exposed["at"] >= cut].reset_index(drop=True))
    assert len(read_shadowed(dep, latest(dep).id, 2)[0]) == (before["champion"]["at"] >= cut).sum() == len(before["champion"]) - plan.shadows
    assert (dep.outcomes()["at"] >= cut).all() and len(dep.outcomes()) == len(before["outcomes"]) - plan.outcomes
    assert windows.kept(dep, dep.champion).upto == days.upto and windows.kept(dep, dep.champion).days.keys() == days.days.keys()  # profiles of days stay
    audit = dep.ws.audit()
    assert audit["action"].tolist() == ["prune"] and audit["predictions"].tolist() == [len(gone)] and audit["before"].tolist() == ["2013-02-05T12:00:00+00:00"]
    assert dep.prune(cut) == Removed(*[0] * 7)


def test_pruning_everything(dep: mlnb.Deployment) -> None:
    latest(dep).rollback("over", at="2013-04-01")
    dep.compact("2013-02-14")
    assert dep.prune("2020-01-01").predictions == 3003
    assert len(dep.predictions()) == 0 and events.extent(dep) == (None, None, 0) and not list(archive.folder(dep).iterdir())
    dep.predict(weeks()[FLIGHT_FEATURES].head(2), at="2020-02-01")
    assert dep.drift("2020-01-01").current.n == len(dep.predictions()) == 2
    assert dep.drift().current.n == 3005  # the kept profiles of days are counts, and stay


# -- forgetting


def bytes_of(folder: Path) -> bytes:
    "All that is in a workspace; files of the log are unpacked, too"
    raw = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    return raw + b"".join(pq.read_table(p).to_pandas().to_csv().encode() for p in folder.glob("log/*/*.parquet"))


@pytest.mark.parametrize("compacted", [None, "2013-02-14", "2013-04-01"])
def test_forget(dep: mlnb.Deployment, compacted: str | None) -> None:
    if compacted: dep.compact(compacted)
    assert ANN.encode() in bytes_of(dep.ws.path)
    before, ids = everything(dep), set(dep.predictions().query("unit == @ANN")["id"])
    assert dep.lookup(ANN)["key"] == ANN
    done = dep.forget(ANN)
    assert done.clean and done.removed.predictions == len(ids) > 30 and done.removed.lookups == 1 and done.removed.outcomes > 0 and done.removed.exposures > 0 and done.removed.shadows > 0 and done.removed.labels > 0
    assert (done.removed.in_files > 0) == bool(compacted)
    raw = bytes_of(dep.ws.path)
    assert ANN.encode() not in raw and not any(i.encode() in raw for i in ids)
    now = everything(dep)
    for name in ("predictions", "labelled", "exposed", "champion"):
        pd.testing.assert_frame_equal(now[name], before[name][~before[name]["id"].isin(ids)].reset_index(drop=True), obj=name)
    assert dep.drift().current.n == len(dep.predictions()) == 3003 - len(ids)
    with pytest.raises(mlnb.MlnbError, match="no precomputed prediction for key"): dep.lookup(ANN)
    assert dep.lookup("Bob")["key"] == "Bob"
    audit = dep.ws.audit()
    assert audit["unit"].tolist() == [hashed(dep.ws, ANN)] and audit["predictions"].tolist() == [len(ids)]


def test_forget_says_if_somebody_reads(dep: mlnb.Deployment) -> None:
    "The write-ahead log cannot be emptied while a reader needs it"
    with mlnb.open(dep.ws.path).store.read() as c:
        c.exec_driver_sql("SELECT count(*) FROM meta").scalar()
        dep.ws.store.engine.dispose()
        assert not dep.forget(ANN).clean
    assert dep.forget(ANN).clean
    assert ANN.encode() not in bytes_of(dep.ws.path)


# -- personal data


@pytest.fixture
def private(tmp_path: Path) -> mlnb.Deployment:
    "A deployment that hashes passengers and units, and omits addresses"
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"wind": rng.gamma(4, 3, 400).round(1), "passenger": [f"Passenger Nr {i % 60}" for i in range(400)], "address": [f"{i} Privet Drive" for i in range(400)], "card": rng.integers(10**15, 10**16, 400)})
    y = np.where(X["wind"] > 12, "late", "on time")
    model = make_pipeline(make_column_transformer(("passthrough", ["wind", "card"])), LogisticRegression()).fit(X, y)
    ws = mlnb.open(tmp_path / "private")
    how = {"passenger": "hash", "address": "omit", "card": "hash"}
    v1, _ = (ws.register("late", model, X, y, private=how, at="2013-01-01") for _ in range(2))
    dep = ws.deploy("late", v1, at="2013-01-01", hash_units=True)
    said = dep.predict(X, at=pd.date_range("2013-01-01", periods=400, freq="6h", tz="UTC"), unit=X["passenger"])
    dep.feedback({"id": said["id"], "y": y})
    return dep


def test_what_is_private_is_in_no_byte(private: mlnb.Deployment) -> None:
    dep = private
    dep.rollout(2, {"shadow": False, "canary": [], "ab": True, "min_units": 10}, at="2013-05-01", salt="s")
    dep.predict(pd.DataFrame({"wind": [3.], "passenger": ["Passenger Nr 1"], "address": ["1 Privet Drive"], "card": [4444333322221111]}), at="2013-05-02", unit="Passenger Nr 1")
    dep.record_outcomes([{"unit": "Passenger Nr 1", "refund": 3.5}])
    dep.compact("2013-03-01")
    dep.drift()
    raw = bytes_of(dep.ws.path)
    for text in ("Passenger Nr", "Privet Drive", "4444333322221111"): assert text.encode() not in raw
    log, exposed = dep.predictions(), read_exposed(dep, latest(dep).id, [0, 1])
    assert log["passenger"].nunique() == 60 and log["passenger"].str.fullmatch("[0-9a-f]{32}").all() and (log["unit"] == log["passenger"]).all()  # joinable inside
    assert "address" not in log and exposed["unit"].tolist() == [hashed(dep.ws, "Passenger Nr 1")] == dep.outcomes()["key"].tolist()
    with pytest.raises(ParameterError, match="'address'. is left out of the log"): dep.predictions(columns=["address"])
    assert list(dep.champion.profile.columns) == ["wind", "prediction", "score"] and dep.champion.training_data() is None
    assert dep.forget("Passenger Nr 1").removed.predictions == 8
    assert hashed(dep.ws, "Passenger Nr 1").encode() not in bytes_of(dep.ws.path).replace(dep.ws.audit()["unit"].iloc[0].encode(), b"")


def test_judgements_of_a_private_log(private: mlnb.Deployment) -> None:
    report = private.drift()
    assert [f.name for f in report.features if f.name in ("passenger", "address", "card")] == []
    assert any("passenger (hashed in the log), address (left out of the log), card (hashed in the log)" in r for r in report.reasons)
    for refused in (lambda: private.drift(columns=["address"]), lambda: private.multivariate_drift(), lambda: private.estimate()):
        with pytest.raises(ParameterError): refused()
    assert len(private.performance(chunk="7D").table()) > 5
    for refused, what in ((lambda: private.rollout(2, {"shadow": True, "canary": [.1]}), "shadow"), (lambda: private.retrain("2013-04-01"), "retraining"), (lambda: private.impact(), "impact")):
        with pytest.raises(SchemaError, match=rf"{what}.*(?s:.*)'passenger' is hashed in the log of 'late'.*(?s:.*)'address' is left out"): refused()
    assert not private.ws.rows(sa.select(sa.func.count()).select_from(sa.table("rollouts")))[0][0]


def test_the_keeper(private: mlnb.Deployment, dep: mlnb.Deployment) -> None:
    how = keeper(private)
    assert how is not None and how.unit is not None and keeper(dep) is None
    assert [None if f is None else f(7) for f in how.cells] == [None, hashed(private.ws, 7), None, hashed(private.ws, 7)]
    assert how.cells[1](None) is None and how.unit(None) is None
    assert hashed(private.ws, "7") != hashed(dep.ws, "7")


# -- the command


def test_the_command(dep: mlnb.Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    from mlnb.cli import main
    def run(*args: str) -> tuple[int, str]:
        code = main(["log", *args, "-w", str(dep.ws.path)])
        return code, capsys.readouterr().out
    code, out = run("compact", "--before", "2013-03-01", "--json")
    moved = json.loads(out)["logs"][0]
    assert code == 0 and moved["deployment"] == "late" and moved["rows"] > 1500 and moved["files"] == 2
    assert run("prune", "--before", "2013-02-01", "-d", "late")[0] == 2  # a rollout is under way
    latest(dep).rollback("over", at="2013-04-01")
    code, out = run("prune", "--before", "2013-02-01", "--json")
    assert code == 0 and json.loads(out)["logs"][0]["predictions"] > 900
    code, out = run("forget", "--unit", ANN, "--json")
    assert code == 0 and json.loads(out)["logs"][0]["clean"] is True
    code, out = run("ls", "--json")
    found = json.loads(out)
    assert code == 0 and found["logs"][0]["in_files"] == moved["rows"] - json.loads(run("ls", "--json")[1])["audit"][0]["in_files"] - found["audit"][1]["in_files"]
    assert [a["action"] for a in found["audit"]] == ["prune", "forget"] and ANN not in out
    assert "prune" in run("ls")[1]
    for args in (["compact"], ["compact", "--before", "2013-03-01", "--older", "3D"], ["compact", "--older", "3D", "--by", "week"], ["prune", "--older", "-3D"], ["forget", "--unit", ""], ["forget", "--unit", "x", "-d", "nobody"]):
        assert run(*args)[0] == 2
