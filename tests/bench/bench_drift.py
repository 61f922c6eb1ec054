"CPU seconds of a whole check, and of scipy's tests on the rows; run: python tests/bench/bench_drift.py"
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")

import numpy as np
from bench_schema import clock, table
from scipy import stats

from mlnb.core.profile import profile
from mlnb.monitor.drift import drift


def scipy_loop(a, b):
    "KS and chi-square of every column"
    for c in a:
        if a[c].dtype.kind == "f": stats.ks_2samp(a[c].to_numpy(), b[c].to_numpy(), method="asymp")
        else: stats.chi2_contingency(np.stack([a[c].value_counts().sort_index(), b[c].value_counts().sort_index()]))


def main():
    "Print times and ratios"
    rng = np.random.default_rng(0)
    for n in (10_000, 100_000, 1_000_000):
        a, b = (table(n, rng).astype({f"c{i}": "category" for i in range(10)}) for _ in range(2))
        known = profile(a)
        window = profile(b, like=known)
        kept, both, ours = clock(lambda k=known, b=b: drift(k, b), 2), clock(lambda a=a, b=b: drift(a, b), 1), clock(lambda k=known, w=window: drift(k, w), 2)
        scipys = clock(lambda a=a, b=b: scipy_loop(a, b), 1)
        print(f"{n:>9,} x 50: kept reference {kept:.3f} s, both sides from rows {both:.3f} s, from profiles {ours:.3f} s; scipy {scipys:.3f} s (x {scipys / kept:.1f} and x {scipys / both:.1f})")


if __name__ == "__main__": main()
