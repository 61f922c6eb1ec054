"""Rollouts that are killed, raced, shadowed by bad company, and asked over HTTP."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as h
from sklearn.linear_model import LogisticRegression

import mlnb
from mlnb.core import registry, store as st
from mlnb.core.exposures import read_exposed, read_shadowed
from mlnb.rollout.mirror import MEMORY, lag, shadows
from mlnb.rollout.plan import Stage
from mlnb.rollout.release import latest
from mlnb.rollout.routing import Traffic, assign
from mlnb.rollout.states import ENDED

PLAN = {"shadow": True, "canary": [.25, .5], "ab": True, "min_units": 10}


def flights(n, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"wind": rng.gamma(4, 3, n).round(2)})
    return X, np.where(rng.random(n) < 1 / (1 + np.exp(4 - X["wind"] / 3)), "late", "on time")


def deployed(folder):
    "A workspace with a deployment `late`, its champion v1 and two more versions"
    X, y = flights(400)
    ws = mlnb.open(folder)
    for c in (1, .01, .001): ws.register("late", LogisticRegression(C=c).fit(X, y), X, y, at="2013-03-01")
    return ws.deploy("late", ws.version("late", 1), at="2013-03-01")


# -- assignment


@given(h.text(min_size=1, max_size=20), h.lists(h.text(max_size=30), min_size=1, max_size=40), h.floats(.001, .5), h.floats(.001, .5))
def test_who_is_enrolled_stays_where_they_are(salt, names, a, b):
    small, large = (assign(Traffic(1, 0, Stage("canary", 2 * s, (.5, .5), ""), salt, ()), names) for s in sorted((a, b)))
    assert ((small < 0) | (small == large)).all()
    assert (small == assign(Traffic(9, 3, Stage("canary", 2 * min(a, b), (.5, .5), ""), salt, ()), names)).all()  # neither the rollout's key nor its stage matters


@given(h.lists(h.floats(.05, 1), min_size=2, max_size=5))
def test_weights_are_kept(parts):
    weights = tuple(np.array(parts) / sum(parts))
    arms = assign(Traffic(1, 0, Stage("ab", 1., weights, ""), "s", ()), map(str, range(20_000)))
    assert abs(np.bincount(arms, minlength=len(weights)) / 20_000 - weights).max() < 5 * .5 / 20_000 ** .5


# -- crashes

DRIVER = """
    # Does one move in a child of its own, which kills itself before the n-th statement of the transaction, and says what is found afterwards
    import json, os, shutil, signal, sys
    import sqlalchemy as sa
    import mlnb
    from mlnb.core import store as st
    from mlnb.rollout.release import Rollout, commit, latest
    from mlnb.rollout.states import Move, State

    def look(folder):
        with mlnb.open(folder) as ws:
            dep = ws.deployment("late")
            r = ws.rows(sa.select(st.ROLLOUTS).order_by(st.ROLLOUTS.c.id.desc()))[0]
            last = ws.rows(sa.select(st.MOVES).where(st.MOVES.c.rollout_id == r.id).order_by(st.MOVES.c.number.desc()))[0]
            return {"row": [r.state, r.stage, r.moves, r.active], "move": [last.state, last.stage, last.number], "champion": dep.champion.number,
                    "decisions": dep.decisions()["action"].tolist(), "answers": sorted(set(predicted(dep)))}

    def predicted(dep):
        said = dep.predict([{"wind": float(i)} for i in range(8)])
        who = said.attrs["version"]
        return who if isinstance(who, list) else [who]

    def dies(folder, state, stage, arm, n):
        with mlnb.open(folder) as ws:
            rollout, count = latest(ws.deployment("late")), [0]
            def step(*_):
                count[0] += 1
                if count[0] > n: os.kill(os.getpid(), signal.SIGKILL)
            seen = rollout.row
            for event in ("begin", "before_cursor_execute", "commit"): sa.event.listen(ws.store.engine, event, step)
            assert commit(rollout, seen, Move(State(state, stage), "a test", arm), seen.started + seen.moves + 1, "test")
        return count[0]

    template, cases = sys.argv[1], json.loads(sys.argv[2])
    for i, (prepare, to) in enumerate(cases):
        base = f"{template}-{i}"
        shutil.copytree(template, base)
        with mlnb.open(base) as ws:
            rollout = latest(ws.deployment("late"))
            for state, stage in prepare: assert commit(rollout, rollout.row, Move(State(state, stage), "before"), rollout.row.started + rollout.row.moves + 1, "test")
        before, n = look(base), 0
        while True:
            folder = f"{base}-{n}"
            shutil.copytree(base, folder)
            pid = os.fork()
            if not pid:
                try: dies(folder, *to, n)
                finally: os._exit(0)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            print(json.dumps({"case": i, "n": n, "killed": killed, "before": before, "after": look(folder)}), flush=True)
            shutil.rmtree(folder)
            n += 1
            if not killed: break
"""
CASES = [([], ("shadow", 0, "")), ([("shadow", 0)], ("canary", 1, "")), ([("canary", 1)], ("canary", 2, "")), ([("canary", 2)], ("ab", 3, "")), ([("ab", 3)], ("promoted", 3, "late v2")),
         ([("canary", 1)], ("rolled back", 1, "")), ([("canary", 2)], ("paused", 2, "")), ([("paused", 2)], ("expired", 2, ""))]


@pytest.mark.timeout(600)
def test_killed_in_every_move_at_every_statement(tmp_path):
    dep = deployed(tmp_path / "work")
    dep.rollout(2, PLAN, at="2013-03-02", draft=True, salt="s")
    dep.predict([{"wind": 3.}])
    dep.ws.close()
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(DRIVER))
    done = subprocess.run([sys.executable, str(driver), str(tmp_path / "work"), json.dumps(CASES)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {f["case"] for f in found} == set(range(len(CASES)))
    for f in found:
        to, (state, stage, moves, active) = CASES[f["case"]][1], f["after"]["row"]
        assert f["after"]["move"] == [state, stage, moves]  # row and history agree
        assert (state, stage) in [tuple(f["before"]["row"][:2]), to[:2]]  # one of the two adjacent states
        if not f["killed"]: assert (state, stage) == to[:2]
        assert active == (state not in ENDED)
        assert f["after"]["champion"] == (2 if state == "promoted" else 1)
        assert f["after"]["decisions"] == {"promoted": ["promote"], "rolled back": ["refuse"], "expired": ["refuse"]}.get(state, [])
        both = state in ("canary", "ab") or (state == "paused" and stage > 0)
        assert set(f["after"]["answers"]) <= ({1, 2} if both else {f["after"]["champion"]})
    before = [sum(f["killed"] and f["after"]["row"][:2] != list(CASES[i][1][:2]) for f in found if f["case"] == i) for i in range(len(CASES))]
    assert min(before) >= 4, before  # begin, update, insert, commit: killed there, nothing has happened
    per_case = [sum(f["killed"] for f in found if f["case"] == i) for i in range(len(CASES))]
    print(f"{sum(per_case)} kills in {len(CASES)} moves")


def test_two_evaluators_at_once_move_once(tmp_path):
    dep = deployed(tmp_path / "work")
    dep.rollout(2, {**PLAN, "shadow": False}, at="2013-03-02", salt="s")
    said = dep.predict([{"wind": float(i % 30)} for i in range(400)], at="2013-03-02")
    dep.feedback(said[["id"]].assign(y=said["prediction"], at="2013-03-02"))
    code = "import sys, mlnb; from mlnb.rollout.release import latest, tick; r = latest(mlnb.open(sys.argv[1]).deployment('late')); sys.stdin.readline(); [tick(r, '2013-04-01') for _ in range(5)]; print('done')"
    racers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        time.sleep(2)
        for p in racers:
            p.stdin.write("go\n")
            p.stdin.flush()
        assert [p.communicate(timeout=60)[0].strip() for p in racers] == ["done"] * 3
    finally:
        for p in racers:
            if p.poll() is None: p.kill()
    audit = latest(dep).moves()
    assert audit["number"].tolist() == list(range(len(audit)))
    assert audit["state"].tolist()[2:3] == ["paused in canary 1 of 2 (25%)"]  # four weeks without enough units: once, not three times


# -- shadows in bad company

BAD = {
    "sleeps": ("import time; time.sleep(.3); return answer(version, fit)", None),
    "raises": ("raise MlnbError('no idea')", "MlnbError: no idea"),
    "eats": ("hog = bytearray(3 * 2**30); return answer(version, fit)", "MemoryError"),
    "dies": ("os.kill(os.getpid(), 9)", "signal SIGKILL"),
    "exits": ("os._exit(3)", "ended with status 3"),
    "dies of one": ("if (fit['wind'] == 13.0).any(): os.abort()\n    return answer(version, fit)", "signal SIGABRT"),
}


def bad_company(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "Processes that are started from now on find a challenger, version 2, that misbehaves; this one does not"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import os\nfrom mlnb.core.errors import MlnbError\nfrom mlnb.deploy import runtime\nanswer = runtime.answer\n\n"
                                             "def misbehave(version, fit):\n    if version.number != 2: return answer(version, fit)\n    try:\n        return worse(version, fit)\n"
                                             "    except MemoryError as e: raise MlnbError(f'MemoryError: {e}') from e\n\n"
                                             f"def worse(version, fit):\n    {body}\n\nruntime.answer = misbehave\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", BAD)
def test_a_bad_shadow_breaks_no_answer(how, tmp_path, monkeypatch):
    body, error = BAD[how]
    dep = deployed(tmp_path / "work")
    rollout = dep.rollout(2, {**PLAN, "guardrails": ["error_rate"]}, at="2013-03-02", salt="s")
    bad_company(tmp_path / "site", body, monkeypatch)
    n = 6 if how in ("sleeps", "eats", "dies", "exits") else 40
    with dep.serve(tick=None) as server:
        for i in range(n):
            request = urllib.request.Request(server.url + "/predict", json.dumps({"records": [{"wind": float(i)}], "ids": [f"r{i}"]}).encode())
            answer = json.loads(urllib.request.urlopen(request, timeout=20).read())
            assert answer["version"] == 1 and answer["predictions"][0]["id"] == f"r{i}"
        deadline = time.monotonic() + 120
        while lag(shadows(dep)[0]).waiting and time.monotonic() < deadline: time.sleep(.2)
    assert lag(shadows(dep)[0]) == (n, n, 0, 0)
    champion, challenger = read_shadowed(dep, rollout.id, 2)
    failed = challenger["error"].notna()
    assert champion["prediction"].notna().all() and len(champion) == n
    if error is None: assert not failed.any() and challenger["ms"].min() > 290
    elif how == "dies of one": assert champion["id"][failed].tolist() == ["r13"] and challenger["error"][failed].str.contains(error).all()
    else: assert failed.all() and challenger["error"].str.contains(error).all(), challenger["error"].tolist()
    verdicts = {g.metric: g.verdict for g in rollout.review().evidence.gates}
    assert verdicts["error_rate"] == ("worse" if error and how != "dies of one" and n > 10 else verdicts["error_rate"])
    assert MEMORY == 2 * 2**30


def test_what_a_slow_shadow_cannot_keep_up_with_is_dropped_and_counted(tmp_path):
    dep = deployed(tmp_path / "work")
    rollout = dep.rollout(2, {**PLAN, "shadow_rows": 30}, at="2013-03-02", salt="s")
    for i in range(50): dep.predict({"wind": [float(i)]}, ids=[f"r{i}"], at="2013-03-02")
    assert dep.mirror() == {2: (50, 30, 20, 0)}
    assert read_shadowed(dep, rollout.id, 2)[0]["id"].tolist() == [f"r{i}" for i in range(20, 50)]
    assert "20 dropped" in " ".join(rollout.review("2013-03-03").reasons)


# -- over HTTP


def test_a_canary_over_http_keeps_units_and_says_who_answered(tmp_path):
    dep = deployed(tmp_path / "work")
    rollout = dep.rollout([2, 3], {"shadow": False, "canary": [.3], "min_units": 10}, salt="s")
    def post(path, content):
        return json.loads(urllib.request.urlopen(urllib.request.Request(server.url + path, json.dumps(content).encode()), timeout=20).read())
    with dep.serve(tick=None) as server:
        said = [post("/predict", {"records": [{"wind": float(i)}], "unit": f"u{i % 40}", "ids": [f"r{i}"]})["version"] for i in range(120)]
        many = post("/predict/late", {"records": [{"wind": float(i)} for i in range(40)], "unit": [f"u{i}" for i in range(40)]})
        v2 = post("/v2/models/late/infer", {"inputs": [{"name": "wind", "shape": [1], "datatype": "FP64", "data": [3.]}], "parameters": {"unit": "u0"}})
        pinned = post("/v2/models/late/versions/1/infer", {"inputs": [{"name": "wind", "shape": [1], "datatype": "FP64", "data": [3.]}], "parameters": {"unit": "u0"}})
        assert post("/outcomes", {"outcomes": [{"unit": "u1", "rebooked": 1}]}) == {"rebooked": 1}
        with pytest.raises(urllib.error.HTTPError) as refused: post("/predict", {"records": [{"wind": "strong"}], "unit": "u1"})
        assert refused.value.code == 422
        with pytest.raises(urllib.error.HTTPError) as undated: post("/outcomes", [{"unit": "u1", "rebooked": 1, "at": 5}])
        assert undated.value.code == 400 and b"'at' holds 5; give an ISO 8601 time as text" in undated.value.read()
    assert said[:40] == said[40:80] == said[80:] == many["version"] and set(said) == {1, 2, 3}
    assert v2["model_version"] == str(said[0]) and pinned["model_version"] == "1"
    seen = read_exposed(dep, rollout.id, [0])
    assert (seen.groupby("unit")["arm"].nunique() == 1).all()
    assert (seen["arm"].map({0: 1, 1: 2, 2: 3}) == seen["version"]).all()
    assert len(dep.predictions()) == 162 and len(seen) < 162  # the pinned request and the tenth that is not enrolled take no part


def damage(dep, number):
    "A version that cannot answer any more: its model and its compiled form are damaged"
    version = dep.ws.version("late", number)
    files = [f for row in dep.ws.rows(sa.select(st.CERTIFICATES).where(st.CERTIFICATES.c.version_id == version.id)) for f in sum(json.loads(row.files).values(), [])]
    for sha in (version.artefact, *files): st.artefact_path(dep.ws.store, sha).write_bytes(b"damaged")
    dep.ws.unload()


def test_a_challenger_that_fails_in_the_canary_costs_nobody_an_answer(tmp_path):
    dep = deployed(tmp_path / "work")
    rollout = dep.rollout(2, {"shadow": False, "canary": [.5], "min_units": 10}, at="2013-03-02", salt="s")
    damage(dep, 2)
    for i in range(60): assert len(dep.predict({"wind": [float(i)]}, ids=[f"r{i}"], at="2013-03-02 10:00")) == 1
    found = rollout.tick("2013-03-02 12:00")
    assert found.after.name == "rolled back" and "error_rate of late v2 is certainly worse" in found.move.reason
    seen = read_exposed(dep, rollout.id, [0])
    assert (seen["error"].notna() == (seen["arm"] == 1)).all() and (seen["version"] == 1).all()
    assert dep.champion.number == 1 and dep.predict({"wind": [1.]}).attrs["version"] == 1


# -- bad input


def test_everything_wrong_with_a_rollout_is_said_at_once(tmp_path):
    dep = deployed(tmp_path / "work")
    X, y = flights(400)
    dep.ws.register("late", LogisticRegression().fit(X.assign(rain=1.), y), X.assign(rain=1.), y)
    with pytest.raises(mlnb.SchemaError, match=r"2 problems[\s\S]*column 'rain' is absent[\s\S]*late v1 is the champion itself"): dep.rollout([4, 1])
    with pytest.raises(mlnb.MlnbError, match=r"sum to 1.2"): dep.rollout(2, {"ab": [.6, .6]})
    with pytest.raises(mlnb.MlnbError, match=r"there is no metric 'speed'[\s\S]*min_units=0"): dep.rollout(2, {"metrics": ["speed"], "min_units": 0})
    with pytest.raises(mlnb.MlnbError, match="does not suit a binary model"): dep.rollout(2, {"metrics": [{"name": "mae", "margin": 1.}]})
    with pytest.raises(mlnb.MlnbError, match="there is no rollout of 'late' yet"): dep.rollout()
    assert dep.ws.rows(sa.select(sa.func.count()).select_from(st.ROLLOUTS))[0][0] == 0  # nothing half-written
    running = dep.rollout(2, PLAN)
    with pytest.raises(mlnb.MlnbError, match=r"is under way[\s\S]*alpha: 0.05 → 0.1"): dep.rollout(2, {**PLAN, "alpha": .1})
    assert dep.rollout(2, PLAN) == running == dep.rollout()
    with pytest.raises(mlnb.MlnbError, match="a rollout of 'late' is under way"): dep.promote(dep.ws.version("late", 3), "because")
    assert dep.champion.number == 1 and len(running.moves()) == 2


def test_one_active_rollout_is_a_promise_of_the_database(tmp_path):
    dep = deployed(tmp_path / "work")
    dep.rollout(2, PLAN)
    row = {"deployment_id": dep.id, "versions": "[]", "plan": "{}", "salt": "s", "state": "draft", "stage": 0, "moves": 0, "active": 1, "started": 0}
    with pytest.raises(sa.exc.IntegrityError), dep.ws.store.write() as c: c.execute(st.ROLLOUTS.insert().values(**row))


def test_units_in_two_arms_and_early_outcomes_are_reported(tmp_path):
    dep = deployed(tmp_path / "work")
    plan = {"shadow": False, "canary": [.5], "min_units": 10, "guardrails": [{"name": "rebooked", "share": True, "better": "lower", "margin": .05, "window": "1D"}]}
    rollout = dep.rollout(2, plan, at="2013-03-02", salt="s")
    units = [f"u{i}" for i in range(300)]
    dep.predict([{"wind": float(i % 30)} for i in range(300)], unit=units, at="2013-03-02 10:00")
    with dep.ws.store.write() as c: c.exec_driver_sql(f"UPDATE rollouts SET salt = 'other' WHERE id = {rollout.id}")  # somebody meddles
    dep.ws.__dict__.pop("traffic", None)
    dep.predict([{"wind": float(i % 30)} for i in range(300)], unit=units, at="2013-03-02 11:00")
    dep.record_outcomes([{"unit": "u1", "rebooked": 1, "at": "2013-03-01"}, {"unit": "u2", "rebooked": 1, "at": "2013-03-02 12:00"}])
    found = rollout.tick("2013-03-03")
    e = found.evidence
    assert 100 < e.crossed < 200 and e.early <= 1
    assert found.after.name == "paused" and "were seen in several arms" in found.move.reason
    assert sum(e.units) + e.crossed == 300


def test_a_server_attends_to_rollouts(tmp_path):
    "The timer of a server evaluates, and the challenger is gone by itself"
    dep = deployed(tmp_path / "work")
    rollout = dep.rollout(2, {"shadow": False, "canary": [.5], "min_units": 10}, salt="s")
    damage(dep, 2)
    with dep.serve(tick=.5) as server:
        asked = threading.Thread(target=lambda: [urllib.request.urlopen(urllib.request.Request(server.url + "/predict", json.dumps({"wind": float(i)}).encode()), timeout=20).read() for i in range(80)])
        asked.start()
        asked.join(60)
        deadline = time.monotonic() + 60
        while rollout.state.active and time.monotonic() < deadline: time.sleep(.2)
    assert rollout.state.name == "rolled back" and rollout.moves()["actor"].iloc[-1] == "tick"


def test_a_workspace_that_may_only_be_read_can_be_reviewed(tmp_path):
    dep = deployed(tmp_path / "work")
    dep.rollout(2, PLAN, at="2013-03-02", salt="s")
    dep.predict({"wind": [1.]}, at="2013-03-02")
    dep.ws.close()
    with mlnb.open(tmp_path / "work", read_only=True) as ws:
        assert ws.deployment("late").review("2013-03-03").where == "shadow"
        with pytest.raises(mlnb.MlnbError, match="opened read-only"): ws.deployment("late").rollout().hold("a pause")


def test_a_signal_of_the_parent_ends_the_shadow(tmp_path):
    "The process of a challenger ends when whoever started it is killed"
    dep = deployed(tmp_path / "work")
    dep.rollout(2, PLAN, salt="s")
    code = "import sys, time, mlnb; d = mlnb.open(sys.argv[1]).deployment('late'); from mlnb.rollout.mirror import Mirror, shadows; m = Mirror(shadows(d)[0], 100).start(); [time.sleep(.1) for _ in iter(lambda: m.process is None, False)]; print(m.process.pid, flush=True); time.sleep(100)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work")], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        time.sleep(3)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        deadline = time.monotonic() + 30
        while registry and Path(f"/proc/{child}").exists() and time.monotonic() < deadline: time.sleep(.2)
        assert not Path(f"/proc/{child}").exists()
    finally:
        if parent.poll() is None: parent.kill()
