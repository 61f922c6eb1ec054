"""What a request costs: mlnb beside a constant answer, MLServer and BentoML, all with the same boosting pipeline on flights and one row a request. Run:

    python tests/bench/bench_serve.py                        # everything; makes environments for the peers first, which takes minutes
    python tests/bench/bench_serve.py --envs FOLDER          # ... and keeps them there
    python tests/bench/bench_serve.py --without-peers        # mlnb and the constant answer only
    python tests/bench/bench_serve.py --also other.json      # one more server: {"name", "command": [...], "port", "path", "body"}; {port} in the command is replaced
    python tests/bench/bench_serve.py --soak 300             # load for seconds: nothing lost, memory flat, latency steady

Every server is a process of its own, and so is the client, which keeps its connections open. In each round every server is asked at concurrency 1 and then 16; CPU is user
and system time of the server's process tree over a window, divided by the requests answered in it. Medians over rounds, so that what else the machine does disturbs all alike.

Limits: CPU a request at concurrency 16 at most 3 times the constant answer's and a 60th of the cheaper peer's; 99th percentile at concurrency 16 at most 5 times the constant answer's.
Soak: every request answered or refused with 503, as many rows in the log as answers, memory at the end at most 1.1 times what it was after warming up and 20 MB, 99th percentile of the
last third at most twice that of the first.
"""
import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from array import array
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

LEVELS = (1, 16)
CPU_LIMIT, PEER_LIMIT, P99_LIMIT, MEMORY_LIMIT, MEMORY_SLACK, STEADY_LIMIT = 3., 60., 5., 1.1, 20., 2.
PEERS = {"MLServer": ["mlserver==1.7.1"], "BentoML": ["bentoml==1.4.39"]}
CONSTANT = """
ANSWER = b'{"deployment": "late", "version": 1, "predictions": [{"id": "06619a0f25f84500000001c3f5c2a1b0", "prediction": false, "score": 0.123456789}]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
async def app(scope, receive, send):
    while (await receive()).get("more_body"): pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
"""
MLSERVER = """
import joblib
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, PandasCodec
from mlserver.types import InferenceResponse

class Flights(MLModel):
    async def load(self):
        self.pipeline = joblib.load("model.joblib")
        return True

    async def predict(self, payload):
        frame = self.decode_request(payload, default_codec=PandasCodec)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", self.pipeline.predict_proba(frame)[:, 1])])
"""
BENTOML = """
import bentoml, joblib
import pandas as pd

@bentoml.service(workers=1)
class Flights:
    def __init__(self): self.pipeline = joblib.load("model.joblib")

    @bentoml.api
    def predict(self, rows: list[dict]) -> list[float]: return self.pipeline.predict_proba(pd.DataFrame(rows))[:, 1].tolist()
"""


# The client, which runs in a process of its own

class Caller(asyncio.Protocol):
    "One connection: asks, waits for the whole answer, asks again until the time is over"
    def __init__(self, requests: list[bytes], start: int, until: float, out: list[array], statuses: Counter[int], ended: asyncio.Future[None], began: float):
        self.requests, self.next, self.until, self.out, self.statuses, self.ended, self.began, self.buffer = requests, start, until, out, statuses, ended, began, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask()

    def ask(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0: return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        if at < 0: return self.give_up("an answer without Content-Length")
        if len(self.buffer) < end + 4 + int(head[at + 15:].split(b"\r\n", 1)[0]): return
        now = time.perf_counter()
        self.statuses[int(head[9:12])] += 1
        third = min(int(3 * (self.sent - self.began) / (self.until - self.began)), 2)
        self.out[third].append(now - self.sent)
        self.buffer = b""
        if now < self.until and b"connection: close" not in head: return self.ask()
        if now < self.until: return self.give_up("the server closed a connection")
        self.finish()

    def give_up(self, why: str) -> None:
        self.statuses[-1] += 1
        print(why, file=sys.stderr)
        self.finish()

    def finish(self) -> None:
        if not self.ended.done(): self.ended.set_result(None)
        self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done(): self.give_up("the server dropped a connection")


async def call(port: int, requests: list[bytes], callers: int, seconds: float) -> dict[str, Any]:
    "Load for some seconds"
    loop, out, statuses, began = asyncio.get_running_loop(), [array("d") for _ in range(3)], Counter[int](), time.perf_counter()
    ends: list[asyncio.Future[None]] = []
    for i in range(callers):
        ends.append(loop.create_future())
        await loop.create_connection(lambda i=i: Caller(requests, i * 7, began + seconds, out, statuses, ends[i], began), "127.0.0.1", port)
    await asyncio.wait_for(asyncio.gather(*ends), seconds + 120)
    return {"seconds": time.perf_counter() - began, "statuses": {str(k): v for k, v in statuses.items()},
            "p50": 1e3 * quantile(out, .5), "p99": 1e3 * quantile(out, .99), "thirds": [1e3 * quantile([o], .99) for o in out]}


def quantile(parts: list[array], q: float) -> float:
    "A quantile of all parts together"
    values = sorted(v for p in parts for v in p)
    return values[min(int(q * len(values)), len(values) - 1)] if values else float("nan")


def client(args: list[str]) -> None:
    "The process of the client: port, file of requests, callers, seconds"
    try: from uvloop import run
    except ImportError: from asyncio import run  # type: ignore[assignment]
    requests = [r.encode() for r in json.loads(Path(args[1]).read_text())]
    print(json.dumps(run(call(int(args[0]), requests, int(args[2]), float(args[3])))))


# Servers

@dataclass
class Served:
    "A server under load"
    name: str
    port: int
    requests: Path                       # file with the requests, as they go over the wire
    process: subprocess.Popen[bytes]
    rounds: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    answered: int = 0

    def load(self, callers: int, seconds: float) -> dict[str, Any]:
        "Ask for some seconds, and say what that cost"
        before = cpu(self.process.pid)
        done = subprocess.run([sys.executable, __file__, "--client", str(self.port), str(self.requests), str(callers), str(seconds)], capture_output=True, text=True, timeout=seconds + 180)
        if done.returncode: raise SystemExit(f"the client of {self.name} failed: {done.stderr[-2000:]}")
        said = json.loads(done.stdout)
        ok = said["statuses"].get("200", 0)
        self.answered += ok
        return said | {"ok": ok, "cpu": (cpu(self.process.pid) - before) / max(ok, 1) * 1e6, "rate": ok / said["seconds"], "rss": rss(self.process.pid), "errors": done.stderr}


def family(pid: int) -> list[int]:
    "A process and its descendants"
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit(): continue
        try: children.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
        except (OSError, IndexError): continue  # it ended meanwhile
    found = [pid]
    for p in found: found += children.get(p, [])
    return found


def cpu(pid: int) -> float:
    "CPU seconds of a process tree, with those of its children that ended"
    total = 0
    for p in family(pid):
        try: total += sum(map(int, Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError: continue
    return total / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> float:
    "Resident memory of a process tree in MB"
    total = 0
    for p in family(pid):
        try: total += int(Path(f"/proc/{p}/statm").read_text().split()[1])
        except OSError: continue
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wire(path: str, body: Any) -> str:
    "A request as it goes over the wire"
    text = body if isinstance(body, str) else json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(text.encode())}\r\n\r\n{text}"


def start(stack: ExitStack, name: str, command: list[str], port: int, path: str, bodies: list[Any], folder: Path, env: dict[str, str] | None = None) -> Served:
    "A server that has answered once; it ends with the stack"
    requests = folder / f"{name.replace(' ', '-')}.requests.json"
    requests.write_text(json.dumps([wire(path, b) for b in bodies]))
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    process = subprocess.Popen([c.replace("{port}", str(port)) for c in command], cwd=folder, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(env or {})})
    stack.callback(stop, process)
    served, deadline = Served(name, port, requests, process), time.monotonic() + 120
    while True:
        try: said = served.load(1, .01)
        except SystemExit as e: said = {"ok": 0, "errors": str(e)}
        if said["ok"]: return served
        if time.monotonic() > deadline or process.poll() is not None: raise SystemExit(f"{name} does not answer: {said}\n{(folder / f'{name}.log').read_text()[-3000:]}")
        time.sleep(.5)


def stop(process: subprocess.Popen[bytes]) -> None:
    "End a process, and what it started"
    others = family(process.pid)[1:]
    process.terminate()
    try: process.wait(30)
    except subprocess.TimeoutExpired: process.kill()
    for pid in others:
        try: os.kill(pid, 9)
        except ProcessLookupError: continue


# The model, and who serves it

def flights() -> tuple[Any, Any, Any]:
    "A pipeline, and what it was fitted to"
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    from mlnb.core import datasets
    year = datasets.flights("2013-01-01", "2013-03-01").dropna(subset=["arr_delay"])
    X = year[datasets.FLIGHT_FEATURES].astype(dict.fromkeys(("carrier", "origin", "dest"), "str"))
    encode = make_column_transformer((OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["carrier", "origin", "dest"]), remainder="passthrough")
    y = datasets.delayed(year).astype(bool)
    return make_pipeline(encode, HistGradientBoostingClassifier(max_iter=100)).fit(X, y), X, y


def environment(name: str, envs: Path) -> Path:
    "The Python of an environment for a peer, made unless it is there"
    import numpy
    import pandas
    import sklearn
    folder = envs / name.lower()
    wanted = [*PEERS[name], *(f"{m}=={v}" for m, v in (("scikit-learn", sklearn.__version__), ("pandas", pandas.__version__), ("numpy", numpy.__version__)))]
    mark = folder / "complete"
    if not mark.exists() or mark.read_text() != repr(wanted):
        print(f"making an environment for {name}: {' '.join(wanted)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"pip could not make the environment of {name}: {done.stderr[-3000:]}")
        mark.write_text(repr(wanted))
    return folder / "bin"


def v2(record: dict[str, Any], content_type: bool = False) -> dict[str, Any]:
    "A record as an inference request"
    inputs = []
    for name, v in record.items():
        kind = "BYTES" if isinstance(v, str) else "INT64" if isinstance(v, int) else "FP64"
        inputs.append({"name": name, "shape": [1], "datatype": kind, "data": [v]} | ({"parameters": {"content_type": "str"}} if content_type and kind == "BYTES" else {}))
    return {"inputs": inputs} | ({"parameters": {"content_type": "pd"}} if content_type else {})


def peers(stack: ExitStack, model: Any, records: list[dict[str, Any]], envs: Path, folder: Path) -> list[Served]:
    "MLServer and BentoML"
    import joblib
    ports, made = [free_port() for _ in range(4)], []
    for name, code in (("MLServer", MLSERVER), ("BentoML", BENTOML)):
        where = folder / name.lower()
        where.mkdir()
        joblib.dump(model, where / "model.joblib")
        (where / "flights.py").write_text(code)
    (folder / "mlserver/model-settings.json").write_text(json.dumps({"name": "late", "implementation": "flights.Flights"}))
    (folder / "mlserver/settings.json").write_text(json.dumps({"host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1], "metrics_port": ports[2], "parallel_workers": 0, "debug": False, "access_log": False}))
    where = environment("MLServer", envs)
    made.append(start(stack, "MLServer", [str(where / "mlserver"), "start", "."], ports[0], "/v2/models/late/infer", [v2(r, True) for r in records], folder / "mlserver"))
    where = environment("BentoML", envs)
    made.append(start(stack, "BentoML", [str(where / "bentoml"), "serve", "flights:Flights", "--host", "127.0.0.1", "--port", "{port}"], ports[3], "/predict", [{"rows": [r]} for r in records], folder / "bentoml",
                      {"BENTOML_HOME": str(folder / "bentoml/home"), "BENTOML_DO_NOT_TRACK": "true"}))
    return made


def mlnb_server(stack: ExitStack, work: Path, folder: Path, records: list[dict[str, Any]], path: str = "/predict") -> Served:
    "Our server over a workspace"
    port = free_port()
    return start(stack, "mlnb", [sys.executable, "-m", "mlnb.cli", "serve", "-w", str(work), "--port", "{port}", "--tick", "0"], port, path, records, folder)


def rows_in(work: Path) -> int:
    import mlnb
    from mlnb.core import events
    with mlnb.open(work) as ws: return len(events.predictions(ws.deployment("late"), columns=["id"]))


def prepare(folder: Path) -> tuple[Path, Any, list[dict[str, Any]]]:
    "A workspace with the model behind a deployment, the pipeline, and rows to ask"
    import mlnb
    model, X, y = flights()
    with mlnb.open(folder / "work") as ws: ws.deploy("late", ws.register("late", model, X[:20_000], y[:20_000], keep_data=False))
    return folder / "work", model, json.loads(X.dropna(subset=["wind_gust", "pressure"]).sample(500, random_state=0).to_json(orient="records"))


# What is measured

def compare(args: argparse.Namespace, folder: Path) -> int:
    "All servers, round by round"
    work, model, records = prepare(folder)
    with ExitStack() as stack:
        (folder / "constant.py").write_text(CONSTANT)
        all_ = [start(stack, "constant", [sys.executable, "-m", "uvicorn", "constant:app", "--port", "{port}", "--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "error"], free_port(), "/predict", records, folder)]
        ours = mlnb_server(stack, work, folder, records)
        requests = folder / "mlnb-v2.requests.json"
        requests.write_text(json.dumps([wire("/v2/models/late/infer", v2(r)) for r in records]))
        all_ += [ours, Served("mlnb v2", ours.port, requests, ours.process)]
        if not args.without_peers: all_ += peers(stack, model, records, args.envs or folder / "envs", folder)
        for file in args.also:
            more = json.loads(Path(file).read_text())
            all_.append(start(stack, more["name"], more["command"], more.get("port") or free_port(), more["path"], [more["body"]], folder))
        for s in all_: s.load(max(LEVELS), 1)  # warm up
        for i in range(args.rounds):
            for s in all_ if i % 2 == 0 else reversed(all_):
                for level in LEVELS: s.rounds.setdefault(level, []).append(s.load(level, args.seconds))
    bad = {s.name: r["statuses"] for s in all_ for rounds in s.rounds.values() for r in rounds if set(r["statuses"]) != {"200"}}
    answered = sum(s.answered for s in all_ if s.process is ours.process)
    table = {s.name: {f"{what} c{level}": median(r[what] for r in s.rounds[level]) for level in LEVELS for what in ("cpu", "rate", "p50", "p99")} | {"rss": s.rounds[LEVELS[-1]][-1]["rss"]} for s in all_}
    print(f"{'':10} {'CPU us, c1':>11} {'CPU us, c16':>12} {'req/s c1':>9} {'req/s c16':>10} {'p50 ms c1':>10} {'p99 ms c1':>10} {'p50 ms c16':>11} {'p99 ms c16':>11} {'RSS MB':>7}")
    for name, t in table.items():
        print(f"{name:10} {t['cpu c1']:11.1f} {t['cpu c16']:12.1f} {t['rate c1']:9.0f} {t['rate c16']:10.0f} {t['p50 c1']:10.2f} {t['p99 c1']:10.2f} {t['p50 c16']:11.2f} {t['p99 c16']:11.2f} {t['rss']:7.0f}")
    base, us = table["constant"], table["mlnb"]
    kept = rows_in(work)
    checks = {"every request of every server answered with 200": (len(bad), 0., len(bad) == 0), "rows in the log, beside answers": (kept, answered, kept == answered),
              "CPU c16, times the constant answer": (us["cpu c16"] / base["cpu c16"], CPU_LIMIT, us["cpu c16"] <= CPU_LIMIT * base["cpu c16"]),
              "p99 c16, times the constant answer": (us["p99 c16"] / base["p99 c16"], P99_LIMIT, us["p99 c16"] <= P99_LIMIT * base["p99 c16"])}
    if cheaper := min((table[n]["cpu c16"] for n in PEERS if n in table), default=None): checks["CPU c16 of the cheaper peer, times ours"] = (cheaper / us["cpu c16"], PEER_LIMIT, cheaper >= PEER_LIMIT * us["cpu c16"])
    if bad: print("not only 200:", bad)
    return verdict(args, checks, {"rounds": args.rounds, "seconds": args.seconds, "servers": table})


def soak(args: argparse.Namespace, folder: Path) -> int:
    "One server under load for a long time"
    work, _, records = prepare(folder)
    with ExitStack() as stack:
        ours = mlnb_server(stack, work, folder, records)
        warm = ours.load(max(LEVELS), min(15., args.soak / 4))
        said = ours.load(max(LEVELS), args.soak)
    others = {k: v for k, v in said["statuses"].items() if k not in ("200", "503")}
    print(f"{said['ok']:,} answers in {said['seconds']:.0f} s ({said['rate']:,.0f} a second), {said['statuses'].get('503', 0):,} refused; {said['cpu']:.0f} us CPU each; p99 of the thirds {' '.join(f'{t:.1f}' for t in said['thirds'])} ms; "
          f"memory {warm['rss']:.0f} MB after warming up, {said['rss']:.0f} MB at the end")
    if said["errors"]: print(said["errors"])
    kept, most = rows_in(work), MEMORY_LIMIT * warm["rss"] + MEMORY_SLACK
    return verdict(args, {"requests neither answered nor refused": (sum(others.values()), 0, not others), "rows in the log, beside answers": (kept, ours.answered, kept == ours.answered),
                          "memory at the end in MB": (said["rss"], most, said["rss"] <= most),
                          "p99 of the last third, times the first": (said["thirds"][2] / said["thirds"][0], STEADY_LIMIT, said["thirds"][2] <= STEADY_LIMIT * said["thirds"][0])}, {"soak": said, "warm": warm})


def verdict(args: argparse.Namespace, checks: dict[str, tuple[float, float, bool]], more: dict[str, Any]) -> int:
    "Print, write and return whether all limits are kept"
    for what, (value, limit, fine) in checks.items(): print(f"{what:48} {value:12,.2f}  limit {limit:12,.2f}  {'kept' if fine else 'MISSED'}")
    if args.json: Path(args.json).write_text(json.dumps(more | {"checks": {k: {"value": v, "limit": m, "kept": f} for k, (v, m, f) in checks.items()}}, indent=1))
    return int(not all(fine for *_, fine in checks.values()))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    p.add_argument("--envs", type=Path, help="folder for the environments of the peers; a temporary one by default")
    p.add_argument("--without-peers", action="store_true")
    p.add_argument("--also", action="append", default=[], metavar="FILE", help="one more server, as JSON")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=3., help="of each measurement")
    p.add_argument("--json", metavar="FILE", help="write the figures there")
    p.add_argument("--soak", type=float, metavar="SECONDS")
    args = p.parse_args()
    if args.client: return client(args.client) or 0
    if not Path("/proc/self/stat").exists(): raise SystemExit("CPU time of process trees is read from /proc, which this system does not have; run it on Linux")
    with tempfile.TemporaryDirectory(prefix="mlnb-bench-") as folder: return (soak if args.soak else compare)(args, Path(folder))


if __name__ == "__main__": sys.exit(main())
