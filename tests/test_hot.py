"""The fast path over real connections: the same answers as the general way, nothing lost when processes die, and a server that says no in good time."""
import http.client
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import trustme
from sklearn.ensemble import HistGradientBoostingClassifier

import mlnb
from mlnb.core import events
from mlnb.core.schema import Schema
from mlnb.deploy import protocol
from mlnb.deploy import serve as serving
from mlnb.deploy.certificate import Candidate
from mlnb.deploy.decode import Decoder

JSON = {"content-type": "application/json"}
SLOW = {"content-type": "application/json; charset=utf-8"}  # a header that the fast path leaves to the general way


def frame(n: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"wind": rng.gamma(4, 3, n).round(1), "temp": np.where(rng.random(n) < .2, np.nan, rng.normal(15, 8, n).round(1)), "short": rng.normal(0, 1, n).astype("float32"),
                         "seats": rng.integers(50, 300, n), "night": rng.random(n) < .3, "dest": pd.Categorical(rng.choice([f"D{i:02}" for i in range(20)], n))})


def make(folder: Path, versions: int = 1, **options: Any) -> Any:
    X = frame()
    y = np.where(X["wind"] + 10 * X["night"] > 16, "late", "on time")
    ws = mlnb.open(folder)
    made = [ws.register("late", HistGradientBoostingClassifier(max_iter=5 + i, categorical_features="from_dtype", random_state=0).fit(X, y), X, y) for i in range(versions)]
    return ws.deploy("late", made[0], **options)


def records(n: int = 1, start: int = 0) -> list[dict[str, Any]]:
    return frame().iloc[start:start + n].astype(object).where(lambda f: f.notna(), None).to_dict("records")


class Caller:
    "A connection that is kept"
    def __init__(self, url: str, context: ssl.SSLContext | None = None):
        scheme, _, where = url.partition("://")
        self.c: Any = http.client.HTTPSConnection(where, timeout=60, context=context) if scheme == "https" else http.client.HTTPConnection(where, timeout=60)

    def __call__(self, path: str, content: Any = None, headers: dict[str, str] = JSON, method: str | None = None) -> tuple[int, Any, dict[str, str]]:
        self.c.request(method or ("GET" if content is None else "POST"), path, None if content is None else json.dumps(content), headers)
        r = self.c.getresponse()
        body = r.read()
        return r.status, json.loads(body) if r.headers.get("content-type") == "application/json" else body, {k.lower(): v for k, v in r.headers.items()}


def only_the_fast_path(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None: await serving.reply({"error": "the general way"}, 418)(scope, receive, send)
    monkeypatch.setattr(server.site.front, "app", refuse)


def test_the_fast_path_says_and_logs_what_the_general_way_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work")
    rows = records(40) + [r | {"dest": "D99", "wind": 7} for r in records(3)]
    columns = {"wind": "FP64", "temp": "FP64", "short": "FP64", "seats": "INT64", "night": "BOOL", "dest": "BYTES"}
    tensors = [{"name": n, "datatype": t, "shape": [len(rows)], "data": [r[n] for r in rows]} for n, t in columns.items()]
    asked = [("/predict", rows[0]), ("/predict/late", rows), ("/predict", {"records": rows[:2], "unit": ["a", 7], "at": "2013-03-02T08:00:00+01:00"}),
             ("/v2/models/late/infer", {"inputs": tensors, "id": "x", "outputs": [{"name": "score"}, {"name": "prediction"}]}), ("/v2/models/late/infer", {"inputs": tensors, "parameters": {"unit": "u"}})]
    with serving.serve(dep) as server:
        call = Caller(server.url)
        slow = [call(path, content, SLOW) for path, content in asked]
        said = len(events.predictions(dep))
        only_the_fast_path(server, monkeypatch)
        fast = [call(path, content) for path, content in asked]
    assert [s[0] for s in fast] == [200] * 5 == [s[0] for s in slow]
    for (_, a, _), (_, b, _) in zip(slow, fast, strict=True): assert without_ids(a) == without_ids(b)
    log = events.predictions(dep)
    given = log["at"] == pd.Timestamp("2013-03-02T07:00:00Z")
    assert given.sum() == 4 and len(log) == 2 * said and log["id"].is_unique and set(log["source"]) == {"http"}
    for part in (log[given], log[~given]):
        same, half = part.drop(columns=["id", "at"]), len(part) // 2
        pd.testing.assert_frame_equal(same.iloc[:half].reset_index(drop=True), same.iloc[half:].reset_index(drop=True), rtol=1e-12)


def without_ids(answer: Any) -> Any:
    "An answer, without what is made anew each time"
    if "predictions" in answer: return answer | {"predictions": [{k: round(v, 9) if k == "score" else v for k, v in p.items() if k != "id"} for p in answer["predictions"]]}
    return answer | {"outputs": [o | ({"data": [round(v, 9) for v in o["data"]]} if o["name"] == "score" else {}) for o in answer["outputs"] if o["name"] != "id"]}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("matrix", [False, True])
def test_tensors_are_read_as_the_general_way_reads_them(matrix: bool, strict: bool) -> None:
    X = frame()[["wind", "temp"]] if matrix else frame()
    schema, rng, taken = Schema.capture(X), random.Random(0), 0
    decoder = Decoder(schema, strict)
    kinds = {c.name: protocol.datatype(c) for c in schema.columns}
    usual: dict[str, list[Any]] = {"FP64": [1.75, 2, 2.25, 2.5, 2.625, None], "INT64": [100, 200], "BOOL": [True, False], "BYTES": ["D01", "D02"]}
    odd: dict[str, list[Any]] = {"FP64": [1e39, "calm", True, None, -1e300], "INT64": [2.0, 2.5, 2**63, None], "BOOL": [1, 0, "yes"], "BYTES": ["D99", "", 3, None]}
    def some(kind: str, n: int) -> list[Any]: return [rng.choice((odd if rng.random() < .03 else usual)[kind]) for _ in range(n)]
    for _ in range(4000):
        n = rng.randint(1, 3)
        inputs = [{"name": c, "datatype": rng.choice(["FP64", "FP64", "FP32"]) if k == "FP64" else k, "shape": rng.choice([[n], [n, 1]]), "data": some(k, n)} for c, k in kinds.items()]
        if matrix and rng.random() < .7: inputs = [{"name": "matrix", "datatype": rng.choice(["FP64", "FP32"]), "shape": [n, 2], "data": some("FP64", 2 * n)}]
        rng.shuffle(inputs)
        request: dict[str, Any] = {"inputs": inputs}
        match rng.randint(0, 30):
            case 0: inputs.append(inputs[0])
            case 1: inputs.pop()
            case 2: inputs[0]["shape"] = [n + 1]
            case 3: inputs[0]["datatype"] = rng.choice(["INT32", "FP16", "BYTES", "FP99"])
            case 4: inputs[0]["parameters"] = {"binary_data_size": 8}
            case 5: inputs[0]["data"] = inputs[0]["data"][:-1]
            case 6: inputs[0]["name"] = "more"
            case 7: request["parameters"] = {"unit": rng.choice(["a", ["a"] * n, ["a"] * (n + 1), 7, True])}
            case 8: request["outputs"] = [{"name": rng.choice(["score", "mood"])}, {"name": "score"}]
            case 9: inputs[0]["data"] = [[v] for v in inputs[0]["data"]]
        body = json.dumps(request).encode()
        if (asked := decoder.tensors(body)) is None: continue
        taken += 1
        fit = schema.conform(protocol.read_inputs(json.loads(body), schema), strict=strict)  # raises if the general way refuses it
        for (_, column), mine in zip(fit.items(), zip(*asked.rows, strict=True), strict=True):
            known = [m if not hasattr(column, "cat") or m in column.cat.categories else None for m in mine]  # levels that nobody knows are logged as they came
            assert [None if pd.isna(v) else v for v in column.astype(object)] == pytest.approx([None if m is None else np.float32(m) if column.dtype == "float32" else m for m in known])
        assert asked.units == (None if (unit := (request.get("parameters") or {}).get("unit")) is None else list(map(str, unit)) if isinstance(unit, list) else [str(unit)] * n)
    assert 200 < taken < 3900


def test_single_precision_that_is_spelled_with_escapes_has_its_limits() -> None:
    decoder = Decoder(Schema.capture(frame()[["wind"]]))
    def body(kind: str, value: str) -> bytes: return f'{{"inputs": [{{"name": "wind", "datatype": "{kind}", "shape": [1], "data": [{value}]}}]}}'.encode()
    assert decoder.tensors(body("FP64", "1e39")) is not None and decoder.tensors(body("\\u0046P32", "3")) is not None
    assert decoder.tensors(body("FP32", "1e39")) is None and decoder.tensors(body("\\u0046P32", "1e39")) is None


def test_a_rollout_and_a_strict_deployment_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work", 2, strict=True)
    with serving.serve(dep) as server:
        call = Caller(server.url)
        assert call("/predict", records()[0])[0] == 200
        assert call("/predict", records()[0] | {"dest": "D99"})[0] == 422 and call("/predict", records()[0] | {"more": 1})[0] == 422 and call("/predict", records()[0] | {"wind": 1e6})[0] == 422
        dep.rollout(2, {"shadow": False, "canary": [.5], "min_units": 10}, salt="s")
        assert {call("/predict", r | {})[1]["version"] for r in records(60)} == {1, 2}


@pytest.mark.parametrize("workers", [1, 2])
def test_promotions_under_load_drop_no_request(tmp_path: Path, workers: int) -> None:
    dep = make(tmp_path / "work", 6)
    with running(tmp_path / "work", workers) as url, ThreadPoolExecutor(8) as pool:
        stop, said = threading.Event(), []
        def ask(i: int) -> None:
            call = Caller(url)
            while not stop.is_set(): said.append(call("/predict", records(1, i)[0])[:2])
        asking = [pool.submit(ask, i) for i in range(8)]
        versions = dep.ws.versions("late")
        for v in versions[1:]:
            before = len(said)
            while len(said) < before + 100: time.sleep(.01)
            dep.promote(v, "the next one")
        before = len(said)
        while len(said) < before + 100: time.sleep(.01)
        stop.set()
        for a in asking: a.result(60)
    assert {s for s, _ in said} == {200} and {a["version"] for _, a in said} == {1, 2, 3, 4, 5, 6}
    log = events.predictions(dep)
    assert len(log) == len(said) and set(log["id"]) == {p["id"] for _, a in said for p in a["predictions"]}


class running:
    "`mlnb serve` as a process of its own; ends with the block"
    def __init__(self, folder: Path, workers: int = 1, *more: str):
        self.command = [sys.executable, "-m", "mlnb.cli", "serve", "-w", str(folder), "--port", "0", "--json", "--workers", str(workers), *more]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line: pytest.fail(self.process.communicate(timeout=30)[1])
        self.url: str = json.loads(line)["url"]
        return self.url

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None: self.process.terminate()
        try: self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def children(pid: int) -> list[int]: return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("victim", ["server", "worker"])
def test_killed_under_load_every_answer_is_in_the_log(tmp_path: Path, victim: str) -> None:
    dep = make(tmp_path / "work")
    service = running(tmp_path / "work", 2)
    said: list[str] = []
    with service as url, ThreadPoolExecutor(8) as pool:
        enough = threading.Event()
        def ask(i: int) -> None:
            call = Caller(url)
            for n in range(3000):
                try: status, answer, _ = call("/predict", records(2, i))
                except (OSError, http.client.HTTPException):
                    if victim == "server" or n > 2000: return
                    call = Caller(url)
                    continue
                assert status == 200
                said.extend(p["id"] for p in answer["predictions"])
                if len(said) > 3000: enough.set()
                if len(said) > 6000: return
        asking = [pool.submit(ask, i) for i in range(8)]
        while not enough.wait(.01): assert not all(a.done() for a in asking)
        others = children(service.process.pid)
        assert len(others) == 1
        os.kill(service.process.pid if victim == "server" else others[0], signal.SIGKILL)
        for a in asking: a.result(120)
        if victim == "worker":
            assert Caller(url)("/predict", records()[0])[0] == 200  # the other one goes on, and a new one is started
            deadline = time.monotonic() + 60
            while not set(children(service.process.pid)) - set(others): assert time.monotonic() < deadline; time.sleep(.1)
    logged = events.predictions(dep)["id"]
    assert logged.is_unique and len(said) > 3000 and set(said) <= set(logged) and len(logged) % 2 == (victim == "worker")  # no half of a request
    deadline = time.monotonic() + 30
    if victim == "server":
        while any(Path(f"/proc/{p}").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text().split(")")[1] for p in others): assert time.monotonic() < deadline, "a worker outlives its parent"; time.sleep(.1)


def test_a_service_finishes_what_was_asked(tmp_path: Path) -> None:
    dep = make(tmp_path / "work")
    service = running(tmp_path / "work", 2)
    with service as url:
        call = Caller(url)
        for _ in range(50): assert call("/predict", records()[0])[0] == 200
        service.process.send_signal(signal.SIGTERM)
        out, err = service.process.communicate(timeout=60)
    assert (service.process.returncode, out, err) == (0, "", "") and len(events.predictions(dep)) == 50


def test_too_much_at_once_is_refused_in_good_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work")
    going, real = threading.Event(), Candidate.run
    with serving.serve(dep) as server, ThreadPoolExecutor(12) as pool:
        assert Caller(server.url)("/predict", records()[0])[0] == 200
        def slow(self: Any, x: Any) -> Any:
            assert going.wait(60)
            return real(self, x)
        monkeypatch.setattr(Candidate, "run", slow)
        monkeypatch.setattr(server.site, "most", 4)
        answers = [pool.submit(lambda: Caller(server.url)("/predict", records()[0], SLOW)) for _ in range(12)]
        deadline = time.monotonic() + 60
        while sum(a.done() for a in answers) < 8: assert time.monotonic() < deadline; time.sleep(.01)
        assert Caller(server.url)("/v2/health/live")[0] == 200
        going.set()
        got = [a.result(60) for a in answers]
    assert sorted(s for s, _, _ in got) == [200] * 4 + [503] * 8
    refused = next(a for a in got if a[0] == 503)
    assert refused[2]["retry-after"] == "1" and "ask again in a second" in refused[1]["error"]
    assert len(events.predictions(dep)) == 5


def test_an_answer_that_takes_too_long_is_a_504(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work")
    going, real = threading.Event(), Candidate.run
    with serving.serve(dep) as server:
        monkeypatch.setattr(server.site, "patience", .2)
        monkeypatch.setattr(Candidate, "run", lambda self, x: (going.wait(60), real(self, x))[1])
        status, answer, _ = Caller(server.url)("/predict", records()[0], SLOW)
        assert status == 504 and "no answer within 0.2 seconds" in answer["error"]
        going.set()
        monkeypatch.setattr(server.site, "patience", 60.)
        assert Caller(server.url)("/predict", records()[0], SLOW)[0] == 200


def test_a_slow_model_is_asked_in_a_thread_while_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work")
    going, inside, real, sizes = threading.Event(), threading.Event(), Candidate.run, []
    with serving.serve(dep) as server, ThreadPoolExecutor(8) as pool:
        assert Caller(server.url)("/predict", records()[0])[0] == 200
        def slow(self: Any, x: Any) -> Any:
            inside.set()
            assert going.wait(60)
            sizes.append(len(x))
            return real(self, x)
        monkeypatch.setattr(Candidate, "run", slow)
        lane = next(iter(server.site.front.lanes.values()))
        lane.ready = lane.ready._replace(engine=type(lane.ready.engine)(lane.ready.engine.encoder, lane.ready.engine.few, lane.ready.engine.many, lane.ready.engine.classes, 5_000.))
        answers = [pool.submit(lambda: Caller(server.url)("/predict", records()[0]))]
        assert inside.wait(60)
        answers += [pool.submit(lambda: Caller(server.url)("/predict", records()[0])) for _ in range(6)]
        deadline = time.monotonic() + 60
        while len(lane.queue) < 6: assert time.monotonic() < deadline; time.sleep(.01)
        assert Caller(server.url)("/v2/health/live")[0] == 200
        going.set()
        assert [a.result(60)[0] for a in answers] == [200] * 7
    assert sizes == [1, 6]  # those who waited were answered together


def test_tokens_change_without_a_restart(tmp_path: Path) -> None:
    make(tmp_path / "work")
    file = tmp_path / "tokens"
    file.write_text("one\n")
    with running(tmp_path / "work", 2, "--token-file", str(file)) as url:
        def status(token: str) -> int: return Caller(url)("/predict", records()[0], JSON | {"Authorization": f"Bearer {token}"})[0]
        assert (status("one"), status("two")) == (200, 401)
        file.write_text("one\ntwo\n")
        deadline = time.monotonic() + 30
        while [status("two") for _ in range(10)] != [200] * 10: assert time.monotonic() < deadline; time.sleep(.1)
        assert status("one") == 200
        file.write_text("two\n")
        while [status("one") for _ in range(10)] != [401] * 10: assert time.monotonic() < deadline; time.sleep(.1)
        assert status("two") == 200


def test_pages_of_named_origins_may_call(tmp_path: Path) -> None:
    dep = make(tmp_path / "work")
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with serving.serve(dep, cors=("https://example.org",)) as server:
        call = Caller(server.url)
        status, _, headers = call("/predict", None, ask, "OPTIONS")
        assert status == 200 and headers["access-control-allow-origin"] == "https://example.org"
        status, _, headers = call("/predict", records()[0], JSON | {"Origin": "https://example.org"})
        assert status == 200 and headers["access-control-allow-origin"] == "https://example.org"
        assert call("/predict", records()[0], JSON | {"Origin": "https://elsewhere.org"})[0] == 403
    with serving.serve(dep) as server:
        status, _, headers = Caller(server.url)("/predict", None, ask, "OPTIONS")
        assert status == 403 and "access-control-allow-origin" not in headers
    with pytest.raises(mlnb.MlnbError, match="any page on the web"): serving.serve(dep, cors=("*",))


def test_https(tmp_path: Path) -> None:
    make(tmp_path / "work")
    authority, cert, key = trustme.CA(), tmp_path / "server.crt", tmp_path / "server.key"
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(c.bytes() for c in issued.cert_chain_pems))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with running(tmp_path / "work", 2, "--tls-cert", str(cert), "--tls-key", str(key)) as url:
        assert url.startswith("https://") and [Caller(url, context)("/predict", records()[0])[0] for _ in range(6)] == [200] * 6
    key.write_text("nothing")
    done = subprocess.run(running(tmp_path / "work", 1, "--tls-cert", str(cert), "--tls-key", str(key)).command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "are no certificate and its key in PEM files" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_answers_of_a_key_come_from_the_table_or_in_real_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work", 2)
    dep.precompute(frame(50).assign(flight=[f"UA {i}/x" for i in range(50)]), key="flight", fresh="1h", progress=False)
    with serving.serve(dep.ws) as server:
        call = Caller(server.url)
        found = call("/lookup/late/UA%207/x")[1]
        assert found["key"] == "UA 7/x" and found["fresh"] and found["source"] == "precomputed" and found["age_seconds"] < 3600 and found["version"] == 1
        assert call("/lookup/late/nobody")[0] == 404 and call("/lookup/nowhere/UA%207/x")[0] == 404
        live = call("/lookup/late/nobody", records()[0])[1]
        assert live["source"] == "real time" and "no precomputed answer" in live["why"] and live["id"] in set(events.predictions(dep)["id"])
        dep.promote(dep.ws.version("late", 2), "it is newer")
        stale = call("/lookup/late/UA%207/x")[1]
        assert not stale["fresh"] and "version 2 is champion now" in stale["why"]
        assert call("/lookup/late/UA%207/x", records()[0])[1]["version"] == 2 and call("/lookup/late/UA%207/x", {"wind": 1})[0] == 422 and call("/lookup/late/UA%207/x", [])[0] == 400
        only_the_fast_path(server, monkeypatch)
        assert call("/lookup/late/UA%208/x")[1]["key"] == "UA 8/x"


def test_several_deployments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dep = make(tmp_path / "work")
    with serving.serve(dep.ws) as server:
        call = Caller(server.url)
        assert call("/predict", records()[0])[0] == 200
        dep.ws.deploy("other", dep.champion)
        status, answer, _ = call("/predict", records()[0])
        assert status == 400 and "name one in the address: 'late', 'other'" in answer["error"]
        assert [call(f"/predict/{n}", records()[0])[1]["deployment"] for n in ("late", "other", "late")] == ["late", "other", "late"]
        only_the_fast_path(server, monkeypatch)
        assert [call(f"/predict/{n}", records()[0])[0] for n in ("late", "other")] == [200, 200]
