"""CPU seconds of counting and profiling, beside the obvious ways. Run:

    python tests/bench/bench_profile.py                      # arrays and frames
    python tests/bench/bench_profile.py --parquet 10000000   # a file of so many rows x 20, and one of a tenth; 1.3 GB in a temporary folder
    python tests/bench/bench_profile.py --dask 2000000       # a Dask dataframe on two workers
    python tests/bench/bench_profile.py --log 200000         # the kept days of a deployment
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from bench_schema import clock, table

from mlnb.core.counting import bin_edges
from mlnb.core.profile import count_numbers
from mlnb.core.summary import profile


def arrays():
    "One column, three ways"
    rng = np.random.default_rng(0)
    x = rng.normal(size=1_000_000)
    edges = bin_edges(rng.normal(size=100_000))
    ours = clock(lambda: count_numbers(x, edges), 9)
    each = clock(lambda: np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1), 3)
    whole = clock(lambda: np.diff(np.searchsorted(np.sort(x), edges, side="right")), 3)
    print(f"1,000,000 numbers, {len(edges)} edges: blocks, with moments {1e3 * ours:.1f} ms; searchsorted of the values {1e3 * each:.1f} ms (x {each / ours:.1f}); "
          f"sort of all {1e3 * whole:.1f} ms (x {whole / ours:.1f})")


def frames():
    "Tables in memory"
    rng = np.random.default_rng(0)
    big = table(1_000_000, rng)
    for texts in ("str", "category", "object"):
        frame = big if texts == "str" else big.astype({f"c{i}": texts for i in range(10)})
        reference = profile(frame)
        print(f"1,000,000 x 50, texts as {texts:8}: own bins {clock(lambda f=frame: profile(f), 2):.2f} s, without course {clock(lambda f=frame: profile(f, course=False), 2):.2f} s, "
              f"kept reference {clock(lambda f=frame, r=reference: profile(f, like=r), 3):.2f} s")
    holes = big.iloc[:, :40].mask(rng.random((1_000_000, 40)) < .1)
    for what, floats in {"": big.iloc[:, :40], ", a tenth null": holes, ", as float32": big.iloc[:, :40].astype("float32")}.items():
        reference = profile(floats)
        print(f"1,000,000 x 40 floats{what}, kept reference: {clock(lambda f=floats, r=reference: profile(f, like=r), 3):.2f} s; {len(reference.to_json()):,} bytes of JSON")
    day = big.iloc[:1000]
    print(f"1,000 x 50: own bins {1e3 * clock(lambda: profile(day), 5):.1f} ms, kept reference {1e3 * clock(lambda: profile(day, like=reference_of(day)), 5):.1f} ms with its plan")


def reference_of(day: pd.DataFrame): return profile(day)


CHILD = """
import re, sys, time
from mlnb.core.profile import Profile
from mlnb.core.summary import profile
path, like = sys.argv[1:3]
known = Profile.from_json(open(like).read()) if like else None
start = time.process_time()
p = profile(path, like=known)
taken = time.process_time() - start
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
peak = int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) // 1024 if status else -1
print(f"{p.n:,} rows: {taken:.2f} CPU s, {1e6 * taken / p.n:.2f} a million rows; peak {peak} MB")
if not like: open(path + ".json", "w").write(p.to_json())
"""


def parquet(rows: int):
    "A file with one row group a tenth of it, profiled in a process of its own"
    import pyarrow as pa
    import pyarrow.parquet as pq
    rng = np.random.default_rng(0)
    words = pa.array([f"level {i}" for i in range(12)])
    with tempfile.TemporaryDirectory(prefix="mlnb-bench-") as folder:
        for n, groups in ((rows // 10, 1), (rows, 1), (rows, 100)):
            path = Path(folder) / f"{n}-{groups}.parquet"
            x, c = rng.normal(size=n), pa.DictionaryArray.from_arrays(rng.integers(0, 12, n).astype("int32"), words).cast(pa.string())
            columns = {f"x{i}": pa.array(np.roll(x, i)) for i in range(16)} | {f"c{i}": c for i in range(4)}
            pq.write_table(pa.table(columns), path, row_group_size=-(-n // groups), use_dictionary=[f"c{i}" for i in range(4)])
            del x, c, columns
            print(f"{n:,} x 20 in {groups} row group{'s' * (groups > 1)}, {path.stat().st_size / 1e9:.2f} GB of Parquet")
            for what, like in (("own bins, two passes", ""), ("kept reference", f"{path}.json")):
                done = subprocess.run([sys.executable, "-c", CHILD, str(path), like], capture_output=True, text=True)
                print(f"    {what}: {done.stdout.strip() or done.stderr.strip().splitlines()[-1]}")
            path.unlink()


def cluster(rows: int):
    "Two workers against one process"
    try:
        import dask
        import dask.dataframe as dd
        import distributed
    except ImportError: return print("dask: not installed")
    frame = table(rows, np.random.default_rng(0)).iloc[:, -30:]
    with tempfile.TemporaryDirectory(prefix="mlnb-bench-") as folder:
        for i in range(8): frame[i * rows // 8:(i + 1) * rows // 8].to_parquet(f"{folder}/{i}.parquet")
        spread = dd.read_parquet(folder)
        with dask.config.set(scheduler="synchronous"):
            start = time.perf_counter()
            here = profile(spread)
            alone = time.perf_counter() - start
        workers = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None)
        try:
            with distributed.Client(workers):
                start = time.perf_counter()
                there = profile(spread)
                both = time.perf_counter() - start
        finally: workers.close()
    print(f"Dask, {rows:,} x 30 in {spread.npartitions} partitions: one process {alone:.2f} s, two workers {both:.2f} s, the same to the last bit: {here.to_json() == there.to_json()}")


def log(rows: int):
    "A daily check of a deployment, with and without kept days"
    from sklearn.dummy import DummyRegressor

    import mlnb
    from mlnb.core.datasets import FLIGHT_FEATURES, flights
    from mlnb.core.events import log_predictions, predictions
    from mlnb.core.windows import fold, reference, window_profile
    year = flights()[:rows]
    with tempfile.TemporaryDirectory(prefix="mlnb-bench-") as folder, mlnb.open(folder) as ws:
        X = year[FLIGHT_FEATURES]
        dep = ws.deploy("flights", ws.register("flights", DummyRegressor().fit(X, X["distance"]), X, X["distance"], keep_data=False))
        log_predictions(dep, X[:-900], dep.champion.predict(X[:-900]), at=year["at"][:-900])
        v, columns = dep.champion, list(reference(dep, dep.champion).columns)
        first = clock(lambda: fold(dep, v), 1)
        log_predictions(dep, X[-900:], v.predict(X[-900:]), at=year["at"][-900:])
        daily = clock(lambda: window_profile(dep, v), 1)
        again = clock(lambda: window_profile(dep, v), 3)
        rows_ = clock(lambda: profile(predictions(dep, columns=columns), like=v.profile.select(columns)), 1)
        size = (Path(folder) / "mlnb.db").stat().st_size
    print(f"log of {len(year):,} flights x {len(columns)}: first fold {first:.2f} s; after 900 new rows {1e3 * daily:.0f} ms, once more {1e3 * again:.0f} ms; from the rows {rows_:.2f} s (x {rows_ / daily:.0f}); database {size / 1e6:.0f} MB")


def main():
    "Print times and ratios"
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what in ("parquet", "dask", "log"): args.add_argument(f"--{what}", type=int, metavar="ROWS")
    asked = args.parse_args()
    for rows, run in ((asked.parquet, parquet), (asked.dask, cluster), (asked.log, log)):
        if rows: run(rows)
    if not any(vars(asked).values()):
        arrays()
        frames()


if __name__ == "__main__": main()
