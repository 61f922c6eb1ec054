"""Reports: real runs of every template, refusals, kernels and runners that die, files, pages."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier

import mlnb
from mlnb.core.errors import MlnbError, NotFound, ParameterError, ReportError
from mlnb.core.events import feedback, log_predictions
from mlnb.core.exposures import log_shadows
from mlnb.core.registry import decisions, deploy, register
from mlnb.jupyter import reports as rp
from mlnb.jupyter.proposals import words
from mlnb.jupyter.templates import templates
from mlnb.rollout import release

PARAMS = "workspace = 'work'\ndeployment = None  # type: str\nlimit = 1.0\nsince = None  # type: str|None\nrun = None  # type: str|None"
OPEN = "import mlnb\nfrom mlnb.core.registry import Decision\nfrom mlnb.core.result import Result\nimport pandas as pd\nws = mlnb.open(workspace)"
CHECK = """class Check(Result):
    title, alarm, reasons = "A <check>", False, ["x < y & z"]
    def table(self): return pd.DataFrame({"<b>": [limit]})"""
PROMOTE = "ws.conclude(Check(), decision=Decision('promote', deployment, 2, 'it is better', '2013-04-01'), run=run)"
GIVEN: dict[str, dict] = {"drift": {"since": "2013-02-10", "until": "2013-03-10"}, "evaluate": {"since": "2013-02-10", "until": "2013-03-10"},
         "performance": {"since": "2013-03-02", "until": "2013-03-10", "chunk": "4D"}, "retrain": {"until": "2013-03-10", "holdout": "7D"}}


def flights(rng: np.random.Generator, start: str, days: int, turn: float) -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
    n = 60 * days
    X = pd.DataFrame({"wind": rng.gamma(4, 3, n), "hour": rng.integers(5, 23, n).astype(float)})
    at = pd.Series(pd.Timestamp(start, tz="UTC") + pd.to_timedelta(np.sort(rng.random(n)) * days, unit="D"))
    return X, np.where(rng.random(n) < 1 / (1 + np.exp(-turn * (X.wind / 3 - 4))), "late", "on time"), at


@pytest.fixture
def ws(tmp_path: Path) -> mlnb.Workspace:
    "A deployment `delays` that answered for four weeks, in which the world turned round; two versions"
    rng = np.random.default_rng(0)
    ws = mlnb.open(tmp_path / "work space")
    X, y, at = flights(rng, "2013-01-29", 12, 1)
    v1 = register(ws, "delays", LogisticRegression().fit(X, y), X, y, time=at, at="2013-02-10")
    register(ws, "delays", LogisticRegression(C=.1).fit(X, y), X, y, time=at, at="2013-02-11")
    dep = deploy(ws, "delays", v1, at="2013-02-10")
    X, y, at = flights(rng, "2013-02-10", 28, -1)
    ids = log_predictions(dep, X, v1.predict(X), at=at)
    feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": at + pd.Timedelta("3h")})[: len(ids) * 19 // 20])
    return ws


@pytest.fixture
def notebook(tmp_path: Path):
    "Write a template; its first cell holds the parameters"
    def write(name: str, *code: str) -> Path:
        cells = [nbformat.v4.new_markdown_cell(f"# The {name}\n> A trial\n\nSome text."), *map(nbformat.v4.new_code_cell, code)]
        cells[1].metadata["tags"] = ["parameters"]
        spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"
    return write


def files(ws: mlnb.Workspace) -> list[str]:
    return sorted(p.name for p in (ws.path / "reports").glob("*")) if (ws.path / "reports").exists() else []


def untouched(ws: mlnb.Workspace) -> bool:
    dep = ws.deployment("delays")
    return dep.champion.number == 1 and len(decisions(dep)) == 0


# The templates that come with the package

def test_the_templates_are_there() -> None: assert set(templates()) >= set(GIVEN)


@pytest.mark.parametrize("name", GIVEN)
def test_run(ws: mlnb.Workspace, name: str, tmp_path: Path) -> None:
    run = ws.run(name, deployment="delays", **GIVEN[name])
    assert run.status == "succeeded" and run.error is None and run.result and run.result["reasons"]
    assert run.provenance["fingerprint"] and run.provenance["window"][1] == "2013-03-10T00:00:00+00:00" and run.provenance["packages"]["python"]
    assert run.notebook and run.html and files(ws) == sorted([run.notebook.name, run.html.name])
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{name}-delays-{run.run[:6]}\.html", run.html.name)
    both = run.notebook.read_text() + run.html.read_text()
    assert str(tmp_path) not in both and str(Path.home()) + "/" not in both and "mlnb-" not in run.notebook.read_text().split('"cells"')[0]
    assert "stderr" not in [o.get("name") for c in nbformat.read(run.notebook, 4).cells if c.cell_type == "code" for o in c.outputs]
    page(run.html.read_text())
    assert ws.reports().loc[0, ["run", "status", "name"]].tolist() == [run.run, "succeeded", name]
    if name == "retrain":
        made = decisions(ws.deployment("delays"))
        assert run.decision and made["action"].tolist() == [run.decision["action"]] == ["promote"] and made["actor"].tolist() == [f"report {run.run}"]
        assert ws.deployment("delays").champion.number == 3
    else: assert untouched(ws)


@pytest.mark.parametrize("name", GIVEN)
def test_plain_papermill(ws: mlnb.Workspace, name: str, tmp_path: Path) -> None:
    "Without the runner nobody else would carry the decision out"
    given = [x for k, v in {"workspace": str(ws.path), "deployment": "delays", **GIVEN[name]}.items() for x in ("-p", k, v)]
    done = subprocess.run([sys.executable, "-m", "papermill", str(templates()[name]), str(tmp_path / "out.ipynb"), "-k", "python3", "--no-progress-bar", *given],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unknown parameter" not in done.stderr
    assert rp.concluded(nbformat.read(tmp_path / "out.ipynb", 4))["result"]["reasons"]
    assert len(ws.reports()) == 0
    if name == "retrain": assert ws.deployment("delays").champion.number == 3 and decisions(ws.deployment("delays"))["actor"].tolist() == ["notebook"]
    else: assert untouched(ws)


@pytest.mark.parametrize("late", [False, True], ids=["labelled", "no label yet"])
@pytest.mark.parametrize("task", ["multiclass", "regression", "binary without probabilities"])
def test_cells_hold_for_every_task(tmp_path: Path, task: str, late: bool) -> None:
    "The cells of the templates, run here, where no kernel has to start"
    rng = np.random.default_rng(0)
    X, noise = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)}), rng.normal(size=400) / 2
    y = {"multiclass": np.array(["x", "y", "z"])[np.digitize(X.a + noise, [-.5, .5])], "regression": 2 * X.a.to_numpy() + noise}.get(task, np.where(X.a + noise > 0, "p", "q"))
    model = {"multiclass": LogisticRegression(), "regression": LinearRegression()}.get(task, RidgeClassifier()).fit(X, y)
    ws = mlnb.open(tmp_path)
    v1 = register(ws, "m", model, X, y, at="2013-01-26")
    dep, at = deploy(ws, "m", v1, at="2013-01-26"), pd.Timestamp("2013-01-26", tz="UTC") + pd.to_timedelta(np.arange(400), unit="h")
    ids = log_predictions(dep, X, v1.predict(X), at=at)
    if not late: feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": at}))
    for name in ("drift", "evaluate", "performance"):
        cells: dict = {}
        for c in [c for c in nbformat.read(templates()[name], 4).cells if c.cell_type == "code"]:
            exec(c.source, cells)
            if "parameters" in c.metadata.get("tags", []): cells.update(workspace=str(tmp_path), deployment="m", since="2013-01-26", until="2013-02-10", run="here")


def texts(run: rp.ReportRun) -> str:
    "All that the cells of a report printed or returned as text"
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for c in nbformat.read(run.notebook, 4).cells if c.cell_type == "code" for o in c.outputs)


def test_performance_measures_and_estimates(ws: mlnb.Workspace) -> None:
    "The world turned round before the log began: the estimate is as bad as what was measured, since it learned from the same log"
    run = ws.run("performance", deployment="delays", since="2013-02-24", until="2013-03-10", chunk="7D", limits={"roc_auc": .6}, budget="1 per 90 days", progress=False)
    reasons = " ".join(run.result["reasons"])
    assert run.alarm and run.verdict == "below expectation" and re.search(r"roc_auc of 2013-02-24 is 0\.\d+ .*certainly below the limit 0\.6", reasons)
    assert re.search(r"before the labels: the reference is \d\d\d labelled rows from 2013-02-10 to 2013-02-23", reasons) and "estimated" in reasons
    assert {r["metric"] for r in run.result["table"]} >= {"roc_auc", "log_loss", "mean_score"} and len(run.result["others"]["before the labels"]["table"]) > 2
    assert "have a label" in texts(run) and "There are too few stretches to learn what is usual from" in texts(run)


def test_performance_says_why_nothing_is_estimated(ws: mlnb.Workspace) -> None:
    run = ws.run("performance", deployment="delays", since="2013-02-15", until="2013-02-16", as_of="2013-02-13", chunk="D", progress=False)
    assert run.status == "succeeded" and "What is usual is learned from 2013-02-10 to 2013-02-15" in texts(run)
    assert "Not known: performance cannot be estimated" in texts(run) and re.search(r"reference: \d+ labelled rows are too few to learn from, 250 are needed", texts(run))
    assert not any("before the labels" in r for r in run.result["reasons"])


def test_drift_says_since_when_and_what_was_spent(ws: mlnb.Workspace) -> None:
    run = ws.run("drift", deployment="delays", since="2013-03-01", until="2013-03-10", budget="1 per 90 days", every="1D", chunk="D", progress=False)
    assert run.status == "succeeded" and any("false alarms to expect in a check like this: 0.00278 (0.25 per 90 days, at a check every 1 day)" in r for r in run.result["reasons"])
    pictures = [o for c in nbformat.read(run.notebook, 4).cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 7, "distances, course, the largest change, the answers, what hurts, slices, between columns"
    assert run.verdict == "no drift" and not run.alarm and any(r.startswith("harm: realised performance is within its thresholds") for r in run.result["reasons"])


def run_cells(ws: mlnb.Workspace, name: str, **given: object) -> dict:
    "The names that the cells of a template leave, run here, where no kernel has to start"
    cells: dict = {}
    for c in [c for c in nbformat.read(templates()[name], 4).cells if c.cell_type == "code"]:
        exec(c.source.replace("ws.conclude(", "ended = ws.conclude("), cells)
        if "parameters" in c.metadata.get("tags", []): cells.update(workspace=str(ws.path), deployment="delays", run="here", **given)
    return cells


@pytest.mark.parametrize("hurts,verdict", [(False, "drift without harm"), (True, "drift with harm")])
def test_drift_is_told_from_harm(tmp_path: Path, hurts: bool, verdict: str) -> None:
    "Later hours from the third week on; the hour matters to nobody, unless the world turns round with it"
    rng = np.random.default_rng(1)
    ws = mlnb.open(tmp_path)
    X, y, at = flights(rng, "2013-01-29", 12, 1)
    v1 = register(ws, "delays", LogisticRegression().fit(X, y), X, y, time=at, at="2013-02-10")
    dep = deploy(ws, "delays", v1, at="2013-02-10")
    for start, turn, later in (("2013-02-10", 1, 0), ("2013-02-24", -1 if hurts else 1, 4)):
        X, y, at = flights(rng, start, 14, turn)
        X["hour"] += later
        ids = log_predictions(dep, X, v1.predict(X), at=at)
        feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": at + pd.Timedelta("3h")}))
    ended = run_cells(ws, "drift", since="2013-02-24", until="2013-03-10", chunk="2D")["ended"]
    said = ended.result.reasons
    assert ended.result.alarm and ended.data["verdict"] == verdict and any("1 of 4 features drifted: hour" in r or "features drifted: hour" in r for r in said)
    assert any(r.startswith(f"harm: realised performance is {'worse' if hurts else 'within its thresholds'}") for r in said)
    assert any(r.startswith("between columns: a classifier can tell") for r in said)


@pytest.mark.parametrize("name,given,says", [
    ("drift", {"budget": "rarely"}, "budget='rarely' is not a number of false alarms"), ("drift", {"chunk": "fortnight"}, "chunk='fortnight' is not a length of time"),
    ("performance", {"budget": "1 per hour"}, "budget='1 per hour' allows 168 false alarms in each chunk"), ("performance", {"chunk": "fortnight"}, "chunk='fortnight' is not a length of time"),
    ("performance", {"limits": {"auc": .6}}, "limits has 'auc', which is no metric of a binary task")])
def test_values_that_make_no_sense(ws: mlnb.Workspace, name: str, given: dict, says: str) -> None:
    "The cells say which value, and what would do"
    with pytest.raises(ParameterError, match=re.escape(says)): run_cells(ws, name, **given)


@pytest.mark.parametrize("name,given,says", [("drift", {"budget": ["1 per year"]}, r"budget should be str\|float\|None"), ("drift", {"chunk": 7}, "chunk should be str"),
                                             ("performance", {"limits": .6}, "limits should be dict"), ("performance", {"limit": {}}, "did you mean 'limits'")])
def test_kinds_of_parameters(ws: mlnb.Workspace, name: str, given: dict, says: str) -> None:
    with pytest.raises(ParameterError, match=says): ws.run(name, deployment="delays", **given)
    assert len(ws.reports()) == 0


def test_values_arrive_as_they_are(ws: mlnb.Workspace, notebook) -> None:
    odd = """it's "odd": \\ é \n {deployment} $x #"""
    run = ws.run(notebook("echo", PARAMS, f"print([since, limit, deployment] == [{odd!r}, 3, 'delays'])"), deployment=ws.deployment("delays"), since=odd, limit=np.int64(3))
    assert run.params == {"deployment": "delays", "since": odd, "limit": 3} and [o.text for o in nbformat.read(run.notebook, 4).cells[3].outputs] == ["True\n"]
    assert ws.run(notebook("when", PARAMS, "1"), deployment="delays", since=pd.Timestamp("2013-07-01", tz="UTC")).params["since"] == "2013-07-01T00:00:00+00:00"


# Refused before a kernel starts

@pytest.mark.parametrize("given,error,says", [
    ({"deployment": "delays", "sinse": "2013-02-10"}, ParameterError, r"sinse='2013-02-10': there is no such parameter; did you mean 'since'\?(.|\n)*limit: float = 1.0"),
    ({"deployment": "delays", "limit": "high"}, ParameterError, r"limit should be float; given: 'high' \(str\)"),
    ({"deployment": "delays", "limit": True}, ParameterError, r"limit should be float; given: True \(bool\)"),
    ({"deployment": "delays", "since": 2013}, ParameterError, r"since should be str\|None; given: 2013 \(int\)"),
    ({"deployment": "delays", "since": pd.DataFrame()}, ParameterError, "a DataFrame was given"),
    ({"deployment": "delays", "limit": float("nan")}, ParameterError, "not finite"),
    ({"deployment": "delays", "run": "a"}, ParameterError, "run is set by the runner"),
    ({}, ParameterError, "deployment is required"),
    ({"deployment": "delay"}, NotFound, "there is no deployment 'delay'; known: 'delays'"),
])
def test_refused(ws: mlnb.Workspace, notebook, monkeypatch: pytest.MonkeyPatch, given: dict, error: type, says: str) -> None:
    monkeypatch.setattr("papermill.execute_notebook", lambda *a, **k: pytest.fail("a kernel was about to start"))
    with pytest.raises(error, match=says): ws.run(notebook("trial", PARAMS, "1"), **given)
    assert len(ws.reports()) == 0 and files(ws) == []


def test_unknown_report(ws: mlnb.Workspace) -> None:
    with pytest.raises(NotFound, match="there is no report 'drfit'; known: .*'drift'"): ws.run("drfit")


# Failures

FAILURES = {"a cell raises": ("1 / 0", r"code cell 6 \('1 / 0'\) raised ZeroDivisionError: division by zero"),
            "the kernel exits": ("import os; os._exit(1)", "the kernel died in code cell 6"),
            "the kernel is killed": ("import os; os.kill(os.getpid(), 9)", "the kernel died in code cell 6"),
            "a cell hangs": ("import time; time.sleep(600)", "code cell 6 .* took longer than its timeout")}


@pytest.mark.parametrize("code,says", FAILURES.values(), ids=FAILURES)
def test_nothing_is_decided_when_it_fails_after_the_decision(ws: mlnb.Workspace, notebook, code: str, says: str, capfd: pytest.CaptureFixture) -> None:
    path = notebook("trial", PARAMS, OPEN, CHECK, PROMOTE, code, "print('never')")
    with pytest.raises(ReportError, match=says) as e: ws.run(path, deployment="delays", timeout=2 if "sleep" in code else None)
    assert capfd.readouterr() == ("", ""), "papermill, nbclient and zmq say nothing of their own"
    assert untouched(ws)
    run = rp.report(ws, ws.reports()["run"][0])
    assert (run.status, run.decision, run.alarm) == ("failed", None, True) and re.search(says, run.error)
    assert run.notebook and str(run.notebook) in str(e.value)
    kept = nbformat.read(run.notebook, 4)
    status = [c.metadata.papermill.status for c in kept.cells if c.cell_type == "code"]
    assert status == ["completed"] * 5 + ["failed", "pending"] and kept.metadata.papermill.exception is True
    assert rp.concluded(kept)["state"] == "proposed", "what it was about to decide can be read in the notebook"
    html = run.html.read_text()
    page(html)
    assert "failed" in html and "Nothing that this report was about to decide has taken effect" in html and "<strong>Decision:</strong>" not in html


def test_nothing_is_decided_when_it_fails_before(ws: mlnb.Workspace, notebook) -> None:
    with pytest.raises(ReportError, match="the kernel died in code cell 4"): ws.run(notebook("trial", PARAMS, OPEN, "import os; os._exit(0)", CHECK, PROMOTE), deployment="delays")
    assert untouched(ws)


def test_a_decision_takes_effect_with_the_run(ws: mlnb.Workspace, notebook) -> None:
    run = ws.run(notebook("trial", PARAMS, OPEN, CHECK, PROMOTE), deployment="delays")
    assert run.status == "succeeded" and ws.deployment("delays").champion.number == 2
    assert "A &lt;check&gt;" in run.html.read_text() and "<check>" not in run.html.read_text() and "&lt;b&gt;" in run.html.read_text()


def test_a_notebook_that_forgets_run_only_proposes(ws: mlnb.Workspace, notebook) -> None:
    "Neither the parameter nor the argument is there, but the runner marked the kernel"
    path = notebook("trial", PARAMS.rpartition("\n")[0], OPEN, CHECK, PROMOTE.replace(", run=run", ""), "1 / 0")
    with pytest.raises(ReportError): ws.run(path, deployment="delays")
    assert untouched(ws)


def test_a_decision_that_cannot_be_carried_out(ws: mlnb.Workspace, notebook) -> None:
    path = notebook("trial", PARAMS, OPEN, CHECK, PROMOTE.replace("2013-04-01", "2013-01-01"))
    with pytest.raises(ReportError, match="history is not rewritten"): ws.run(path, deployment="delays")
    assert untouched(ws) and ws.reports()["status"].tolist() == ["failed"]
    kept = nbformat.read(rp.report(ws, ws.reports()["run"][0]).notebook, 4)
    assert {c.metadata.papermill.status for c in kept.cells if c.cell_type == "code"} == {"completed"}


def test_a_full_disk(ws: mlnb.Workspace, notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    "No file, no decision, and the run says why"
    def full(*_: object) -> None: raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ReportError, match="No space left on device"): ws.run(notebook("trial", PARAMS, OPEN, CHECK, PROMOTE), deployment="delays")
    assert untouched(ws) and files(ws) == [] and ws.reports()["status"].tolist() == ["failed"]


def test_a_runner_that_is_killed(ws: mlnb.Workspace, notebook, tmp_path: Path) -> None:
    path = notebook("trial", PARAMS, OPEN, CHECK, PROMOTE, "from pathlib import Path; Path('here').touch(); import time; time.sleep(600)")
    code = "import sys, mlnb; mlnb.open(sys.argv[1]).run(sys.argv[2], deployment='delays')"
    runner = subprocess.Popen([sys.executable, "-c", code, str(ws.path), str(path)], cwd=tmp_path)
    wait(lambda: (ws.path / "here").exists())
    assert ws.reports()["status"].tolist() == ["running"]
    runner.send_signal(signal.SIGKILL); runner.wait()
    assert ws.reports()["status"].tolist() == ["lost"] and ws.reports()["verdict"].tolist() == ["lost"]
    assert untouched(ws) and files(ws) == []


def wait(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(.05)


# The kernel, and several at once

def test_the_kernel_is_this_interpreter(ws: mlnb.Workspace, notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Whatever `python3` means to Jupyter on this machine"
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", "/nowhere")
    run = ws.run(notebook("trial", PARAMS, "import sys, os\nprint(sys.executable, os.path.realpath('.') == os.path.realpath(workspace), sorted(os.listdir('.')))"), deployment="delays")
    text = "".join(o.text for o in nbformat.read(run.notebook, 4).cells[3].outputs)
    assert text.startswith(f"{sys.executable} True ['artefacts', 'mlnb.db'")


def test_two_at_once(ws: mlnb.Workspace, notebook) -> None:
    path, runs = notebook("trial", PARAMS, OPEN, "import time; time.sleep(1)", CHECK, "ws.conclude(Check(), run=run)"), []
    seen, done = [], threading.Event()

    def look() -> None:
        "Whatever can be seen is whole"
        while not done.wait(.005):
            for p in [p for p in (ws.path / "reports").glob("*") if not p.name.startswith(".")]:
                text = p.read_text()
                seen.append(bool(json.loads(text)) if p.suffix == ".ipynb" else text.rstrip().endswith("</html>"))
    watcher = threading.Thread(target=look)
    watcher.start()
    threads = [threading.Thread(target=lambda i=i: runs.append(ws.run(path, deployment="delays", limit=i))) for i in (1.5, 2.5)]
    for t in threads: t.start()
    for t in threads: t.join()
    done.set(); watcher.join()
    assert seen and all(seen)
    assert sorted(r.result["table"][0]["<b>"] for r in runs) == [1.5, 2.5] and {r.status for r in runs} == {"succeeded"}
    assert len(files(ws)) == 4 and len(ws.reports(deployment="delays")) == 2
    assert abs(ws.reports()["started"].diff().dt.total_seconds().iloc[1]) < 1, "they ran side by side"


def test_progress_is_shown_when_asked(ws: mlnb.Workspace, notebook, capfd: pytest.CaptureFixture) -> None:
    ws.run(notebook("trial", PARAMS, "1"), deployment="delays", progress=True)
    assert "trial delays" in capfd.readouterr().err


# Rollouts

@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A workspace: the champion of `late` knows nothing, and the challenger has come to an A/B test that has seen a day of traffic"
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("tried") / "ws"
    with mlnb.open(folder) as ws:
        X, y, _ = flights(rng, "2013-01-29", 12, 1)
        v1, v2 = (register(ws, "late", LogisticRegression().fit(X, labels), X, y, at="2013-03-01") for labels in (rng.permutation(y), y))
        dep = deploy(ws, "late", v1, at="2013-03-01")
        rollout = release.begin(dep, v2, {"canary": [.5], "ab": True, "metrics": [{"name": "log_loss", "margin": .05}], "guardrails": [{"name": "error_rate", "margin": .05}], "min_units": 100}, at="2013-03-02", salt="spring")
        for day in ("2013-03-02", "2013-03-03", "2013-03-04"):
            X, y, at = flights(rng, day, 15, 1)
            at, ids = at.min() + (at - at.min()) / 15, [f"{day} {i}" for i in range(len(X))]
            dep.predict(X, ids=ids, at=at)
            if day == "2013-03-02": log_shadows(dep, rollout.id, v2, ids, v2.predict(X), [None] * len(ids))
            feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": at + pd.Timedelta("10min")}))
            if day != "2013-03-04": assert release.tick(rollout, pd.Timestamp(day, tz="UTC") + pd.Timedelta("1D")).move
        assert rollout.state == ("ab", 2)
    return folder


@pytest.fixture
def late(tried: Path, tmp_path: Path) -> mlnb.Deployment:
    "The same, to be changed by a test"
    shutil.copytree(tried, tmp_path / "ws")
    return mlnb.open(tmp_path / "ws").deployment("late")


def cells_of(dep: mlnb.Deployment, name: str, **given: object) -> dict:
    "Run the cells of a template here, where no kernel has to start; `ended` is what it concludes"
    cells: dict = {}
    for c in [c for c in nbformat.read(templates()[name], 4).cells if c.cell_type == "code"]:
        exec(c.source.replace("ws.conclude(", "ended = ws.conclude("), cells)
        if "parameters" in c.metadata.get("tags", []): cells.update(workspace=str(dep.ws.path), deployment=dep.name, **given)
    return cells


@pytest.mark.parametrize("name,move,went", [("shadow", 2, "on to canary 1 of 1 (50%)"), ("canary", 3, "on to A/B test")])
def test_a_report_shows_the_evidence_of_a_move(late: mlnb.Deployment, name: str, move: int, went: str) -> None:
    run = late.ws.run(name, deployment=late, move=move, progress=False)
    assert run.status == "succeeded" and run.verdict == went and not run.alarm and run.decision is None
    assert run.reasons[0].startswith(f"tick moved it from {'shadow' if move == 2 else 'canary 1 of 1 (50%)'} to") and run.reasons[-1] == "found anew in the log, the evidence is the same as what was kept with the move"
    assert run.result["evidence"] == json.loads(json.dumps(release.decided_on(release.latest(late), move).to_dict())) and run.result["differs"] == []
    assert run.provenance["window"][1] == f"2013-03-0{move + 1}T00:00:00+00:00" and run.provenance["fingerprint"]
    code = [c for c in nbformat.read(run.notebook, 4).cells if c.cell_type == "code"]
    assert "stderr" not in [o.get("name") for c in code for o in c.outputs] and sum("image/png" in o.get("data", {}) for c in code for o in c.outputs) >= 3
    page(run.html.read_text())
    assert len(release.moves(release.latest(late))) == 4


def test_a_report_decides(late: mlnb.Deployment) -> None:
    "The move, the champion and the report become true together"
    run = late.ws.run("abtest", deployment=late, at="2013-03-05", decide=True, progress=False)
    moved = release.moves(release.latest(late)).iloc[-1]
    assert run.verdict == "promoted" and not run.alarm and run.decision["kind"] == "step" and words(run.decision) == "promote late v2 at the end of the rollout of late"
    assert late.champion.number == 2 and (moved["state"], moved["actor"]) == ("promoted", f"report {run.run}") and decisions(late)["actor"].tolist() == [f"report {run.run}"]
    assert release.decided_on(release.latest(late)).to_dict() == run.result["evidence"]
    assert "<strong>Decision:</strong> promote late v2 at the end of the rollout of late" in run.html.read_text()
    assert late.ws.reports()["decision"].tolist() == ["promote"]


def test_a_report_that_fails_moves_nothing(late: mlnb.Deployment, tmp_path: Path) -> None:
    nb = nbformat.read(templates()["abtest"], 4)
    parameters, last = next(c for c in nb.cells if "parameters" in c.metadata.get("tags", [])), nb.cells[-1]
    start = "import mlnb\nfrom mlnb.jupyter.records import record\nfrom mlnb.jupyter.telling import exposed\nws = mlnb.open(workspace)\nfound = record(ws.deployment(deployment), 'ab', at, move, rollout, decide)\nrows = exposed(found)"
    nb.cells = [parameters, nbformat.v4.new_code_cell(start), last, nbformat.v4.new_code_cell("import os; os._exit(1)")]
    nbformat.write(nb, tmp_path / "abtest.ipynb")
    with pytest.raises(ReportError, match="the kernel died in code cell 5"): late.ws.run(tmp_path / "abtest.ipynb", deployment=late, at="2013-03-05", decide=True, progress=False)
    assert release.latest(late).state == ("ab", 2) and late.champion.number == 1 and late.ws.reports()["status"].tolist() == ["failed"]
    kept = rp.concluded(nbformat.read(rp.report(late.ws, late.ws.reports()["run"][0]).notebook, 4))
    assert kept["decision"]["action"] == "promote" and kept["state"] == "proposed", "what it was about to do can be read"


@pytest.mark.parametrize("faster", [True, False])
def test_somebody_else_was_faster(late: mlnb.Deployment, faster: bool) -> None:
    "The run ends as one that succeeded without effect, and says so wherever one looks"
    ended, job = cells_of(late, "abtest", at="2013-03-05", decide=True, run="here")["ended"], rp.Job(late.ws, templates()["abtest"], {"deployment": "late", "decide": True})
    rp.begin(job)
    if faster: release.hold(release.latest(late), "wait for me", at="2013-03-05", actor="ann")
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("execute_result", ended._repr_mimebundle_())])
    rp.settle(job, nbformat.v4.new_notebook(cells=[cell]), None, 1.)
    run, html = rp.report(late.ws, job.run), rp.report(late.ws, job.run).html.read_text()
    assert run.status == "succeeded" and release.latest(late).state.name == ("paused" if faster else "promoted") and late.champion.number == (1 if faster else 2)
    assert (run.verdict, len(decisions(late))) == (("without effect", 0) if faster else ("promoted", 1))
    if faster:
        said = "without effect: somebody else has moved the rollout meanwhile: it is paused in A/B test now"
        assert run.reasons[0] == said and words(run.decision).endswith(f", {said}") and html.count(said) >= 2


def test_without_a_runner_the_step_is_made_at_once(late: mlnb.Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLNB_RUN", raising=False)
    ended = cells_of(late, "abtest", at="2013-03-05", decide=True)["ended"]
    assert ended.data["state"] == "done" and late.champion.number == 2 and release.moves(release.latest(late))["actor"].iloc[-1] == "notebook"
    assert rp.proposal(ended.data) is None, "nobody makes it twice"


@pytest.mark.parametrize("name,given,says", [("canary", {"decide": True}, r"decides about a canary stage that is running, and the rollout is A/B test"), ("shadow", {"move": 3}, "move=3 left canary 1 of 1"),
                                             ("abtest", {"at": "2013-03-03"}, "had no ab stage by 2013-03-03 00:00"), ("abtest", {"rollout": 9}, "there is no rollout '9'")])
def test_what_a_report_on_a_rollout_refuses(late: mlnb.Deployment, name: str, given: dict, says: str) -> None:
    with pytest.raises(MlnbError, match=says): cells_of(late, name, run="here", **given)


@pytest.mark.parametrize("traffic", [0, 30, 400])
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_reports_on_rollouts_hold_for_every_task(tmp_path: Path, task: str, traffic: int) -> None:
    "Without traffic, with little, with challengers of which one always fails, and before any label"
    rng = np.random.default_rng(0)
    X, noise = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)}), rng.normal(size=400) / 2
    y = np.array(["x", "y", "z"])[np.digitize(X.a + noise, [-.5, .5])] if task == "multiclass" else 2 * X.a.to_numpy() + noise
    model = (lambda: LogisticRegression()) if task == "multiclass" else (lambda: LinearRegression())
    ws = mlnb.open(tmp_path)
    versions = [register(ws, "m", model().fit(X[:n], y[:n]), X, y, at="2013-03-01") for n in (400, 300, 200)]
    dep = deploy(ws, "m", versions[0], at="2013-03-01")
    rollout = release.begin(dep, versions[1:], {"canary": [.3], "ab": True, "metrics": [{"name": "log_loss" if task == "multiclass" else "mae", "margin": .1}]}, at="2013-03-02", salt="s")
    for day, name in (("2013-03-02", "shadow"), ("2013-03-03", "canary"), ("2013-03-04", "abtest")):
        rows, ids = X[:traffic], [f"{day} {i}" for i in range(traffic)]
        if traffic: dep.predict(rows, ids=ids, at=pd.date_range(day, periods=traffic, freq="2min", tz="UTC"))
        if name == "shadow" and traffic:
            log_shadows(dep, rollout.id, versions[1], ids, versions[1].predict(rows), [1.] * traffic)
            log_shadows(dep, rollout.id, versions[2], ids, None, [None] * traffic, "it is broken")
        if name == "abtest" and traffic: feedback(dep, pd.DataFrame({"id": ids, "y": y[:traffic], "at": f"{day} 23:00"}))
        ended = cells_of(dep, name, at=f"{day} 23:30", run="here")["ended"]
        assert ended.result.reasons and "text/html" in ended._repr_mimebundle_()
        if name != "abtest": release.next_stage(rollout, "to see more", at=f"{day} 23:59")


@pytest.mark.parametrize("mirror", [True, False])
def test_a_tick_asks_the_shadow(tmp_path: Path, mirror: bool) -> None:
    rng, ws = np.random.default_rng(0), mlnb.open(tmp_path)
    X, y, _ = flights(rng, "2013-01-29", 12, 1)
    v1, v2 = (register(ws, "late", LogisticRegression().fit(X, labels), X, y, at="2013-03-01") for labels in (rng.permutation(y), y))
    dep = deploy(ws, "late", v1, at="2013-03-01")
    release.begin(dep, v2, {"canary": [.5], "min_units": 100, "guardrails": [{"name": "error_rate", "margin": .05}]}, at="2013-03-02")
    ids = [f"{i}" for i in range(len(X))]
    dep.predict(X, ids=ids, at=pd.Timestamp("2013-03-02", tz="UTC"))
    feedback(dep, pd.DataFrame({"id": ids, "y": y, "at": "2013-03-02 01:00"}))
    done = dep.tick("2013-03-02 02:00", mirror=mirror, report=False)
    assert (done.moved, done.where) == ((2, "canary 1 of 1 (50%)") if mirror else (None, "shadow")) and not done.alarm and not done.trouble
    assert done.found.evidence.units == (len(X) if mirror else 0,) and done.to_dict()["state"] == ("canary" if mirror else "shadow")


def test_a_shadow_that_cannot_be_asked_is_told(late: mlnb.Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None: raise MlnbError("late v1 cannot be asked: it was killed")
    monkeypatch.setattr("mlnb.jupyter.rollouts.ask_what_waits", broken)
    release.roll_back(release.latest(late), "once more", at="2013-03-06")
    release.begin(late, 2, {"canary": []}, at="2013-03-07")
    done = late.tick("2013-03-07 01:00")
    assert done.where == "shadow" and done.trouble == ["what waits in the shadow could not be asked: late v1 cannot be asked: it was killed"] and "could not be asked" in caplog.text


# The page

def page(html: str) -> None:
    "One file, no script, nothing from elsewhere"
    assert html.startswith("<!DOCTYPE html>") and html.rstrip().endswith("</html>") and len(html) < 500_000
    assert "<script" not in html.lower() and "default-src 'none'" in html
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", html, flags=re.IGNORECASE) and "@import" not in html


def test_outside_text_stays_text(ws: mlnb.Workspace, notebook) -> None:
    bad = "<img src=x onerror=alert(1)>"
    run = ws.run(notebook("trial", PARAMS, f"print({bad!r})", "limit"), deployment="delays", since=bad)
    html = run.html.read_text()
    assert bad not in html and html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2
    with pytest.raises(ReportError) as e: ws.run(notebook("trial", PARAMS, f"raise ValueError({bad!r})"), deployment="delays")
    assert bad in str(e.value) and bad not in rp.report(ws, ws.reports()["run"].iloc[-1]).html.read_text()


@pytest.mark.browser
def test_the_page_in_a_browser(ws: mlnb.Workspace, notebook, chromium: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    run = ws.run(notebook("trial", PARAMS, OPEN, CHECK, "from mlnb.core.result import figure\nfigure(8, 2)[0]", "ws.conclude(Check(), run=run)"), deployment="delays")
    asked: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        view.on("request", lambda r: asked.append(r.url))
        view.goto(run.html.as_uri())
        assert view.title() == "The trial" and view.locator(".badge").first.inner_text() == "fine"
        assert view.locator(".out img").evaluate("i => i.complete && i.naturalWidth > 0")
        assert not view.locator("details.code .highlight").first.is_visible()
        view.locator("details.code summary").click()
        assert view.locator("details.code .highlight").first.is_visible()
        assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it fits a phone"
        assert view.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"
        browser.close()
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
