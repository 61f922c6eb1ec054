"""The Open Inference Protocol, held by clients that others wrote, by its published schemas, and by requests that nobody should send.

The environment of the kserve client is made once and kept in pytest's cache, or in the folder that MLNB_TEST_ENVS names.
"""
import hashlib
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import yaml
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlnb.core import events, registry
from mlnb.core.registry import Deployment, Workspace
from mlnb.deploy import binary, openapi, protocol
from mlnb.deploy import serve as serving

PUBLISHED = yaml.safe_load((Path(__file__).parent / "data/open_inference_rest.yaml").read_text(encoding="utf-8"))
BIG = 2**53 + 1  # no float has this value
ROW = {"wind": 12.5, "temp": None, "seats": 150, "ticket": BIG, "night": False, "carrier": "UA", "gate": 2, "remark": "none of note", "due": "2013-03-02T10:00:00Z"}
TYPES = {"wind": "FP64", "temp": "FP64", "seats": "INT64", "ticket": "INT64", "night": "BOOL", "carrier": "BYTES", "gate": "INT64", "remark": "BYTES", "due": "BYTES"}
NUMPY = {t: np.dtype(bool) if t == "BOOL" else np.dtype(k).newbyteorder("=") for t, k in binary.LAYOUT.items()} | {"BYTES": np.dtype(object)}
INFER = "/v2/models/late/infer"


def make(folder: Path) -> Workspace:
    "A deployment with every kind of column and two versions, and one that has numbers only"
    rng, n = np.random.default_rng(0), 400
    X = pd.DataFrame({
        "wind": rng.gamma(4, 3, n).round(1), "temp": np.where(rng.random(n) < .2, np.nan, rng.normal(15, 8, n).round(1)), "seats": rng.integers(50, 300, n),
        "ticket": pd.array([None if i % 9 == 0 else 2**53 + i for i in range(n)], "Int64"), "night": rng.random(n) < .3, "carrier": rng.choice(["AA", "UA", "DL"], n),
        "gate": pd.Categorical(rng.integers(1, 5, n), categories=[1, 2, 3, 4]), "remark": [f"note {i}" for i in range(n)], "due": pd.date_range("2013-02-01", periods=n, freq="h", tz="UTC")})
    y = np.where(X["wind"] + 10 * X["night"] + 3 * (X["carrier"] == "UA") + X["seats"] / 50 > 19, "late", "on time")
    def model(steps: int) -> Any:
        return make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "gate"]), ("passthrough", ["wind", "temp", "seats", "night"])),
                             HistGradientBoostingClassifier(max_iter=steps)).fit(X, y)
    ws = registry.open(folder)
    late = registry.deploy(ws, "late", registry.register(ws, "late", model(10), X, y, at="2013-03-01"), at="2013-03-01")
    registry.promote(late, registry.register(ws, "late", model(20), X, y), "it is better")
    numbers = X[["wind", "seats"]]
    registry.deploy(ws, "minutes", registry.register(ws, "minutes", LinearRegression().fit(numbers, X["wind"] * 2), numbers, X["wind"] * 2))
    return ws


class Recorder:
    "Keeps every exchange with the application that it wraps"
    def __init__(self, app: Any, seen: list[Any]): self.app, self.seen = app, seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent: list[Any] = []
        async def keep(message: Any) -> None:
            sent.append(message)
            await send(message)
        await self.app(scope, receive, keep)
        if scope["type"] == "http" and sent:
            headers = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
            self.seen.append((scope["method"], scope["path"], sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent[1:])))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    ws, seen = make(tmp_path_factory.mktemp("conformance") / "work"), []
    config = serving.uvicorn.Config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.uvicorn, "Config", lambda app, **more: config(Recorder(app, seen), **more))
        server = serving.serve(ws)
    try: yield SimpleNamespace(ws=ws, dep=registry.deployment(ws, "late"), server=server, where=server.url.split("://")[1], seen=seen)
    finally:
        server.stop()
        ws.close()


def hold(schemas: dict[str, Any], name: str, message: Any) -> None:
    "Validate a message against a named schema"
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}).validate(message)


def published_name(path: str) -> str | None:
    "The published schema of the answer of a path; health has none"
    if path.startswith("/v2/health") or path.endswith("/ready"): return None
    return "inference_response" if path.endswith("/infer") else "metadata_model_response" if path.startswith("/v2/models/") else "metadata_server_response" if path == "/v2" else None


def whole(headers: dict[str, str], body: bytes) -> Any:
    "The content of an answer, with the tensors that came as bytes put back as data"
    if binary.HEADER.lower() not in headers: return json.loads(body, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert headers["content-type"] == "application/octet-stream"
    head, tail = body[:(n := int(headers[binary.HEADER.lower()]))], body[n:]
    answer = json.loads(head)
    for o in answer["outputs"]:
        if (size := o.get("parameters", {}).get("binary_data_size")) is None: continue
        o["data"], tail = binary.unpack(tail[:size], o["datatype"], o["shape"][0]), tail[size:]
    assert tail == b""
    return answer


@pytest.fixture(autouse=True)
def held(site: Any) -> Iterator[None]:
    "Every answer of every test holds to the published schemas, and to those of /openapi.json"
    site.seen.clear()
    yield
    for method, path, status, headers, body in site.seen:
        if not path.startswith("/v2") and status < 400: continue
        answer = whole(headers, body)
        if status >= 400:
            assert headers["content-type"] == "application/json" and set(answer) == {"error"} and answer["error"], (method, path, answer)
            assert "Traceback" not in answer["error"]
            hold(PUBLISHED["components"]["schemas"], "metadata_server_error_response", answer)
        elif name := published_name(path):
            hold(PUBLISHED["components"]["schemas"], name, answer)
            hold(openapi.SCHEMAS, name, answer)


def ask(site: Any, body: Any, path: str = INFER, **headers: str) -> tuple[int, Any]:
    "Send JSON or bytes; the status and the answer, tensors of bytes put back"
    c = HTTPConnection(site.where, timeout=30)
    try:
        c.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), {k.replace("_", "-"): v for k, v in headers.items()})
        r = c.getresponse()
        return r.status, whole({k.lower(): v for k, v in r.getheaders()}, r.read())
    finally: c.close()


def tensors(rows: int = 1, **changes: Any) -> list[dict[str, Any]]:
    "The inputs of a request for `ROW`, repeated"
    return [{"name": n, "datatype": TYPES[n], "shape": [rows], "data": [v] * rows} | changes.get(n, {}) for n, v in ROW.items()]


def logged(dep: Deployment) -> int: return len(events.predictions(dep, columns=["id"]))
def scores(answer: Any) -> list[float]: return next(o["data"] for o in answer["outputs"] if o["name"] == "score")
def expected(dep: Deployment, *rows: dict[str, Any], number: int | None = None) -> list[float]:
    "What the estimator says"
    version = protocol.chosen(dep, None if number is None else str(number))
    return version.predict(version.schema.conform(list(rows)))["score"].tolist()


# tritonclient

@pytest.fixture
def triton(site: Any) -> Iterator[Any]:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http] of the extra dev")
    client = http.InferenceServerClient(site.where, connection_timeout=30, network_timeout=30)
    try: yield SimpleNamespace(client=client, Input=http.InferInput, Output=http.InferRequestedOutput, Error=sys.modules["tritonclient.utils"].InferenceServerException)
    finally: client.close()


def triton_inputs(triton: Any, rows: list[dict[str, Any]], kinds: dict[str, str] | None = None, binary_data: bool = True) -> list[Any]:
    "Rows as tritonclient has them; a missing number is NaN"
    out = []
    for name, kind in (TYPES | (kinds or {})).items():
        values = np.array([np.nan if r[name] is None else r[name] for r in rows]).astype(NUMPY[kind])
        out.append(triton.Input(name, [len(rows)], kind))
        out[-1].set_data_from_numpy(values, binary_data=binary_data)
    return out


def test_triton_reads_what_there_is(site: Any, triton: Any) -> None:
    c = triton.client
    assert c.is_server_live() and c.is_server_ready()
    assert c.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "1", "2"):
        assert c.is_model_ready("late", version)
        model = c.get_model_metadata("late", version)
        assert (model["name"], model["versions"], "properties" in model) == ("late", ["1", "2"], False)
        assert [(t["name"], t["datatype"], t["shape"]) for t in model["inputs"]] == [(n, t, [-1]) for n, t in TYPES.items()]
        assert [t["name"] for t in model["inputs"]] == site.dep.schema.names
        assert [(t["name"], t["datatype"], t["shape"]) for t in model["outputs"]] == [("id", "BYTES", [-1]), ("prediction", "BYTES", [-1]), ("score", "FP64", [-1])]
    assert not c.is_model_ready("late", "3") and not c.is_model_ready("early")
    assert c.get_model_metadata("minutes")["properties"]["matrix"] == "all inputs, in this order, as one tensor 'matrix' of shape [-1, 2]"


@pytest.mark.parametrize("as_bytes", [True, False])
def test_triton_infers_with_its_defaults(site: Any, triton: Any, as_bytes: bool) -> None:
    rows = [ROW, ROW | {"wind": 30.5, "temp": 21.5, "night": True, "carrier": "AA", "gate": 4, "remark": "€ and ü", "ticket": 2**60 + 7}]
    before = logged(site.dep)
    result = triton.client.infer("late", triton_inputs(triton, rows, binary_data=as_bytes), request_id="r1")
    assert result.as_numpy("score").tolist() == expected(site.dep, *rows)
    assert set(result.as_numpy("prediction").tolist()) <= {b"late", b"on time"}
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("late", "2", "r1")
    assert all("binary_data_size" in o["parameters"] for o in answer["outputs"])
    ids = [i.decode() for i in result.as_numpy("id")]
    kept = events.predictions(site.dep).set_index("id").loc[ids]
    assert logged(site.dep) == before + 2
    assert kept["ticket"].tolist() == [BIG, 2**60 + 7] and kept["remark"].tolist() == [r["remark"] for r in rows] and kept["wind"].tolist() == [12.5, 30.5]
    assert pd.isna(kept["temp"].iloc[0]) and kept["temp"].iloc[1] == 21.5 and kept["night"].tolist() == [False, True] and kept["due"].dt.hour.tolist() == [10, 10]


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("kind", [k for k in binary.LAYOUT if k != "BOOL"])
def test_triton_infers_with_every_number(site: Any, triton: Any, kind: str, as_bytes: bool) -> None:
    rows = [ROW | {"wind": w, "seats": s} for w, s in ((3, 100), (40, 99))]
    kinds = {"wind": kind} | ({"seats": kind} if kind[0] != "F" else {})
    result = triton.client.infer("late", triton_inputs(triton, rows, kinds, as_bytes))
    assert result.as_numpy("score").tolist() == expected(site.dep, *rows)


def test_triton_names_outputs_and_versions(site: Any, triton: Any) -> None:
    wanted = [triton.Output("score"), triton.Output("id", binary_data=False)]
    for number in ("1", "2"):
        result = triton.client.infer("late", triton_inputs(triton, [ROW]), outputs=wanted, model_version=number)
        answer = result.get_response()
        assert [(o["name"], "data" in o) for o in answer["outputs"]] == [("score", False), ("id", True)] and answer["model_version"] == number
        assert result.as_numpy("score").tolist() == expected(site.dep, ROW, number=int(number)) and "id" not in answer
    assert expected(site.dep, ROW, number=1) != expected(site.dep, ROW, number=2)


def test_triton_sends_a_matrix(site: Any, triton: Any) -> None:
    for kind, shape in (("FP32", [2, 2]), ("INT64", [2, 2])):
        tensor = triton.Input("matrix", shape, kind)
        tensor.set_data_from_numpy(np.array([[3, 150], [40, 90]], NUMPY[kind]))
        np.testing.assert_allclose(triton.client.infer("minutes", [tensor]).as_numpy("prediction"), [6, 80])
    tensor = triton.Input("matrix", [4], "FP64")
    tensor.set_data_from_numpy(np.arange(4.))
    with pytest.raises(triton.Error, match=r"give \[rows, 2\], with the columns wind, seats"): triton.client.infer("minutes", [tensor])
    with pytest.raises(triton.Error, match="column 'wind' .* is missing"): triton.client.infer("late", [tensor])


def test_triton_hears_why(site: Any, triton: Any) -> None:
    before = logged(site.dep)
    for as_bytes in (True, False):
        for wind, says in ((np.nan, r"column 'wind' .*is null"), (np.inf, r"column 'wind' .*is infinite"), (-np.inf, r"is infinite")):
            with pytest.raises(triton.Error, match=says) as e: triton.client.infer("late", triton_inputs(triton, [ROW | {"wind": wind}], binary_data=as_bytes))
            assert e.value.status() == "422"
        with pytest.raises(triton.Error, match="'wind'") as e: triton.client.infer("late", triton_inputs(triton, [ROW], binary_data=as_bytes)[1:])
        assert e.value.status() == "422"
    inputs = triton_inputs(triton, [ROW])
    for call, status, says in ((lambda: triton.client.infer("early", inputs), "404", "there is no deployment 'early'; known: 'late', 'minutes'"),
                               (lambda: triton.client.infer("late", inputs, model_version="7"), "404", "there is no version of 'late' '7'; known: '1', '2'"),
                               (lambda: triton.client.infer("late", inputs, outputs=[triton.Output("odds")]), "400", "there is no output 'odds'"),
                               (lambda: triton.client.infer("late", inputs, outputs=[triton.Output("score", class_count=2)]), "400", "asks for classification"),
                               (lambda: triton.client.infer("late", inputs, request_compression_algorithm="gzip"), "415", "compressed"),
                               (lambda: triton.client.get_model_metadata("early"), "404", "there is no deployment 'early'")):
        with pytest.raises(triton.Error, match=says) as e: call()
        assert e.value.status() == status
    assert logged(site.dep) == before


# kserve

REQUIRED = ("kserve==0.21.0", "protobuf<7", "pandas<3")
KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, rows, types = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
kinds = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_, "BYTES": object}

def inputs(binary):
    out = []
    for name, kind in types.items():
        values = np.array([np.nan if r[name] is None else r[name].encode() if kind == "BYTES" else r[name] for r in rows]).astype(kinds[kind])
        out.append(InferInput(name, [len(rows)], kind))
        out[-1].set_data_from_numpy(values, binary_data=binary)
    return out

def told(response):
    return {"model": response.model_name, "id": response.id, "outputs": {o.name: o.as_numpy().tolist() for o in response.outputs if o.datatype != "BYTES"},
            "names": [o.name for o in response.outputs]}

async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=60))
    out = {"live": await client.is_server_live(url), "ready": await client.is_server_ready(url), "model": await client.is_model_ready(url, "late"), "infer": []}
    for binary in (True, False):
        for more in ({}, {"request_outputs": [RequestedOutput("score", parameters={"binary_data": True})]}, {"parameters": {"binary_data_output": True}}):
            if not binary and not more:
                plain = {"id": "plain", "inputs": [{"name": n, "datatype": k, "shape": [len(rows)], "data": [r[n] for r in rows]} for n, k in types.items()]}
                out["infer"].append(told(await client.infer(url, plain, model_name="late")))
            given = [i for i in inputs(binary)] if binary else [i for i in inputs(True) if i.name == "temp"] + [i for i in inputs(False) if i.name != "temp"]
            out["infer"].append(told(await client.infer(url, InferRequest("late", given, request_id="k1", **more), model_name="late")))
    for model, given in (("early", inputs(True)), ("late", inputs(True)[1:])):
        try: await client.infer(url, InferRequest(model, given), model_name=model)
        except Exception as e: out.setdefault("errors", []).append(str(e))
    print(json.dumps(out))

asyncio.run(main())
"""


@pytest.fixture(scope="session")
def kserve_python(request: pytest.FixtureRequest) -> str:
    "The Python of an environment with the kserve client"
    where = Path(os.environ.get("MLNB_TEST_ENVS") or request.config.cache.mkdir("environments")).resolve()
    folder = where / ("kserve-" + hashlib.sha256(repr((REQUIRED, sys.version)).encode()).hexdigest()[:12])
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIRED], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"pip could not install {REQUIRED}: {done.stderr[-2000:]}"
        (folder / "complete").touch()
    return str(python)


@pytest.mark.slow
def test_kserve_reads_and_infers(site: Any, kserve_python: str) -> None:
    rows = [ROW, ROW | {"wind": 30.5, "temp": 21.5, "night": True, "carrier": "AA", "remark": "€ and ü"}]
    before = logged(site.dep)
    done = subprocess.run([kserve_python, "-c", KSERVE, site.server.url, json.dumps(rows), json.dumps(TYPES)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["live"], said["ready"], said["model"]) == (True, True, True)
    assert len(said["infer"]) == 7 and Counter(i["id"] for i in said["infer"]) == {"k1": 6, "plain": 1}
    for answer in said["infer"]:
        assert answer["model"] == "late" and answer["outputs"]["score"] == expected(site.dep, *rows)
    assert Counter(len(i["names"]) for i in said["infer"]) == {3: 5, 1: 2}
    assert "there is no deployment 'early'" in said["errors"][0] and "404" in said["errors"][0]
    assert "column 'wind' (numeric) is missing" in said["errors"][1] and "422" in said["errors"][1]
    assert logged(site.dep) == before + 14


# Tensors as bytes, by hand

def packed(inputs: list[dict[str, Any]], **more: Any) -> tuple[bytes, int]:
    "A body with all tensors as bytes, and the bytes of its JSON"
    raw = [binary.pack([np.nan if v is None and t["datatype"] == "FP64" else v for v in t["data"]], t["datatype"]) for t in inputs]
    head = [{k: v for k, v in t.items() if k != "data"} | {"parameters": {"binary_data_size": len(r)}} for t, r in zip(inputs, raw, strict=True)]
    text = json.dumps({"inputs": head, **more}).encode()
    return text + b"".join(raw), len(text)


def test_bytes_and_json_say_the_same(site: Any) -> None:
    body, n = packed(tensors(3))
    answers = [ask(site, body, Inference_Header_Content_Length=str(n)), ask(site, {"inputs": tensors(3)}), ask(site, {"inputs": tensors(3), "parameters": {"binary_data_output": True}}),
               ask(site, {"inputs": [t | {"shape": [3, 1], "data": [[v] for v in t["data"]]} for t in tensors(3)], "outputs": [{"name": "score", "parameters": {"binary_data": True}}]})]
    assert [status for status, _ in answers] == [200] * 4
    assert all(scores(a) == expected(site.dep, ROW) * 3 for _, a in answers)
    kept = events.predictions(site.dep, columns=["ticket"])["ticket"].tail(12)
    assert kept.tolist() == [BIG] * 12


def test_exact_numbers_stay_exact_beside_nulls(site: Any) -> None:
    status, answer = ask(site, {"inputs": tensors(3, ticket={"data": [BIG, None, 2**63 - 1]})})
    assert status == 200
    kept = events.predictions(site.dep).set_index("id").loc[answer["outputs"][0]["data"], "ticket"]
    assert kept.iloc[0] == BIG and pd.isna(kept.iloc[1]) and kept.iloc[2] == 2**63 - 1


GOOD, HEAD = packed(tensors())


@pytest.mark.parametrize(("body", "length", "says"), [
    (GOOD, "-1", "give the bytes of JSON"), (GOOD, "ten", "give the bytes of JSON"), (GOOD, "9" * 4000, "give the bytes of JSON"), (GOOD, "999999", "but the body has only"),
    (GOOD, str(HEAD - 1), "not JSON"), (GOOD, str(HEAD + 1), "not JSON"), (GOOD, "0", "not JSON"), (GOOD, None, "not JSON"), (GOOD[:-1], str(HEAD), "is it cut off"), (GOOD[:HEAD], str(HEAD), "is it cut off"),
    (GOOD[:HEAD], None, "is it cut off, or the header Inference-Header-Content-Length missing"), (GOOD + b"!", str(HEAD), "belong to no tensor"), (b"", "0", "not JSON"),
    (GOOD.replace(b'"FP64"', b'"FP32"', 1), str(HEAD), "8 bytes; 1 values of FP32 are 4"), (GOOD.replace(b'"BOOL"', b'"BOON"', 1), str(HEAD), "has datatype 'BOON'"),
    (GOOD[:-len("2013-03-02T10:00:00Z") - 4] + struct.pack("<I", 2**32 - 1) + b"2013-03-02T10:00:00Z", str(HEAD), "is cut off in element 0"),
    (GOOD.replace(b"none of note", b"none \xff\xfe note"), str(HEAD), "is not UTF-8 in element 0"),
    (GOOD.replace(b'"shape": [1]', b'"shape": [9]', 1), str(HEAD), "has 8 bytes; 9 values of FP64 are 72")],
    ids=lambda v: None if isinstance(v, bytes) else str(v)[:20])
def test_bytes_that_do_not_fit_are_refused(site: Any, body: bytes, length: str | None, says: str) -> None:
    before = logged(site.dep)
    status, answer = ask(site, body, **({"Inference_Header_Content_Length": length} if length else {}))
    assert status == 400 and says in answer["error"] and logged(site.dep) == before


# Bad input

NAN, INF = float("nan"), float("inf")
NESTED = b'{"inputs": [{"name": "wind", "datatype": "FP64", "shape": [1], "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"


def of(**changes: Any) -> dict[str, Any]: return {"inputs": tensors(**changes)}


@pytest.mark.parametrize(("status", "body", "says"), [
    (400, of(seats={"datatype": "INT8", "data": [300]}), "tensor 'seats' has datatype INT8 but holds 300; it goes from -128 to 127"),
    (400, of(seats={"datatype": "UINT64", "data": [-1]}), "it goes from 0 to 18446744073709551615"), (400, of(seats={"data": [2**63]}), "it goes from -9223372036854775808 to 9223372036854775807"),
    (422, of(seats={"datatype": "UINT64", "data": [2**63]}), "'seats'"), (400, of(seats={"data": [1.5]}), "holds 1.5, which is no whole number"), (400, of(seats={"data": [1e300]}), "it goes from"),
    (400, of(wind={"datatype": "FP16", "data": [70000]}), "it goes from -65504.0 to 65504.0"), (400, of(wind={"datatype": "FP32", "data": [1e39]}), "tensor 'wind' has datatype FP32 but holds 1e+39"),
    (400, of(wind={"data": [10**400]}), "it goes from -1.797"), (422, json.dumps(of(wind={"data": ["@"]})).replace('"@"', "1e400").encode(), "'wind' (numeric)|is infinite"),
    (422, of(wind={"data": [NAN]}), "is null"), (422, of(wind={"data": [INF]}), "is infinite"), (422, of(wind={"data": [None]}), "is null"), (422, of(seats={"data": [NAN]}), "is null"),
    (422, of(temp={"data": [-INF]}), "is infinite"), (400, of(seats={"data": [INF]}), "it goes from"), (400, of(night={"data": [2]}), "has datatype BOOL but holds 2"), (422, of(night={"datatype": "INT8", "data": [1]}), "true or false"),
    (400, of(carrier={"data": [3]}), "has datatype BYTES but holds 3"), (400, of(gate={"data": ["2"]}), "has datatype INT64 but holds '2'"), (400, of(wind={"data": [{"a": 1}]}), "holds {'a': 1}"),
    (400, of(wind={"shape": [1, 2], "data": [1, 2]}), "each column is a tensor of its own"), (400, of(wind={"shape": [1, 1, 1]}), "give [rows] or [rows, 1]"), (400, of(wind={"shape": [-1]}), "has shape [-1]"),
    (400, of(wind={"shape": [2**64]}), "has shape [18446744073709551616]"), (400, of(wind={"shape": [True]}), "has shape [True]"), (400, of(wind={"shape": [10**18, 10**18]}), "but 1 values"),
    (400, of(wind={"data": [[1], 2]}), "nested unevenly"), (422, {"inputs": [t | {"shape": [0], "data": []} for t in tensors()]}, "no rows"), (400, {"inputs": [{"name": "wind"}]}, "has datatype None"),
    (400, of() | {"id": 7}, "the id of a request is text"), (400, of() | {"outputs": [{"name": "id"}] * 2}, "asked for twice: id"), (400, of() | {"outputs": {"name": "id"}}, "'outputs' is a list"),
    (400, of(wind={"parameters": 3}), "the parameters of tensor 'wind' are no JSON object"), (400, of() | {"parameters": {"binary_data_output": "yes"}}, "give true or false"),
    (400, of(wind={"parameters": {"shared_memory_region": "r"}}), "shared memory"), (400, NESTED, "nested too deeply"), (400, b'"wind"', "JSON object"), (400, b"3", "JSON object"), (400, b"null", "JSON object"), (400, b"true", "JSON object"),
    (400, b"", "not JSON"), (400, b" ", "not JSON"), (400, b"{", "not JSON"), (400, b'{"inputs": [\xff]}', "not JSON"), (400, json.dumps(of(carrier={"data": ["\ud800"]})).encode(), "not JSON"), (400, b"[" + b"9" * 5000 + b"]", "not JSON")],
    ids=lambda v: str(v)[:24] if isinstance(v, str) else None)
def test_bad_requests_name_what_is_wrong(site: Any, status: int, body: Any, says: str) -> None:
    before = logged(site.dep)
    got, answer = ask(site, body)
    assert got == status and any(s in answer["error"] for s in says.split("|")), answer
    assert logged(site.dep) == before


def test_what_is_said_to_be_something_else_is_not_read(site: Any) -> None:
    body = json.dumps(of()).encode()
    for kind in ("application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "application/vnd.api+json"):
        assert ask(site, body, Content_Type=kind)[0] == 200
    for wrong in ({"Content_Type": "text/csv"}, {"Content_Type": "multipart/form-data; boundary=x"}, {"Content_Type": "image/png"}, {"Content_Encoding": "gzip"}):
        status, answer = ask(site, body, **wrong)
        assert status == 415 and "the body is said to be" in answer["error"]


def test_of_a_key_given_twice_the_last_counts(site: Any) -> None:
    first, last = (json.dumps(tensors(wind={"data": [w]})) for w in (1, 30))
    status, answer = ask(site, f'{{"inputs": {first}, "inputs": {last}}}'.encode())
    assert status == 200 and scores(answer) == expected(site.dep, ROW | {"wind": 30})
    assert events.predictions(site.dep, columns=["id", "wind"]).set_index("id").loc[answer["outputs"][0]["data"][0], "wind"] == 30


ODD = [None, True, -1, 0, 1.5, 2**63, 10**400, NAN, INF, "", "é", "\x00", "x" * 5000, [], [[]], [[1], 2], {}, {"a": {"b": [1]}}, [None], ["a", 1]]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    "The path of every node of a JSON document"
    yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else (): yield from places(child, (*path, key))


def put(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    "A copy of a document in which one node is another value"
    if not path: return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


def answered(site: Any, asked: Callable[[], tuple[int, Any]], tally: Counter[int]) -> int:
    "The rows that were answered"
    status, answer = asked()
    tally[status] += 1
    assert status in (200, 400, 422), (status, answer)
    return answer["outputs"][0]["shape"][0] if status == 200 else 0


def test_no_odd_value_anywhere_breaks_the_server(site: Any) -> None:
    good = {"id": "r", "inputs": [t for t in tensors(2) if t["name"] in ("wind", "seats", "night", "carrier")] + tensors(2)[1:2], "outputs": [{"name": "id"}, {"name": "score", "parameters": {"binary_data": True}}],
            "parameters": {"at": ["2013-03-02", "2013-03-03"], "unit": ["a", "b"]}}
    numbers = {"inputs": [{"name": "wind", "datatype": "FP64", "shape": [2, 1], "data": [[1], [2]]}, {"name": "seats", "datatype": "INT64", "shape": [2], "data": [1, 2]}], **{k: good[k] for k in ("id", "parameters")}}
    tally, rows = Counter[int](), 0
    minutes = registry.deployment(site.ws, "minutes")
    before = logged(minutes)
    for path in places(numbers):
        for value in ODD: rows += answered(site, lambda p=path, v=value: ask(site, put(numbers, p, v), "/v2/models/minutes/infer"), tally)
    assert logged(minutes) == before + rows and tally[200] > 20 and tally[400] > 200
    before = logged(site.dep)
    assert sum(answered(site, lambda p=path, v=value: ask(site, put(good, p, v)), tally) for path in places(good) for value in ODD[::4]) == logged(site.dep) - before


def test_no_changed_byte_breaks_the_server(site: Any) -> None:
    rng, tally, before = np.random.default_rng(0), Counter[int](), logged(site.dep)
    texts = [(json.dumps(of()).encode(), None), (GOOD, HEAD)]
    rows = 0
    for i in range(600):
        body, length = texts[i % 2]
        changed = bytearray(body)
        for at in rng.integers(0, len(body), rng.integers(1, 4)): changed[at] = rng.integers(0, 256)
        if rng.random() < .2: changed = changed[:rng.integers(0, len(changed))]
        rows += answered(site, lambda b=bytes(changed), n=length: ask(site, b, **({"Inference_Header_Content_Length": str(n)} if n else {})), tally)
    assert logged(site.dep) == before + rows and tally[200] > 5 and tally[400] > 100


# HTTP itself

def exchange(site: Any, sent: bytes, answers: int = 1) -> list[tuple[int, bytes]]:
    "Send bytes as they are, and read a number of answers; fewer if the server closes"
    out: list[tuple[int, bytes]] = []
    with socket.create_connection(site.where.split(":"), timeout=30) as s:
        s.sendall(sent)
        file = s.makefile("rb")
        for _ in range(answers):
            r = HTTPResponse(SimpleNamespace(makefile=lambda *_: Unclosed(file)))  # type: ignore[arg-type]
            try: r.begin()
            except (ConnectionError, OSError, ValueError): break
            except Exception as e:
                assert type(e).__name__ in ("RemoteDisconnected", "BadStatusLine"), e
                break
            out.append((r.status, r.read()))
    return out


class Unclosed:
    "A file that outlives who reads it"
    def __init__(self, file: Any): self.file = file
    def __getattr__(self, name: str) -> Any: return getattr(self.file, name)
    def close(self) -> None: pass


def post(body: bytes, *headers: str, path: str = INFER) -> bytes:
    "A request as it goes over the wire"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def test_http_as_it_should_not_be(site: Any) -> None:
    body, before = json.dumps(of()).encode(), logged(site.dep)
    length = f"Content-Length: {len(body)}"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:10], body[10:11], body[11:])) + b"0\r\n\r\n"
    assert [s for s, _ in exchange(site, post(b""))] == [400]
    assert [s for s, _ in exchange(site, post(chunks, "Transfer-Encoding: chunked"))] == [200]
    assert [s for s, _ in exchange(site, post(body, length) * 3, 3)] == [200] * 3
    for wrong in (post(body, "Content-Length: many"), post(body, "Content-Length: -5"), post(b"zz\r\n" + body, "Transfer-Encoding: chunked"), b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n"):
        assert all(400 <= s < 500 for s, _ in exchange(site, wrong))
    assert logged(site.dep) == before + 4
    odd = [s for sent in (post(body, length) + b"no HTTP at all\r\n\r\n", post(body, length, "X-Much: " + "x" * 100_000)) for s, _ in exchange(site, sent)]
    assert set(odd) <= {200, 400, 431} and ask(site, of())[0] == 200
    assert odd.count(200) <= logged(site.dep) - before - 5 <= 2  # what was asked in good form may be in the log, and what was answered is


def test_bodies_that_never_arrive_hold_nobody_up(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 1.)
    before, sockets = logged(site.dep), [socket.create_connection(site.where.split(":"), timeout=30) for _ in range(24)]
    try:
        for s in sockets[:20]: s.sendall(post(b'{"inputs": [', "Content-Length: 1000"))
        for s in sockets[20:]: s.sendall(b"POST /v2/mod")
        with ThreadPoolExecutor(4) as callers: assert {r[0] for r in callers.map(lambda _: ask(site, of()), range(16))} == {200}
        for s in sockets[:20]:
            r = HTTPResponse(s)
            r.begin()
            assert r.status == 408 and "did not arrive within 1 seconds" in json.loads(r.read())["error"]
    finally:
        for s in sockets: s.close()
    for _ in range(5):
        with socket.create_connection(site.where.split(":"), timeout=30) as s: s.sendall(post(b'{"inputs": [', "Content-Length: 1000"))
    assert ask(site, of())[0] == 200 and logged(site.dep) == before + 17


def test_a_server_stops_although_callers_hang(tmp_path: Path) -> None:
    ws = make(tmp_path / "work")
    server = serving.serve(ws)
    with socket.create_connection(server.url.split("://")[1].split(":"), timeout=30) as s:
        s.sendall(post(b'{"inputs": [', "Content-Length: 1000"))
        assert ask(SimpleNamespace(where=server.url.split("://")[1]), of())[0] == 200
        server.stop(1.)
    assert not server.thread.is_alive()
    ws.close()


# Faults

def test_a_locked_database_is_said_to_be_one(tmp_path: Path) -> None:
    ws = make(tmp_path / "work")
    dep = registry.deployment(ws, "late")
    @sa.event.listens_for(ws.store.engine, "connect")
    def impatient(c: Any, _: Any) -> None: c.execute("pragma busy_timeout=200")
    ws.store.engine.dispose()
    with serving.serve(ws) as server:
        site = SimpleNamespace(where=server.url.split("://")[1])
        assert ask(site, of())[0] == 200
        other = sqlite3.connect(ws.store.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for body, path in ((of(), INFER), ({"records": [ROW]}, "/predict/late"), ({"id": "a", "y": "late"}, "/feedback/late")):
            status, answer = ask(site, body, path)
            assert status == 503 and "locked" in answer["error"] and "nothing was logged" in answer["error"]
        other.execute("ROLLBACK")
        other.close()
        assert ask(site, of())[0] == 200 and logged(dep) == 2
    ws.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_full_disk_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    import resource
    ws = make(tmp_path / "work")
    file = ws.store.file
    ws.close()
    p = subprocess.Popen([sys.executable, "-m", "mlnb.cli", "serve", "-w", str(tmp_path / "work"), "--port", "0", "--tick", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert p.stdout
        site = SimpleNamespace(where=json.loads(p.stdout.readline())["url"].split("://")[1])
        asked = {"records": [ROW] * 50}
        heard = [ask(site, asked, "/predict/late")]
        sizes = [f.stat().st_size for f in (file, file.with_name(file.name + "-wal")) if f.exists()]
        before = resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (max(sizes) + 60_000, resource.RLIM_INFINITY))
        for _ in range(200):
            heard.append(ask(site, asked, "/predict/late"))
            if heard[-1][0] != 200: break
        assert heard[-1][0] == 503 and "nothing was logged" in heard[-1][1]["error"]
        assert ask(site, asked, "/predict/late")[0] == 503 and ask(site, of(seats={"data": ["x"]}))[0] == 400
        resource.prlimit(p.pid, resource.RLIMIT_FSIZE, before)
        heard.append(ask(site, asked, "/predict/late"))
        assert heard[-1][0] == 200
    finally:
        p.terminate()
        p.wait(30)
    with registry.open(tmp_path / "work") as again: ids = events.predictions(registry.deployment(again, "late"), columns=["id"])["id"]
    assert set(ids) == {r["id"] for status, a in heard if status == 200 for r in a["predictions"]} and len(ids) == 50 * sum(status == 200 for status, _ in heard)


# The description

def test_the_description_has_examples_that_work(site: Any) -> None:
    c = HTTPConnection(site.where, timeout=30)
    try:
        c.request("GET", "/openapi.json")
        document = json.loads(c.getresponse().read())
    finally: c.close()
    tried = 0
    for path, operations in document["paths"].items():
        examples = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
        for name, example in examples.items():
            if "{version}" in path or not ("{model}" in path or "{deployment}" in path): continue
            status, answer = ask(site, example["value"], path.replace("{model}", name).replace("{deployment}", name))
            assert status == 200, (path, answer)
            tried += 1
    assert tried == 10  # infer, predict, feedback, outcomes, lookup for two deployments
    assert {r for o in document["paths"]["/predict"].values() for r in o["responses"]} >= {"200", "400", "404", "408", "413", "415", "422", "503"}


@pytest.mark.slow
def test_schemathesis_finds_nothing(site: Any, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis of the extra dev")
    done = subprocess.run([sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", site.server.url + "/openapi.json", "--seed", "1", "--max-examples", "100", "--continue-on-failure",
                           "--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance", "--warnings", "off", "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "No issues found" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
    got = Counter((path.split("/")[-1] if path.startswith("/v2") else path.split("/")[1], status) for _, path, status, _, _ in site.seen)
    assert not [k for k in got if k[1] >= 500]
    assert all(got[what, 200] > 0 for what in ("infer", "predict", "feedback", "outcomes", "healthz", "ready", "late")), got
    assert got["infer", 400] > 100 and got["predict", 422] > 10
