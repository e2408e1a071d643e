"""Measure how time and memory grow with masks, examples, width and depth.

Each case runs in a separate process, so that its peak memory is measured alone. The networks are untrained, because the
work does not depend on the weights. Checked: the counts of a sample of masks against the naive loop.
"""

import json
import subprocess
import sys

from benchmarks._harness import Report, Row
from benchmarks._setup import dataset

CASES = {
    "masks (2,000 examples, 2 x 200)": [
        {"masks": n, "examples": 2_000, "hidden": (200, 200)} for n in (100, 1_000, 10_000, 100_000)
    ],
    "examples (324 masks, 2 x 200)": [
        {"masks": 324, "examples": n, "hidden": (200, 200)} for n in (100, 1_000, 10_000)
    ],
    "width (81 masks, 1,000 examples, 2 layers)": [
        {"masks": 81, "examples": 1_000, "hidden": (n, n)} for n in (100, 200, 400, 800, 1600)
    ],
    "depth (81 masks, 1,000 examples, width 200)": [
        {"masks": 81, "examples": 1_000, "hidden": (200,) * n} for n in (1, 2, 3, 4, 6)
    ],
}


def run_case(masks: int, examples: int, hidden: list[int]) -> dict:
    """Time the vmap engine on random masks; runs in the child process."""
    import resource

    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import jaxablate as ja
    from benchmarks import _baselines
    from benchmarks._harness import measure
    from benchmarks._setup import assert_same_counts

    test = dataset().test
    pick = np.resize(np.arange(len(test)), examples)
    images, labels = test.images[pick], test.labels[pick]
    model = ja.MLP(images[0].size, tuple(hidden), 10, rngs=nnx.Rngs(0))
    keep = (
        np.random.default_rng(0).integers(5, size=(masks, sum(hidden)), dtype=np.uint8) > 0
    )  # one fifth of the neurons is ablated
    fill = np.zeros(sum(hidden), np.float32)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    timing, counts = measure(
        lambda: np.asarray(ja.evaluate_masks(model, keep, x, y, fill)),
        1 if masks > 10_000 else 7 if masks < 10_000 else 3,
    )
    sample = np.linspace(0, masks - 1, 20).astype(int)
    expected = _baselines.naive_jax(model, keep[sample], fill, images, labels)
    check = assert_same_counts(counts[sample], expected, model, keep[sample], fill, images, labels)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"timing": vars(timing), "check": check, "megabytes": megabytes}


def main() -> None:
    dataset()  # download once, before the child processes start
    report = Report("growth", "Growth of the vmap engine's time and peak memory", "ms per mask")
    for question, cases in CASES.items():
        first = None
        for case in cases:
            command = [sys.executable, "-m", "benchmarks.growth", json.dumps(case)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            timing, scale = result["timing"], 1e3 / case["masks"]
            value = timing["median"] * scale
            first = value if first is None else first
            sizes = {"masks": case["masks"], "examples": case["examples"], "width": case["hidden"][0]}
            varied = question.split()[0]
            size = sizes.get(varied, len(case["hidden"]))
            report.add(
                Row(
                    question,
                    f"{size} {varied}",
                    value,
                    timing["low"] * scale,
                    timing["high"] * scale,
                    result["check"],
                    against=first,
                    compile_s=timing["compile"],
                    cores=timing["cores"],
                    size=size,
                    note=f"peak {result['megabytes']:.0f} MB",
                )
            )
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run_case(**json.loads(sys.argv[1]))))
    else:
        main()
