"""CPU seconds and memory of whole checks, beside scipy and the peers that are installed. Run:

    python tests/bench/bench_drift.py                 # 10,000, 100,000 and 1,000,000 rows x 50
    python tests/bench/bench_drift.py --rows 100000   # one size
"""
import argparse
import ctypes
import importlib
import os
import re

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")
os.environ.setdefault("NML_DISABLE_USAGE_LOGGING", "1")  # nannyml
os.environ.setdefault("DO_NOT_TRACK", "1")               # evidently

import numpy as np
import pandas as pd
from bench_schema import clock, table
from scipy import stats

from mlnb.core.profile import profile
from mlnb.monitor.drift import drift

LIMITS = {"kept reference": .5, "both sides from rows": 1.5}  # CPU seconds for 1,000,000 x 50, as promised


def peak(f) -> float:
    "Peak memory above what there was before, in MB; NaN where Linux does not tell"
    def status(key): return int(re.search(rf"{key}:\s*(\d+)", open("/proc/self/status").read())[1]) / 1024
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier work left
        with open("/proc/self/clear_refs", "w") as out: out.write("5")
        before = status("VmRSS")
        f()
        return status("VmHWM") - before
    except (OSError, AttributeError): return float("nan")


def scipy_loop(a, b):
    "KS and chi-square of every column"
    for c in a:
        if a[c].dtype.kind == "f": stats.ks_2samp(a[c].to_numpy(), b[c].to_numpy(), method="asymp")
        else: stats.chi2_contingency(np.stack([a[c].value_counts().sort_index(), b[c].value_counts().sort_index()]))


def evidently(a, b):
    "Its preset for drift; writes no report"
    m = importlib.import_module
    return m("evidently").Report([m("evidently.presets").DataDriftPreset()]).run(b, a)


def nannyml(a, b):
    "Its default distance of each column, the window as one chunk"
    m = importlib.import_module("nannyml")
    return m.UnivariateDriftCalculator(column_names=list(a), chunk_size=max(len(a) // 10, 1)).fit(a).calculate(b)


def alibi_detect(a, b):
    "KS and chi-square of every column, levels as numbers"
    m = importlib.import_module("alibi_detect.cd")
    def coded(x): return np.column_stack([x[c].cat.codes if isinstance(x[c].dtype, pd.CategoricalDtype) else x[c] for c in x]).astype("float32")
    levels = {i: None for i, c in enumerate(a) if isinstance(a[c].dtype, pd.CategoricalDtype)}
    return m.TabularDrift(coded(a), p_val=.05, categories_per_feature=levels).predict(coded(b))


PEERS = {"scipy": (scipy_loop, 10_000_000), "nannyml": (nannyml, 10_000_000), "alibi_detect": (alibi_detect, 10_000_000), "evidently": (evidently, 100_000)}  # and up to how many rows


def compare(a, b, ours):
    "A line for each peer"
    for name, (run, most) in PEERS.items():
        try: importlib.import_module(name)
        except ImportError as e:
            print(f"    {name}: " + ("not installed" if isinstance(e, ModuleNotFoundError) and e.name == name else f"installed, but cannot be imported ({e})"))
            continue
        if len(a) > most: print(f"    {name}: left out beyond {most:,} rows, it would not end")
        else:
            taken = clock(lambda run=run: run(a, b), 1)
            print(f"    {name}: {taken:.3f} s, " + ", ".join(f"x {taken / t:.1f} of {what}" for what, t in ours.items()))


def main():
    "Print times, memory and ratios"
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    rng = np.random.default_rng(0)
    for n in args.parse_args().rows:
        a, b = (table(n, rng).astype({f"c{i}": "category" for i in range(10)}) for _ in range(2))
        known = profile(a)
        window = profile(b, like=known)
        runs = {"kept reference": lambda k=known, b=b: drift(k, b), "both sides from rows": lambda a=a, b=b: drift(a, b), "profiles": lambda k=known, w=window: drift(k, w)}
        memory = {what: peak(f) for what, f in runs.items()}
        times = {what: clock(f, 3) for what, f in runs.items()}
        print(f"{n:,} x 50: " + "; ".join(f"{what} {t:.3f} s" + (f" (limit {LIMITS[what]} s)" if n == 1_000_000 and what in LIMITS else "") + f", {memory[what]:.0f} MB above the input" for what, t in times.items()))
        compare(a, b, {what: times[what] for what in LIMITS})


if __name__ == "__main__": main()
