"""What batch scoring costs beside pandas: rows per CPU-second, and memory that does not grow. Run:

    python tests/bench/bench_batch.py                      # 2,000,000 rows for the ratio, 10,000,000 for the memory
    python tests/bench/bench_batch.py --rows 400000 --large 0
    python tests/bench/bench_batch.py --profile            # where the CPU goes, in one process

Flights of 2013, repeated, in a Parquet file; the model is gradient boosting with native categories. Plain pandas reads the file, asks `predict_proba` and writes the
answers; each way runs in a process of its own, in turn, with one thread. CPU is that of the process and its children. "ONNX" and "machine code" are the two compiled
engines, the second after it was compiled for an earlier job; what compiling costs, and from how many rows a job does it by itself, is told. In the long job it is compiled,
and that counts. Limits: at least 1.3 times the rows per CPU-second of pandas, and at most 500 MB of memory at 10,000,000 rows: of the largest process, since pages of
libraries are shared; the sum of what each process holds for itself is told as well.
"""
import argparse
import cProfile
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LIMIT, MEMORY = 1.3, 500


def cpu() -> float:
    "CPU seconds of this process and of its children that have ended"
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def prepare(folder: Path) -> None:
    "A workspace with a model of flights, and the same model for pandas"
    import joblib  # read again by this script only
    from sklearn.ensemble import HistGradientBoostingClassifier

    import mlnb
    from mlnb.core.datasets import FLIGHT_FEATURES, delayed, flights
    rows = flights("2013-01-01", "2013-03-01")
    rows = rows[rows["arr_delay"].notna()]
    X, y = rows[FLIGHT_FEATURES], delayed(rows)
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0).fit(X, y)
    ws = mlnb.open(folder / "work")
    ws.deploy("delays", ws.register("delays", model, X, y, keep_data=False))
    joblib.dump(model, folder / "model.joblib")


def write(path: Path, rows: int) -> None:
    "So many flights, with an id"
    from mlnb.core.datasets import FLIGHT_FEATURES, flights
    table = pa.Table.from_pandas(flights("2013-03-01", "2013-07-01")[FLIGHT_FEATURES], preserve_index=False)
    table = table.cast(pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in table.schema]).remove_metadata())
    with pq.ParquetWriter(path, schema := pa.schema([("id", pa.int64()), *table.schema])) as out:
        for start in range(0, rows, 250_000):
            n = min(250_000, rows - start)
            part = table.take(pa.array(np.random.default_rng(start).integers(0, len(table), n)))
            out.write_table(pa.table([pa.array(range(start, start + n)), *part.columns], schema=schema))


def plain(folder: Path, path: Path, model: Any, kinds: Any) -> int:
    "What people write"
    import pandas as pd

    from mlnb.core.datasets import FLIGHT_FEATURES
    frame = pd.read_parquet(path)
    X = frame[FLIGHT_FEATURES].astype({c: t for c, t in kinds.items() if isinstance(t, pd.CategoricalDtype)})
    pd.DataFrame({"id": frame["id"], "score": model.predict_proba(X)[:, 1]}).to_parquet(folder / "plain.parquet")
    return len(frame)


def batch(folder: Path, path: Path, dep: Any, workers: int | None, profile: bool = False) -> int:
    def run() -> int: return int(dep.score(path, folder / "batch.parquet", id="id", log=False, progress=False, workers=workers).rows)
    if not profile: return run()
    with cProfile.Profile() as p: rows = run()
    pstats.Stats(p).sort_stats("tottime").print_stats(28)
    return rows


def watch(stop: threading.Event, peak: dict[str, float]) -> None:
    "The largest process, and what all hold for themselves, in MB"
    import psutil
    me = psutil.Process()
    while not stop.wait(.2):
        try:
            found = [p.memory_full_info() for p in (me, *me.children(recursive=True))]
            peak["largest"] = max(peak["largest"], *(f.rss / 2**20 for f in found))
            peak["own"] = max(peak["own"], sum(f.uss / 2**20 for f in found))
        except psutil.Error: continue


def one(args: argparse.Namespace) -> None:
    "One way, in this process; prints what it cost"
    folder, path = args.folder, args.path
    peak, stop = {"largest": 0., "own": 0.}, threading.Event()
    if args.memory: (watcher := threading.Thread(target=watch, args=(stop, peak))).start()
    import joblib

    import mlnb
    from mlnb.core.datasets import FLIGHT_FEATURES, flights
    few = flights("2013-01-01", "2013-03-01").head(1000)
    few.assign(id=range(len(few)))[["id", *FLIGHT_FEATURES]].to_parquet(small := folder / "few.parquet")
    model, dep, kinds = joblib.load(folder / "model.joblib"), mlnb.open(folder / "work").deployment("delays"), few[FLIGHT_FEATURES].dtypes
    def go(path: Path, profile: bool, workers: int) -> int: return plain(folder, path, model, kinds) if args.way == "pandas" else batch(folder, path, dep, workers, profile)
    go(small, False, 1)  # packages and the model are loaded; a worker of its own loads them again, and that counts
    begin, start = time.perf_counter(), cpu()
    rows = go(path, args.profile, args.workers)
    used, took = cpu() - start, time.perf_counter() - begin
    if args.memory: stop.set(); watcher.join()
    print(json.dumps({"rows": rows, "cpu": used, "seconds": took} | peak))


def compile_(folder: Path) -> None:
    "Machine code, as a long job would make it; prints what it cost"
    import mlnb
    from mlnb.deploy import native
    version = mlnb.open(folder / "work").deployment("delays").champion
    start = cpu()
    assert native.prepare(version, 10**10), "no machine code: install mlnb[native] and gcc"
    print(json.dumps({"cpu": cpu() - start, "least": 2 * native.COST * version.certificate().verdict("onnx").bulk}))


def run(way: str, folder: Path, path: Path, *options: str, cache: str = "none") -> dict[str, float]:
    "One way, in a process of its own; cache: where machine code is kept"
    p = subprocess.run([sys.executable, __file__, "--way", way, "--folder", str(folder), "--path", str(path), *options], capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": str(folder / cache)})
    if p.returncode: raise SystemExit(p.stderr)
    *shown, last = p.stdout.strip().split("\n")
    if shown: print("\n".join(shown))
    return json.loads(last)


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        write(path := folder / "rows.parquet", args.rows)
        if args.profile: run("batch", folder, path, "--workers", "1", "--profile")
        made = run("compile", folder, path, cache="made")
        print(f"compiling takes {made['cpu']:.1f} CPU-seconds, once; a job does it from {made['least']:,.0f} rows on")
        ways = {"pandas": ("--workers", "1"), "ONNX": ("--workers", "1"), "machine code": ("--workers", "1"), "two processes": ("--workers", "2")}
        found: dict[str, list[dict[str, float]]] = {w: [] for w in ways}
        for _ in range(args.rounds):
            for w, o in ways.items(): found[w].append(run("pandas" if w == "pandas" else "batch", folder, path, *o, cache="none" if w == "ONNX" else "made"))
        rates = {w: statistics.median(r["rows"] / r["cpu"] for r in rs) for w, rs in found.items()}
        for w, rs in found.items(): print(f"{w:15} {rates[w]:10,.0f} rows per CPU-second   {statistics.median(r['seconds'] for r in rs):6.1f} s   {rates[w] / rates['pandas']:.2f} times pandas")
        fine = min(rates["ONNX"], rates["machine code"]) >= LIMIT * rates["pandas"]
        if args.large:
            write(large := folder / "large.parquet", args.large)
            for w, n in {"one process": 1, "two processes": 2}.items():
                m = run("batch", folder, large, "--workers", str(n), "--memory", cache=f"long-{n}")
                print(f"{w:15} {args.large:,} rows: the largest process has {m['largest']:.0f} MB at most, all hold {m['own']:.0f} MB for themselves   {m['seconds']:.0f} s   {m['rows'] / m['cpu']:,.0f} rows per CPU-second")
                fine = fine and m["largest"] <= MEMORY
        print("within the limits" if fine else f"beyond the limits: {LIMIT} times pandas, {MEMORY} MB")
        return 0 if fine else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--large", type=int, default=10_000_000, help="rows for the measurement of memory; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    for name, kind in (("way", str), ("folder", Path), ("path", Path), ("workers", int)): parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way == "compile": compile_(arguments.folder)
    elif arguments.way: one(arguments)
    else: sys.exit(main(arguments))
