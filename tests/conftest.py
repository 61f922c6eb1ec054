"""What the tests share."""
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"

try:
    from hypothesis import settings
    settings.register_profile("mlnb", deadline=None, derandomize=True)
    settings.load_profile("mlnb")
except ImportError:
    pass


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--any-output", action="store_true", help="Run the notebooks but do not compare their outputs (older pandas prints otherwise)")


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository"
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def private_ipython(tmp_path_factory: pytest.TempPathFactory) -> None:
    "Kernels neither read the user's IPython profile nor share its history database"
    os.environ["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))


@pytest.fixture(scope="session")
def chromium() -> str:
    "The path of a Chromium or Chrome that starts, for playwright's `executable_path`"
    for name in BROWSERS:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0: return path
    pytest.fail("there is no Chromium or Chrome (Debian: apt-get install chromium); leave the browser out with -m 'not browser'")


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    "A PostgreSQL server of the tests' own"
    try:
        with cluster() as made: yield made
    except LookupError as e: pytest.fail(str(e))


@pytest.fixture
def run(root: Path):
    "Run a Python script or module of the repository and return what it did: `run('.ci/readme', '--check')`"
    def run(*args: object, cwd: Path = root, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, input=input, capture_output=True, text=True, timeout=600)
    return run
