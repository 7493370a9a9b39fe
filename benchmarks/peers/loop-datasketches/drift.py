"""How fast KLL sketches take numbers in, how large they are and how exact. Prints JSON.

python drift.py K BATCH VALUES
"""

import json
import sys
import time

import numpy as np
from datasketches import kll_doubles_sketch


def main(k: int, batch: int, values: int) -> dict[str, float]:
    drawn = np.random.default_rng(1).lognormal(size=values)
    sketch = kll_doubles_sketch(k)
    started = time.process_time()
    for start in range(0, values, batch):
        sketch.update(drawn[start : start + batch])
    seconds = time.process_time() - started
    points = np.quantile(drawn, np.arange(1, 500) / 500)
    wrong = np.abs(np.array(sketch.get_cdf(points))[:-1] - np.arange(1, 500) / 500).max()
    return {"per_value": seconds / values, "bytes": len(sketch.serialize()), "error": float(wrong)}


if __name__ == "__main__":
    print(json.dumps(main(*(int(argument) for argument in sys.argv[1:]))))
