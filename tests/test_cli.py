"""The `mlnb` command: exit codes, one JSON object on stdout, sentences on stderr, and a quick start."""
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from mlnb import cli
from sklearn.linear_model import LogisticRegression

COMMANDS = ["tour", "open", "register", "promote", "serve", "score", "feedback", "drift", "harm", "performance", "report", "ls", "rollout", "experiment"]
GROUPED = [f"rollout {c}" for c in ("start", "status", "tick", "hold", "resume", "next", "promote", "rollback", "moves")] + ["experiment plan", "experiment analyze"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Files of a model, and a workspace made from them with the command alone"
    here, rng = tmp_path_factory.mktemp("cli"), np.random.default_rng(0)
    train = pd.DataFrame({"temp": rng.normal(5, 3, 600), "wind": rng.gamma(4, 3, 600)})
    train["late"] = np.where(rng.random(600) < 1 / (1 + np.exp(3 - train.wind / 4)), "late", "on time")
    train.to_parquet(here / "train.parquet")
    train.drop(columns="late").to_parquet(here / "reference.parquet")
    model = LogisticRegression().fit(train[["temp", "wind"]], train["late"])
    skops.io.dump(model, here / "model.skops")
    (here / "model.pkl").write_bytes(pickle.dumps(model))
    new = pd.DataFrame({"id": [f"{i:04}" for i in range(400)], "at": pd.date_range("2013-03-01", periods=400, freq="111min").astype(str),
                        "temp": rng.normal(5, 3, 400) + 8 * (np.arange(400) >= 200), "wind": rng.gamma(4, 3, 400)})
    new.to_csv(here / "march.csv", index=False)
    new[["temp", "wind"]].to_parquet(here / "current.parquet")
    pd.DataFrame({"id": new["id"], "y": rng.choice(["late", "on time"], 400), "at": "2013-04-02"}).to_csv(here / "labels.csv", index=False)
    work = ["-w", str(here / "ws")]
    assert cli.main(["register", "delays", str(here / "model.skops"), str(here / "train.parquet"), "--target", "late", "--at", "2013-03-01", "--deploy", *work]) == 0
    assert cli.main(["score", "delays", str(here / "march.csv"), str(here / "scored.parquet"), "--id", "id", "--at", "at", *work]) == 0
    assert cli.main(["feedback", "delays", str(here / "labels.csv"), *work]) == 0
    return here


@pytest.fixture(scope="module")
def tried(folder: Path) -> Path:
    "A workspace with a champion `delays v1`, an equal v2 and a v3 that knows nothing, and a day of traffic with a canary of v3 in it"
    import mlnb as library
    rng, n = np.random.default_rng(0), 1500
    X = pd.DataFrame({"wind": rng.gamma(4, 3, n).round(2)})
    y = np.where(rng.random(n) < 1 / (1 + np.exp(3 - X.wind / 4)), "late", "on time")
    (folder / "mlnb.toml").write_text('[deployments.delays.rollout]\nshadow = false\ncanary = [0.5]\nmin_units = 100\nmax_days = 3\nmetrics = [{name = "log_loss", margin = 0.05}]\n'
                                      'guardrails = [{name = "error_rate", margin = 0.05}]\n')
    with library.open(folder / "tried") as ws:
        for labels in (y, y, rng.permutation(y)): v = ws.register("delays", LogisticRegression().fit(X, labels), X, y, at="2013-03-01")
        dep = ws.deploy("delays", ws.version("delays", 1), at="2013-03-01")
        ws.deploy("quiet", ws.version("delays", 1), at="2013-03-01")
        dep.rollout(v, library.Plan(shadow=False, canary=(.5,), min_units=100), at="2013-03-02", salt="spring")
        at = pd.Timestamp("2013-03-02", tz="UTC") + pd.to_timedelta(np.arange(n) * 57, unit="s")
        dep.predict(X, ids=[f"{i}" for i in range(n)], at=at)
        dep.feedback(pd.DataFrame({"id": [f"{i}" for i in range(n)], "y": y, "at": at + pd.Timedelta("1h")}))
    return folder / "tried"


@pytest.fixture
def rollouts(tried: Path, mlnb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    "Run a command in a copy of that workspace"
    shutil.copytree(tried, tmp_path / "ws")
    monkeypatch.setenv("MLNB_WORKSPACE", str(tmp_path / "ws"))
    return mlnb


@pytest.fixture
def mlnb(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    "Run a command in the folder; code, out and err, and with --json the object"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLNB_WORKSPACE", "ws")
    def run(*args: object) -> Any:
        capsys.readouterr()
        code = cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out, err=err, json=json.loads(out) if "--json" in args and out else None)
    return run


# Exit codes

@pytest.mark.parametrize("args,code", [
    ((), 0), (("--help",), 0), (("--version",), 0), (("ls",), 0), (("report", "--list"), 0), (("report",), 0), (("report", "--path", "drift"), 0),
    (("drift", "delays", "--until", "2013-03-10"), 0), (("drift", "delays", "--since", "2013-03-20"), 1), (("harm", "delays", "--until", "2013-03-10"), 0), (("harm", "delays", "--since", "2013-03-20"), 1), (("harm", "delays", "--chunk", "fortnight"), 2), (("performance", "delays"), 0),
    (("drift", "reference.parquet", "reference.parquet"), 0), (("drift", "reference.parquet", "current.parquet"), 1),
    (("drift", "reference.parquet", "current.parquet", "--tolerance", "0.99"), 0),
    (("drift", "delays", "--over", "7D"), 1), (("drift", "delays", "--over", "7D", "--until", "2013-03-10"), 0), (("drift", "delays", "--over", "100"), 1),
    (("drift", "reference.parquet", "current.parquet", "--over", "100"), 1), (("drift", "reference.parquet", "march.csv", "--over", "7D", "--time", "at"), 1),
    (("drift", "delays", "--until", "2013-03-10", "--budget", "1 per 90 days"), 0), (("drift", "delays", "--until", "2013-03-10", "--budget", "1 per 90 days", "--every", "1D"), 0),
    (("performance", "delays", "--chunk", "100"), 0), (("drift", "delays", "--over", "fortnight"), 2), (("drift", "delays", "--over", "0"), 2),
    (("drift", "delays", "--over", "7D", "--every", "1D"), 2), (("drift", "delays", "--time", "at"), 2), (("drift", "delays", "--budget", "rarely"), 2), (("drift", "delays", "--budget", "-1"), 2),
    (("drift", "reference.parquet", "current.parquet", "--over", "7D"), 2), (("drift", "delays", "--since", "2013-03-05", "--budget", "1 per year", "--every", "often"), 2),
    (("performance", "delays", "--budget", "1 per 90 days"), 2), (("performance", "delays", "--chunk", "MS", "--budget", "1 per day"), 2),
    (("performance", "delays", "--estimated", "--since", "2014-01-01"), 2), (("performance", "nobody", "--estimated"), 2),
    (("drfit",), 2), (("--nonsense",), 2), (("drift",), 2), (("ls", "everything"), 2), (("drift", "delays", "--tolerance", "much"), 2), (("serve", "--port", "70000"), 2), (("serve", "--tick", "-1"), 2),
    (("drift", "nobody"), 2), (("drift", "delays", "--since", "yesterday"), 2), (("drift", "delays", "--since", "2013-03-02", "--until", "2013-03-01"), 2),
    (("drift", "reference.parquet", "nobody.parquet"), 2), (("drift", "reference.parquet", "current.parquet", "--since", "2013-03-01"), 2),
    (("drift", "delays", "--tolerance", "-1"), 2), (("performance", "delays", "--chunk", "fortnight"), 2), (("promote", "delays", "7", "--reason", "x"), 2),
    (("promote", "delays", "1", "--reason", " "), 2), (("score", "delays", "nobody.csv", "out.parquet"), 2), (("feedback", "delays", "model.pkl"), 2),
    (("report", "drfit"), 2), (("report", "drift", "-p", "deployment"), 2), (("report", "drift", "-p", "deployment=delays", "-p", "sicne=x"), 2),
    (("report", "drift", "-p", "deployment=nobody"), 2), (("report", "drift"), 2), (("serve", "nobody"), 2), (("serve", "--host", "0.0.0.0"), 2),
    (("serve", "--token-file", "nobody"), 2), (("tour", "ws"), 2), (("ls", "-w", "nowhere"), 2), (("open", "model.pkl"), 2), (("open", "nowhere", "--read-only"), 2)],
    ids=lambda x: " ".join(x) or "nothing" if isinstance(x, tuple) else None)
def test_exit_code(mlnb, args: tuple[str, ...], code: int) -> None:
    done = mlnb(*args)
    assert done.code == code, done.out + done.err
    if code == 2: assert done.err.strip() and not done.out
    else: assert done.out.strip() and not done.err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("args,message", [
    (("drift", "nobody"), "there is no deployment 'nobody'; known: 'delays'"),
    (("ls", "-w", "nowhere"), "there is no workspace in 'nowhere'; name another with -w FOLDER or MLNB_WORKSPACE, or make this one: mlnb open nowhere"),
    (("register", "delays", "model.pkl", "train.parquet", "--target", "late"), "model.pkl: this is not a skops file"),
    (("register", "x", "model.skops", "train.parquet", "--target", "delayed"), "the table has no column 'delayed'; it has temp, wind, late"),
    (("register", "a/b", "model.skops", "train.parquet", "--target", "late"), "'a/b' is no name for a model"),
    (("register", "delays", "model.skops", "train.parquet", "--target", "late", "--deploy"), "there is a deployment 'delays' already; register without --deploy"),
    (("report", "drift", "-p", "deployment=delays", "-p", "sicne=x"), "did you mean 'since'?"),
    (("report", "drift", "-p", "since"), "-p since: give a parameter as key=value"),
    (("drift", "delays", "--over", "7D", "--every", "1D"), "--every says how often one window is checked; with --over each chunk is a check"),
    (("drift", "delays", "--time", "at"), "--time names the times of two files that are compared with --over"),
    (("drift", "reference.parquet", "current.parquet", "--over", "7D"), "chunks of time need a column of times, and there is none"),
    (("drift", "delays", "--budget", "rarely"), "budget='rarely' is not a number of false alarms; give '1 per 90 days'"),
    (("performance", "delays", "--budget", "1 per 90 days"), "budget='1 per 90 days' counts days, and chunk=None does not"),
    (("performance", "delays", "--estimated", "--since", "2014-01-01"), "deployment 'delays' has no prediction in"),
    (("serve", "--host", "0.0.0.0"), "give a token"),
    (("feedback", "delays", "model.pkl"), "model.pkl is no table that can be read; give a file that ends in .parquet, .csv, .json, .jsonl")],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, tuple) else "")
def test_messages(mlnb, args: tuple[str, ...], message: str) -> None:
    done = mlnb(*args)
    assert done.code == 2 and message in done.err and done.err.startswith(f"mlnb {args[0]}: ") and done.out == ""
    done = mlnb(*args, "--json")
    assert done.code == 2 and message in done.json["error"] and message in done.err


def test_a_pickle_is_not_loaded(mlnb, folder: Path) -> None:
    class Bomb:
        def __reduce__(self): return Path.touch, (folder / "boom",)
    (folder / "bomb.skops").write_bytes(pickle.dumps(Bomb()))
    before = mlnb("ls", "models", "--json").json
    assert mlnb("register", "bomb", "bomb.skops", "train.parquet", "--target", "late").code == 2
    assert not (folder / "boom").exists() and mlnb("ls", "models", "--json").json == before


def test_a_bug_is_not_an_alarm(mlnb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug(*_: object, **__: object) -> None: raise ZeroDivisionError("oops")
    monkeypatch.setattr("mlnb.monitor.drift.deployment_drift", bug)
    assert cli.main(["drift", "delays"]) == 70
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


# One JSON object

@pytest.mark.parametrize("args,keys", [
    (("ls",), {"models", "deployments", "predictions", "reports"}), (("ls", "models"), {"models"}), (("open", "ws"), {"workspace", "models", "deployments", "predictions", "reports"}),
    (("drift", "delays"), {"alarm", "reasons", "table", "drifted"}), (("drift", "reference.parquet", "current.parquet"), {"alarm", "reasons", "table"}),
    (("performance", "delays", "--chunk", "7D"), {"alarm", "reasons", "table"}), (("feedback", "delays", "labels.csv"), {"received", "matched", "unknown", "repeated", "changed"}),
    (("score", "delays", "march.csv", "again.parquet", "--no-log"), {"rows", "logged", "version", "sink"}), (("report", "--list"), {"drift", "evaluate", "performance", "retrain"}),
    (("drift", "delays", "--over", "7D"), {"alarm", "reasons", "table", "spent"}),
    (("report", "drift", "--path"), {"name", "path"}), (("register", "other", "model.skops", "train.parquet", "--target", "late"), {"model", "version", "artefact"})],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_json_is_one_object_and_nothing_else(mlnb, args: tuple[str, ...], keys: set[str]) -> None:
    done = mlnb(*args, "--json")
    assert keys <= set(done.json) and done.out.count("\n") == 1 and done.err == "" and done.code in (0, 1)
    assert not re.search(r"NaN|Infinity|\033", done.out)


def test_json_says_what_the_library_says(mlnb, folder: Path) -> None:
    import mlnb as library
    with library.open(folder / "ws", read_only=True) as ws:
        dep = ws.deployment("delays")
        assert mlnb("drift", "delays", "--since", "2013-03-20", "--json").json == json.loads(json.dumps(dep.drift("2013-03-20").to_dict()))
        assert mlnb("performance", "delays", "--json").json == json.loads(json.dumps(dep.performance().to_dict()))


def test_since_when(mlnb, folder: Path) -> None:
    "The second half is warmer: every chunk of it, and none before"
    import mlnb as library
    from mlnb.monitor.timeline import deployment_timeline
    done = mlnb("drift", "delays", "--over", "7D", "--budget", "1 per 90 days", "--json")
    with library.open(folder / "ws", read_only=True) as ws:
        assert done.json == json.loads(json.dumps(deployment_timeline(ws.deployment("delays"), None, None, "7D", budget="1 per 90 days").to_dict()))
    assert done.code == 1 and "1 per 90 days" in done.json["spent"]
    warm = {r["chunk"] for r in done.json["table"] if r["feature"] == "temp" and r["alarm"]}
    assert warm and min(warm) >= "2013-03-15" and {"start", "end", "n", "distance", "threshold", "tolerance"} <= set(done.json["table"][0])
    text = mlnb("drift", "delays", "--over", "7D").out
    assert "Drift over time: drift" in text and "temp drifted in" in text and re.search(r"chunk +rows +drifted +farthest +distance\n2013-03-01", text)


def test_performance_before_the_labels(mlnb, folder: Path) -> None:
    "A workspace of its own: enough rows to learn from, and a last week without labels"
    from mlnb import open as open_
    rng, n = np.random.default_rng(1), 1500
    X = pd.DataFrame({"temp": rng.normal(5, 3, n), "wind": rng.gamma(4, 3, n)})
    y = np.where(rng.random(n) < 1 / (1 + np.exp(3 - X.wind / 4)), "late", "on time")
    with open_(folder / "third") as ws:
        v = ws.register("delays", LogisticRegression().fit(X, y), X, y, at="2013-03-01")
        dep = ws.deploy("delays", v, at="2013-03-01")
        from mlnb.core.events import log_predictions
        log_predictions(dep, X, v.predict(X), at=pd.Timestamp("2013-03-01", tz="UTC") + pd.to_timedelta(np.arange(n) * 13, unit="min"))
    done = mlnb("performance", "delays", "--estimated", "--chunk", "7D", "-w", "third", "--json")
    rows = [r for r in done.json["table"] if r["metric"] == "roc_auc"]
    assert done.code == 0 and [r["chunk"] for r in rows] == ["2013-03-01", "2013-03-08"] and all(r["lower"] < r["estimate"] < r["upper"] and r["labelled"] == 0 for r in rows)
    assert any("the reference is the last 30% of the training rows of delays v1" in r for r in done.json["reasons"])
    text = mlnb("performance", "delays", "--estimated", "--chunk", "7D", "-w", "third", "--budget", "1 per 90 days").out
    assert "Estimated performance: as expected" in text and re.search(r"chunk +n +labelled +metric +estimate", text)


def test_ls(mlnb) -> None:
    found = mlnb("ls", "--json").json
    assert found["models"][0] | {"model": "delays", "version": 1, "task": "binary", "features": 2} == found["models"][0]
    assert found["deployments"][0]["champion"] == "delays v1"
    assert found["predictions"] == [{"deployment": "delays", "predictions": 400, "labelled": 400, "first": "2013-03-01 00:00", "last": found["predictions"][0]["last"]}]
    text = mlnb("ls", "deployments").out
    assert "delays v1" in text and "2013-03-01" in text


# What the commands do

def test_register_then_promote(mlnb, folder: Path) -> None:
    for n in (1, 2):
        args = ["register", "storms", "model.skops", "train.parquet", "--target", "late", "--at", f"2013-03-0{n}", "-w", "second", "--json"]
        done = mlnb(*args, *(["--deploy"] if n == 1 else []))
        assert done.json["version"] == n and done.json["features"] == ["temp", "wind"]
    assert mlnb("promote", "storms", "2", "--reason", "newer", "--at", "2013-03-05", "-w", "second").code == 0
    assert mlnb("ls", "deployments", "-w", "second", "--json").json["deployments"][0]["champion"] == "storms v2"


def test_tour_shows_what_the_library_returns(mlnb, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlnb.tour import TourResult
    month = {"month": "2013-03", "n": 100, "labelled": 90, "rate": .2, "auc_champion": .7, "auc_first": .7, "champion": "delays v1", "drifted": ["temp"],
             "retrained": False, "promoted": False, "outcome": "–", "reason": "none yet"}
    asked: dict[str, Any] = {}
    def live(where: Any, **kw: Any) -> TourResult:
        asked.update(kw, where=where)
        return TourResult([month], ["reports/a.html"], "my tour", 1.5)
    monkeypatch.setattr("mlnb.tour.tour", live)
    done = mlnb("tour", "my tour", "--seed", "3", "--json")
    assert done.code == 0 and set(done.json) == {"months", "reports", "workspace", "seconds"} and done.json["months"][0]["auc_champion"] == .7
    assert asked == {"where": "my tour", "seed": 3, "progress": False}
    text = mlnb("tour").out
    assert "2013-03" in text and "What to do next" in text and "cd 'my tour'" in text and "mlnb serve -w ." in text and asked["where"] is None and asked["progress"]


def test_ids_of_labels_stay_text(mlnb, folder: Path) -> None:
    (folder / "labels.json").write_text(json.dumps([{"id": "0001", "y": "late"}]))
    (folder / "labels.jsonl").write_text('{"id": "0002", "y": "late"}\n')
    (folder / "more.csv").write_text("id,y\n0003,late\n")
    for name in ("labels.json", "labels.jsonl", "more.csv"): assert mlnb("feedback", "delays", name, "--json").json["matched"] == 1


@pytest.mark.slow
def test_report(mlnb, folder: Path) -> None:
    done = mlnb("report", "drift", "-p", "deployment=delays", "-p", "since=2013-03-20", "--json")
    assert done.code == 1 and done.json["status"] == "succeeded" and done.json["result"]["alarm"] and Path(done.json["html"]).exists()
    done = mlnb("report", "drift", "-p", "deployment=delays", "-p", "until=2013-03-10")
    assert done.code == 0 and ".html" in done.out
    assert len(mlnb("ls", "reports", "--json").json["reports"]) >= 2


@pytest.mark.slow
def test_report_that_fails_while_running(mlnb, folder: Path) -> None:
    import nbformat
    cells = [nbformat.v4.new_code_cell("workspace = '.'\nmargin = 0", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("1 / margin")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), folder / "own.ipynb")
    done = mlnb("report", "own.ipynb", "--json")
    assert done.code == 1 and done.json["status"] == "failed" and "ZeroDivisionError" in done.json["error"] and "ZeroDivisionError" in done.err
    assert mlnb("report", "own.ipynb", "-p", "margin=high").code == 2


def test_read_only_folder_is_only_read(mlnb, folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "ws").rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))}
    for args in (("ls",), ("drift", "delays"), ("performance", "delays"), ("open", "ws", "--read-only")): mlnb(*args)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


# Rollouts and experiments

def test_a_group_shows_its_commands(mlnb) -> None:
    for group in ("rollout", "experiment"):
        done = mlnb(group)
        assert done.code == 0 and all(c.split()[1] in done.out for c in GROUPED if c.startswith(group))
    assert mlnb("rollout", "tock").code == 2


@pytest.mark.parametrize("args,code", [
    (("status",), 1), (("status", "delays", "--at", "2013-03-02 01:00"), 0), (("status", "delays", "--at", "2013-03-03"), 1), (("tick", "--at", "2013-03-02 01:00", "--no-report"), 0),
    (("tick", "--at", "2013-03-03", "--no-report"), 1), (("tick", "quiet"), 0), (("tick", "nobody"), 2), (("tick", "--at", "2013-03-01"), 2), (("tick", "--at", "soon"), 2), (("moves", "delays"), 0), (("moves", "quiet"), 2), (("status", "quiet"), 2),
    (("hold", "delays", "--reason", "a storm", "--at", "2013-03-02 01:00"), 0), (("hold", "delays"), 2), (("hold", "delays", "--reason", " "), 2), (("resume", "delays", "--reason", "x"), 2), (("next", "delays", "--reason", "x"), 2),
    (("promote", "delays", "--reason", "x", "--at", "2013-03-02 01:00"), 0), (("promote", "delays", "--reason", "x", "--version", "2"), 2), (("rollback", "delays", "--reason", "x", "--at", "2013-03-02 01:00"), 0), (("rollback", "quiet", "--reason", "x"), 2),
    (("start", "quiet", "2", "--draft"), 0), (("start", "quiet", "2", "3"), 2), (("start", "quiet"), 2), (("start", "quiet", "9"), 2), (("start", "delays", "2"), 2), (("start", "quiet", "2", "--plan", "mlnb.toml"), 2), (("start", "quiet", "2", "--plan", "nobody.toml"), 2)],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else None)
def test_exit_code_of_rollouts(rollouts, args: tuple[str, ...], code: int) -> None:
    done = rollouts("rollout", *args)
    assert done.code == code, done.out + done.err
    if code == 2: assert done.err.startswith(f"mlnb rollout {args[0]}: ") or "Usage" in done.err or "Error" in done.err
    else: assert done.out.strip() and not done.err


@pytest.mark.parametrize("args,message", [
    (("start", "delays", "2", "--plan", "mlnb.toml"), "a rollout of 'delays' is under way (state: canary), and is not changed by another plan"),
    (("start", "quiet", "2", "--plan", "mlnb.toml"), "mlnb.toml has no table [deployments.quiet.rollout]"), (("start", "quiet", "2", "3"), "canary: 0.5 of the traffic for each of 2 challengers and the control is more than there is"),
    (("start", "quiet", "1"), "delays v1 is the champion itself"), (("moves", "quiet"), "there is no rollout of 'quiet' yet"), (("tick", "nobody"), "there is no deployment 'nobody'"),
    (("promote", "delays", "--reason", "x", "--version", "2"), "version=2: say which challenger to promote: 3 (delays v3)"), (("next", "delays", "--reason", "x"), "is the last stage; promote or roll back")],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, tuple) else "")
def test_messages_of_rollouts(rollouts, args: tuple[str, ...], message: str) -> None:
    done = rollouts("rollout", *args, "--json")
    assert done.code == 2 and message in done.json["error"] and message in done.err and done.err.startswith(f"mlnb rollout {args[0]}: ")


@pytest.mark.parametrize("args,keys", [
    (("rollout", "start", "quiet", "2", "--draft"), {"deployment", "rollout", "challengers", "state", "where", "plan"}), (("rollout", "status"), {"rollouts"}), (("rollout", "status", "delays"), {"state", "stage", "evidence", "moves", "alarm", "reasons"}),
    (("rollout", "tick", "--at", "2013-03-03", "--no-report"), {"ticks"}), (("rollout", "tick", "quiet"), {"ticks"}), (("rollout", "hold", "delays", "--reason", "x", "--at", "2013-03-02 01:00"), {"state", "reason", "where"}), (("rollout", "moves", "delays"), {"moves"}),
    (("experiment", "plan", "mean", "--effect", "1", "--variance", "50", "--traffic", "100"), {"table", "effect", "horizon"})],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, tuple) else "")
def test_json_of_rollouts_is_one_object(rollouts, args: tuple[str, ...], keys: set[str]) -> None:
    done = rollouts(*args, "--json")
    assert keys <= set(done.json) and done.out.count("\n") == 1 and done.err == "" and not re.search(r"NaN|Infinity|\033", done.out)


def test_a_rollout_by_the_command_line(rollouts, tmp_path: Path) -> None:
    "What was rolled back by a tick is known, and another challenger follows the plan of the file"
    tick = rollouts("rollout", "tick", "--at", "2013-03-03", "--no-report", "--json").json["ticks"][0]
    assert (tick["deployment"], tick["state"], tick["moved"], tick["before"], tick["alarm"], tick["report"]) == ("delays", "rolled back", 2, "canary", True, None)
    assert rollouts("rollout", "tick").out == "no rollout is under way\n"
    assert rollouts("rollout", "start", "delays", "2", "--plan", "mlnb.toml", "--at", "2013-03-04", "--by", "ann", "--reason", "the next one").code == 0
    assert rollouts("rollout", "start", "delays", "2", "--plan", "mlnb.toml").code == 0, "to begin the same again is no error"
    assert rollouts("ls", "deployments", "--json").json["deployments"][0] | {"challenger": "delays v2", "rollout": "canary 1 of 1 (50%)"} == rollouts("ls", "deployments", "--json").json["deployments"][0]
    paused = rollouts("rollout", "tick", "--at", "2013-03-08", "--no-report")
    assert paused.code == 1 and "delays: paused in canary 1 of 1 (50%)" in paused.out and "there was no traffic in this stage yet" in paused.out
    assert rollouts("rollout", "resume", "delays", "--reason", "now", "--at", "2013-03-09").code == rollouts("rollout", "promote", "delays", "--reason", "enough", "--at", "2013-03-10").code == 0
    moves = rollouts("rollout", "moves", "delays", "--json").json["moves"]
    assert [(m["state"], m["actor"]) for m in moves] == [("draft", "ann"), ("canary 1 of 1 (50%)", "ann"), ("paused in canary 1 of 1 (50%)", "tick"), ("canary 1 of 1 (50%)", "user"), ("promoted", "user")]
    assert rollouts("ls", "deployments", "--json").json["deployments"][0]["champion"] == "delays v2"


def test_one_rollout_that_fails_does_not_keep_the_others_from_being_evaluated(rollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rollouts("rollout", "start", "quiet", "2", "--at", "2013-03-02").code == 0
    from mlnb.core.errors import MlnbError
    from mlnb.rollout import release as module
    real = module.evaluate
    def evaluate(rollout: Any, at: Any) -> Any:
        if rollout.dep.name == "delays": raise MlnbError("its log is gone")
        return real(rollout, at)
    monkeypatch.setattr(module, "evaluate", evaluate)
    done = rollouts("rollout", "tick", "--at", "2013-03-30", "--no-report", "--no-mirror", "--json")
    assert done.code == 2 and done.json["error"].splitlines() == ["delays: its log is gone", "quiet: paused in shadow"]


@pytest.mark.slow
def test_a_tick_documents_what_it_did(rollouts, tmp_path: Path) -> None:
    done = rollouts("rollout", "tick", "delays", "--at", "2013-03-03", "--json")
    tick = done.json["ticks"][0]
    assert done.code == 1 and Path(tick["html"]).exists() and tick["report"] and "the report 'canary' documents it" in tick["reasons"]
    assert rollouts("ls", "reports", "--json").json["reports"][0]["verdict"] == "rolled back"
    done = rollouts("report", "canary", "-p", "deployment=delays", "-p", "move=two")
    assert done.code == 2 and "move should be int|None; given: 'two' (str)" in done.err


@pytest.mark.parametrize("args,code", [(("plan", "proportion", "--baseline", ".1", "--effect", ".01", "--traffic", "2000"), 0), (("plan", "proportion", "--baseline", ".1", "--effect", ".01", "--traffic", "2000", "--days", "3"), 1),
    (("plan", "proportion", "--baseline", ".1", "--days", "30", "--traffic", "2000", "--arms", "3"), 0), (("plan", "mean", "--traffic", "10"), 2), (("plan", "mean"), 2), (("plan", "median", "--traffic", "5", "--effect", "1"), 2),
    (("analyze", "visits.csv", "--metric", "proportion bought"), 0), (("analyze", "visits.csv", "--metric", "proportion bought better=lower", "--fixed"), 1), (("analyze", "visits.csv", "--metric", "quantile ms 0.9 better=lower margin=50", "--metric", "mean ms"), 0),
    (("analyze", "visits.csv"), 2), (("analyze", "visits.csv", "--metric", "mean speed"), 2), (("analyze", "visits.csv", "--metric", "median ms"), 2), (("analyze", "visits.csv", "--metric", "mean ms colour=red"), 2), (("analyze", "nobody.csv", "--metric", "mean ms"), 2)],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else None)
def test_exit_code_of_experiments(mlnb, folder: Path, args: tuple[str, ...], code: int) -> None:
    rng = np.random.default_rng(0)
    arm = rng.choice(["control", "new"], 3000)
    pd.DataFrame({"arm": arm, "bought": (rng.random(3000) < np.where(arm == "new", .3, .2)).astype(int), "ms": rng.gamma(2, 50, 3000).round(1)}).to_csv(folder / "visits.csv", index=False)
    done = mlnb("experiment", *args)
    assert done.code == code, done.out + done.err
    assert (done.err if code == 2 else done.out).strip() and "Traceback" not in done.err


# The process itself

def process(*args: str, **kw: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mlnb.cli", *args], capture_output=True, text=True, timeout=120, **kw)


def test_help_is_there_at_once() -> None:
    before = os.times()
    done = process("--help")
    after = os.times()
    assert done.returncode == 0 and all(c in done.stdout for c in COMMANDS)
    assert after.children_user + after.children_system - before.children_user - before.children_system < .6  # alone 0.15 s; the machine may be busy
    heavy = "import sys, mlnb.cli; print([m for m in ('numpy', 'pandas', 'sqlalchemy', 'sklearn', 'matplotlib', 'fastapi', 'ipywidgets', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [*(c for c in COMMANDS if c not in ("rollout", "experiment")), *GROUPED])
def test_every_help_has_an_example(mlnb, name: str) -> None:
    done = mlnb(*name.split(), "--help")
    assert done.code == 0 and f"Example:\n    mlnb {name}" in done.out.replace("MLNB_TOKEN=... ", "") and "--json" in done.out


def test_exit_code_and_streams_of_the_process(folder: Path) -> None:
    env = {**os.environ, "MLNB_WORKSPACE": str(folder / "ws"), "LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}
    done = process("drift", "delays", "--since", "2013-03-20", "--json", env=env)
    assert done.returncode == 1 and json.loads(done.stdout)["alarm"] and done.stderr == ""
    done = process("drift", "nobody", env=env)
    assert done.returncode == 2 and done.stdout == "" and "known: 'delays'" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_serve_says_where_answers_and_stops(folder: Path) -> None:
    env = {**os.environ, "MLNB_TOKEN": "open sesame"}
    server = subprocess.Popen([sys.executable, "-m", "mlnb.cli", "serve", "-w", str(folder / "ws"), "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        said = json.loads(server.stdout.readline())
        assert said["deployments"][0] == "delays"
        ask = urllib.request.Request(said["url"] + "/healthz", headers={"Authorization": "Bearer open sesame"})
        assert urllib.request.urlopen(ask, timeout=20).status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"): urllib.request.urlopen(said["url"] + "/healthz", timeout=20)
    finally:
        server.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert server.wait(30) == 0 and time.monotonic() - start < 25
    assert server.stdout.read() == ""
