"""The comparison of two models on the same rows: against scipy, against definitions, and in simulations."""
from collections.abc import Iterator
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlnb.core.errors import ParameterError
from mlnb.rollout.moments import Moments, moments
from mlnb.rollout.pairs import COLUMNS, Look, PairedSums, count_ms, mcnemar, means, median, paired_comparisons, paired_sums, rate, relative
from mlnb.rollout.paired import shadow


def answers(n: int, seed: int, noise: tuple[float, float] = (1, 1), task: str = "binary") -> dict[str, Any]:
    "Two models that see the truth through noise of their own; equally noisy ones are equally good"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    if task == "regression":
        return {"champion": pd.DataFrame({"prediction": z + noise[0] * rng.normal(size=n)}), "challenger": pd.DataFrame({"prediction": z + noise[1] * rng.normal(size=n)}), "y": z, "task": task}
    p = [1 / (1 + np.exp(-2 * z - s * rng.normal(size=n))) for s in noise]
    tables = [pd.DataFrame({"prediction": np.where(q >= .5, "1", "0"), "score": q}) for q in p]
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * z))).astype(float)
    return {"champion": tables[0], "challenger": tables[1], "y": y, "task": task, "classes": ["0", "1"]}


def of(name: str, champion: np.ndarray, challenger: np.ndarray, units: Any = None) -> PairedSums:
    "Sums of one quantity"
    x = {"rows": np.ones(len(champion)), "champion": champion, "challenger": challenger}
    task = "regression" if name in ("mae", "mse") else "binary"
    return PairedSums(task, len(champion), len(champion), {name: moments(x, COLUMNS)}, None if units is None else {name: pd.DataFrame(x).groupby(np.asarray(units)).sum()})


def running(x: np.ndarray, y: np.ndarray, every: int) -> Iterator[Moments]:
    "Moments after each stretch of rows"
    parts = (moments({"rows": np.ones(every), "champion": x[i:i + every], "challenger": y[i:i + every]}, COLUMNS) for i in range(0, len(x) - every + 1, every))
    return accumulate(parts)


def judged(name: str, m: Moments, inference: str = "always", **kw: Any) -> str:
    "The verdict on moments"
    task = "regression" if name in ("mae", "mse") else "binary"
    return paired_comparisons(PairedSums(task, m.n, m.n, {name: m}), [name], inference=inference, **kw)[0].verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_fixed_look_is_the_paired_t_test(task: str) -> None:
    data = answers(300, 1, (1, .8), task)
    y = data["y"]
    if task == "regression":
        a, b = (abs(data[k]["prediction"].to_numpy() - y) for k in ("champion", "challenger"))
    else:
        a, b = (-np.log(np.where(y == 1, data[k]["score"], 1 - data[k]["score"])) for k in ("champion", "challenger"))
    c = paired_comparisons(paired_sums(**data), inference="fixed", alpha=.1)[0]
    t = stats.ttest_rel(b, a)
    low, high = t.confidence_interval(.9)
    assert np.allclose([c.control, c.treatment, c.difference, c.se * t.statistic, c.p, c.lower, c.upper], [a.mean(), b.mean(), (b - a).mean(), (b - a).mean(), t.pvalue, low, high], rtol=1e-9)


def test_relative_intervals_are_fiellers() -> None:
    "Each end of the interval is a ratio that the paired t test just rejects, and 0 is in it when it is in the absolute one"
    rng = np.random.default_rng(2)
    for n, shift in ((12, .3), (40, .3), (400, .05)):
        a = rng.gamma(4, size=n)
        b = a + rng.normal(shift, .7, n)
        c = paired_comparisons(of("mae", a, b), ["mae"], inference="fixed")[0]
        for end in (c.relative_lower, c.relative_upper): assert np.isclose(stats.ttest_1samp(b - (1 + end) * a, 0).pvalue, .05, rtol=1e-6)
        assert (c.relative_lower <= 0 <= c.relative_upper) == (c.lower <= 0 <= c.upper)
    m = means(of("mae", np.array([.1, -.2, .3, .05] * 5), np.array([1., 2., 0., 1.] * 5)).of("mae"))
    assert relative(m, 10 * m.se)[1:] == (-np.inf, np.inf)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 40, 3_000):
        a, b = (rng.random((2, n)) < .8).astype(float)
        table = mcnemar(of("accuracy", a, b))
        assert table is not None
        k, m = int((b > a).sum()), int((a != b).sum())
        assert (table.champion, table.challenger) == (m - k, k)
        assert np.isclose(table.p, stats.binomtest(k, m).pvalue if m else 1)
        assert table.anytime_p >= .999 * table.p  # looking often costs something


def test_rates_and_medians_are_exact() -> None:
    rng, fixed = np.random.default_rng(4), Look(inference="fixed")
    for x, n in ((0, 20), (3, 50), (50, 50), (17, 4_000)):
        assert np.allclose(rate(x, n, fixed), stats.binomtest(x, n).proportion_ci(.95, "exact"), rtol=1e-9)
    for n in (15, 200, 5_001):
        d = rng.standard_t(2, n)
        value, lower, upper, p = median(count_ms(d), n, fixed)
        rank = int(stats.binom.ppf(.025, n, .5))
        exact = np.sort(d)[[rank - 1, n - rank]]
        assert np.allclose([lower, upper], exact, rtol=.021) and lower <= exact[0] and exact[1] <= upper
        assert abs(value - np.median(d)) < .03 * np.ptp(d[abs(d) < 3]) and np.isclose(p, stats.binomtest(int((d < 0).sum()), n).pvalue)


@pytest.mark.parametrize("unit", [None, "of parts", "across parts"])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_windows_fold_into_what_one_pass_gives(task: str, unit: str | None) -> None:
    n = 900
    data, rng = answers(n, 5, (1, .7), task), np.random.default_rng(5)
    if task == "regression": data = {k: v + 1e6 if k != "task" else v for k, v in data.items()}  # a large level must not cost digits
    failed = rng.random(n) < .02
    data |= {"challenger": data["challenger"].mask(pd.Series(failed)), "error": np.where(failed, "boom", None), "champion_ms": rng.gamma(2, size=n), "challenger_ms": rng.gamma(3, size=n)}
    data["y"] = pd.Series(data["y"]).mask(pd.Series(rng.random(n) < .3))
    if unit: data["unit"] = np.arange(n) // 6 if unit == "of parts" else rng.integers(0, 90, n)
    cuts = [0, 6, 12, 300, 720, 900]
    parts = [paired_sums(**{k: v[i:j] if hasattr(v, "__len__") and len(v) == n else v for k, v in data.items()}) for i, j in zip(cuts, cuts[1:], strict=False)]
    whole = paired_sums(**data)
    for folded in (reduce(add, parts), sum(reversed(parts), PairedSums())):
        for inference in ("always", "fixed"):
            for x, y in zip(paired_comparisons(folded, inference=inference), paired_comparisons(whole, inference=inference), strict=True):  # type: ignore[arg-type]
                assert (x.metric, x.verdict, x.n_control) == (y.metric, y.verdict, y.n_control)
                assert np.allclose(x[3:13], y[3:13], rtol=1e-8, atol=1e-9, equal_nan=True)
        assert folded.labels == whole.labels and folded.ms == whole.ms and (folded.n, folded.labelled) == (whole.n, whole.labelled)


def test_a_hundred_looks_at_equal_models() -> None:
    "Always-valid: at most alpha; a fixed test is wrong in a third of the runs or more"
    runs, wrong = 250, {"always": 0, "fixed": 0}
    rng = np.random.default_rng(6)
    z, y = rng.normal(size=(runs, 2_000)), rng.random((runs, 2_000))
    y = y < 1 / (1 + np.exp(-2 * z))
    loss = [-np.log(np.where(y, p, 1 - p)) for p in (1 / (1 + np.exp(-2 * z - rng.normal(size=z.shape))) for _ in range(2))]
    for a, b in zip(*loss, strict=True):
        seen = list(running(a, b, 20))
        for inference in wrong: wrong[inference] += any(judged("log_loss", m, inference, horizon=2_000.) in ("better", "worse") for m in seen)
    assert wrong["always"] / runs <= .05
    assert wrong["fixed"] / runs >= .25


def test_a_better_challenger_is_found() -> None:
    "With a difference of four standard errors, which a fixed test sees nearly always, the sequence sees it too"
    rng, found = np.random.default_rng(7), 0
    for _ in range(100):
        d = rng.normal(-4 / np.sqrt(1_000), 1, 1_000)
        a = rng.gamma(2, size=1_000) + 5
        found += any(judged("mae", m, horizon=1_000.) == "better" for m in running(a, a + d, 50))
    assert found >= 80


@pytest.mark.parametrize("inference", ["fixed", "always"])
def test_intervals_by_unit_cover(inference: str) -> None:
    "Units of very different size whose rows are alike; rows taken for independent miss far too often"
    rng, runs, missed, naive = np.random.default_rng(8), 300, 0, 0
    for _ in range(runs):
        who = np.repeat(np.arange(80), rng.integers(1, 30, 80))
        a, d = rng.gamma(2, size=len(who)) + 3, rng.normal(0, 1, 80)[who] + rng.normal(0, .5, len(who)) - .2
        for units in (who, None):
            c = paired_comparisons(of("mae", a, a + d, units), ["mae"], inference=inference, horizon=80. if units is not None else len(who))[0]  # type: ignore[arg-type]
            out = not c.lower <= -.2 <= c.upper
            missed, naive = missed + out * (units is not None), naive + out * (units is None)
    assert missed / runs <= .05 + 2.5 * np.sqrt(.05 * .95 / runs)
    assert naive / runs > .3


def test_few_rows_that_tell_the_models_apart() -> None:
    "A difference in accuracy is certain at most as often as alpha says, however few rows differ; the t interval alone is not"
    rng, runs, exact, plain = np.random.default_rng(9), 1_500, 0, 0
    for _ in range(runs):
        differ, k = np.zeros(60), rng.binomial(60, .08)
        differ[:k] = rng.choice([-1, 1], k)
        a = np.where(differ < 0, 1., np.where(differ > 0, 0., 1.))
        exact += judged("accuracy", of("accuracy", a, a + differ).of("accuracy"), "fixed") in ("better", "worse")
        plain += k > 1 and abs(differ.sum()) > 0 and stats.ttest_1samp(differ, 0).pvalue < .05
    assert exact / runs <= .05
    assert plain > 1.3 * exact


def test_failures_at_twenty_requests_a_look() -> None:
    "A healthy challenger, which fails in 1 of 200, is not blamed; one that fails in 1 of 20 is found before 1,000 requests"
    def looks(p: float, seed: int) -> list[str]:
        x, zero = (np.random.default_rng(seed).random(1_000) < p).astype(float), np.zeros(1_000)
        return [judged("error_rate", m) for m in running(zero, x, 100)]
    assert sum("worse" in looks(.005, i) for i in range(40)) <= 2
    assert sum("worse" in looks(.05, i) for i in range(40)) >= 36


def test_the_median_difference_of_times_at_every_look() -> None:
    rng, missed = np.random.default_rng(10), 0
    for _ in range(120):
        d = rng.exponential(3, 1_000) - 1
        counts = count_ms(d[:0])
        out = False
        for i in range(0, 1_000, 50):
            counts = counts + count_ms(d[i:i + 50])
            _, lower, upper, _ = median(counts, i + 50, Look(horizon=1_000))
            out |= not lower <= 3 * np.log(2) - 1 <= upper
        missed += out
    assert missed / 120 <= .05 + 2 * np.sqrt(.05 * .95 / 120)


def test_models_that_are_one_and_the_same() -> None:
    data = answers(500, 11)
    report = shadow(data["champion"], data["champion"], data["y"], task="binary", classes=["0", "1"], metrics=dict.fromkeys(("log_loss", "accuracy", "agreement"), .05), features=pd.DataFrame({"x": np.arange(500.)}))
    assert report.table()["verdict"].tolist() == ["unknown", "no worse", "no worse"] and not report.alarm
    assert report.rows["reason"].iloc[0] == "the difference is 0 in every row"


def test_a_difference_that_never_varies_is_no_certainty() -> None:
    "All that is left of its variance is rounding"
    x = np.random.default_rng(15).normal(size=400) * 1e3
    c = paired_comparisons(of("mae", abs(x), abs(x) + .1), ["mae"])[0]
    assert c.verdict == "unknown" and c.reason == "the difference is 0.1 in every row" and c.se == 0


def test_a_certainly_worse_challenger_is_an_alarm() -> None:
    report = shadow(**answers(4_000, 12, (.3, 2)))
    assert report.alarm and report.reasons[0].startswith("log loss of challenger is certainly worse")
    assert report.to_dict()["alarm"] is True and report.course["verdict"].iloc[0] == "unclear"


@pytest.mark.parametrize(("change", "said"), [
    ({"unit": [None] * 30}, "unit is null in 30 rows"),
    ({"y": ["2"] * 30}, "y has '2', which is not a class of the model"),
    ({"challenger_ms": ["fast"] * 30}, "challenger_ms is not numeric"),
    ({"error": [None] * 29}, "error has 29 rows, champion has 30"),
    ({"time": ["2026-01-01"] * 29 + [None]}, "time is null in 1 rows"),
    ({"metrics": ["auc"]}, "'auc' is no metric of a binary shadow"),
    ({"features": pd.DataFrame({"x": [1]})}, "features has 1 rows, champion has 30"),
    ({"task": "ranking"}, "task='ranking' is unknown; known: binary, multiclass, regression"),
    ({"classes": ["1"]}, "classes=['1'] are no classes"),
])
def test_bad_input_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError) as e: shadow(**{**answers(30, 13), **change})
    assert said in str(e.value)


def test_nulls_without_an_error_are_refused() -> None:
    data = answers(30, 14)
    with pytest.raises(ParameterError, match="the challenger: column 'prediction' is null in 1 rows"): paired_sums(**{**data, "challenger": data["challenger"].mask(pd.Series(range(30)) == 3)})
