"""The panels in a real JupyterLab, driven by Chromium: what is clicked shows, and nothing sticks out. MLNB_SCREENSHOTS=folder keeps the pictures."""
import json
import os
import re
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
CODE = "import mlnb\ndep = mlnb.open('ws').deployment('delays')\npanel = mlnb.panels.{}(dep)\npanel"
TRIAL = "import mlnb\nws = mlnb.open('trial')\npanel = mlnb.panels.experiment(ws.deployment('trial'), at='2013-03-04')\npanel"
SCROLLBARS = """() => [...document.querySelectorAll('.mlnb-panel, .mlnb-panel *:not(option)')].filter(e => {
    const s = getComputedStyle(e), x = ['auto', 'scroll'].includes(s.overflowX) && e.scrollWidth > e.clientWidth + 1;
    const y = ['auto', 'scroll'].includes(s.overflowY) && e.scrollHeight > e.clientHeight + 1;
    return e.clientWidth > 0 && (x || (y && e.tagName != 'SELECT')) }).map(e => e.tagName + '.' + e.className)"""
STICKS_OUT = """panel => { const room = panel.getBoundingClientRect(); return [...panel.querySelectorAll('*:not(option)')].filter(e => {
    const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0 && (r.right > room.right + 1 || r.left < room.left - 1) }).map(e => e.tagName + '.' + e.className) }"""


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("MLNB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A workspace with a deployment that was asked about flights from March to July, one that was asked nothing, and two notebooks"
    import mlnb
    import nbformat
    import numpy as np
    import pandas as pd
    from mlnb.core.events import feedback, log_predictions
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
        at = rows["at"][~old].reset_index(drop=True)
        ids = log_predictions(dep, new, v1.predict(new), at=at)
        feedback(dep, pd.DataFrame({"id": ids, "y": late[~old], "at": at + pd.Timedelta("6h")})[(at < "2013-07-18").to_numpy()])
    trial(root)
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, verb in (("panel", "drift"), ("performance", "performance")):
        cells = [nbformat.v4.new_code_cell(CODE.format(verb)), nbformat.v4.new_code_cell(f"mlnb.panels.{verb}(mlnb.open('ws').deployment('quiet'))")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), root / f"{name}.ipynb")
    for name, sources in (("rollout", [TRIAL, "mlnb.panels.experiment(ws.deployment('alone'))"]), ("several", [TRIAL.replace("deployment('trial')", "deployment('three')")]), ("plan", ["import mlnb\nmlnb.panels.plan()"])):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources], metadata=spec), root / f"{name}.ipynb")
    return root


def trial(root: Path) -> None:
    "A workspace with a rollout in the second step of its canary, one with two challengers in an A/B test, and a deployment without any"
    import mlnb
    import numpy as np
    import pandas as pd
    from mlnb.core.events import feedback
    from sklearn.ensemble import HistGradientBoostingClassifier
    rng = np.random.default_rng(4)
    def flights(n):
        X = pd.DataFrame({"origin": rng.choice(["EWR", "JFK", "LGA"], n), "hour": rng.integers(6, 23, n), "wind": rng.gamma(4, 3, n).round(1)}).astype({"origin": "category"})
        return X, np.where(rng.random(n) < 1 / (1 + np.exp(5.5 - X.wind / 3 - X.hour / 12)), "late", "on time")
    X, y = flights(3000)
    turned = np.where((X.hour > 18) & (rng.random(3000) < .6), np.where(y == "late", "on time", "late"), y)
    with mlnb.open(root / "trial") as ws:
        for labels, n in ((y, 3000), (y, 1500), (turned, 3000)):
            ws.register("late", HistGradientBoostingClassifier(max_iter=30, categorical_features="from_dtype", random_state=0).fit(X[:n], labels[:n]), X, y, at="2013-03-01")
        plan = {"shadow": False, "canary": [.05, .5], "ab": True, "metrics": [{"name": "log_loss", "margin": .02}, {"name": "accuracy", "margin": .03}, {"name": "brier", "margin": .02}]}
        for name, challenger, given in (("trial", 2, plan), ("three", [2, 3], {**plan, "canary": [], "max_days": 30}), ("alone", None, None)):
            dep = ws.deploy(name, ws.version("late", 1), at="2013-03-01")
            if not challenger: continue
            rollout = dep.rollout(challenger, given, at="2013-03-02", salt="spring")
            for day in ("2013-03-02", "2013-03-03"):
                if name == "trial" and day == "2013-03-03": rollout.next("nothing looks odd", at=day, actor="ann")
                new, true = flights(1600)
                at, ids = pd.Timestamp(day, tz="UTC") + pd.to_timedelta(np.arange(1600) * 53, unit="s"), [f"{day} {i}" for i in range(1600)]
                dep.predict(new, ids=ids, at=at)
                feedback(dep, pd.DataFrame({"id": ids, "y": true, "at": at + pd.Timedelta("3h")}))


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
def opened(chromium: str, lab: str, shots: Path) -> Iterator[Any]:
    "Open a notebook and run it"
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1150}, device_scale_factor=1.5)
        page.set_default_timeout(45_000)

        def show(name: str, empty: str = "dep.predict(X)") -> Any: # empty: what the panel of nothing says
            page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
            page.locator(".jp-Notebook .jp-Cell").first.wait_for()
            page.wait_for_function("window.jupyterapp !== undefined")
            page.evaluate("async () => { await window.jupyterapp.restored }")
            page.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'")
            page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
            paint(page, "Light")
            page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            try:
                page.locator(".mlnb-panel img").first.wait_for()
                if empty: page.locator(".mlnb-panel", has_text=empty).wait_for()
            except api.Error:
                page.screenshot(path=shots / "failed.png")
                raise
            page.wait_for_timeout(500)  # layout of the lab settles; only the pictures depend on it
            return page
        yield show
        browser.close()


@pytest.fixture
def page(opened: Any) -> Any:
    "The notebook with the drift panel, opened and run"
    return opened("panel")


def changed(page: Any, panel: Any, before: str) -> str:
    "Wait until a panel shows another picture"
    page.wait_for_function("""([e, old]) => [...e.querySelectorAll('img')].some(i => i.offsetParent && i.src != old && i.complete)
        && ![...e.querySelectorAll('img')].some(i => i.offsetParent && i.src == old)""", arg=[panel.element_handle(), before])
    return shown(panel)


def shown(panel: Any) -> str:
    "The picture that a panel shows"
    return panel.locator("img:visible").first.get_attribute("src")


def idle(page: Any) -> None: page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'")


def paint(page: Any, theme: str) -> None: # "Dark" or "Light"
    "Let the lab be dark, or light; it remembers"
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeLight == '{str(theme == 'Light').lower()}'")


def fits(page: Any, panel: Any) -> None:
    "Nothing sticks out, and nothing but a long list scrolls"
    assert page.evaluate(SCROLLBARS) == []
    assert page.evaluate(STICKS_OUT, panel.element_handle()) == []


def test_drift_panel(page: Any, shots: Path, folder: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    image, features = panel.locator("img"), panel.locator(".mlnb-list select").last
    page.screenshot(path=shots / "drift-panel.png")
    first = shown(panel)
    assert page.evaluate("e => e.naturalWidth >= 1.8 * e.clientWidth", image.element_handle()), "the figure is crisp at twice the density"
    fits(page, panel)
    assert image.get_attribute("alt").startswith("Distribution of ")

    features.select_option(value="humid") if features.locator("option[value=humid]").count() else features.select_option(index=5)
    second = changed(page, panel, first)
    page.screenshot(path=shots / "drift-panel-feature.png")

    panel.get_by_label("Window", exact=True).select_option(label="July 2013")
    panel.get_by_text("1 Jul 2013 to 31 Jul 2013").first.wait_for()
    third = changed(page, panel, second)
    page.screenshot(path=shots / "drift-panel-july.png")

    panel.locator(".mlnb-list select").first.select_option(index=1)
    fourth = changed(page, panel, third)
    page.screenshot(path=shots / "drift-panel-output.png")

    panel.get_by_label("Window", exact=True).select_option(label="Choose days …")
    handle = panel.locator(".noUi-handle, .ui-slider-handle").first
    handle.wait_for()
    handle.focus()
    for _ in range(5): handle.press("ArrowLeft")
    panel.get_by_text("20 Jul 2013 to 31 Jul 2013").first.wait_for()
    changed(page, panel, fourth)
    idle(page)
    page.screenshot(path=shots / "drift-panel-days.png")
    fits(page, panel)


def test_since_when(page: Any, shots: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    assert not panel.get_by_label("by", exact=True).is_visible(), "the length of chunks matters for the course only"
    first = shown(panel)
    panel.get_by_role("button", name="Since when?").click()
    weeks = changed(page, panel, first)
    idle(page)
    panel.get_by_text("1 Mar 2013 to").first.wait_for()
    assert panel.locator("img:visible").get_attribute("alt").startswith("Drift of each feature by chunk") and not panel.locator(".mlnb-list select:visible").count()
    page.screenshot(path=shots / "drift-panel-since.png")
    fits(page, panel)
    panel.get_by_label("by", exact=True).select_option(label="month")
    changed(page, panel, weeks)
    page.set_viewport_size({"width": 1000, "height": 1150})
    paint(page, "Dark")
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "drift-panel-since-dark.png")
    fits(page, panel)
    panel.get_by_role("button", name="This window").click()
    panel.locator(".mlnb-list select").last.wait_for()
    assert shown(panel) == first


def test_what_one_asks_next(page: Any, shots: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    panel.get_by_label("Window", exact=True).select_option(label="July 2013")
    panel.get_by_text("1 Jul 2013 to 31 Jul 2013").first.wait_for()
    before = first = shown(panel)
    for view, text in (("Does it hurt?", "moves an answer by"), ("In which slices?", "explained by"), ("Between columns?", "moved by itself")):
        panel.get_by_role("button", name=view).click()
        before = changed(page, panel, before)
        panel.locator("th", has_text=text).first.wait_for()
        page.screenshot(path=shots / f"drift-panel-{view[:-1].lower().replace(' ', '-')}.png")
        fits(page, panel)
    paint(page, "Dark")
    page.set_viewport_size({"width": 760, "height": 1300})
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "drift-panel-between-columns-dark.png")
    fits(page, panel)
    panel.get_by_role("button", name="This window").click()
    assert changed(page, panel, before) == first and not panel.get_by_text("This did not work").count()


def test_performance_panel(opened: Any, shots: Path) -> None:
    page = opened("performance")
    panel = page.locator(".mlnb-panel").first
    page.screenshot(path=shots / "performance-panel.png")
    fits(page, panel)
    first = shown(panel)
    panel.locator(".mlnb-list select").first.select_option(index=1)
    second = changed(page, panel, first)
    panel.locator(".mlnb-list select").last.select_option(index=1)
    third = changed(page, panel, second)
    panel.get_by_role("button", name="Before the labels").click()
    fourth = changed(page, panel, third)
    idle(page)
    page.screenshot(path=shots / "performance-panel-estimated.png")
    fits(page, panel)
    panel.get_by_role("button", name="Where is it worst?").click()
    changed(page, panel, fourth)
    page.screenshot(path=shots / "performance-panel-worst.png")
    fits(page, panel)
    page.set_viewport_size({"width": 1000, "height": 1150})
    paint(page, "Dark")
    panel.get_by_role("button", name="By the labels").click()
    panel.get_by_label("Window", exact=True).select_option(label="July 2013")
    panel.get_by_text("1 Jul 2013 to 31 Jul 2013").first.wait_for()
    panel.get_by_text("1,916 labels arrived").first.wait_for()
    idle(page)
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "performance-panel-dark.png")
    fits(page, panel)
    assert not panel.get_by_text("This did not work").count(), "two clicks at once do not disturb each other"
    page.locator(".mlnb-panel", has_text="dep.predict(X)").scroll_into_view_if_needed()
    assert page.locator(".mlnb-panel", has_text="there is nothing to measure").is_visible()


def test_rollout_panel(opened: Any, shots: Path, folder: Path) -> None:
    page = opened("rollout", "dep.rollout(")
    panel = page.locator(".mlnb-panel").first
    page.screenshot(path=shots / "rollout-panel.png")
    fits(page, panel)
    assert panel.locator(".mlnb-steps li").count() == 4 and panel.locator(".mlnb-steps [aria-current=step]").inner_text().startswith("▶ canary 2 of 2 (50%)")
    before = shown(panel)
    panel.locator(".mlnb-list select").select_option(index=1)
    before = changed(page, panel, before)
    panel.locator("td", has_text="tolerated harm").wait_for()
    for view in ("All metrics", "In which slices?"):
        panel.get_by_role("button", name=view).click()
        before = changed(page, panel, before)
        idle(page)
        page.screenshot(path=shots / f"rollout-panel-{view.strip('?').lower().replace(' ', '-')}.png")
        fits(page, panel)
    panel.get_by_role("button", name="What happened").click()
    panel.locator("td", has_text="nothing looks odd").wait_for()
    fits(page, panel)
    paint(page, "Dark")
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "rollout-panel-what-happened-dark.png")
    panel.get_by_role("button", name="The effect").click()
    panel.locator(".mlnb-list select").wait_for()
    page.set_viewport_size({"width": 1000, "height": 1250})
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "rollout-panel-dark.png")
    fits(page, panel)
    page.set_viewport_size({"width": 620, "height": 1500})
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "rollout-panel-narrow-dark.png")
    fits(page, panel)
    paint(page, "Light")
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "rollout-panel-narrow.png")
    page.locator(".mlnb-panel", has_text="dep.rollout(").scroll_into_view_if_needed()
    page.screenshot(path=shots / "rollout-panel-empty.png")


def test_decisions(opened: Any, shots: Path) -> None:
    page = opened("rollout", "dep.rollout(")
    panel = page.locator(".mlnb-panel").first
    def button(name: str) -> Any: return panel.get_by_role("button", name=re.compile(rf"^\W*{name}$")) # an icon is a letter, too
    def press(name: str) -> None: button(name).click()
    press("Roll back")
    panel.get_by_text("A decision needs a reason").wait_for()
    assert button("Roll back").is_enabled() and not button("Cancel").is_visible()
    page.screenshot(path=shots / "rollout-panel-no-reason.png")
    reason = panel.get_by_placeholder("Why?")
    reason.fill("the new radar is not calibrated")
    press("Roll back")
    button("Yes, roll back").wait_for()
    assert not button("Hold").is_enabled()
    idle(page)
    page.screenshot(path=shots / "rollout-panel-confirm.png")
    fits(page, panel)
    press("Cancel")
    button("Roll back").wait_for()
    press("Hold")
    panel.get_by_text("Done: the rollout is paused").wait_for()
    assert panel.locator(".mlnb-steps [aria-current=step]").inner_text().startswith("❚❚ canary 2 of 2") and reason.input_value() == ""
    page.screenshot(path=shots / "rollout-panel-paused.png")
    press("Evaluate now")
    panel.get_by_text("A tick would leave it in paused").wait_for()
    reason.fill("it is calibrated now")
    press("Resume")
    panel.get_by_text("Done: the rollout is canary 2 of 2").wait_for()
    press("Run the canary report")
    panel.get_by_text("Show it here").wait_for(timeout=150_000)
    panel.get_by_text("Show it here").click()
    panel.frame_locator("iframe").get_by_text("Does it do harm?").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "rollout-panel-report.png")
    reason.fill("it is as good, and half as large")
    press("Promote")
    confirm = button("Yes, promote late v2")
    confirm.wait_for()
    page.wait_for_timeout(700)
    confirm.click()
    panel.get_by_text("Done: the rollout is promoted").wait_for()
    assert not button("Promote").is_enabled() and panel.locator(".mlnb-steps .mlnb-done").count() == 3
    idle(page)
    page.screenshot(path=shots / "rollout-panel-promoted.png")
    fits(page, panel)


def test_several_challengers(opened: Any, shots: Path) -> None:
    page = opened("several", "")
    panel = page.locator(".mlnb-panel").first
    assert panel.get_by_label("Challenger").is_visible() and panel.locator(".mlnb-list option").count() == 8
    page.screenshot(path=shots / "rollout-panel-several.png")
    before = shown(panel)
    panel.get_by_role("button", name="In which slices?").click()
    changed(page, panel, before)
    idle(page)
    page.screenshot(path=shots / "rollout-panel-several-slices.png")
    fits(page, panel)


def test_plan_panel(opened: Any, shots: Path) -> None:
    page = opened("plan", "")
    panel = page.locator(".mlnb-panel").first
    page.screenshot(path=shots / "plan-panel.png")
    fits(page, panel)
    first = shown(panel)
    panel.get_by_label("Units a day").fill("500")
    second = changed(page, panel, first)
    panel.get_by_text("500 units a day").first.wait_for()
    panel.get_by_role("button", name="What is found in so many days?").click()
    third = changed(page, panel, second)
    panel.locator("th", has_text="smallest effect").wait_for()
    assert not panel.get_by_label("Effect worth finding").is_visible()
    panel.get_by_label("Value of the control").fill("1.5")
    panel.get_by_text("baseline=1.5 is no proportion between 0 and 1").wait_for()
    page.screenshot(path=shots / "plan-panel-error.png")
    panel.get_by_label("Value of the control").fill("0.2")
    changed(page, panel, third)
    paint(page, "Dark")
    page.set_viewport_size({"width": 760, "height": 1300})
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "plan-panel-dark.png")
    fits(page, panel)


def test_report_button(page: Any, shots: Path, folder: Path) -> None:
    panel = page.locator(".mlnb-panel").first
    panel.get_by_label("Window", exact=True).select_option(label="July 2013")
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
    paint(page, "Dark")
    page.set_viewport_size({"width": 760, "height": 1300})
    page.locator(".mlnb-panel img").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "drift-panel-dark.png")
    assert page.evaluate(SCROLLBARS) == []
