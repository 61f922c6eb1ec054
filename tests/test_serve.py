"""A live server, asked over the network: every route, every failure, and an independent client."""
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlnb.core import events, registry
from mlnb.core.errors import MlnbError, ParameterError
from mlnb.core.registry import Deployment, Workspace
from mlnb.deploy import processes
from mlnb.deploy import serve as serving
from mlnb.rollout import routing

GOOD = {"wind": 12.5, "temp": None, "seats": 150, "night": False, "carrier": "UA", "gate": 2, "due": "2013-03-02T10:00:00Z"}
TYPES = {"wind": "FP64", "temp": "FP64", "seats": "INT64", "night": "BOOL", "carrier": "BYTES", "gate": "INT64", "due": "BYTES"}


def frame(n: int = 400) -> pd.DataFrame:
    "Every kind of column that a table has, one of them with nulls"
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "wind": rng.gamma(4, 3, n).round(1), "temp": np.where(rng.random(n) < .2, np.nan, rng.normal(15, 8, n).round(1)), "seats": rng.integers(50, 300, n),
        "night": rng.random(n) < .3, "carrier": rng.choice(["AA", "UA", "DL"], n), "gate": pd.Categorical(rng.integers(1, 5, n), categories=[1, 2, 3, 4]),
        "due": pd.date_range("2013-02-01", periods=n, freq="h", tz="UTC")})


def make(folder: Path) -> tuple[Workspace, Deployment]:
    "A workspace with one deployment"
    X = frame()
    y = np.where(X["wind"] + 10 * X["night"] + 3 * (X["carrier"] == "UA") > 16, "late", "on time")
    model = make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "gate"]),
                                                  ("passthrough", ["wind", "temp", "seats", "night"])), HistGradientBoostingClassifier(max_iter=10))
    ws = registry.open(folder)
    v1 = registry.register(ws, "late", model.fit(X, y), X, y, at="2013-03-01")
    return ws, registry.deploy(ws, "late", v1, at="2013-03-01")


class Client:
    "Sends one request at a time; every call has a deadline"
    def __init__(self, url: str, **headers: str):
        self.where, self.headers = url.split("://")[1], headers

    def __call__(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        c = HTTPConnection(self.where, timeout=30)
        try:
            c.request(method, path, body, self.headers | {k.replace("_", "-"): v for k, v in headers.items()})
            r = c.getresponse()
            assert r.headers["content-type"] == "application/json"
            return r.status, json.loads(r.read())
        finally: c.close()

    def get(self, path: str) -> tuple[int, Any]: return self("GET", path)
    def post(self, path: str, content: Any) -> tuple[int, Any]: return self("POST", path, content)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    ws, dep = make(tmp_path_factory.mktemp("serve") / "work")
    server = serving.serve(ws)
    try: yield SimpleNamespace(ws=ws, dep=dep, server=server, client=Client(server.url))
    finally:
        server.stop()
        ws.close()


def logged(dep: Deployment) -> int: return len(events.predictions(dep, columns=["id"]))


def tensors(rows: int = 1, **changes: Any) -> list[dict[str, Any]]:
    "The inputs of a request for `GOOD`, repeated"
    return [{"name": n, "datatype": TYPES[n], "shape": [rows], "data": [v] * rows} | changes.get(n, {}) for n, v in GOOD.items()]


# The Open Inference Protocol

def test_health_and_metadata(site: Any) -> None:
    assert site.client.get("/v2/health/live") == (200, {"live": True, "ready": True})
    assert site.client.get("/v2/health/ready") == (200, {"live": True, "ready": True})
    status, server = site.client.get("/v2")
    assert (status, server["name"], server["extensions"], type(server["version"])) == (200, "mlnb", ["binary_tensor_data"], str)
    for path in ("/v2/models/late", "/v2/models/late/versions/1"):
        status, model = site.client.get(path)
        assert status == 200
        assert model["name"] == "late" and model["versions"] == ["1"] and isinstance(model["platform"], str)
        assert {t["name"]: t["datatype"] for t in model["inputs"]} == TYPES
        assert {t["name"]: t["datatype"] for t in model["outputs"]} == {"id": "BYTES", "prediction": "BYTES", "score": "FP64"}
        assert all(t["shape"] == [-1] for t in model["inputs"] + model["outputs"])
        assert site.client.get(path + "/ready") == (200, {"name": "late", "ready": True})


def test_infer_answers_what_the_estimator_says_and_logs_it(site: Any) -> None:
    request = {"id": "r1", "inputs": tensors(2), "parameters": {"ids": ["v2-a", "v2-b"], "at": "2013-03-02T08:00:00Z", "unit": ["UA1", None], "priority": 1}}
    status, answer = site.client.post("/v2/models/late/infer", request)
    assert (status, answer["model_name"], answer["model_version"], answer["id"]) == (200, "late", "1", "r1")
    assert [(o["name"], o["datatype"], o["shape"]) for o in answer["outputs"]] == [("id", "BYTES", [2]), ("prediction", "BYTES", [2]), ("score", "FP64", [2])]
    expected = site.dep.champion.predict(site.dep.champion.schema.conform([GOOD, GOOD]))
    assert answer["outputs"][2]["data"] == expected["score"].tolist()
    rows = events.predictions(site.dep).set_index("id").loc[["v2-a", "v2-b"]]
    assert rows["score"].tolist() == expected["score"].tolist() and rows["at"].tolist() == [pd.Timestamp("2013-03-02 08:00", tz="UTC")] * 2
    assert rows["unit"].iloc[0] == "UA1" and pd.isna(rows["unit"].iloc[1]) and set(rows["source"]) == {"http"} and rows["temp"].isna().all()
    assert rows["due"].iloc[0] == pd.Timestamp("2013-03-02 10:00", tz="UTC")


def test_infer_takes_what_clients_send(site: Any) -> None:
    nested = [t | {"shape": [2, 1], "data": [[v] for v in t["data"]]} for t in tensors(2)]
    as_floats = tensors(wind={"datatype": "FP32"}, seats={"datatype": "UINT8", "data": [150.0]}, night={"data": [0]}, gate={"datatype": "INT8"}, temp={"data": [float("nan")]})
    flat, others = (site.client.post("/v2/models/late/infer", {"inputs": i})[1]["outputs"][2]["data"] for i in (tensors(), as_floats))
    assert flat == others
    assert site.client.post("/v2/models/late/versions/1/infer", {"inputs": nested})[1]["outputs"][2]["data"] == flat * 2
    status, answer = site.client.post("/v2/models/late/infer", {"inputs": tensors(), "outputs": [{"name": "score"}]})
    assert status == 200 and [o["name"] for o in answer["outputs"]] == ["score"] and "id" not in answer


# Plain JSON

def test_predict_feedback_and_lookup(site: Any, tmp_path: Path) -> None:
    for path, content, n in [("/predict", GOOD, 1), ("/predict/late", [GOOD, GOOD], 2), ("/predict", {"records": [GOOD] * 3, "at": ["2013-04-01", "2013-04-02T01:00:00Z", "2013-04-03"]}, 3)]:
        status, answer = site.client.post(path, content)
        assert (status, answer["deployment"], answer["version"], len(answer["predictions"])) == (200, "late", 1, n)
        assert all(set(p) == {"id", "prediction", "score"} for p in answer["predictions"])
    assert len(events.predictions(site.dep, "2013-04-01", "2013-04-04")) == 3
    ids = [p["id"] for p in answer["predictions"]]
    labels = {"labels": [{"id": ids[0], "y": "late", "at": "2013-04-05"}, {"id": ids[0], "y": "on time", "at": "2013-04-06"}, {"id": "nobody", "y": "late"}]}
    assert site.client.post("/feedback", labels) == (200, {"received": 3, "matched": 2, "unknown": 1, "repeated": 1, "changed": 1})
    assert site.client.post("/feedback/late", {"id": ids[1], "y": "late"})[1]["matched"] == 1
    assert site.client.get("/lookup/UA%201")[0] == 404
    assert site.dep.precompute(pd.DataFrame([GOOD]).assign(flight="UA 1/2"), key="flight", progress=False) == 1
    status, found = site.client.get("/lookup/late/UA%201%2F2")
    assert status == 200 and found["key"] == "UA 1/2" and found["version"] == 1 and found["prediction"] in ("late", "on time") and "computed_at" in found
    assert site.client.post("/feedback", {"id": found["id"], "y": "late"})[1]["matched"] == 1


def test_health_says_who_answers(site: Any) -> None:
    status, health = site.client.get("/healthz")
    assert status == 200 and health["status"] == "ok" and health["deployments"] == [{"name": "late", "model": "late", "version": 1, "task": "binary"}]
    assert site.client.get("/")[1]["deployments"] == ["late"]
    paths = site.client.get("/openapi.json")[1]["paths"]
    assert {"/predict", "/feedback", "/healthz", "/v2/models/{model}/infer"} <= set(paths)


DEEP = b'{"records": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
BAD: list[tuple[int, str, Any, str]] = [
    (400, "/predict", b"", "not JSON"), (400, "/predict", b'{"wind": 3', "not JSON"), (400, "/predict", b"\x80\x81", "not JSON"), (400, "/predict", DEEP, "nested too deeply"),
    (400, "/predict", json.dumps(GOOD | {"carrier": "\ud800"}).encode(), "not JSON"), (400, "/predict", 3, "give one record"), (400, "/predict", ["a"], "give one record"),
    (422, "/predict", [], "no rows"), (422, "/predict", {}, "column 'wind' (numeric) is missing"), (422, "/predict", GOOD | {"wind": "calm"}, "should hold numbers"),
    (422, "/predict", GOOD | {"wind": None}, "is null"), (422, "/predict", json.dumps(GOOD | {"wind": float("nan")}).encode(), "is null"),
    (422, "/predict", json.dumps(GOOD | {"wind": float("inf")}).encode(), "is infinite"), (422, "/predict", GOOD | {"wind": [1, 2]}, "should hold numbers"),
    (422, "/predict", GOOD | {"seats": 1.5}, "fractions"), (422, "/predict", GOOD | {"seats": 10**400}, "'seats'"), (422, "/predict", GOOD | {"night": 1}, "true or false"),
    (422, "/predict", GOOD | {"due": "soon"}, "should hold times"), (422, "/predict", [GOOD, GOOD | {"carrier": 7}], "'carrier'"),
    (400, "/predict", {"records": [GOOD], "at": 1372687200}, "'at' holds 1372687200; give text"), (400, "/predict", {"records": [GOOD], "at": "soon"}, "is not a time"),
    (400, "/predict", {"records": [GOOD], "ids": ["a", "b"]}, "'ids' has 2 values for 1 rows"), (400, "/predict", {"records": [GOOD, GOOD], "ids": ["a", "a"]}, "given twice"),
    (400, "/predict", {"records": [GOOD], "when": "now"}, "'when' beside 'records' is unknown"), (404, "/predict/early", GOOD, "there is no deployment 'early'; known: 'late'"),
    (400, "/v2/models/late/infer", [], "JSON object with 'inputs'"), (400, "/v2/models/late/infer", {}, "needs 'inputs'"), (400, "/v2/models/late/infer", {"inputs": [3]}, "1 of 1 are not"),
    (400, "/v2/models/late/infer", {"inputs": tensors(wind={"shape": [2]})}, "has shape [2] but 1 values"), (400, "/v2/models/late/infer", {"inputs": tensors(wind={"datatype": "FLOAT"})}, "has datatype 'FLOAT'"),
    (400, "/v2/models/late/infer", {"inputs": tensors(wind={"data": ["x"]})}, "but holds 'x'"), (400, "/v2/models/late/infer", {"inputs": tensors(wind={"data": 3})}, "data that is no list"),
    (400, "/v2/models/late/infer", {"inputs": tensors(wind={"shape": [2], "data": [1, 2]})}, "differ in their number of rows"),
    (400, "/v2/models/late/infer", {"inputs": tensors() + tensors()[:1]}, "given twice: wind"), (422, "/v2/models/late/infer", {"inputs": tensors()[1:]}, "'wind' (numeric) is missing"),
    (400, "/v2/models/late/infer", {"inputs": tensors(), "outputs": [{"name": "p"}]}, "there is no output 'p'"), (400, "/v2/models/late/infer", {"inputs": tensors(), "parameters": 3}, "JSON object"),
    (404, "/v2/models/early/infer", {"inputs": tensors()}, "there is no deployment 'early'"), (404, "/v2/models/late/versions/9/infer", {"inputs": tensors()}, "version of 'late' '9'; known: '1'"),
    (422, "/feedback", {"labels": []}, "no labels"), (422, "/feedback", {"labels": [{"id": "a"}]}, "'y'"), (422, "/feedback", {"labels": [{"id": "a", "y": "soonish"}]}, "not one of"),
    (400, "/feedback", {"labels": 3}, "give {"), (400, "/feedback", [{"id": "a", "y": "late", "at": 5}], "'at' holds 5"), (404, "/predict/late/x", GOOD, "Not Found"), (405, "/healthz", GOOD, "Not Allowed")]


@pytest.mark.parametrize(("status", "path", "content", "says"), BAD, ids=[f"{i}-{b[1].split('/')[-1]}-{b[3][:20]}" for i, b in enumerate(BAD)])
def test_bad_requests_get_a_sentence_and_leave_no_trace(site: Any, status: int, path: str, content: Any, says: str) -> None:
    before = logged(site.dep), events.feedback_summary(site.dep)
    got, answer = site.client.post(path, content)
    assert got == status, answer
    assert set(answer) == {"error"} and says in answer["error"] and "Traceback" not in answer["error"]
    assert (logged(site.dep), events.feedback_summary(site.dep)) == before


@pytest.mark.parametrize("path", ["/v2/models/early", "/v2/models/late/versions/9", "/v2/models/late/versions/9/ready", "/v2/nothing", "/lookup/nobody"])
def test_what_is_not_there_is_404(site: Any, path: str) -> None:
    status, answer = site.client.get(path)
    assert status == 404 and set(answer) == {"error"}


def test_all_problems_are_said_at_once(site: Any) -> None:
    error = site.client.post("/predict", {"wind": "calm", "seats": 1.5, "night": None, "gate": 2, "due": "soon"})[1]["error"]
    assert all(f"'{c}'" in error for c in ("wind", "temp", "seats", "night", "carrier", "due")) and "'gate'" not in error


def test_an_id_is_answered_once(site: Any) -> None:
    assert site.client.post("/predict", {"records": GOOD, "ids": "once"})[0] == 200
    before = logged(site.dep)
    status, answer = site.client.post("/predict", {"records": [GOOD, GOOD], "ids": ["other", "once"]})
    assert status == 400 and "once" in answer["error"] and logged(site.dep) == before


def test_large_bodies_are_refused(site: Any) -> None:
    before = logged(site.dep)
    status, answer = site.client.post("/predict", b'"' + b"x" * serving.LIMIT + b'"')
    assert status == 413 and f"{serving.LIMIT:,}" in answer["error"] and logged(site.dep) == before
    status, answer = site.client.post("/predict", [GOOD] * 2000)
    assert status == 200 and len(answer["predictions"]) == 2000


def test_many_callers_at_once(site: Any) -> None:
    before = logged(site.dep)
    with ThreadPoolExecutor(16) as callers:
        heard = list(callers.map(lambda i: site.client.post("/predict", GOOD | {"wind": i / 10}), range(96)))
    assert {status for status, _ in heard} == {200}
    ids = [a["predictions"][0]["id"] for _, a in heard]
    rows = events.predictions(site.dep, columns=["id", "wind", "score"]).set_index("id").loc[ids]
    assert len(set(ids)) == 96 and logged(site.dep) == before + 96
    assert rows["wind"].tolist() == [i / 10 for i in range(96)]
    assert rows["score"].tolist() == [a["predictions"][0]["score"] for _, a in heard]


# Several deployments, versions and failures behind the routes

def test_several_deployments_versions_and_a_promotion(tmp_path: Path) -> None:
    ws, dep = make(tmp_path / "work")
    X = frame()[["wind"]]
    fitted = LinearRegression().fit(X, X["wind"] * 2)
    minutes = registry.deploy(ws, "minutes", registry.register(ws, "minutes", fitted, X, X["wind"] * 2), strict=True)
    with serving.serve(ws) as server, serving.serve(minutes) as alone:
        client, one = Client(server.url), Client(alone.url)
        status, answer = client.post("/predict", GOOD)
        assert status == 400 and "'late'" in answer["error"] and "'minutes'" in answer["error"]
        assert client.get("/lookup/a")[0] == 400 and client.post("/feedback", {"id": "a", "y": 1})[0] == 400
        assert client.post("/predict/late", GOOD)[0] == 200
        assert one.post("/predict", {"wind": 3})[1]["predictions"][0]["prediction"] == pytest.approx(6)
        assert one.post("/predict/late", GOOD)[0] == 404 and one.get("/v2/models/late")[0] == 404
        assert [o["datatype"] for o in one.get("/v2/models/minutes")[1]["outputs"]] == ["BYTES", "FP64"]
        assert client.post("/predict/minutes", {"wind": 3, "extra": 1})[0] == 422
        assert client.post("/predict/minutes", {"wind": 10_000})[0] == 422
        registry.register(ws, "minutes", fitted, X, X["wind"] * 2)
        v3 = registry.register(ws, "minutes", LinearRegression().fit(X, X["wind"] * 3), X, X["wind"] * 3)
        registry.promote(minutes, v3, "it is better")
        assert one.post("/predict", {"wind": 3})[1] | {"predictions": None} == {"deployment": "minutes", "version": 3, "predictions": None}
        assert client.get("/v2/models/minutes")[1]["versions"] == ["1", "3"]
        ask = {"inputs": [{"name": "wind", "shape": [1], "datatype": "FP64", "data": [3]}]}
        answers = [client.post(f"/v2/models/minutes{v}/infer", ask)[1] for v in ("", "/versions/1", "/versions/3", "/versions/2")]
        assert [a.get("model_version") for a in answers] == ["3", "1", "3", None] and "known: '1', '3'" in answers[3]["error"]
        assert [round(a["outputs"][1]["data"][0]) for a in answers[:3]] == [9, 6, 9]
        assert events.predictions(minutes)["version"].tolist() == [1, 3, 3, 1, 3]
        later = registry.deploy(ws, "later", v3)
        assert client.post("/predict/later", {"wind": 1})[0] == 200 and logged(later) == 1
    ws.close()


def test_failures_behind_the_routes_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ws, dep = make(tmp_path / "work")
    with serving.serve(dep) as server:
        client = Client(server.url)
        assert client.post("/predict", GOOD)[0] == 200
        estimator = dep.champion.load()
        monkeypatch.setattr(type(estimator), "predict_proba", lambda *_: 1 / 0)
        status, answer = client.post("/predict", GOOD)
        assert status == 500 and "late v1 failed to answer" in answer["error"] and "File" not in answer["error"]
        monkeypatch.undo()
        monkeypatch.setattr(routing, "predict", lambda *_, **__: 1 / 0)
        status, answer = client.post("/predict", GOOD)
        assert (status, answer) == (500, {"error": "internal error; the server's log says more"})
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        ws.loaded.clear()
        (ws.path / "artefacts" / dep.champion.artefact).write_bytes(b"something else")
        status, answer = client.get("/v2/health/ready")
        assert status == 503 and "artefact" not in answer["error"]
        assert client.get("/healthz")[0] == 500 and "SHA-256" in client.get("/healthz")[1]["error"]
        assert client.get("/v2/models/late/ready")[0] == 500 and client.post("/predict", GOOD)[0] == 500
    assert logged(dep) == 1
    ws.close()


def test_a_workspace_that_cannot_be_written_answers_nothing(tmp_path: Path) -> None:
    ws, dep = make(tmp_path / "work")
    logged(dep)
    looking = registry.open(tmp_path / "work", read_only=True)
    with serving.serve(looking) as server:
        status, answer = Client(server.url).post("/predict", GOOD)
        assert status == 503 and "read-only" in answer["error"]
        assert Client(server.url).get("/v2/models/late")[0] == 200
    assert logged(dep) == 0
    ws.close()


# Who may come in

def test_a_token_is_asked_for(tmp_path: Path) -> None:
    ws, dep = make(tmp_path / "work")
    with serving.serve(ws, token="open sesame") as server:
        client = Client(server.url)
        for header in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic open sesame"}, {"Authorization": "open sesame"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer g\xfc"}):
            for method, path in (("POST", "/predict"), ("GET", "/healthz"), ("GET", "/v2/models/late"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nothing")):
                status, answer = client(method, path, None if method == "GET" else GOOD, **header)
                assert status == 401 and set(answer) == {"error"} and "sesame" not in answer["error"]
        assert client.get("/v2/health/live")[0] == client.get("/v2/health/ready")[0] == 200
        assert logged(dep) == 0
        assert client("POST", "/predict", GOOD, Authorization="Bearer open sesame")[0] == 200
        assert client("POST", "/predict", GOOD, Authorization="bearer open sesame", Origin="https://elsewhere.org")[0] == 200
    ws.close()


def test_pages_of_other_origins_are_refused(site: Any) -> None:
    before = logged(site.dep)
    assert site.client("POST", "/predict", GOOD, Origin="https://elsewhere.org")[0] == 403
    assert site.client("POST", "/predict", GOOD, Origin="null")[0] == 403
    assert logged(site.dep) == before
    assert site.client("POST", "/predict", GOOD, Origin=site.server.url)[0] == 200


def test_a_server_for_everybody_needs_a_token(site: Any) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(MlnbError, match="give a token"): serving.serve(site.ws, host=host)
        with pytest.raises(MlnbError, match="give a token"): processes.run(site.ws, host=host)
    with pytest.raises(MlnbError, match="token is empty"): serving.serve(site.ws, host="0.0.0.0", token=" ")
    with serving.serve(site.ws, host="0.0.0.0", token="t") as server:
        assert Client(f"http://127.0.0.1:{server.url.rpartition(':')[2]}").get("/v2/health/live")[0] == 200


# Starting and stopping

def test_a_port_in_use_is_an_error_unless_it_is_ours(site: Any) -> None:
    with serving.listen("127.0.0.1", 0, None) as taken, pytest.raises(ParameterError, match="cannot listen on '127.0.0.1'"):
        serving.serve(site.ws, port=taken.getsockname()[1])
    first = serving.serve(site.ws)
    second = serving.serve(site.ws, port=int(first.url.rpartition(":")[2]))
    try: assert not first.thread.is_alive() and second.url == first.url and Client(second.url).get("/v2/health/live")[0] == 200
    finally:
        second.stop()
        second.stop()
    assert not second.thread.is_alive() and "stopped" in second._repr_html_()


def test_stopping_lets_open_requests_finish(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go, real = threading.Event(), threading.Event(), routing.predict
    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        assert go.wait(20)
        return real(*args, **kwargs)
    monkeypatch.setattr(routing, "predict", slow)
    server = serving.serve(site.ws)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(Client(server.url).post, "/predict", GOOD)
        assert inside.wait(20)
        stopped = pool.submit(server.stop)
        time.sleep(.2)
        go.set()
        assert asked.result(20)[0] == 200
        stopped.result(20)
    assert not server.thread.is_alive()


SCRIPT = """
import sys
from mlnb.core import registry
from mlnb.deploy import serve, processes
ws = registry.open(sys.argv[1])
if sys.argv[2] == "run": processes.run(ws, port=0)
else: print("mlnb serves at", serve.serve(ws).url, flush=True); sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["run", "serve"])
def test_a_process_ends_cleanly(tmp_path: Path, how: str) -> None:
    make(tmp_path / "work")[0].close()
    p = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "work"), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert p.stdout and p.stdin
        client = Client(p.stdout.readline().split()[-1])
        assert client.post("/predict", GOOD)[0] == 200 and client.post("/predict", [])[0] == 422
        if how == "run": p.send_signal(signal.SIGTERM)
        out, err = p.communicate("\n" if how == "serve" else None, timeout=60)
        assert (p.returncode, out, err) == (0, "", "")
    finally:
        if p.poll() is None: p.kill()
        p.wait(20)
    with registry.open(tmp_path / "work") as ws: assert logged(registry.deployment(ws, "late")) == 1
