"""The drift and performance panels without a browser: set a widget, see what it shows. Runs with ipywidgets 7.7.1 and 8."""
import html
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import mlnb
import numpy as np
import pandas as pd
import pytest
from mlnb.core.errors import WorkspaceError
from mlnb.core.events import feedback, log_predictions
from mlnb.jupyter import panels
from sklearn.linear_model import LogisticRegression

NASTY = "<script>alert('é')</script> & \"quotes\""


def deployment(folder: Path, name: str = "late", columns: tuple[str, str] = ("temp", "wind"), days: int = 70, rows: int = 1400):
    "A deployment whose first column gets warmer from the fifth week on"
    rng = np.random.default_rng(0)
    X = pd.DataFrame({columns[0]: rng.normal(5, 3, 800), columns[1]: rng.gamma(4, 3, 800)})
    y = np.where(rng.random(800) < 1 / (1 + np.exp(3 - X[columns[1]] / 4)), "late", "on time")
    ws = mlnb.open(folder)
    v = ws.register("late", LogisticRegression().fit(X, y), X, y, at="2013-03-01")
    dep = ws.deploy(name, v, at="2013-03-01")
    if days:
        at = pd.Timestamp("2013-03-01", tz="UTC") + pd.to_timedelta(np.arange(rows) * days / rows, unit="D")
        new = pd.DataFrame({columns[0]: rng.normal(5, 3, rows) + 6 * (np.arange(rows) >= rows // 2), columns[1]: rng.gamma(4, 3, rows)})
        ids = log_predictions(dep, new, v.predict(new), at=at)
        true = np.where(rng.random(rows) < 1 / (1 + np.exp(3 - new[columns[1]] / 4)), "late", "on time")
        feedback(dep, pd.DataFrame({"id": ids, "y": true, "at": at + pd.Timedelta("6h")})[: rows * 9 // 10])
    return dep


@pytest.fixture(scope="module")
def dep(tmp_path_factory: pytest.TempPathFactory):
    return deployment(tmp_path_factory.mktemp("panels") / "ws")


def source(panel: panels.DriftPanel) -> str:
    return re.search(r'src="([^"]+)"', panel.ui.figure.value)[1]


def said(panel: panels.DriftPanel) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", panel.ui.notice.value))


def test_another_feature_is_another_figure(dep) -> None:
    panel = panels.drift(dep)
    first = source(panel)
    assert panel.feature == "temp" and first.startswith("data:image/png;base64,")
    panel.ui.features.value = "wind"
    assert panel.feature == "wind" and source(panel) != first and said(panel) == ""
    panel.ui.features.value = "temp"
    assert source(panel) == first


def test_outputs_and_features_are_one_choice(dep) -> None:
    panel = panels.drift(dep)
    assert [v for _, v in panel.ui.outputs.options] and {v for _, v in panel.ui.outputs.options} == {"prediction", "score"}
    panel.ui.outputs.value = "score"
    assert panel.feature == "score" and panel.ui.features.value is None
    panel.ui.features.value = "wind"
    assert panel.feature == "wind" and panel.ui.outputs.value is None


def test_another_window_is_another_verdict_and_keeps_the_feature(dep) -> None:
    panel = panels.drift(dep)
    panel.ui.features.value = "wind"
    panel.ui.window.value = "March 2013"
    early = panel.ui.head.value, source(panel)
    assert not panel.report.alarm and panel.feature == "wind" and "1 Mar 2013 to 31 Mar 2013" in panel.ui.head.value
    panel.ui.window.value = "Last 7 days"
    assert panel.report.alarm and panel.feature == "wind"
    assert panel.ui.head.value != early[0] and source(panel) != early[1]
    assert all(html.escape(r) in panel.ui.head.value for r in panel.report.reasons)


def test_windows_are_relative_to_the_log(dep) -> None:
    panel = panels.drift(dep)
    assert list(panel.ui.window.options) == ["Last 24 hours", "Last 7 days", "Last 30 days", "May 2013", "April 2013", "March 2013", "Everything", panels.CUSTOM]
    since, until = panel.window
    assert until == pd.Timestamp("2013-05-09 23:00", tz="UTC") and panel.log.last < until and panel.log.rows == 1400


def test_custom_days(dep) -> None:
    panel = panels.drift(dep)
    assert panel.ui.range.layout.display == "none"
    panel.ui.window.value = panels.CUSTOM
    assert panel.ui.range.layout.display == ""
    panel.ui.range.index = (0, 9)
    assert panel.window == (pd.Timestamp("2013-03-01", tz="UTC"), pd.Timestamp("2013-03-11", tz="UTC"))
    assert "1 Mar 2013 to 10 Mar 2013" in panel.ui.head.value and "200 predictions" in panel.ui.head.value
    panel.ui.range.index = (4, 4)
    assert "5 Mar 2013" in panel.ui.head.value


@pytest.mark.parametrize("hours", [0, 2, 30, 24 * 40])
def test_windows_of_short_logs(hours: int) -> None:
    first = pd.Timestamp("2013-03-01 10:20", tz="UTC")
    log = panels.Span(first, first + pd.Timedelta(hours=hours), 2)
    for since, until in [*panels.windows(log).values(), *(w for _, w in panels.marks(log))]: assert since < until
    since, until = panels.windows(log)["Everything"]
    assert since <= log.first and log.last < until
    marks = panels.marks(log)
    assert marks[0][1][0] <= log.first and log.last < marks[-1][1][1]


def test_empty_state_then_refresh(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", days=0)
    panel = panels.drift(dep)
    assert "dep.predict(X)" in said(panel) and panel.ui.body.layout.display == "none" and panel.ui.run.layout.display == "none"
    X = pd.DataFrame({"temp": np.linspace(0, 10, 50), "wind": np.linspace(1, 20, 50)})
    log_predictions(dep, X, dep.champion.predict(X), at="2013-03-01 10:00")
    panel.ui.refresh.click()
    assert said(panel) == "" and panel.ui.body.layout.display == "" and "50 predictions" in panel.ui.head.value


def test_nothing_is_interpolated_unescaped(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", name=NASTY.replace("/", "|"), columns=("<b>temp</b>", "wind & 'rain'"))
    panel = panels.drift(dep)
    for name in [v for _, v in panel.ui.features.options]:
        panel.ui.features.value = name
        assert not re.search(r"<script|<b>", panel.snapshot()) and said(panel) == ""
    assert html.escape(dep.name) in panel.ui.head.value


@pytest.mark.parametrize("error", [WorkspaceError("the workspace <is> gone"), RuntimeError("disk on fire"), KeyError("x")])
def test_errors_are_sentences(dep, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_, **__): raise error
    panel = panels.drift(dep)
    monkeypatch.setattr("mlnb.monitor.drift.deployment_drift", fail)
    panel.ui.window.value = "April 2013"
    assert str(error) in said(panel) and "Traceback" not in said(panel) and "<is>" not in panel.ui.notice.value
    assert panel.ui.body.layout.display == "none" and panel.report is None
    monkeypatch.undo()
    panel.ui.window.value = "May 2013"
    assert said(panel) == "" and panel.ui.body.layout.display == ""


def test_a_window_without_predictions(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws")
    with dep.ws.store.write() as c: c.exec_driver_sql(f"DELETE FROM log_{dep.id} WHERE at < {pd.Timestamp('2013-04-01').value // 1000} AND at > {pd.Timestamp('2013-03-02').value // 1000}")
    panel = panels.drift(dep)
    panel.ui.window.value = panels.CUSTOM
    panel.ui.range.index = (9, 12)
    assert "0 predictions" in panel.ui.head.value and "no rows" in panel.ui.head.value and "no drift" not in panel.ui.head.value and said(panel) == ""


def test_report_runs_beside_and_shows_its_page(dep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, asked, go = tmp_path / "drift.html", {}, threading.Event()
    page.write_text('<h1 title="a">Drift & more</h1>')
    def run(ws, name, **params):
        asked.update(params, name=name)
        go.wait(20)
        return SimpleNamespace(html=page, verdict="alarm", alarm=True)
    monkeypatch.setattr("mlnb.jupyter.reports.run_report", run)
    panel = panels.drift(dep)
    panel.ui.window.value = "April 2013"
    panel.ui.run.click()
    assert panel.ui.run.disabled and panel.ui.progress.layout.display == "" and panel.ui.result.value == ""
    first = panel.job
    panel.ui.run.click()
    assert panel.job is first
    go.set()
    panel.job.join(20)
    assert not panel.ui.run.disabled and panel.ui.progress.layout.display == "none" and panel.ui.progress.value == 1
    assert str(page) in panel.ui.result.value and html.escape(page.read_text()) in panel.ui.result.value and "<h1" not in panel.ui.result.value
    assert asked["name"] == "drift" and asked["deployment"] == "late" and asked["since"].startswith("2013-04-01") and asked["until"].startswith("2013-05-01")


def test_a_report_that_fails_is_a_sentence(dep, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_, **__): raise mlnb.MlnbError("the report 'drift' failed: no <memory>")
    monkeypatch.setattr("mlnb.jupyter.reports.run_report", run)
    panel = panels.drift(dep)
    panel.ui.run.click()
    panel.job.join(20)
    assert "no <memory>" in said(panel) and not panel.ui.run.disabled and panel.ui.result.value == ""


def test_read_only_workspace(dep) -> None:
    panel = panels.drift(mlnb.open(dep.ws.path, read_only=True).deployment("late"))
    assert panel.report is not None and said(panel) == ""
    panel.ui.run.click()
    panel.job.join(20)
    assert "read-only" in said(panel)


# Since when?

def test_since_when_is_another_view_of_the_same_panel(dep) -> None:
    panel = panels.drift(dep)
    window, first, head = panel.report, source(panel), panel.ui.head.value
    assert panel.ui.chunk.layout.display == "none" and panel.ui.whole.layout.display == "none"
    panel.ui.view.value = "Since when?"
    assert type(panel.report).__name__ == "TimelineReport" and "1 Mar 2013 00:00 to 9 May 2013 23:00 UTC" in panel.ui.head.value and "1,400 predictions" in panel.ui.head.value
    assert re.search(r"temp drifted in \d of 10 chunks, from 2013-0\d-\d\d to 2013-05-03", panel.ui.head.value) and panel.ui.chunk.layout.display == ""
    assert "data:image/png" in panel.ui.whole.value and [s.layout.display for s in panel.ui.sides] == ["none", "none"]
    assert "Drift of each feature by chunk" in panel.snapshot() and "All of them" not in panel.snapshot()
    panel.ui.view.value = "This window"
    assert panel.report is window and (source(panel), panel.ui.head.value) == (first, head) and panel.ui.whole.layout.display == "none"


def test_the_course_is_made_when_it_is_asked_for(dep, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlnb.monitor.timeline as timeline
    asked, real = [], timeline.deployment_timeline
    def watched(*args, **kw):
        asked.append(kw["chunk"])
        return real(*args, **kw)
    monkeypatch.setattr(timeline, "deployment_timeline", watched)
    panel = panels.drift(dep)
    panel.ui.window.value = "April 2013"
    assert asked == []
    panel.ui.view.value = "Since when?"
    panel.ui.chunk.value = "MS"
    panel.ui.chunk.value = "7D"
    assert asked == ["7D", "MS"], "what was judged once is kept until the panel is refreshed"
    assert "1 Mar 2013 to 30 Apr 2013" in panel.ui.head.value, "it ends with the window"
    panel.ui.refresh.click()
    assert asked == ["7D", "MS", "7D"]


def test_the_course_goes_back_as_far_as_a_picture_can_show(dep) -> None:
    panel = panels.drift(dep)
    panel.ui.view.value = "Since when?"
    panel.ui.chunk.value = "D"
    since, until = panel.covered
    assert pd.Timedelta(days=59) < until - since <= pd.Timedelta(days=61) and len(panel.report.chunks) <= 61


def test_the_budget_is_told(dep) -> None:
    panel = panels.drift(dep)
    assert "false alarms to expect in a check like this" in panel.ui.head.value
    panel.ui.view.value = "Since when?"
    assert "false alarms to expect in 10 checks" in panel.ui.head.value


def test_clicks_in_two_threads_do_not_disturb_each_other(dep) -> None:
    "JupyterLab may do so: it talks to a kernel in more than one thread"
    panel = panels.drift(dep)
    def click(names: list[str]) -> None:
        for name in names: panel.ui.window.value = name
    months = [["April 2013", "May 2013", "March 2013"] * 2, ["Everything", "Last 7 days", "Last 30 days"] * 2]
    threads = [threading.Thread(target=click, args=(m,)) for m in months]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert said(panel) == "" and panel.report is not None and panel.quiet is None and panels.between(*panel.window) in panel.ui.head.value


# Performance

@pytest.fixture(scope="module")
def seen(dep) -> panels.PerformancePanel: return panels.performance(dep)


def test_performance_by_the_labels(dep, seen) -> None:
    assert seen.metric == "roc_auc" and seen.ui.window.value == "Everything" and said(seen) == "" and seen.ui.run.description == "Run the performance report"
    assert re.search(r"champion late v1.*1 Mar 2013.*1,400 predictions.*1,260 labels arrived \(90\.0 %\)", seen.ui.head.value)
    assert [v for _, v in seen.ui.metrics.options][:3] == ["roc_auc", "log_loss", "brier"] and {v for _, v in seen.ui.proxies.options} >= {"mean_score", "entropy"}
    assert re.search(r"0 of 120</td>.*no label has arrived", seen.ui.numbers.value) or "no label has arrived" in seen.ui.numbers.value
    table = dep.performance(chunk="7D").table().query("metric == 'roc_auc' and mature")
    assert seen.ui.metrics.options[0][0].endswith(f"{table['value'].dropna().iloc[-1]:.3f}"), "the latest chunk that has its labels"


def test_another_metric_and_another_chunk_is_another_picture(seen) -> None:
    first = source(seen)
    seen.ui.metrics.value = "log_loss"
    second = source(seen)
    assert second != first and seen.metric == "log_loss"
    seen.ui.proxies.value = "mean_score"
    assert seen.metric == "mean_score" and seen.ui.metrics.value is None and source(seen) not in (first, second)
    seen.ui.chunk.value = "MS"
    assert seen.metric == "mean_score" and "2013-04" in seen.ui.numbers.value and "2013-04-0" not in seen.ui.numbers.value
    seen.ui.chunk.value, seen.ui.metrics.value = "7D", "roc_auc"
    assert source(seen) == first


def test_performance_marks_alarms(tmp_path: Path) -> None:
    "Labels that turn round in the ninth week"
    dep = deployment(tmp_path / "ws")
    log = dep.labelled("2013-04-26", "2013-05-03")
    feedback(dep, pd.DataFrame({"id": log["id"], "y": np.where(log["y_true"] == "late", "on time", "late"), "at": log["labelled_at"] + pd.Timedelta("1h")}))
    panel = panels.performance(dep)
    panel.ui.window.value = "Last 30 days"
    lines = {v: line for line, v in panel.ui.metrics.options}
    assert panel.report.alarm and "below expectation" in panel.ui.head.value and lines["roc_auc"].startswith("▲") and "alarm: below" in panel.ui.numbers.value


def test_performance_before_the_labels(seen) -> None:
    seen.ui.view.value = "Before the labels"
    try:
        assert said(seen) == "" and type(seen.report).__name__ == "EstimateReport" and seen.ui.proxies.layout.display == "none"
        assert "the reference is" in html.unescape(seen.ui.head.value) and "Estimated, in the latest chunk" in seen.ui.what.value and "data:image/png" in seen.snapshot()
        assert len(set(seen.report.table()["chunk"])) == 4 and "0 of " in seen.ui.numbers.value
    finally: seen.ui.view.value = "By the labels"


def test_an_estimate_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", rows=240)
    panel = panels.performance(dep)
    panel.ui.view.value = "Before the labels"
    assert "240 labelled rows are too few to learn from" in said(panel) and panel.report is None and panel.ui.body.layout.display == "none"
    panel.ui.view.value = "By the labels"
    assert said(panel) == "" and panel.ui.body.layout.display == ""


def test_performance_of_nothing(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", days=0)
    panel = panels.performance(dep)
    assert "there is nothing to measure" in said(panel) and panel.ui.view.layout.display == "none" and panel.ui.chunk.layout.display == "none"


def test_performance_without_any_label(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", days=0)
    X = pd.DataFrame({"temp": np.linspace(0, 10, 50), "wind": np.linspace(1, 20, 50)})
    log_predictions(dep, X, dep.champion.predict(X), at="2013-03-01 10:00")
    panel = panels.performance(dep)
    assert said(panel) == "" and "0 labels arrived (0.0 %)" in panel.ui.head.value and panel.ui.metrics.options[0][0].endswith("–")


def test_the_performance_report_takes_the_chunk(dep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, asked = tmp_path / "p.html", {}
    page.write_text("<p>fine</p>")
    def run(ws, name, **params):
        asked.update(params, name=name)
        return SimpleNamespace(html=page, verdict="as measured", alarm=False)
    monkeypatch.setattr("mlnb.jupyter.reports.run_report", run)
    panel = panels.performance(dep)
    panel.ui.chunk.value = "MS"
    panel.ui.run.click()
    panel.job.join(20)
    assert (asked["name"], asked["chunk"], asked["deployment"]) == ("performance", "MS", "late") and 'title="Performance report"' in panel.ui.result.value


def test_static_form_of_performance(seen) -> None:
    bundle = seen._repr_mimebundle_()
    assert "data:image/png" in bundle["text/html"] and "All of them, in the latest chunk" in bundle["text/html"] and "<script" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("PerformancePanel('late')\nPerformance: ")


# Without widgets

def test_static_form(dep) -> None:
    panel = panels.drift(dep)
    bundle = panel._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.widget.model_id
    assert "data:image/png" in bundle["text/html"] and "temp" in bundle["text/html"] and "<script" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("DriftPanel('late')")


def test_nbconvert_keeps_the_static_form(dep) -> None:
    import nbformat
    from nbconvert import HTMLExporter
    panel = panels.drift(dep)
    out = nbformat.v4.new_output("execute_result", panel._repr_mimebundle_())
    body, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("panel", outputs=[out])]))
    assert source(panel)[:200] in body and "Drift of late" in body


def test_the_committed_notebook_shows_the_panel_without_a_kernel(root: Path) -> None:
    import nbformat
    nb = nbformat.read(root / "nbs/jupyter/panels.ipynb", 4)
    shown = [o["data"]["text/html"] for c in nb.cells if c.cell_type == "code" for o in c.outputs if "text/html" in o.get("data", {})]
    assert any("Drift of late" in s and "data:image/png" in s and "All of them" in s for s in shown)
    assert "widgets" not in nb.metadata, "the state of widgets has random ids; drop metadata.widgets"
