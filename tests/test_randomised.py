"""Two published experiments: what mlnb says of them is what the papers say, and what statsmodels says."""
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlnb.rollout.declared import Mean, Proportion
from mlnb.rollout.experiment import experiment
from mlnb.rollout.moments import moments
from mlnb.rollout.pairs import COLUMNS, means

# Resumes of either kind for an advertisement, calls for white names, calls for Black names, advertisements (Bertrand and Mullainathan 2004)
ADS = [(1, 0, 0, 182), (1, 0, 1, 4), (1, 1, 0, 12), (1, 1, 1, 13), (2, 0, 0, 921), (2, 0, 1, 29), (2, 0, 2, 6), (2, 1, 0, 62), (2, 1, 1, 33), (2, 1, 2, 7), (2, 2, 0, 19), (2, 2, 1, 18), (2, 2, 2, 17)]


@pytest.fixture(scope="module")
def ads() -> pd.DataFrame:
    table = pd.DataFrame(ADS, columns=["each", "white", "black", "times"])
    return table.loc[table.index.repeat(table["times"])].reset_index(drop=True)


@pytest.fixture(scope="module")
def resumes(ads: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([(ad, name, i < calls) for ad, r in enumerate(ads.itertuples()) for name, calls in (("white", r.white), ("black", r.black)) for i in range(r.each)], columns=["ad", "name", "call"])


@pytest.fixture(scope="module")
def men() -> pd.DataFrame:
    spec = find_spec("causaldata")
    assert spec is not None and spec.origin is not None, "causaldata is a requirement of the tests: sh .ci/install dev"
    return pd.read_stata(Path(spec.origin).parent / "nsw_mixtape" / "nsw_mixtape.dta").assign(arm=lambda t: np.where(t["treat"] == 1, "programme", "control"))


def test_the_resumes_are_those_of_the_paper(ads: pd.DataFrame, resumes: pd.DataFrame) -> None:
    "4,870 resumes for 1,323 advertisements; tables 1 and 2 of the paper"
    assert (len(resumes), len(ads)) == (4_870, 1_323)
    assert resumes.groupby("name")["call"].agg(["size", "sum"]).to_numpy().tolist() == [[2_435, 157], [2_435, 235]]
    assert [int((ads["white"] > ads["black"]).sum()), int((ads["white"] < ads["black"]).sum()), int((ads["white"] + ads["black"] == 0).sum())] == [111, 46, 1_103]


def test_callbacks(resumes: pd.DataFrame) -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep
    row = experiment(resumes, Proportion("call"), arm="name", control="black", inference="fixed").rows.iloc[0]
    assert [round(100 * row[c], 2) for c in ("control", "treatment", "difference")] == [6.45, 9.65, 3.20]
    assert round(1 + row["relative"], 2) == 1.50 and row["p"] < 1e-4 and row["verdict"] == "better"
    low, high = confint_proportions_2indep(235, 2_435, 157, 2_435, method="wald")
    assert np.allclose([row["lower"], row["upper"]], [low, high], atol=1e-5)


def test_callbacks_by_advertisement(ads: pd.DataFrame, resumes: pd.DataFrame) -> None:
    "The paired estimate is the regression with errors clustered by advertisement"
    import statsmodels.api as sm
    paired = means(moments({"rows": ads["each"], "champion": ads["black"], "challenger": ads["white"]}, COLUMNS))
    fit = sm.OLS(resumes["call"].astype(float), sm.add_constant((resumes["name"] == "white").astype(float))).fit(cov_type="cluster", cov_kwds={"groups": resumes["ad"]})
    assert np.isclose(paired.difference, fit.params["name"]) and np.isclose(paired.se, fit.bse["name"], rtol=1e-3)
    assert .0060 < paired.se < .0065


def test_every_advertisement_is_in_both_arms(resumes: pd.DataFrame) -> None:
    report = experiment(resumes, Proportion("call"), arm="name", control="black", unit="ad")
    assert report.alarm and len(report.crossed) == 1_323 and report.rows["verdict"].tolist() == ["unknown"]


def test_earnings(men: pd.DataFrame) -> None:
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW
    row = experiment(men, Mean("re78"), inference="fixed").rows.iloc[0]
    a, b = (men.loc[men["arm"] == k, "re78"].astype(float) for k in ("control", "programme"))
    both = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    assert (len(a), len(b)) == (260, 185)
    assert [round(v) for v in (row["difference"], row["se"], both.std_meandiff_pooledvar)] == [1_794, 671, 633]
    assert np.allclose([row["lower"], row["upper"]], both.tconfint_diff(usevar="unequal")) and np.isclose(row["p"], both.ttest_ind(usevar="unequal")[1])


def test_covariates_of_the_earnings(men: pd.DataFrame) -> None:
    "As the regression on arm and covariate; the slope is that of both arms together, so an imbalance, as of degrees, shifts it by a little"
    import statsmodels.api as sm
    plain = experiment(men, Mean("re78"), inference="fixed").rows.iloc[0]
    for covariate in ("re74", "re75", "nodegree"):
        row = experiment(men, Mean("re78", covariate=covariate), inference="fixed").rows.iloc[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = sm.OLS(men["re78"].astype(float), sm.add_constant(men[["treat", covariate]].astype(float))).fit(cov_type="HC3")
        assert np.isclose(row["difference"], fit.params["treat"], rtol=.025) and np.isclose(row["se"], fit.bse["treat"], rtol=.01)
        assert .98 < (row["se"] / plain["se"]) ** 2 < 1
    known = ["age", "educ", "black", "hisp", "marr", "nodegree", "re74", "re75"]
    assert round(sm.OLS(men["re78"].astype(float), sm.add_constant(men[["treat", *known]].astype(float))).fit().params["treat"]) == 1_676


def test_the_ratio_of_the_men(men: pd.DataFrame) -> None:
    "Not one to one, and not a mismatch with the 425 and 297 men of the whole programme"
    half, all_men = (experiment(men, Mean("re78"), inference="fixed", weights=w).sample for w in (None, {"control": 425 / 722, "programme": 297 / 722}))
    assert half.mismatch and np.isclose(half.p_once, .00038, atol=1e-5)
    assert not all_men.mismatch and all_men.p_once > .8
