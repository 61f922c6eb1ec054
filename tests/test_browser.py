"""The panels in a real JupyterLab, driven by Chromium: what is clicked shows, and nothing sticks out. MLNB_SCREENSHOTS=folder keeps the pictures."""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("jupyterlab", reason="needs jupyterlab")
pytestmark = [pytest.mark.browser, pytest.mark.slow]

FEATURES = ["carrier", "origin", "dest", "departs", "distance", "temp", "dewp", "humid", "wind_speed", "pressure", "visib"]
CODE = "import mlnb\ndep = mlnb.open('ws').deployment('delays')\npanel = mlnb.panels.drift(dep)\npanel"
SCROLLBARS = """() => [...document.querySelectorAll('.mlnb-panel, .mlnb-panel *:not(option)')].filter(e => {
    const s = getComputedStyle(e), x = ['auto', 'scroll'].includes(s.overflowX) && e.scrollWidth > e.clientWidth + 1;
    const y = ['auto', 'scroll'].includes(s.overflowY) && e.scrollHeight > e.clientHeight + 1;
    return e.clientWidth > 0 && (x || (y && e.tagName != 'SELECT')) }).map(e => e.tagName + '.' + e.className)"""


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("MLNB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A workspace with a deployment that was asked about flights from March to July, one that was asked nothing, and a notebook"
    import mlnb
    import nbformat
    import numpy as np
    from mlnb.core.events import log_predictions
    from sklearn.ensemble import HistGradientBoostingClassifier
    root = tmp_path_factory.mktemp("lab")
    rows = mlnb.flights(until="2013-08-01").dropna(subset=["arr_delay"]).iloc[::8].reset_index(drop=True)
    late, old = np.where(rows["arr_delay"] > 15, "late", "on time"), (rows["at"] < "2013-03-01").to_numpy()
    X = rows[FEATURES]
    model = HistGradientBoostingClassifier(max_iter=30, categorical_features="from_dtype", random_state=0).fit(X[old], late[old])
    with mlnb.open(root / "ws") as ws:
        v1 = ws.register("delays", model, X[old], late[old], at="2013-03-01", time=rows["at"][old])
        dep = ws.deploy("delays", v1, at="2013-03-01")
        ws.deploy("quiet", v1, at="2013-03-01")
        new = dep.schema.conform(X[~old])
        log_predictions(dep, new, v1.predict(new), at=rows["at"][~old])
    cells = [nbformat.v4.new_code_cell(CODE), nbformat.v4.new_code_cell("mlnb.panels.drift(mlnb.open('ws').deployment('quiet'))")]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), root / "panel.ipynb")
    return root


@pytest.fixture(scope="module")
def lab(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "The address of a JupyterLab that knows nothing of the user's settings"
    private = tmp_path_factory.mktemp("jupyter")
    settings = private / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(private), "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(private / "w"),
           "JUPYTER_RUNTIME_DIR": str(private / "rt"), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=",
             "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly", "--expose-app-in-browser"]
    log = private / "server.log"
    with open(log, "w") as out: server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *flags], stdout=out, stderr=subprocess.STDOUT, env=env, cwd=folder)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/status", timeout=5)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline: pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}", pytrace=False)
                time.sleep(.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def page(chromium: str, lab: str, shots: Path) -> Iterator[Any]:
    "The notebook, opened and run"
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1150}, device_scale_factor=1.5)
        page.set_default_timeout(45_000)
        page.goto(f"{lab}/lab/tree/panel.ipynb?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.wait_for_function("window.jupyterapp !== undefined")
        page.evaluate("async () => { await window.jupyterapp.restored }")
        page.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'")
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        try:
            page.locator(".mlnb-panel img").first.wait_for()
            page.locator(".mlnb-panel", has_text="dep.predict(X)").wait_for()
        except api.Error:
            page.screenshot(path=shots / "failed.png")
            raise
        yield page
        browser.close()


def test_drift_panel(page: Any, shots: Path, folder: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    image, features = panel.locator("img"), panel.locator(".mlnb-list select").last
    def shown() -> str: return image.get_attribute("src")
    def changed(before: str) -> str:
        page.wait_for_function("([e, old]) => e.querySelector('img') && e.querySelector('img').src != old && e.querySelector('img').complete", arg=[panel.element_handle(), before])
        return shown()

    page.wait_for_timeout(500)  # layout of the lab settles; only the pictures depend on it
    page.screenshot(path=shots / "drift-panel.png")
    first = shown()
    assert page.evaluate("e => e.naturalWidth >= 1.8 * e.clientWidth", image.element_handle()), "the figure is crisp at twice the density"
    assert page.evaluate(SCROLLBARS) == []
    assert image.get_attribute("alt").startswith("Distribution of ")

    features.select_option(value="humid") if features.locator("option[value=humid]").count() else features.select_option(index=5)
    second = changed(first)
    page.screenshot(path=shots / "drift-panel-feature.png")

    panel.locator(".widget-dropdown select").select_option(label="July 2013")
    panel.get_by_text("1 Jul 2013 to 31 Jul 2013").first.wait_for()
    third = changed(second)
    page.screenshot(path=shots / "drift-panel-july.png")

    panel.locator(".mlnb-list select").first.select_option(index=1)
    fourth = changed(third)
    page.screenshot(path=shots / "drift-panel-output.png")

    panel.locator(".widget-dropdown select").select_option(label="Choose days …")
    handle = panel.locator(".noUi-handle, .ui-slider-handle").first
    handle.wait_for()
    handle.focus()
    for _ in range(5): handle.press("ArrowLeft")
    panel.get_by_text("20 Jul 2013 to 31 Jul 2013").first.wait_for()
    changed(fourth)
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'")
    page.screenshot(path=shots / "drift-panel-days.png")
    assert page.evaluate(SCROLLBARS) == []


def test_report_button(page: Any, shots: Path, folder: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    panel.locator(".widget-dropdown select").select_option(label="July 2013")
    panel.get_by_text("1 Jul 2013 to 31 Jul 2013").first.wait_for()
    panel.get_by_role("button", name="Run the drift report").click()
    panel.locator(".widget-hprogress, .progress").first.wait_for()
    page.wait_for_timeout(1500)  # for the picture: the bar has moved
    page.screenshot(path=shots / "drift-panel-running.png")
    panel.get_by_text("Show it here").wait_for(timeout=150_000)
    assert list((folder / "ws" / "reports").glob("*.html"))
    panel.get_by_text("Show it here").click()
    panel.frame_locator("iframe").get_by_text("Has the data changed?").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "drift-panel-report.png")
    assert panel.get_by_role("button", name="Run the drift report").is_enabled()


def test_empty_state_and_narrow_dark_page(page: Any, shots: Path) -> None:
    page.locator(".mlnb-panel", has_text="dep.predict(X)").scroll_into_view_if_needed()
    page.screenshot(path=shots / "drift-panel-empty.png")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_function("document.body.dataset.jpThemeLight == 'false'")
    page.set_viewport_size({"width": 760, "height": 1300})
    page.locator(".mlnb-panel img").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "drift-panel-dark.png")
    assert page.evaluate(SCROLLBARS) == []
