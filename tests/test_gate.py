"The gate: symmetry, invariance, types of input, every task"
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score

from mlnb.core.errors import ParameterError
from mlnb.core.result import dumps
from mlnb.update.gate import gate


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    a, b = (np.clip(.5 + (y - .5) * skill + rng.normal(0, .25, n), 0, 1) for skill in (.1, .4))
    return y, a, b, np.arange(n) * 10 // n


def test_values_are_those_of_sklearn():
    y, a, b, _ = rows()
    t = gate(y, a, b, task="binary").table().set_index("metric")
    assert t.loc["roc_auc", ["champion", "challenger"]].tolist() == pytest.approx([roc_auc_score(y, a), roc_auc_score(y, b)])
    assert t.loc["log_loss", "difference"] == pytest.approx(log_loss(y, a) - log_loss(y, b))
    t = gate(y, a, b, task="regression").table().set_index("metric")
    assert t.loc["mae", "champion"] == pytest.approx(mean_absolute_error(y, a))


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "brier", "accuracy"])
def test_exchanging_the_models_turns_the_gain_around(metric):
    y, a, b, day = rows()
    there, back = (gate(y, *pair, task="binary", metric=metric, blocks=day) for pair in ((a, b), (b, a)))
    x, z = there.table().iloc[0], back.table().iloc[0]
    assert [x["difference"], x["lower"], x["upper"]] == pytest.approx([-z["difference"], -z["upper"], -z["lower"]])
    assert there.promote and not back.promote and back.alarm and "worse" in back.reasons[0]


def test_order_of_rows_and_names_of_blocks_do_not_matter():
    y, a, b, day = rows()
    p = np.random.default_rng(1).permutation(len(y))
    dates = pd.Series(pd.Timestamp("2013-03-01") + pd.to_timedelta(day, unit="D"))
    results = [gate(y, a, b, task="binary", blocks=day), gate(y[p], a[p], b[p], task="binary", blocks=day[p]),
               gate(pd.Series(y).astype("boolean"), pd.Series(a), list(b), task="binary", blocks=dates),
               gate(y == 1, a, b, task="binary", blocks=dates.dt.date), gate(y, a, b, task="binary", blocks=dates.dt.strftime("%a %d").astype("category"))]
    for r in results[1:]:
        pd.testing.assert_frame_equal(r.table(), results[0].table())


def test_a_margin_lets_equal_models_pass_and_more_of_it_never_refuses():
    y, a, b, day = rows(seed=3)
    assert not gate(y, a, a, task="binary").promote and gate(y, a, a, task="binary", margin=1e-6).promote
    decisions = [gate(y, b, a, task="binary", margin=m, blocks=day).promote for m in (0, .05, .2, .5, .9)]
    assert decisions == sorted(decisions) and decisions[0] is False and decisions[-1] is True


def test_blocks_of_one_row_are_independent_rows():
    y, a, b, _ = rows(2000)
    one, none = (gate(y, a, b, task="binary", blocks=k).table().iloc[0] for k in (np.arange(2000), None))
    assert one["lower"] == pytest.approx(none["lower"], abs=1e-4)


def test_json_even_without_an_interval():
    y, a, b, day = rows()
    result = gate(y, a, b, task="binary", blocks=day % 2)
    said = json.loads(dumps(result.to_dict()))
    assert said["promote"] is False and said["table"][0]["lower"] is None and "2 blocks are too few" in said["reasons"][0]
    assert result.plot() is not None and "2 blocks" in result._repr_html_()


@pytest.mark.parametrize(("change", "said"), [
    ({"y": [0, 1, None] * 100}, "y is null or infinite in 100 rows"), ({"y": [0, 1, 2] * 100}, "other values than 0 and 1"),
    ({"y": ["a", "b", "c"] * 100}, "y is not numeric"), ({"blocks": [1]}, "blocks has 1 rows, y has 300"), ({"blocks": [None, 1, 2] * 100}, "blocks is null in 100"),
    ({"champion_score": [float("nan")] * 300}, "champion_score is null or infinite in 300"), ({"challenger_score": np.ones((300, 2)) / 2}, r"shape \(300, 2\), expected \(300,\)"),
    ({"task": "multiclass"}, r"champion_score has shape \(300,\), expected \(300, 2\)")])
def test_bad_input(change, said):
    y, a, b, _ = rows()
    with pytest.raises(ParameterError, match=said): gate(**({"y": y, "champion_score": a, "challenger_score": b, "task": "binary"} | change))


def test_many_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    flat = np.full((400, 4), .25)
    sharp = .6 * rng.dirichlet(np.ones(4), 400) + .4 * np.eye(4)[y]
    result = gate(y, flat, sharp, task="multiclass", blocks=np.arange(400) // 20)
    assert result.promote and set(result.table()["metric"]) == {"log_loss", "accuracy"}
    assert result.table().set_index("metric").loc["log_loss", "champion"] == pytest.approx(np.log(4))
