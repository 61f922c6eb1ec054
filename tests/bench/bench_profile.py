"CPU seconds of counting and profiling, beside the obvious ways; run: python tests/bench/bench_profile.py"
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from bench_schema import clock, table

from mlnb.core.counting import bin_edges
from mlnb.core.profile import count_numbers, profile


def main():
    "Print times and ratios"
    rng = np.random.default_rng(0)
    x = rng.normal(size=1_000_000)
    edges = bin_edges(rng.normal(size=100_000))
    ours = clock(lambda: count_numbers(x, edges), 5)
    each = clock(lambda: np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1), 3)
    whole = clock(lambda: np.diff(np.searchsorted(np.sort(x), edges, side="right")), 3)
    print(f"1,000,000 numbers, {len(edges)} edges: blocks, with moments {1e3 * ours:.1f} ms; searchsorted of the values {1e3 * each:.1f} ms (x {each / ours:.1f}); "
          f"sort of all {1e3 * whole:.1f} ms (x {whole / ours:.1f})")
    big = table(1_000_000, rng)
    for texts in ("str", "category", "object"):
        frame = big if texts == "str" else big.astype({f"c{i}": texts for i in range(10)})
        reference = profile(frame)
        print(f"1,000,000 x 50, texts as {texts:8}: own bins {clock(lambda f=frame: profile(f), 1):.2f} s, kept reference {clock(lambda f=frame, r=reference: profile(f, like=r), 2):.2f} s")
    floats = big.iloc[:, :40]
    reference = profile(floats)
    print(f"1,000,000 x 40 floats, kept reference: {clock(lambda: profile(floats, like=reference), 2):.2f} s; {len(reference.to_json()):,} bytes of JSON")
    day = big.iloc[:1000]
    print(f"1,000 x 50, kept reference: {1e3 * clock(lambda: profile(day, like=profile(day)), 3):.1f} ms with its plan")
    assert isinstance(day, pd.DataFrame)


if __name__ == "__main__": main()
