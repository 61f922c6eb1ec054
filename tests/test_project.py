"""What holds for the project as a whole: declaration, layers, imports, wheel, generated files, style."""
import ast
import importlib
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib")

# Who may import whom: a package sees itself and what has a smaller number; deploy and monitor share one and do not know each other
LAYERS = {"core": 0, "deploy": 1, "monitor": 1, "rollout": 2, "update": 3, "jupyter": 4, "tour": 5, "terminal": 6, "cli": 7}
HEAVY = "pandas", "numpy", "sklearn", "papermill", "sqlalchemy", "matplotlib"
MODULES = sorted(path for path in (ROOT / "mlnb").rglob("*.py") if path.name != "_modidx.py")
TEMPLATES = sorted((ROOT / "nbs" / "reports").glob("*.ipynb"))


@pytest.fixture(scope="module")
def declared() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# One declaration

def test_settings_and_pyproject_agree(declared: dict[str, str], pyproject: dict) -> None:
    nbdev = pyproject["tool"]["nbdev"]
    assert pyproject["project"]["name"] == declared["lib_name"] == nbdev["lib_path"]
    assert {key: str(nbdev[key]) for key in nbdev.keys() & declared.keys()} == {key: declared[key] for key in nbdev.keys() & declared.keys()}
    assert set(pyproject["project"]) == {"name", "dynamic"}, "facts about the package belong into settings.ini"


def test_the_oldest_python_is_said_once(declared: dict[str, str], pyproject: dict) -> None:
    oldest = declared["min_python"]
    assert pyproject["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert pyproject["tool"]["mypy"]["python_version"] == oldest
    assert f'"{oldest}"' in (ROOT / ".github/workflows/ci.yml").read_text()


def test_readme_shows_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "sh .ci/install && .venv/bin/mlnb tour" in lines
    assert "sh .ci/test" in lines


# Layers

def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    "Everything of mlnb that a module names: imports at any depth, and verbs bound as text"
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "mlnb")
        elif isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1], *([node.module] if node.module else [])] if node.level else [node.module or ""]
            source = ".".join(base)
            if source.split(".")[0] == "mlnb": yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"mlnb(\.\w+)+:\w+", node.value):
            yield node.value.replace(":", ".")


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def below(importer: str, imported: str) -> bool:
    "May a module of the layer `importer` import from the layer `imported`? '' is the root, which leads everywhere"
    if importer in ("", imported): return True
    return bool(imported) and LAYERS[imported] < LAYERS[importer]


@pytest.mark.parametrize("importer,imported,expected", [
    ("monitor", "core", True), ("core", "monitor", False), ("deploy", "monitor", False), ("cli", "tour", True), ("update", "", False), ("", "cli", True),
])
def test_the_rule_of_layers(importer: str, imported: str, expected: bool) -> None: assert below(importer, imported) is expected


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    assert name == "mlnb" or layer(name), f"{name} belongs to no layer"
    # The version, and tour and cli as the people's own doors, may go through the root
    free = {"mlnb.__version__"} | ({"mlnb"} if layer(name) in ("tour", "cli") else set())
    wrong = [target for target in imports(path) if target not in free and not below(layer(name), layer(target))]
    assert not wrong, f"{name} imports what is above or beside it: {wrong}"


def test_modules_do_not_go_in_circles() -> None:
    names = {module_name(path) for path in MODULES}

    def home(target: str) -> str: return target if target in names else target.rpartition(".")[0]
    graph = {module_name(path): {home(t) for t in imports(path)} & names - {module_name(path), "mlnb"} for path in MODULES if module_name(path) != "mlnb"}
    tuple(TopologicalSorter(graph).static_order())


# The root

def fresh(code: str) -> str:
    "What a new interpreter prints"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_import_is_light() -> None:
    code = "import time; t = time.process_time(); import mlnb; print(time.process_time() - t)"
    assert min(float(fresh(code)) for _ in range(5)) <= 0.3


def test_import_leaves_the_heavy_parts_out() -> None:
    loaded = fresh(f"import sys, mlnb; print(*(m for m in {HEAVY!r} if m in sys.modules))")
    assert loaded.split() == []


def test_public_names_are_few_and_exist() -> None:
    mlnb = importlib.import_module("mlnb")
    names = mlnb.__all__
    assert 0 < len(names) <= 25 and len(set(names)) == len(names)
    assert [name for name in names if not hasattr(mlnb, name)] == []
    assert set(names) <= set(dir(mlnb))


def test_bound_verbs_exist() -> None:
    targets = [t for path in MODULES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
               for t in [node.value] if isinstance(t, str) and re.fullmatch(r"mlnb(\.\w+)+:\w+", t)]
    assert targets
    for target in targets:
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name), target


# What is installed

def copy_of_the_tree(to: Path) -> Path:
    "The repository without what builds, tools and version control left there"
    skip = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", ".ipynb_checkpoints")
    return Path(shutil.copytree(ROOT, to, ignore=skip, symlinks=True))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A wheel, made from a source distribution as a packager would"
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_of_the_tree(folder / "tree")
    build = "import sys, setuptools.build_meta as b; print('\\n' + getattr(b, sys.argv[1])(sys.argv[2]))"

    def made(what: str, cwd: Path) -> Path:
        done = subprocess.run([sys.executable, "-c", build, what, str(folder)], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder / done.stdout.split()[-1]
    source = made("build_sdist", tree)
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12 has Python 3.11.2, which does not know it
    shutil.unpack_archive(source, folder / "unpacked", **safely)
    return made("build_wheel", folder / "unpacked" / source.name.removesuffix(".tar.gz"))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, declared: dict[str, str]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"mlnb-{declared['version']}.dist-info"
    kept = {path.relative_to(ROOT).as_posix() for path in [*MODULES, *(ROOT / "mlnb/data").glob("*")] if path.is_file()}
    assert kept | {"mlnb/py.typed", "mlnb/_modidx.py", f"{info}/licenses/LICENSE"} <= names
    assert {f"mlnb/templates/{path.name}" for path in TEMPLATES} == {name for name in names if name.startswith("mlnb/templates/")}
    assert {name.split("/")[0] for name in names} == {"mlnb", info}
    assert not [name for name in names if "test" in name.split("/")]


def test_wheel_declares_what_settings_say(wheel: Path, declared: dict[str, str]) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata, scripts = (archive.read(f"mlnb-{declared['version']}.dist-info/{name}").decode() for name in ("METADATA", "entry_points.txt"))
    assert f"Version: {declared['version']}\n" in metadata and f"Requires-Python: >={declared['min_python']}\n" in metadata
    required = {r.replace('"', "'").replace(" ", "") for r in re.findall(r"^Requires-Dist: (.+)$", metadata, flags=re.MULTILINE) if "extra ==" not in r}
    assert required == {r.replace(" ", "") for r in declared["requirements"].strip().splitlines()}
    assert re.search(r"^mlnb ?= ?mlnb\.cli:main$", scripts, flags=re.MULTILINE)


def test_templates_resolve_through_the_package() -> None:
    found = {item.name for item in importlib.resources.files("mlnb.templates").iterdir() if item.name.endswith(".ipynb")}
    assert found == {path.name for path in TEMPLATES} != set()


# What is generated

@pytest.mark.parametrize("path", [path for path in MODULES if path.stat().st_size], ids=module_name)
def test_modules_are_generated(path: Path) -> None:
    header = re.search(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+\.ipynb)\.$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert header, f"{path} was not exported by nbdev"
    assert (path.parent / header[1]).resolve().is_file()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_keep_their_parameters_cell(path: Path, tmp_path: Path) -> None:
    "papermill overrides the cell that is tagged `parameters`; without the tag its values are lost in silence. Cleaning must keep it"
    def tagged(notebook: dict) -> int: return sum("parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
    assert tagged(json.loads(path.read_text(encoding="utf-8"))) == 1
    clean = pytest.importorskip("nbdev.clean")
    del clean
    for name in ("pyproject.toml", "settings.ini"): shutil.copy(ROOT / name, tmp_path)
    copy = Path(shutil.copy(path, tmp_path))
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", "--fname", copy.name], cwd=tmp_path, check=True)
    assert tagged(json.loads(copy.read_text(encoding="utf-8"))) == 1


def test_clean_filter_takes_away_only_what_a_run_leaves(run) -> None:
    pytest.importorskip("nbdev")
    clean = (ROOT / "nbs/core/errors.ipynb").read_text(encoding="utf-8")
    dirty = json.loads(clean)
    for number, each in enumerate(c for c in dirty["cells"] if c["cell_type"] == "code"): each.update(execution_count=number, metadata={"execution": "now"})
    done = run(".ci/clean", input=json.dumps(dirty))
    assert done.returncode == 0 and done.stdout == clean
    broken = run(".ci/clean", input="not a notebook")
    assert broken.returncode != 0, "git must not take an empty answer for the notebook"


def test_readme_is_fresh(run) -> None:
    done = run(".ci/readme", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def cell(kind: str, source: str, *outputs: dict) -> dict:
    return {"cell_type": kind, "metadata": {}, "source": source, **({"outputs": list(outputs), "execution_count": None} if kind == "code" else {})}


def test_readme_rendering(run, tmp_path: Path) -> None:
    svg = {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": ["<svg>", "</svg>"], "text/plain": "<Figure>"}}
    table = {"output_type": "execute_result", "metadata": {}, "data": {"text/html": "<table>", "text/plain": ["  a\n", "0 1"]}}
    said = [{"output_type": "stream", "name": name, "text": words} for name, words in [("stdout", "one\n"), ("stderr", "warning"), ("stdout", "two\n")]]
    cells = [cell("markdown", "# name\n[a](core/a.ipynb) [b](../LICENSE) [c](https://c.org) ![d](images/d.png)\n```\n[a](b)\n```"),
             cell("code", "#| hide\nsecret()"), cell("code", "#| echo: false\n#| fig-alt: AUC by month\nplot()", svg),
             cell("code", "#| output: false\nquiet()", *said), cell("code", "loud()", *said, table)]
    (tmp_path / "nbs/images").mkdir(parents=True)
    (tmp_path / "nbs/images/index-2.png").write_bytes(b"left over")
    (tmp_path / "nbs/index.ipynb").write_text(json.dumps({"cells": cells}))
    assert run(".ci/readme", "--check", "--root", tmp_path).returncode == 1
    assert run(".ci/readme", "--root", tmp_path).returncode == 0
    assert run(".ci/readme", "--check", "--root", tmp_path).returncode == 0
    readme = (tmp_path / "README.md").read_text()
    assert "[a](nbs/core/a.ipynb) [b](LICENSE) [c](https://c.org) ![d](nbs/images/d.png)\n```\n[a](b)\n```" in readme
    assert "secret" not in readme and "plot()" not in readme and "![AUC by month](nbs/images/index-1.svg)" in readme
    assert "```python\nquiet()\n```\n\n```python\nloud()\n```\n\n```text\none\ntwo\n```\n\n```text\n  a\n0 1\n```\n" in readme
    assert [path.name for path in (tmp_path / "nbs/images").iterdir()] == ["index-1.svg"]
    (tmp_path / "README.md").write_text(readme + "edited by hand")
    assert "-edited by hand" in run(".ci/readme", "--check", "--root", tmp_path).stdout


# How the notebooks are written

def test_notebook_style(run) -> None:
    done = run(".ci/style", "--verbose")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_style_counts(run, tmp_path: Path) -> None:
    cells = [cell("markdown", "# area\n> of a square"), cell("code", "#| default_exp area"), cell("code", "#| export\nimport math"),
             cell("code", "#| export\ndef area(x): return x * x"), cell("code", "area(2)"),
             cell("code", "#| export\ndef _side(a): return math.sqrt(a)"), cell("code", "#| hide\n_side(4)")]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/area.ipynb").write_text(json.dumps({"cells": cells}))
    done = run(".ci/style", "-v", "--root", tmp_path)
    assert done.returncode == 1
    assert re.search(r"^total +3 +1 +1 +50% +50% +0\.67", done.stdout, flags=re.MULTILINE) and "not shown: area: _side" in done.stdout


# What is committed

def committed() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: pytest.skip("not a git repository")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_machine() -> None:
    place = re.compile(r"""(?:^|[\s"'(\[=:,`])/(?:root|work|home|Users)(?:/|\b(?![\w-]))""", re.MULTILINE)
    found = []
    for path in committed():
        if not path.is_file() or path.suffix in (".parquet", ".png") or path == Path(__file__): continue
        found += [f"{path.relative_to(ROOT)}: {m[0].strip()}" for m in place.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


def test_scripts_are_posix_sh() -> None:
    for name in ("install", "test", "colab", "lib.sh"): subprocess.run(["sh", "-n", ROOT / ".ci" / name], check=True)


def test_colab_has_what_notebooks_and_tests_import(declared: dict[str, str]) -> None:
    def names(text: str) -> set[str]: return set(re.findall(r"(?<![\w.\[=<>~-])[a-z][a-z0-9_-]*", text.lower()))
    installed = re.search(r"^ *pip_install (.*\n(?: {8}.*\n)*)", (ROOT / ".ci/colab").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert "--editable '.[scale,postgres]'" in installed
    left_out = {"nbdev", "ruff", "mypy", "pandas-stubs", "pre-commit", "playwright", "schemathesis", "tritonclient"}
    assert names(declared["dev_requirements"]) - names(installed) == left_out, "add to .ci/colab what was added to dev_requirements, or here"
    pinned = dict(line.split("==") for line in (ROOT / ".ci/colab.txt").read_text(encoding="utf-8").splitlines()[1:])
    assert list(pinned) == sorted(pinned)


@pytest.mark.skipif(os.name == "nt", reason="needs sh")
def test_ci_runs_the_command_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / ".ci/test").write_text("echo tested $*")
    (tmp_path / "README.md").write_text("# mlnb\n\nRun `sh .ci/test`:\n\n```sh\nsh .ci/test -k quick\n```\n")
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "$ sh .ci/test -k quick\ntested -k quick\n"
    (tmp_path / "README.md").write_text("# mlnb\n")
    assert subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True).returncode == 1
