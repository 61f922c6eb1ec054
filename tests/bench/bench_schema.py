"CPU seconds of checking and conforming; run: python tests/bench/bench_schema.py"
import time

import numpy as np
import pandas as pd

from mlnb.core.schema import Schema, as_frame


def clock(f, repeat=3):
    "The best CPU time of some runs, in seconds"
    best = []
    for _ in range(repeat):
        start = time.process_time()
        f()
        best.append(time.process_time() - start)
    return min(best)


def table(n, rng):
    "40 floats and 10 texts"
    words = np.array([f"level {i}" for i in range(12)], dtype=object)
    return pd.DataFrame(rng.normal(size=(40, n)).T, columns=[f"x{i}" for i in range(40)]).assign(**{f"c{i}": words[rng.integers(0, 12, n)] for i in range(10)})


def main():
    "Print the times"
    rng = np.random.default_rng(0)
    big = table(1_000_000, rng)
    as_category = big.astype({f"c{i}": "category" for i in range(10)})
    as_object = big.astype({f"c{i}": object for i in range(10)})
    for name, frame in {"str": big, "category": as_category, "object": as_object}.items():
        schema = Schema.capture(frame)
        print(f"1,000,000 x 50, texts as {name:8}: capture {clock(lambda f=frame: Schema.capture(f), 1):.3f} s, "
              f"problems {clock(lambda s=schema, f=frame: s.problems(f)):.3f} s, strict {clock(lambda s=schema, f=frame: s.problems(f, strict=True)):.3f} s, "
              f"conform {clock(lambda s=schema, f=frame: s.conform(f)):.3f} s")
    for columns in (16, 50):
        small = big.iloc[:1, -columns:]
        schema, record = Schema.capture(big.iloc[:100, -columns:]), small.to_dict("records")
        runs = 300
        print(f"1 x {columns}: problems {1e6 * clock(lambda: [schema.problems(small) for _ in range(runs)]) / runs:.0f} us, "
              f"conform {1e6 * clock(lambda: [schema.conform(small) for _ in range(runs)]) / runs:.0f} us, "
              f"record to frame {1e6 * clock(lambda: [as_frame(record) for _ in range(runs)]) / runs:.0f} us, "
              f"record conformed {1e6 * clock(lambda: [schema.conform(record) for _ in range(runs)]) / runs:.0f} us")


if __name__ == "__main__": main()
