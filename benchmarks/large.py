"""Ablate a network with layers of 10^4 neurons on 10^6 examples within a fixed amount of memory.

Examples are made batch by batch and never held together: standard normal features with the labels of a linear teacher.
The network has random hidden layers; its readout picks the class with the nearest mean. One fifth of the examples gives
the scores (mean activation and mutual information of every neuron), the rest gives the curves of the last hidden layer.
The case runs in a separate process, which fails beyond the budget. Checked: the first counts against float64 NumPy.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks._harness import Report, Row

FEATURES, CLASSES, BATCH, STEPS = 64, 10, 4000, 80
BUDGET = 3 * 2**30
MEMORY_LIMIT = 2**28
CHECKED = 200


def batches(start: int, stop: int, size: int = BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the examples from `start`, a multiple of the batch size, to `stop`; each batch has its own random seed."""
    teacher = np.random.default_rng(0).standard_normal((FEATURES, CLASSES), np.float32)
    for number in range(start // size, -(-stop // size)):
        length = min(size, stop - number * size)
        images = np.random.default_rng((1, number)).standard_normal((length, FEATURES), np.float32)
        yield images, (images @ teacher).argmax(axis=1)


def network(hidden: list[int]):
    """Build random hidden layers and a readout that picks the class with the nearest mean."""
    import jaxablate as ja

    random, sizes = np.random.default_rng(2), [FEATURES, *hidden]
    kernels = [
        random.standard_normal(shape, np.float32) * np.float32(4 / shape[0] ** 0.5)
        for shape in zip(sizes[:-1], hidden, strict=True)
    ]
    biases = [np.zeros(width, np.float32) for width in hidden]
    images, labels = next(batches(0, BATCH))
    random_readout = np.zeros((hidden[-1], CLASSES), np.float32)
    biases_of_body = [*biases, np.zeros(CLASSES, np.float32)]
    body = ja.models.from_arrays([*kernels, random_readout], biases_of_body, activation="sigmoid")
    last = np.asarray(ja.record_activations(body, images)[-1])
    means = np.stack([last[labels == label].mean(axis=0) for label in range(CLASSES)]) - last.mean(axis=0)
    offsets = -(means * (last.mean(axis=0) + means / 2)).sum(axis=1)
    return ja.models.from_arrays([*kernels, means.T], [*biases, offsets], activation="sigmoid")


def run_case(examples: int, hidden: list[int]) -> dict:
    """Score and ablate the network; runs in the child process."""
    import resource

    import jax
    import jax.numpy as jnp

    import jaxablate as ja

    model, quantizer = network(hidden), ja.quantizers.threshold(0.5)
    cut = max(1, examples // 5 // BATCH) * BATCH

    def count(images, labels):
        activations = jnp.concatenate(ja.record_activations(model, images), axis=1)
        counts = ja.joint_histogram(quantizer(activations), labels, num_codes=2, num_classes=CLASSES)
        return {"mean": activations.mean(axis=0), "counts": counts}

    start = time.perf_counter()
    statistics = ja.streams.combine(batches(0, cut), count)
    information = np.asarray(ja.mutual_information(statistics["counts"].astype(np.int32)))
    scored = time.perf_counter()
    first = sum(hidden[:-1])
    orders = np.stack([ja.ablation_order(information[first:], direction=way) for way in ("low", "high")])
    orders = np.concatenate([orders, ja.random_orders(hidden[-1], 1, key=jax.random.key(0))]) + first
    each, fill = hidden[-1] // STEPS, statistics["mean"].astype(np.float32)

    def curves(images, labels):
        return ja.cumulative_ablation(
            model, orders, images, labels, fill, steps=np.arange(1, STEPS + 1) * each, memory_limit=MEMORY_LIMIT
        )

    correct = ja.streams.combine(batches(cut, examples), curves)
    ended = time.perf_counter()
    some = next(batches(cut, cut + CHECKED))
    check = compare(np.asarray(curves(*some)), model, orders, each, fill, *some)
    assert statistics["counts"][0].sum() == cut
    return {
        "scores": scored - start,
        "curves": ended - scored,
        "examples": [cut, examples - cut],
        "check": check,
        "accuracy": (correct[:, [0, STEPS // 2]] / (examples - cut)).round(4).tolist(),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def compare(counts, model, orders, each: int, fill, images, labels) -> str:
    """Raise unless some counts equal float64 NumPy's counts, near ties excepted."""
    outputs = np.asarray(images, np.float64)
    *below, (kernel, bias) = [tuple(np.asarray(a, np.float64) for a in stage.weights) for stage in model.stages]
    for matrix, offset in below:
        outputs = 1 / (1 + np.exp(-(outputs @ matrix + offset)))
    first = len(fill) - outputs.shape[1]
    for order, curve in zip(orders, counts, strict=True):
        for step in (0, 1, STEPS // 2, STEPS):
            kept = np.ones(outputs.shape[1], bool)
            kept[order[: step * each] - first] = False
            logits = np.where(kept, outputs, fill[first:]) @ kernel + bias
            second, largest = np.sort(logits, axis=1)[:, -2:].T
            wrong = abs(int(curve[step]) - int((logits.argmax(axis=1) == labels).sum()))
            if wrong > (largest - second < 1e-3).sum():  # near ties of logits near 100
                raise AssertionError(f"step {step}: {wrong} counts differ")
    return f"{len(counts) * 4} counts of {len(labels)} examples as in float64"


def main(examples: int = 10**6, hidden: tuple[int, ...] = (10_000, 10_000)) -> None:
    print(f"  budget: {BUDGET / 2**30:.1f} GiB for {examples} examples of {FEATURES}, hidden layers {hidden}")
    command = [sys.executable, "-m", "benchmarks.large", "--case", json.dumps([examples, hidden])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    peak = f"peak {result['bytes'] / 2**30:.2f} of {BUDGET / 2**30:.1f} GiB"
    print(f"  {peak}")
    if result["bytes"] > BUDGET:
        raise AssertionError(f"{peak}: the budget is not kept")
    layers = " x ".join(map(str, hidden))
    report = Report("large", f"{examples} examples, hidden layers {layers}, in a fixed memory budget", "ms per example")
    parts = {
        "scores": f"{sum(hidden)} neurons",
        "curves": f"3 orders, {STEPS} steps; accuracy {result['accuracy']} intact and half ablated",
    }
    for (part, note), number in zip(parts.items(), result["examples"], strict=True):
        value = result[part] / number * 1e3
        note = f"{note}; {result[part]:.0f} s in all; {peak}"
        report.add(Row(f"{number} examples", part, value, value, value, result["check"], note=note))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10**6)
    parser.add_argument("--hidden", type=int, nargs="+", default=[10_000, 10_000])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.examples < 2 * BATCH:
        parser.error(f"--examples: expected at least {2 * BATCH}, got {arguments.examples}")
    if arguments.case:
        print(json.dumps(run_case(*json.loads(arguments.case))))
    else:
        main(arguments.examples, tuple(arguments.hidden))
