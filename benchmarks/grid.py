"""Measure a grid of conditions against studies of the conditions one by one.

The six conditions are three values of L2 by two activation functions. Each condition trains the paper's two networks
for one epoch and ablates them. Every variant starts without compiled programs, like a new process. All counts must
equal the counts of the study of each condition alone.
"""

import jax
import numpy as np

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import dataset

VARY = {"l2": (0, 1e-4, 1e-3), "activation": ("sigmoid", "relu")}


def main() -> None:
    data = dataset()
    config = ja.StudyConfig(epochs=1, seeds=(0,), vary=VARY)
    conditions = config.conditions()
    question = f"{len(conditions)} conditions"
    report = Report("grid", f"A grid of {question} on {data.source.name}", "s")

    def grid():
        jax.clear_caches()
        return ja.run_study(config, data=data)

    def one_by_one(keep_programs):
        jax.clear_caches()
        results = {}
        for name, condition in conditions.items():
            if not keep_programs:
                jax.clear_caches()
            results[name] = ja.run_study(condition, data=data)
        return results

    loop, expected = measure(lambda: one_by_one(keep_programs=False), repeats=1)
    first = report.add(make_row(question, "one by one, compiled again each time", loop, 1e3, "the reference"))
    for variant, function in {
        "one by one, programs shared": lambda: one_by_one(keep_programs=True),
        "one grid": grid,
    }.items():
        timing, results = measure(function, repeats=1)
        for name, study in expected.items():
            for network, node in study.children.items():
                np.testing.assert_array_equal(results[name][network]["correct"], node["correct"])
        check = "counts equal"
        report.add(make_row(question, variant, timing, 1e3, check, against=first.value))
    report.finish()


if __name__ == "__main__":
    main()
