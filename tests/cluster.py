"A PostgreSQL server for tests: of its own folder, port and process, gone when they are over"
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

PASSWORD = "s3cr@t/%pass:word"  # has to be quoted in an address, and must not be seen anywhere
WAIT = 60  # seconds that a server may take to start or to stop
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "off", "shared_buffers": "64MB", "max_connections": "60"}  # fsync matters when a machine dies, not a process


def programs() -> Path | None:
    "The folder with `initdb` and `postgres`; distributions put several versions aside"
    found = [Path(p).parent for p in (shutil.which("postgres"),) if p]
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: [int(n) for n in p.parent.name.split(".") if n.isdigit()], reverse=True)
    return next((p for p in [*found, *versions] if (p / "initdb").exists() and (p / "postgres").exists()), None)


def somebody() -> dict[str, Any]:
    "Who runs the server: PostgreSQL refuses root"
    if os.geteuid(): return {}
    names = {u.pw_name: u for u in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def end_with_parent() -> None:
    "Let Linux stop the server if these tests are killed"
    with contextlib.suppress(OSError, AttributeError): ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


class Cluster:
    "A server that can be started, stopped and asked for new databases"
    def __init__(self, bin: Path, folder: Path):
        self.bin, self.folder, self.who, self.port, self.made = bin, folder, somebody(), free_port(), 0
        self.process: subprocess.Popen[bytes] | None = None

    def init(self) -> None:
        (secret := self.folder / "password").write_text(PASSWORD)
        if self.who:
            for p in (self.folder, secret): os.chown(p, self.who["user"], self.who["group"])
        command = ["initdb", "-D", "data", "-U", "mlnb", "-A", "scram-sha-256", "--pwfile", "password", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run([self.bin / command[0], *command[1:]], cwd=self.folder, capture_output=True, text=True, timeout=WAIT, **self.who)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        "Start, and wait until it answers"
        settings = [a for k, v in SETTINGS.items() for a in ("-c", f"{k}={v}")]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.bin / "postgres", "-D", "data", "-p", str(self.port), "-k", str(self.folder), *settings], cwd=self.folder,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"}, start_new_session=True, preexec_fn=end_with_parent, **self.who)
        deadline = time.monotonic() + WAIT
        import psycopg
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            try: return self.sql("SELECT 1")
            except psycopg.OperationalError: time.sleep(.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None: # SIGINT: end the connections; SIGQUIT: as if it had crashed
        "Stop it, and wait until it is gone"
        if self.process is None: return
        if self.process.poll() is None: self.process.send_signal(how)
        try: self.process.wait(WAIT)
        finally:
            if self.process.poll() is None: self.process.kill()
            self.process = None

    def sql(self, *statements: str, database: str = "postgres") -> None:
        "Run statements, each on its own"
        import psycopg
        with psycopg.connect(host="127.0.0.1", port=self.port, user="mlnb", password=PASSWORD, dbname=database, connect_timeout=5, autocommit=True) as c:
            for s in statements: c.execute(s)  # type: ignore[call-overload]

    def url(self, database: str, user: str = "mlnb", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def database(self, options: str = "") -> str: # its address
        "A new database"
        self.made += 1
        self.sql(f"CREATE DATABASE t{self.made} TEMPLATE template0 {options}")
        return self.url(f"t{self.made}")


@contextmanager
def cluster() -> Iterator[Cluster]: # raises LookupError where PostgreSQL is not installed
    "A server, stopped and deleted in the end"
    if (bin := programs()) is None:
        raise LookupError("there is no PostgreSQL server (Debian: apt-get install postgresql; elsewhere put initdb and postgres on PATH); leave these tests out with -m 'not postgres'")
    folder = Path(tempfile.mkdtemp(prefix="mlnb-pg-"))
    made = Cluster(bin, folder)
    try:
        made.init()
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
