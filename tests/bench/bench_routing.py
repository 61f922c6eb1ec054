"""What routing costs a request: CPU time of `dep.predict` for one row, beside the same without a rollout, and of assignment alone. Run:

    python tests/bench/bench_routing.py

Limit: a request in a canary takes at most 1.25 times the CPU of one without a rollout; a million assignments at most 3 CPU seconds.
"""
import sys
import tempfile
import time

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

import mlnb
from mlnb.deploy import runtime
from mlnb.rollout.plan import Stage
from mlnb.rollout.routing import Traffic, assign

ROUNDS, REQUESTS, LIMIT, MILLION = 7, 200, 1.25, 3.


def cpu(f) -> float:
    "CPU seconds"
    start = time.process_time()
    f()
    return time.process_time() - start


def main() -> int:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(500, 14)), columns=[f"x{i}" for i in range(14)])
    y = np.where(X["x0"] > 0, "yes", "no")
    with tempfile.TemporaryDirectory() as folder, mlnb.open(folder) as ws:
        for c in (1, .1): ws.register("m", LogisticRegression(C=c).fit(X, y), X, y)
        deps = {name: ws.deploy(name, ws.version("m", 1)) for name in ("none", "shadow", "canary")}
        deps["shadow"].rollout(2, {"canary": []})
        deps["canary"].rollout(2, {"shadow": False, "canary": [.5]})
        rows = X.to_dict("records")[:REQUESTS]
        ways = {"runtime.predict": lambda: [runtime.predict(deps["none"], r) for r in rows], **{f"dep.predict, {n}": lambda d=d: [d.predict(r) for r in rows] for n, d in deps.items()}}
        for f in ways.values(): f()
        times = {n: [] for n in ways}
        for _ in range(ROUNDS):
            for n, f in ways.items(): times[n].append(cpu(f) / REQUESTS * 1e3)
    base = np.median(times["dep.predict, none"])
    for n, t in times.items(): print(f"{n:24} {np.median(t):6.2f} ms CPU a request, {np.median(t) / base:5.2f}")
    names = [str(i) for i in range(1_000_000)]
    million = min(cpu(lambda: assign(Traffic(1, 0, Stage("canary", .2, (.5, .5), ""), "s", ()), names)) for _ in range(3))
    print(f"{'a million assignments':24} {million:6.2f} CPU seconds")
    return int(np.median(times["dep.predict, canary"]) / base > LIMIT or million > MILLION)


if __name__ == "__main__": sys.exit(main())
