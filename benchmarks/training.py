"""Measure how long training takes for different numbers of seeds trained together.

The 3-layer network of the paper is trained for a tenth of its optimiser steps. Checked: every seed's final loss against
the same seed trained alone.
"""

import jax
import numpy as np

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import NETWORKS, dataset

HIDDEN, EPOCHS, BATCH = NETWORKS["3-layer"], 1, 32
TOLERANCE = 1e-3  # relative; float32 sums in another order change the loss of an epoch


def main() -> None:
    data = dataset()
    steps = EPOCHS * (len(data.train) // BATCH)
    report = Report("training", f"Training the 3-layer network on {data.source.name}", "ms per step and seed")
    sizes = (1, 2, 10) if jax.default_backend() == "cpu" else (1, 10, 100)

    def losses(trained):
        return np.array([history.loss[-1] for _, history in trained])

    def one_by_one(seeds):
        return losses([ja.train(data, HIDDEN, seed, epochs=EPOCHS) for seed in seeds])

    separate, expected = measure(lambda: one_by_one(range(sizes[-1] if sizes[-1] <= 10 else 3)))
    count = len(expected)
    question = f"{steps} steps"
    first = report.add(make_row(question, f"{count} calls of one seed", separate, steps * count, "the reference"))
    for size in sizes:
        ways = ("threads", "vmap") if jax.default_backend() == "cpu" else ("vmap",)
        for way in ways:
            if way == "vmap" and jax.default_backend() == "cpu" and size > 2:
                continue  # many seeds in one program are slow on a CPU
            timing, got = measure(
                lambda size=size, way=way: losses(
                    ja.training.train_many(data, HIDDEN, range(size), epochs=EPOCHS, parallel=way)
                )
            )
            shared = min(size, count)
            np.testing.assert_allclose(got[:shared], expected[:shared], rtol=TOLERANCE)
            check = f"losses of {shared} seeds equal to {TOLERANCE:g}"
            report.add(
                make_row(question, f"one call of {size} seeds, {way}", timing, steps * size, check, against=first.value)
            )
    report.finish()


if __name__ == "__main__":
    main()
