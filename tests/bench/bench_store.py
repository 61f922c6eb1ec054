"""Reading a log in bulk and writing it row by row, from SQLite and from PostgreSQL.

A million rows of 20 columns, which the issue wants within 2 s on a quiet machine, are fetched as Arrow columns and compared with what a plain
driver does: `cursor.fetchall()` into a DataFrame, in the same run. Numbers are CPU seconds of this process (what a server spends is not in them) and, for orientation, those of the clock.
Then the time of a transaction with one row. Nothing is asserted but that both kinds of store give the same rows.
PostgreSQL runs as for the tests (tests/cluster.py), here with `fsync`, so that a commit costs what it costs.

    python tests/bench/bench_store.py [rows]
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cluster

from mlnb.core import postgres, store as st

ROWS, COMMITS, ROUNDS = 1_000_000, 500, 3
NUMBERS = [sa.Column(f"x{i}", sa.Float) for i in range(13)]
TABLE = sa.Table("log_1", sa.MetaData(), sa.Column("seq", st.NUMBER, primary_key=True), sa.Column("id", st.TEXT, unique=True, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
                 sa.Column("version", sa.Integer), *NUMBERS, sa.Column("city", st.TEXT), sa.Column("flag", sa.Integer), sa.Column("score", sa.Float))


def timed(f):
    "What it gives, its CPU seconds and those of the clock; the best of some rounds"
    best = (np.inf, np.inf)
    for _ in range(ROUNDS):
        cpu, clock = time.process_time(), time.perf_counter()
        got = f()
        best = min(best, (time.process_time() - cpu, time.perf_counter() - clock))
    return got, *best


def fill(store, rows):
    "Write the rows, in portions"
    rng, names = np.random.default_rng(0), [c.name for c in TABLE.c][1:]
    with store.write() as c: TABLE.create(c)
    for a in range(0, rows, 50_000):
        n = min(50_000, rows - a)
        x = rng.normal(size=(n, len(NUMBERS)))
        x[rng.random(x.shape) < .02] = np.nan
        columns = [[f"{i:032x}" for i in range(a, a + n)], list(range(a, a + n)), [1] * n, *x.T.tolist(), rng.choice(["Ulm", "Bonn", "Köln"], n).tolist(), rng.integers(0, 2, n).tolist(), rng.random(n).tolist()]
        with store.append() as c: st.insert(c, TABLE.name, names, list(zip(*columns, strict=True)))


def plain(store):
    "As a driver gives them"
    with store.engine.connect() as c:
        cursor = c.connection.driver_connection.cursor()
        return pd.DataFrame(cursor.execute("SELECT * FROM log_1").fetchall(), columns=[c.name for c in TABLE.c])


def commits(store):
    "Microseconds of CPU and of the clock that a transaction with one row takes"
    names, row = [c.name for c in TABLE.c][1:], (0, 1, *[.5] * len(NUMBERS), "Ulm", 1, .5)
    cpu, clock = time.process_time(), time.perf_counter()
    for i in range(COMMITS):
        with store.append() as c: st.insert(c, TABLE.name, names, [(f"c{i}", *row)])
    return (time.process_time() - cpu) / COMMITS * 1e6, (time.perf_counter() - clock) / COMMITS * 1e6


def measure(name, store, rows):
    "Print what a store does; the rows that it gave"
    fill(store, rows)
    arrow, cpu, clock = timed(lambda: st.fetch(store, sa.select(TABLE)))
    _, slow, slow_clock = timed(lambda: plain(store))
    one, one_clock = commits(store)
    print(f"{name:10} {rows:,} rows x {len(TABLE.c)}: Arrow {cpu:5.2f} s CPU ({clock:.2f} s), fetchall {slow:5.2f} s CPU ({slow_clock:.2f} s), ratio {cpu / slow:.2f}; a one-row commit {one:,.0f} us CPU ({one_clock:,.0f} us)")
    return arrow.sort_by("seq")


def main(rows):
    cluster.SETTINGS["fsync"] = "on"
    with tempfile.TemporaryDirectory() as folder, cluster.cluster() as server:
        stores = {"SQLite": st.open_store(Path(folder) / "folder"), "PostgreSQL": postgres.open_store(server.database(), folder=Path(folder) / "files")}
        a, b = (measure(name, store, rows) for name, store in stores.items())
        for s in stores.values(): s.close()
    assert a.equals(b)


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
