"""Slices of a rollout: an innocent challenger is accused in no slice, however often one looks, and a guilty one is found."""
import numpy as np
import pandas as pd
import pytest
from mlnb.core.errors import ParameterError
from mlnb.rollout.declared import Mean, Ratio
from mlnb.rollout.slices import slice_effects, without
from mlnb.rollout.moments import moments
from mlnb.rollout.tables import Units, enrol


def traffic(n: int, seed: int, harm: float = 0.) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    "What was asked, the arm of each row, and its loss, which is larger for the challenger in the evenings of EWR"
    rng = np.random.default_rng(seed)
    seen = pd.DataFrame({"origin": rng.choice(["EWR", "JFK", "LGA"], n), "hour": rng.integers(6, 23, n)})
    arm = rng.integers(0, 2, n)
    return seen, arm, rng.gamma(2, .2, n) + harm * ((arm == 1) & (seen["origin"] == "EWR") & (seen["hour"] > 18)).to_numpy()


def look(seen: pd.DataFrame, arm: np.ndarray, loss: np.ndarray, n: int, **how):
    return slice_effects(Mean("loss", better="lower"), {"loss": loss[:n]}, enrol(arm[:n], None, range(2)), seen[:n], ["late v1", "late v2"], min_rows=50, horizon=2000, **how)


def test_looking_at_all_slices_again_and_again_accuses_nobody() -> None:
    "Any slice is called worse or better in at most alpha of the runs, with 6 looks; the usual test at each look does so in most"
    wrong = usual = 0
    for seed in range(60):
        given, accused, naive = traffic(2400, seed), False, False
        for n in range(400, 2401, 400):
            rows = look(*given, n).rows
            accused |= bool(rows["verdict"].isin(["better", "worse"]).any())
            naive |= bool((np.abs(rows["difference"] / rows["se"]) > 1.96).any())
        wrong, usual = wrong + accused, usual + naive
    assert wrong <= 3 and usual >= 40, (wrong, usual)


def test_a_bad_slice_is_found_and_named() -> None:
    found = []
    for seed in range(20):
        report = look(*traffic(6000, 100 + seed, .3), 6000)
        found.append(report.rows.loc[report.rows["alarm"] & (report.rows["explained"] == ""), "slice"].tolist()[:1] == ["origin = EWR and hour > 18"])
    assert sum(found) >= 18, sum(found)


def test_intervals_are_those_of_the_comparison_of_the_slice_alone() -> None:
    "Each slice is what one gets who cuts out its rows and compares the arms at the shared level"
    from mlnb.rollout.comparison import compare
    seen, arm, loss = traffic(3000, 5)
    report = look(seen, arm, loss, 3000, depth=1)
    metric, k = Mean("loss", better="lower"), 8  # all rows, three airports, four parts of the day
    for name, mask in {"origin = JFK": seen["origin"] == "JFK", "all rows": np.ones(3000, bool)}.items():
        parts = [moments({"loss": loss[mask & (arm == a)]}, ["loss"]) for a in (0, 1)]
        alone, row = compare(metric, *parts, alpha=.05 / k, horizon=2000 * np.mean(mask)), report.rows.set_index("slice").loc[name]
        assert np.allclose([row["difference"], row["lower"], row["upper"], row["p"]], [alone.difference, alone.lower, alone.upper, alone.p])
        assert (row["n_control"], row["n_treatment"]) == (alone.n_control, alone.n_treatment)


def test_a_unit_counts_once_in_a_slice_and_only_with_what_it_did_there() -> None:
    seen = pd.DataFrame({"origin": np.tile(["EWR", "EWR", "JFK"], 400)})
    unit, loss = np.repeat(np.arange(400), 3), np.tile([1., 3., 10.], 400) + np.repeat(np.random.default_rng(0).normal(0, .1, 400), 3)
    units = enrol(np.repeat(np.arange(400) % 2, 3), unit, range(2))
    report = slice_effects(Ratio("loss", "rows", name="loss", better="lower"), {"loss": loss, "rows": np.ones(1200)}, units, seen, ["a", "b"])
    rows = report.rows.set_index("slice")
    assert rows["n_control"].tolist() == [200] * 3 and round(rows.loc["origin = EWR", "control"]) == 2 and round(rows.loc["origin = JFK", "control"]) == 10
    assert isinstance(units, Units) and "hold for all of them together and at any time" in report.reasons[-1]


def test_what_is_left_of_a_slice_is_exact() -> None:
    x = np.random.default_rng(1).gamma(2, 3, 500)
    whole, part, rest = (moments({"x": v}, ["x"]) for v in (x, x[:180], x[180:]))
    left = without(whole, part)
    assert left.n == rest.n and np.allclose(left.mean, rest.mean) and np.allclose(left.cross, rest.cross)
    assert without(part, whole).n == 0


@pytest.mark.parametrize(("how", "told"), [({"depth": 3}, "depth=3 is no number of columns"), ({"min_rows": 5}, "min_rows=5 is too few rows")])
def test_bad_settings(how: dict, told: str) -> None:
    seen, arm, loss = traffic(500, 0)
    with pytest.raises(ParameterError, match=told): slice_effects(Mean("loss"), {"loss": loss}, enrol(arm, None, range(2)), seen, ["a", "b"], **how)
