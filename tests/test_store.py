"A workspace under rough treatment: other processes, crashes, folders that may not be written"
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from mlnb.core import store as st
from mlnb.core.errors import ArtefactError, WorkspaceError

ADD = """
import sys, sqlalchemy as sa
from mlnb.core import store as st
s = st.open_store(sys.argv[1])
for i in range(int(sys.argv[3])):
    with s.write() as c: c.execute(st.MODELS.insert().values(name=f"{sys.argv[2]}-{i}", created=0))
    print(i, flush=True)
"""


def names(store):
    with store.read() as c:
        return set(c.scalars(sa.select(st.MODELS.c.name)))


def test_two_processes_open_and_write_one_new_workspace(tmp_path):
    work = tmp_path / "work"
    both = [subprocess.Popen([sys.executable, "-c", ADD, str(work), who, "150"], stdout=subprocess.DEVNULL) for who in "ab"]
    try:
        assert [p.wait(120) for p in both] == [0, 0]
    finally:
        for p in both:
            p.kill()
    assert names(st.open_store(work)) == {f"{who}-{i}" for who in "ab" for i in range(150)}


def test_killed_writer_loses_nothing_that_it_reported(tmp_path):
    for attempt in range(3):
        work = tmp_path / str(attempt)
        p = subprocess.Popen([sys.executable, "-c", ADD, str(work), "k", "100000"], stdout=subprocess.PIPE, text=True)
        try:
            reported = [p.stdout.readline() for _ in range(20 * (attempt + 1))]
            os.kill(p.pid, signal.SIGKILL)
            reported += p.stdout.readlines()
        finally:
            p.kill()
            p.wait(30)
        kept = names(st.open_store(work))
        assert {f"k-{int(line)}" for line in reported if line.endswith("\n")} <= kept
        with sqlite3.connect(work / "mlnb.db") as c:
            assert c.execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_half_written_artefact_is_never_seen(tmp_path, monkeypatch):
    store = st.open_store(tmp_path)
    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        st.put(store, b"x" * 1000)
    monkeypatch.undo()
    assert not [f for f in (tmp_path / "artefacts").iterdir() if not f.name.startswith(".")]
    assert st.get(store, st.put(store, b"x" * 1000)) == b"x" * 1000


def test_missing_artefact_is_named(tmp_path):
    with pytest.raises(ArtefactError, match="artefact abc is missing"):
        st.get(st.open_store(tmp_path), "abc")


AS_NOBODY = """
import os, sys, tempfile
from mlnb.core import store as st
from mlnb.core.errors import WorkspaceError
st.open_store(tempfile.mkdtemp())  # everything is imported before the rights are given up
if os.getuid() == 0: os.setuid(65534)
try: st.open_store(sys.argv[1]); print("opened")
except WorkspaceError as e: print("refused:", e)
with st.open_store(sys.argv[1], read_only=True).read() as c: print("read", c.exec_driver_sql("select count(*) from models").scalar())
"""


def test_a_folder_that_may_not_be_written(tmp_path):
    work = tmp_path / "work"
    store = st.open_store(work)
    with store.write() as c:
        c.execute(st.MODELS.insert().values(name="m", created=0))
    store.close()
    before = (work / "mlnb.db").read_bytes()
    parents = [p for p in (work, *work.parents) if p.is_relative_to("/tmp") or p.owner() == work.owner()]
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in parents}
    try:
        for p in parents:  # let a user without rights pass through, but not write
            p.chmod(0o555 if p == work else modes[p] | 0o555)
        (work / "mlnb.db").chmod(0o444)
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        r = subprocess.run([sys.executable, "-c", AS_NOBODY, str(work)], capture_output=True, text=True, timeout=60, env=env, cwd="/")
    finally:
        for p, mode in modes.items():
            p.chmod(mode)
    assert "refused:" in r.stdout and "cannot be written" in r.stdout and "read_only=True" in r.stdout, r.stdout + r.stderr
    assert "read 1" in r.stdout, r.stdout + r.stderr
    assert (work / "mlnb.db").read_bytes() == before


def test_a_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "mlnb.db") as c:
        c.execute("create table recipes (x)")
    with pytest.raises(WorkspaceError, match="mlnb did not make"):
        st.open_store(tmp_path)
    with sqlite3.connect(tmp_path / "mlnb.db") as c:
        assert c.execute("select name from sqlite_master").fetchall() == [("recipes",)]


def test_readers_do_not_wait_for_a_writer(tmp_path):
    store = st.open_store(tmp_path)
    with store.write() as c:
        c.execute(st.MODELS.insert().values(name="m", created=0))
        start = time.monotonic()
        assert names(store) == set()
        assert time.monotonic() - start < 5  # far below the 30 s that a lock would cost
    assert names(store) == {"m"}


READ = """
import sys, sqlalchemy as sa
from mlnb.core import store as st
s = st.open_store(sys.argv[1])
for i in range(int(sys.argv[3])):
    with s.write() as c: c.execute(st.MODELS.insert(), [dict(name=f"{sys.argv[2]}-{i}-{j}" + "x" * 200, created=0) for j in range(50)])
    rows = st.fetch(s, sa.select(st.MODELS.c.name, st.MODELS.c.created).where(st.MODELS.c.name.like(f"{sys.argv[2]}-%")))
    assert rows.num_rows == 50 * (i + 1), (rows.num_rows, i)
s.close()
"""


def test_bulk_reads_keep_the_locks_of_their_process(tmp_path):
    """Bulk reads go through another SQLite library. If it opened the workspace's own file, closing that would drop
    every lock that this process holds on it, and another process could cut the log off under our feet."""
    work = tmp_path / "work"
    all_of_them = [subprocess.Popen([sys.executable, "-c", READ, str(work), who, "120"], stderr=subprocess.PIPE, text=True) for who in "abc"]
    try:
        for p in all_of_them:
            assert p.wait(240) == 0, p.stderr.read()
    finally:
        for p in all_of_them:
            p.kill()
    assert len(names(st.open_store(work))) == 3 * 120 * 50
    with sqlite3.connect(work / "mlnb.db") as c:
        assert c.execute("pragma integrity_check").fetchone() == ("ok",)


def test_halves_that_two_threads_read_are_one_table(tmp_path):
    n = 2 * st.LARGE + 1
    t = sa.Table("readings", sa.MetaData(), sa.Column("at", sa.BigInteger), sa.Column("wind", sa.Float), sa.Column("who", sa.Text))
    store = st.open_store(tmp_path)
    with store.write() as c:
        t.create(c)
        c.execute(t.insert(), [{"at": i, "wind": None if i < st.LARGE + 10 else i / 2, "who": None if i > 5 else "a"} for i in range(n)])
    read = st.fetch(store, sa.select(t))
    assert [str(f.type) for f in read.schema] == ["int64", "double", "string"] and len(read) == n
    assert sorted(read["at"].to_pylist()) == list(range(n)) and read["wind"].null_count == st.LARGE + 10 and read["who"].null_count == n - 6
    assert len(st.fetch(store, sa.select(t).where(t.c.at < 0))) == 0
