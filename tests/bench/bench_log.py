"""What a log takes and how fast it is read: bytes a row in SQLite and in files, and CPU time to read 1,000,000 rows of 20 columns from each. Run:

    python tests/bench/bench_log.py

Limits: a log of flights takes at most 26 bytes a row in files, and at most an eighth of what it takes in SQLite; a bulk read from files takes no
more CPU than one from SQLite, which takes at most a half of fetching the same rows through Python. Aim on a quiet machine: 2 s for the million.
"""
import secrets
import sqlite3
import sys
import tempfile
import time
from contextlib import closing

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import mlnb
from mlnb.core import archive, clock, events
from mlnb.core.datasets import FLIGHT_FEATURES, flights

BYTES, SHARE, ROWS, PYTHON = 26., 1 / 8, 1_000_000, .5


def live(dep: mlnb.Deployment, X: pd.DataFrame, at: np.ndarray, unit: list[str | None]) -> None:
    "Log predictions as if each had been asked at its time, one by one"
    said = dep.champion.predict(X)
    cells = events._cells(dep, X, said)
    ids = [f"{t - 40:014x}{0:06x}{secrets.token_hex(6)}" for t in at.tolist()]
    n = len(X)
    events._insert(dep, events.tables(dep)[0], list(zip(ids, at.tolist(), at.tolist(), [1] * n, unit, ["http"] * n, *cells, strict=True)), named=False)


def size(ws: mlnb.Workspace) -> int:
    "Bytes of the database"
    with closing(sqlite3.connect(ws.store.file)) as c: c.execute("pragma wal_checkpoint(truncate)")
    return ws.store.file.stat().st_size


def cpu(f) -> tuple[float, float]:
    "CPU and wall seconds, the least of three"
    def once() -> tuple[float, float]:
        a, b = time.process_time(), time.perf_counter()
        f()
        return time.process_time() - a, time.perf_counter() - b
    return min(once() for _ in range(3))


def small() -> tuple[float, float]:
    "Bytes a row of a log of flights in SQLite and in files"
    f = flights()
    f, rng = f[f["at"] < "2013-07-01"], np.random.default_rng(0)
    X, late = f[FLIGHT_FEATURES], f["arr_delay"] > 15
    with tempfile.TemporaryDirectory() as folder, mlnb.open(folder) as ws:
        dep = ws.deploy("late", ws.register("late", HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=50, random_state=0).fit(X, late), X, late, keep_data=False), at="2013-01-01")
        before = size(ws)
        live(dep, X, np.sort(clock.micros_array(f["at"]) + rng.integers(0, 300_000_000, len(f))), [f"{c}{i % 2000}" for i, c in enumerate(f["carrier"].astype(str))])
        table = (size(ws) - before) / len(X)
        start = time.process_time()
        done = dep.compact("2013-08-01")
        index = sum(len(r[0]) for r in ws.rows(mlnb.core.store.ARCHIVES.select().with_only_columns(mlnb.core.store.ARCHIVES.c.ids)))
        print(f"{done.rows:,} flights in {done.files} files: {table:.0f} bytes a row in SQLite, {done.bytes / done.rows:.1f} in files, and {index / done.rows:.2f} of index; {(time.process_time() - start) / done.rows * 1e6:.0f} us CPU a row to move")
        return table, (done.bytes + index) / done.rows


def bulk() -> tuple[float, float, float]:
    "CPU seconds to read a million rows of 20 columns: from SQLite, from files, through Python"
    rng = np.random.default_rng(0)
    X = pd.DataFrame({**{f"n{i}": rng.normal(size=ROWS) for i in range(5)}, **{f"r{i}": rng.integers(0, 99, ROWS) / 4 for i in range(4)}, **{f"k{i}": rng.integers(0, 60, ROWS) for i in range(2)}, **{f"c{i}": rng.choice(["IAH", "MIA", "BQN"], ROWS) for i in range(2)}})
    with tempfile.TemporaryDirectory() as folder, mlnb.open(folder) as ws:
        y = np.where(X["n0"] > 0, "late", "on time")
        numbers = list(X.columns[:11])
        model = LogisticRegression().fit(X[numbers].head(5000), y[:5000])
        from sklearn.compose import make_column_transformer
        from sklearn.pipeline import make_pipeline
        model = make_pipeline(make_column_transformer(("passthrough", numbers)), LogisticRegression()).fit(X.head(5000), y[:5000])
        dep = ws.deploy("m", ws.register("m", model, X.head(5000), y[:5000]), at="2013-01-01")
        at = clock.micros("2013-01-01") + np.arange(ROWS) * 2_000_000
        for i in range(0, ROWS, 100_000): live(dep, X[i:i + 100_000], at[i:i + 100_000], [f"u{k % 5000}" for k in range(100_000)])
        def everything() -> None: assert dep.predictions().shape == (ROWS, 20)
        def python() -> None:
            with ws.store.read() as c: assert len(pd.DataFrame(c.exec_driver_sql(f"SELECT * FROM log_{dep.id} ORDER BY at, seq").all())) == ROWS
        table, slow = cpu(everything), cpu(python)
        dep.compact("2014-01-01")
        assert sum(f.rows for f in archive.files(dep)) == ROWS
        files = cpu(everything)
    for name, (a, b) in {"SQLite": table, "files": files, "row by row": slow}.items(): print(f"{ROWS:,} rows of 20 columns from {name:10} {a:6.2f} CPU s {b:6.2f} s")
    return table[0], files[0], slow[0]


def main() -> int:
    table, files = small()
    read, old, python = bulk()
    return int(files > BYTES or files > SHARE * table or old > read or read > PYTHON * python)


if __name__ == "__main__": sys.exit(main())
