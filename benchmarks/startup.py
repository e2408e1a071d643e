"""Time a new process: import, first curve (with compilation) and second curve.

The process runs without JAX's persistent compilation cache, and with an empty and a filled one, as on the command line.
Checked: both curves are equal.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks._harness import Report, Row

CHILD = """
import json, time
start = time.perf_counter()
import jaxablate as ja
times = {"import jaxablate": time.perf_counter() - start}
import numpy as np
from flax import nnx
random = np.random.default_rng(0)
images, labels = random.random((10_000, 28, 28), np.float32), random.integers(0, 10, 10_000).astype(np.int32)
model = ja.MLP(784, (200, 200, 200), 10, rngs=nnx.Rngs(0))
orders = np.arange(600)[None]
curves = []
for name in ("first curve of the whole network", "second curve"):
    start = time.perf_counter()
    curves.append(np.asarray(ja.cumulative_ablation(model, orders, images, labels)))
    times[name] = time.perf_counter() - start
assert (curves[0] == curves[1]).all()
print(json.dumps(times))
"""


def main() -> None:
    report = Report("startup", "Time to the first result in a new process", "s")
    with tempfile.TemporaryDirectory() as folder:
        for question, cache in (("no cache", ""), ("cache, cold", folder), ("cache, warm", folder)):
            runs = []
            for _ in range(1 if question == "cache, cold" else 3):
                environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
                if cache:
                    environment["JAX_COMPILATION_CACHE_DIR"] = cache
                command = [sys.executable, "-c", CHILD]
                output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                runs.append(json.loads(output.splitlines()[-1]))
            for variant in runs[0]:
                times = [run[variant] for run in runs]
                report.add(Row(question, variant, statistics.median(times), min(times), max(times), "curves equal"))
    report.finish()


if __name__ == "__main__":
    main()
