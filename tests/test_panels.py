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


# Rollouts

def trial(folder: Path, plan: dict | None = None, challengers=2, days: int = 2, name: str = "late"):
    "A deployment with a rollout, asked 400 times a day, and the moment after the last day"
    rng = np.random.default_rng(1)
    def flights(n):
        X = pd.DataFrame({"wind": rng.gamma(4, 3, n).round(2), "hour": rng.integers(6, 23, n)})
        return X, np.where(rng.random(n) < 1 / (1 + np.exp(4 - X["wind"] / 3)), "late", "on time")
    X, y = flights(800)
    ws = mlnb.open(folder)
    for c in (1, .01, .001): ws.register("late", LogisticRegression(C=c).fit(X, y), X, y, at="2013-03-01")
    dep = ws.deploy(name, ws.version("late", 1), at="2013-03-01")
    dep.rollout(challengers, {"shadow": False, "canary": [.05, .5] if challengers == 2 else [.05, .33], "metrics": ["log_loss", "brier"], "min_units": 100, **(plan or {})}, at="2013-03-02", salt="spring")
    dep.rollout().next("nothing is odd", at="2013-03-02", actor="ann")
    for day in range(days):
        new, true = flights(400)
        at, ids = pd.Timestamp("2013-03-02", tz="UTC") + pd.to_timedelta(day * 86_400 + np.arange(400) * 200, unit="s"), [f"{day} {i}" for i in range(400)]
        dep.predict(new, ids=ids, at=at)
        feedback(dep, pd.DataFrame({"id": ids, "y": true, "at": at + pd.Timedelta("3h")}))
    return dep, pd.Timestamp("2013-03-02", tz="UTC") + pd.Timedelta(days=max(days, 1))


@pytest.fixture
def review(tmp_path: Path) -> panels.RolloutPanel: return panels.experiment(*trial(tmp_path / "ws"))


def buttons(panel: panels.RolloutPanel) -> dict[str, bool]:
    return {b.description: not b.disabled for b in (panel.ui.hold, panel.ui.next, panel.ui.promote, panel.ui.rollback)}


def twice(panel: panels.RolloutPanel, name: str) -> None:
    "Click, and confirm when a double click would be over"
    getattr(panel.ui, name).click()
    panel.since -= 1
    getattr(panel.ui, name).click()


def test_what_a_rollout_shows(review) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", review.ui.head.value))
    assert "Rollout of late" in text and "canary 2 of 2 (50%)" in text and "arms as planned" in text and "late v2 against champion late v1" in text
    assert re.search(r"units: \d{3} control, \d{3} late v2", text) and "units in this stage" not in text
    assert review.ui.head.value.count("<li class=") == 3 and 'class="mlnb-now" aria-current=step' in review.ui.head.value
    assert [v for _, v in review.ui.metrics.options] == ["log_loss", "brier", "error_rate"] and review.chosen == "log_loss"
    first = source(review)
    review.ui.metrics.value = "brier"
    assert source(review) != first and "tolerated harm" in review.ui.numbers.value and review.ui.run.description == "Run the canary report"


def test_views_of_a_rollout_keep_its_head(review) -> None:
    for view in review.views:
        review.ui.view.value = view
        assert said(review) == "" and "canary 2 of 2 (50%)" in review.ui.head.value and "mlnb-steps" in review.snapshot(), view
    assert "nothing is odd" in review.ui.whole.value and "<img" not in review.ui.whole.value
    review.ui.view.value = "In which slices?"
    assert type(review.report).__name__ == "SliceReport" and "looked at" in review.ui.head.value and "data:image/png" in review.ui.whole.value
    review.ui.view.value = "All metrics"
    assert re.search(r"decides</td>.*metric</td>.*guardrail</td>", review.ui.whole.value)


@pytest.mark.parametrize("reason", ["", "   ", "\t"])
def test_a_decision_needs_a_reason(review, reason: str) -> None:
    before = review.rollout.row
    for name in ("hold", "next", "promote", "rollback"):
        review.ui.reason.value = reason
        for _ in range(2): getattr(review.ui, name).click()
        assert "A decision needs a reason" in said(review) and review.rollout.row == before and review.armed == ""


def test_hold_and_resume_are_one_button(review) -> None:
    assert buttons(review) == {"Hold": True, "Next step": False, "Promote": True, "Roll back": True}
    review.ui.reason.value = "<b>storm</b>"
    review.ui.hold.click()
    assert said(review) == "Done: the rollout is paused in canary 2 of 2 (50%)." and review.rollout.state.name == "paused" and review.ui.reason.value == ""
    assert buttons(review)["Resume"] and "mlnb-paused" in review.ui.head.value and "<b>storm" not in review.ui.head.value
    review.ui.reason.value = "it is over"
    review.ui.hold.click()
    assert review.rollout.state.name == "canary" and review.rollout.moves()[["actor", "reason"]].values.tolist()[-2:] == [["panel", "<b>storm</b>"], ["panel", "it is over"]]


def test_what_ends_a_rollout_needs_a_second_click(review) -> None:
    review.ui.reason.value = "too slow"
    review.ui.rollback.click()
    assert buttons(review) == {"Hold": False, "Next step": False, "Promote": False, "Yes, roll back": True} and review.ui.cancel.layout.display == "" and "Cancel" in said(review)
    review.ui.rollback.click()
    assert review.rollout.state.active, "a double click is one click"
    review.ui.cancel.click()
    assert buttons(review)["Roll back"] and review.ui.cancel.layout.display == "none" and said(review) == ""
    review.ui.rollback.click()
    review.ui.refresh.click()
    assert review.armed == "", "whoever looks again has not confirmed"
    twice(review, "rollback")
    assert review.rollout.state.name == "rolled back" and not any(buttons(review).values()) and review.ui.reason.disabled and review.ui.tick.disabled
    assert "mlnb-stopped" in review.ui.head.value and "too slow" in review.ui.head.value and said(review) == "Done: the rollout is rolled back."


def test_promote(review) -> None:
    review.ui.reason.value = "as good"
    twice(review, "promote")
    assert review.dep.champion.number == 2 and "promoted" in review.ui.head.value and "late v2 against champion late v1" in review.ui.head.value


def test_a_decision_is_for_the_state_that_was_seen(review) -> None:
    review.ui.reason.value = "it is a holiday"
    review.rollout.hold("somebody else was faster", at="2013-03-04")
    review.ui.hold.click()
    assert "has moved since you looked: it is paused" in said(review) and review.rollout.state.name == "paused" and "Resume" in buttons(review)
    review.rollout.resume("back", at="2013-03-04")
    review.ui.refresh.click()
    review.ui.promote.click()
    review.rollout.rollback("harm", at="2013-03-04")
    review.since -= 1
    review.ui.promote.click()
    assert "Nothing was done" in said(review) and review.dep.champion.number == 1 and not any(buttons(review).values())


def test_a_draft_begins_by_hand(tmp_path: Path) -> None:
    dep, _ = trial(tmp_path / "ws", days=0)
    dep.rollout().rollback("again", at="2013-03-03")
    dep.rollout(3, {"canary": [.1]}, at="2013-03-03", draft=True)
    panel = panels.experiment(dep, "2013-03-03")
    assert buttons(panel) == {"Hold": False, "Begin": True, "Promote": True, "Roll back": True} and "draft" in panel.ui.head.value and panel.ui.tick.disabled
    panel.ui.reason.value = "go"
    panel.ui.next.click()
    assert panel.rollout.state.name == "shadow" and panel.ui.run.description == "Run the shadow report" and said(panel).startswith("Done")


def test_evaluate_says_and_tick_does(review, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, asked = tmp_path / "canary.html", []
    def run(ws, name, **params):
        asked.append((name, params))
        return SimpleNamespace(name="canary-1", html=page, verdict="", alarm=False, run="canary-1")
    monkeypatch.setattr("mlnb.jupyter.rollouts.run_report", run)
    review.ui.evaluate.click()
    assert said(review).startswith("A tick would leave it in canary 2 of 2 (50%)") and len(review.rollout.moves()) == 3
    review.moment = "2013-04-01"
    review.ui.evaluate.click()
    assert said(review).startswith("A tick would move it from canary 2 of 2 (50%) to paused in canary 2 of 2 (50%): inconclusive after 14 days")
    review.ui.tick.click()
    assert review.ui.tick.disabled and review.ui.evaluate.disabled
    review.job.join(60)
    assert review.rollout.state.name == "paused" and "It moved to paused in canary 2 of 2 (50%)" in said(review) and str(page) in said(review)
    assert review.rollout.moves()["actor"].iloc[-1] == "panel" and asked[0][0] == "canary" and "mlnb-paused" in review.ui.head.value and not review.ui.tick.disabled


def test_a_tick_that_ends_a_rollout_leaves_its_button_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlnb.jupyter.rollouts.run_report", lambda *_, **__: SimpleNamespace(name="x", html=None, verdict="", alarm=False, run="x"))
    panel = panels.experiment(*trial(tmp_path / "ws", {"metrics": [{"name": "log_loss", "margin": 1.}], "guardrails": [{"name": "error_rate", "margin": .5}]}))
    panel.ui.tick.click()
    panel.job.join(60)
    assert panel.rollout.state.name == "promoted" and panel.ui.tick.disabled and panel.ui.evaluate.disabled and not panel.ui.run.disabled


def test_the_report_of_the_stage(review, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, asked = tmp_path / "c.html", {}
    page.write_text("<p>fine</p>")
    def run(ws, name, **params):
        asked.update(params, name=name)
        return SimpleNamespace(html=page, verdict="canary", alarm=False)
    monkeypatch.setattr("mlnb.jupyter.reports.run_report", run)
    review.ui.run.click()
    review.job.join(20)
    assert (asked["name"], asked["deployment"]) == ("canary", "late") and asked["at"].startswith("2013-03-04") and "The report of the rollout as of 4 Mar 2013" in review.ui.result.value


def test_several_challengers_are_lines(tmp_path: Path) -> None:
    panel = panels.experiment(*trial(tmp_path / "ws", challengers=[2, 3]))
    assert [v for _, v in panel.ui.metrics.options][:2] == ["log_loss · late v2", "brier · late v2"] and len(panel.ui.metrics.options) == 6
    panel.ui.metrics.value = "brier · late v3"
    assert "late v3" in panel.ui.numbers.value and panel.ui.challenger.layout.display == ""
    panel.ui.view.value = "In which slices?"
    assert "challenger" in panel.ui.whole.value
    panel.ui.challenger.value, panel.ui.reason.value = 3, "smaller"
    panel.ui.promote.click()
    assert panel.ui.promote.description == "Yes, promote late v3" and panel.ui.challenger.disabled
    panel.since -= 1
    panel.ui.promote.click()
    assert panel.dep.champion.number == 3


def test_no_rollout_says_what_to_do(tmp_path: Path) -> None:
    dep = deployment(tmp_path / "ws", days=0)
    panel = panels.experiment(dep)
    assert "late v1 is the only version of its model" in said(panel) and panel.ui.decide.layout.display == "none" and panel.ui.run.layout.display == "none"
    X = pd.DataFrame({"temp": np.arange(60.), "wind": np.arange(60.)})
    dep.ws.register("late", LogisticRegression(C=.1).fit(X, np.where(X["wind"] > 9, "late", "on time")), X, at="2013-03-02")
    panel.ui.refresh.click()
    assert "late v2 (2) may challenge it" in said(panel) and "dep.rollout(2, mlnb.Plan(" in said(panel)
    dep.rollout(2, {"shadow": False, "canary": [.2]})
    panel.ui.refresh.click()
    assert said(panel) == "" and panel.ui.decide.layout.display == "" and "there was no traffic in this stage yet" in panel.ui.head.value and "Nothing is known of log_loss" in panel.ui.figure.value
    panel.ui.view.value = "In which slices?"
    assert said(panel) == ""


@pytest.mark.parametrize("error", [WorkspaceError("the workspace <is> gone"), RuntimeError("disk on fire")])
def test_errors_of_a_rollout_are_sentences(review, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_, **__): raise error
    monkeypatch.setattr("mlnb.jupyter.rollout_panel.review", fail)
    review.ui.refresh.click()
    assert str(error) in said(review) and "<is>" not in review.ui.notice.value and review.ui.body.layout.display == "none" and review.ui.decide.layout.display == "none"
    monkeypatch.undo()
    review.ui.refresh.click()
    assert said(review) == "" and review.ui.decide.layout.display == ""


def test_a_rollout_in_a_read_only_workspace(review) -> None:
    panel = panels.experiment(mlnb.open(review.dep.ws.path, read_only=True).deployment("late"), review.moment)
    assert said(panel) == "" and "canary 2 of 2" in panel.ui.head.value
    panel.ui.reason.value = "why not"
    panel.ui.hold.click()
    assert "read-only" in said(panel) and panel.rollout.state.name == "canary"


def test_a_mismatch_is_a_badge(review, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlnb.rollout.evidence.sample_ratio_p", lambda *_: 1e-9)
    review.ui.refresh.click()
    assert "sample ratio mismatch" in review.ui.head.value and "arms as planned" not in review.ui.head.value and "find out what sorts units into arms" in review.ui.head.value


def test_nothing_of_a_rollout_is_interpolated_unescaped(tmp_path: Path) -> None:
    dep, at = trial(tmp_path / "ws", name=NASTY.replace("/", "|"))
    panel = panels.experiment(dep, at)
    panel.ui.reason.value = NASTY
    panel.ui.hold.click()
    for view in panel.views:
        panel.ui.view.value = view
        assert not re.search(r"<script", panel.snapshot()) and "<script" not in panel.ui.notice.value


def test_static_form_of_a_rollout(review) -> None:
    bundle = review._repr_mimebundle_()
    assert "data:image/png" in bundle["text/html"] and "<style>" in bundle["text/html"] and "All of them" in bundle["text/html"] and "<script" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("RolloutPanel('late')\nRollout of late v2 in late: canary 2 of 2 (50%)")


# The plan of an experiment

def test_the_plan_follows_the_form() -> None:
    panel = panels.plan()
    assert said(panel) == "" and "29,498 units" in html.unescape(panel.ui.head.value) and panel.report.rows[0].days == 15
    first = source(panel)
    panel.ui.traffic.value, panel.ui.alpha.value, panel.ui.shares.value = 500, .01, "90, 10"
    panel.later.join()
    assert source(panel) != first and panel.report.design.traffic == 500 and panel.report.design.weights == (90, 10) and panel.report.design.alpha == .01
    panel.ui.kind.value = "mean"
    panel.later.join()
    assert panel.report.design.variance == 25 and panel.report.design.baseline == 10 and panel.ui.spread.layout.display == ""


def test_each_question_has_its_fields() -> None:
    panel = panels.plan()
    shown = {}
    for question in panel.ui.question.options:
        panel.ui.question.value = question
        panel.later.join()
        shown[question] = [n for n in ("effect", "margin", "days", "side", "better") if getattr(panel.ui, n).layout.display != "none"]
        assert said(panel) == "" and panel.report is not None
    assert list(shown.values()) == [["effect", "side"], ["days", "side"], ["margin", "better"]]
    panel.ui.question.value, panel.ui.side.value = panel.ui.question.options[0], "less"
    panel.later.join()
    assert panel.report.effect == -.01 and panel.report.design.alternative == "less", "a decrease of .01 is asked for by .01"


@pytest.mark.parametrize(("field", "value", "told"), [("baseline", 1.5, "baseline=1.5 is no proportion"), ("traffic", 0., "traffic=0.0 is no traffic"), ("shares", "half", "'half', are no numbers"), ("effect", 0., "effect=0 can never be found"), ("shares", "1", "must be two or more")])
def test_what_cannot_be_planned_is_a_sentence(field: str, value: object, told: str) -> None:
    panel = panels.plan()
    getattr(panel.ui, field).value = value
    panel.later.join()
    assert told in said(panel) and panel.report is None and panel.ui.figure.value == "" and panel.ui.body.layout.display != "none"


def test_no_work_piles_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlnb.jupyter.plan_panel as module
    asked, real = [], module.plan_experiment
    def watched(**given):
        asked.append(given["traffic"])
        return real(**given)
    monkeypatch.setattr(module, "plan_experiment", watched)
    panel = panels.plan()
    for n in range(1000, 1050): panel.ui.traffic.value = n
    panel.later.join()
    assert asked == [2000, 1049]


def test_static_form_of_a_plan() -> None:
    bundle = panels.plan()._repr_mimebundle_()
    assert "data:image/png" in bundle["text/html"] and "one look at the end" in bundle["text/html"] and bundle["text/plain"].startswith("PlanPanel()\nPlan: ")
