"""What callers feel of a shadow: the champion's latency without one, and beside challengers that answer, sleep, raise or eat memory. Run:

    python tests/bench/bench_shadow.py              # 12 rounds of 400 requests in each condition, interleaved
    python tests/bench/bench_shadow.py --rounds 4

A server of its own process, one client, one row a request. Rounds of all conditions alternate, so that a busy machine disturbs all of
them alike; the ratio is that of the medians over the rounds. Limit: 1.10 for the 99th percentile.
"""
import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier

import mlnb
from mlnb.core.exposures import shadow_table
from mlnb.rollout.mirror import lag, shadows
from mlnb.rollout.release import latest

LIMIT = 1.10
COMPANY = {"answers": "return answer(version, fit)", "sleeps": "import time; time.sleep(.2); return answer(version, fit)", "raises": "raise MlnbError('no idea')",
           "eats memory": "hog = bytearray(2**29); [bytearray(2**28) for _ in range(3)]; raise MlnbError('ate')"}
SITE = """
import os
from mlnb.core.errors import MlnbError
from mlnb.deploy import runtime
answer = runtime.answer
WORSE = {worse}
def misbehave(version, fit):
    if version.number == 1: return answer(version, fit)
    return WORSE[version.number](version, fit)
runtime.answer = misbehave
"""


def workspace(folder: Path) -> mlnb.Deployment:
    "A boosting model with 14 features as champion, and one version for each kind of company"
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(4000, 14)), columns=[f"x{i}" for i in range(14)])
    y = np.where(X["x0"] + rng.normal(size=4000) > 0, "yes", "no")
    ws = mlnb.open(folder)
    for _ in range(1 + len(COMPANY)): ws.register("m", HistGradientBoostingClassifier(max_iter=50).fit(X, y), X, y)
    return ws.deploy("m", ws.version("m", 1))


def site(folder: Path) -> None:
    "How the challengers misbehave, for processes that find this folder"
    body = "".join(f"\ndef w{i}(version, fit):\n    {code}\n" for i, code in enumerate(COMPANY.values(), 2))
    table = "{" + ", ".join(f"{i}: lambda v, f: w{i}(v, f)" for i in range(2, 2 + len(COMPANY))) + "}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE.replace("{worse}", table) + body)


def ask(c: http.client.HTTPConnection, rows: list[bytes]) -> list[float]:
    "Milliseconds of each request"
    c.close()  # a new connection, because the server closes one that was idle
    out = []
    for body in rows:
        start = time.perf_counter()
        c.request("POST", "/predict", body)
        answer = json.loads(c.getresponse().read())
        out.append((time.perf_counter() - start) * 1e3)
        assert answer["version"] == 1, answer
        time.sleep(.002)
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=12)
    p.add_argument("--requests", type=int, default=400)
    given = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dep = workspace(Path(folder) / "work")
        site(Path(folder) / "site")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(folder) / "site"), os.environ.get("PYTHONPATH")]))}
        server = subprocess.Popen([str(Path(sys.executable).with_name("mlnb")), "serve", "-w", str(dep.ws.path), "--port", "0", "--tick", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        try:
            c = http.client.HTTPConnection(json.loads(server.stdout.readline())["url"].removeprefix("http://"), timeout=60)
            rng = np.random.default_rng(1)
            rows = [json.dumps({f"x{i}": float(v) for i, v in enumerate(r)}).encode() for r in rng.normal(size=(given.requests, 14))]
            ask(c, rows[:100])
            times: dict[str, list[list[float]]] = {}
            for _ in range(given.rounds):
                for name, number in {"alone": 0, **{k: i for i, k in enumerate(COMPANY, 2)}}.items():
                    if number: dep.rollout(number, {"canary": [], "max_days": 1000})
                    deadline = time.monotonic() + 60  # the challenger's process is up when it has answered something; its start is not what callers live with
                    ask(c, rows[:10])
                    while number and not lag(shadows(dep)[0]).answered and time.monotonic() < deadline: time.sleep(.2)
                    ask(c, rows[:50])
                    times.setdefault(name, []).append(ask(c, rows))
                    if number: latest(dep).rollback("the round is over")
                    time.sleep(1.5)
        finally:
            server.terminate()
            server.wait(20)
        kept = dep.ws.rows(shadow_table(dep).select())
    alone = {q: np.median([np.percentile(r, q) for r in times["alone"]]) for q in (50, 99)}
    print(f"{'':12} {'p50 ms':>8} {'p99 ms':>8} {'p50':>6} {'p99':>6}")
    worst = 0.
    for name, rounds in times.items():
        p50, p99 = (np.median([np.percentile(r, q) for r in rounds]) for q in (50, 99))
        print(f"{name:12} {p50:8.2f} {p99:8.2f} {p50 / alone[50]:6.2f} {p99 / alone[99]:6.2f}")
        worst = max(worst, p99 / alone[99])
    print(f"{len(kept):,} shadow answers were kept; worst ratio of the 99th percentile: {worst:.2f} (limit {LIMIT})")
    return int(worst > LIMIT)


if __name__ == "__main__": sys.exit(main())
