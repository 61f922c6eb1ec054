"""What describing images and texts costs, in CPU-seconds: `python tests/bench/bench_describe.py`

Images are compared with a plain loop over scipy.ndimage for the same numbers, texts with a loop over Python's string methods.
"""
import random
import re
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage, stats

from mlnb.monitor.images import describe_images
from mlnb.monitor.text import describe_text, vocabulary

MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])


def plain_image(x: np.ndarray) -> list[float]:
    y = x / 255
    row, column = np.mgrid[:y.shape[0], :y.shape[1]]
    away = np.abs(y - np.median([*y[0], *y[-1], *y[1:-1, 0], *y[1:-1, -1]]))
    weight = np.maximum(away - away.max() / 2, 0) + 1e-12
    spread = np.cov(column.ravel(), row.ravel(), aweights=weight.ravel())
    return [y.mean(), y.std(), ndimage.laplace(y)[1:-1, 1:-1].var() / max(y.var(), 1e-12), np.abs(ndimage.convolve(y, MASK)[1:-1, 1:-1]).mean(), stats.entropy(np.bincount(x.ravel()), base=2),
            np.linalg.eigh(spread)[1][0, 1], np.trace(spread)]


def plain_text(text: str, known: set[str]) -> list[float]:
    n, words = max(len(text), 1), re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.casefold())
    m = max(len(words), 1)
    kinds = [sum(f(c) for c in text) / n for f in (str.isalpha, str.isdigit, str.isspace, str.isupper, str.isascii)]
    return [len(text), len(words), sum(map(len, words)) / m, *kinds, len(set(words)) / m, sum(w not in known for w in words) / m]


def cpu(f: Callable[[], object]) -> float:
    start = time.process_time()
    f()
    return time.process_time() - start


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'':<42}{'mlnb':>9}{'loop':>9}{'ratio':>7}")
    for name, shape, of in (("10,000 digits of 28 x 28", (10_000, 28, 28), 1_000), ("200 photographs of 224 x 224, grey", (200, 224, 224), 50)):
        stack = rng.integers(0, 256, shape, dtype=np.uint8)
        ours, theirs = cpu(lambda: describe_images(stack)), cpu(lambda: [plain_image(x) for x in stack[:of]]) * len(stack) / of
        print(f"{name:<42}{ours:>9.2f}{theirs:>9.2f}{theirs / ours:>7.1f}")
    print(f"{'200 photographs of 224 x 224, colour':<42}{cpu(lambda: describe_images(rng.integers(0, 256, (200, 224, 224, 3), dtype=np.uint8))):>9.2f}")
    print(f"{'one photograph of 24 million pixels':<42}{cpu(lambda: describe_images(rng.integers(0, 256, (1, 4000, 6000, 3), dtype=np.uint8))):>9.2f}")
    random.seed(0)
    texts = [" ".join(f"word{random.randrange(20_000)}" for _ in range(12)) + ". Done!" for _ in range(100_000)]  # noqa: S311
    known = vocabulary(texts)
    words = set(known.counts)
    ours, theirs = cpu(lambda: describe_text(texts, known)), cpu(lambda: [plain_text(t, words) for t in texts[:10_000]]) * 10
    print(f"{'100,000 texts of 12 words':<42}{ours:>9.2f}{theirs:>9.2f}{theirs / ours:>7.1f}")


if __name__ == "__main__": main()
