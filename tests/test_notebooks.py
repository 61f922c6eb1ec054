"""Every notebook runs from top to bottom, and prints what the committed copy shows."""
import difflib
import re
import shutil
from decimal import Decimal
from itertools import zip_longest
from math import isclose
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

NBS = ROOT / "nbs"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")


def notebooks() -> list[Path]:
    "All but names that start with _ or . and the report templates, which tests of the reports run"
    paths = [path.relative_to(NBS) for path in sorted(NBS.rglob("*.ipynb"))]
    return [path for path in paths if path.parts[0] != "reports" and not any(part[0] in "_." for part in path.parts)]


def directives(source: str) -> dict[str, str]:
    "`#| slow` and `#| eval: false` as {'slow': '', 'eval': 'false'}"
    found = re.findall(r"^#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", source, flags=re.MULTILINE)
    return {key: value.lower() for key, value in found}


def is_slow(path: Path) -> bool:
    return any("slow" in directives(cell.source) for cell in nbformat.read(NBS / path, 4).cells if cell.cell_type == "code")


def texts(cell: nbformat.NotebookNode) -> str:
    "What a cell shows in plain text; pictures and markup are left out"
    parts: list[tuple[str, str]] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            if parts and parts[-1][0] == output.name: parts[-1] = output.name, parts[-1][1] + output.text
            else: parts.append((output.name, output.text))
        elif "data" in output: parts.append(("result", output.data.get("text/plain", "") + "\n"))
        else: parts.append(("error", f"{output.ename}: {output.evalue}\n"))
    lines = "".join(f"[{kind}]\n{ANSI.sub('', text)}" for kind, text in parts).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def same_number(a: str, b: str) -> bool:
    "Equal, or one unit apart in the last place shown: another processor may round the last bit otherwise"
    if a == b: return True
    unit = max(10.0 ** Decimal(x).as_tuple().exponent for x in (a, b))  # type: ignore[operator]
    return unit < 1 and (abs(float(a) - float(b)) <= 1.001 * unit or isclose(float(a), float(b), rel_tol=1e-9))


def same(a: str, b: str) -> bool:
    "Two texts agree in every word and, up to rounding, in every number"
    pairs = zip_longest(NUMBER.split(a), NUMBER.split(b), fillvalue="")
    return all(x == y if i % 2 == 0 or not (x and y) else same_number(x, y) for i, (x, y) in enumerate(pairs))


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 800) -> None:
    "Run in a fresh kernel in `folder`; a failure shows the cell and its traceback"
    for cell in notebook.cells:
        if cell.cell_type == "code" and directives(cell.source).get("eval") == "false":
            cell.metadata.setdefault("tags", []).append("skip-execution")
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try: client.execute()
    except CellExecutionError as e: pytest.fail(ANSI.sub("", str(e)), pytrace=False)
    except (CellTimeoutError, DeadKernelError) as e: pytest.fail(f"{type(e).__name__}: {e}", pytrace=False)


@pytest.mark.parametrize("path", [pytest.param(p, id=p.as_posix(), marks=[pytest.mark.slow] if is_slow(p) else []) for p in notebooks()])
def test_notebook(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    committed = nbformat.read(NBS / path, 4)
    copy = tmp_path / "nbs"
    shutil.copytree(NBS, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    executed = nbformat.read(copy / path, 4)
    execute(executed, (copy / path).parent)
    if request.config.getoption("--any-output"): return
    diffs = []
    for old, new in zip(committed.cells, executed.cells, strict=True):
        before, after = texts(old), texts(new)
        if old.cell_type == "code" and not same(before, after):
            diff = difflib.unified_diff(before.splitlines(), after.splitlines(), "committed output", "output now", lineterm="", n=1)
            diffs.append("\n".join([f"--- cell {old.id}", old.source, "", *diff]))
    if diffs: pytest.fail(f"nbs/{path} shows other outputs than the committed ones; run it anew and save it.\n" + "\n\n".join(diffs), pytrace=False)


@pytest.mark.parametrize("a,b,expected", [
    ("auc 0.711", "auc 0.712", True), ("auc 0.711", "auc 0.713", False), ("n 100", "n 101", False), ("n 100", "n 100 rows", False), ("1e-05", "2e-05", True),
    ("a\nb", "a\nb", True), ("drift", "Drift", False), ("0.1234567890123", "0.1234567890129", True), ("1 2", "1", False),
])
def test_outputs_agree_up_to_rounding(a: str, b: str, expected: bool) -> None:
    assert same(a, b) is expected


def test_a_failing_notebook_shows_cell_and_error(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("#| eval: false\n1/0"), nbformat.v4.new_code_cell("from pathlib import Path\nprint(Path.cwd().name)"),
             nbformat.v4.new_code_cell("a = 1\nraise KeyError('no such flight')")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(pytest.fail.Exception, match="a = 1\n(.|\n)*KeyError: 'no such flight'"): execute(notebook, tmp_path)
    assert texts(cells[1]) == f"[stdout]\n{tmp_path.name}"
    assert cells[0].outputs == []
