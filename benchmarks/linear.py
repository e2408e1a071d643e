"""Time linear compensation against bias balancing, and against a NumPy loop that solves a regression at every step.

Checked: the counts of both engines against the loop, in float64, up to near ties.
"""

import functools

import jax
import numpy as np

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import dataset, scopes_of, trained

NETWORK, ORDERS, STEPS, LOOP_STEPS = "3-layer", 4, 80, 4
NEAR_TIE = 1e-5  # relative to the largest logit


def logits_by_loop(weights: list, fill: ja.fills.LinearFill, sizes: tuple, keep: np.ndarray, images) -> np.ndarray:
    """Return the logits of a sigmoid network in float64, each layer's ablated neurons predicted by a regression."""
    h, first = np.asarray(images, np.float64).reshape(len(images), -1), 0
    for (kernel, bias), covariance, size in zip(weights[:-1], fill.covariances, sizes, strict=True):
        h = 1 / (1 + np.exp(-(h @ kernel + bias)))
        kept, means = keep[first : first + size], fill.means[first : first + size]
        if not kept.all():
            inner = covariance[np.ix_(kept, kept)] + fill.ridge * np.trace(covariance) / size * np.eye(kept.sum())
            predict = np.linalg.solve(inner, covariance[np.ix_(kept, ~kept)])
            h[:, ~kept] = means[~kept] + (h[:, kept] - means[kept]) @ predict
        first += size
    kernel, bias = weights[-1]
    return h @ kernel + bias


def main() -> None:
    data, title = dataset(), "Linear compensation against bias balancing"
    report = Report("linear", title, "ms per mask", ("NumPy loop with a solve per step",))
    model, mean = trained(NETWORK)
    images, labels = data.test.images, data.test.labels
    fill = ja.compute_fill(model, "linear", data.validation.images)
    assert isinstance(fill, ja.fills.LinearFill)
    weights = [tuple(np.asarray(array, np.float64) for array in stage.weights) for stage in model.stages]
    for scope, (first, last) in scopes_of(NETWORK).items():
        orders = np.asarray(ja.random_orders(last - first, ORDERS, key=jax.random.key(0))) + first
        run = functools.partial(ja.cumulative_ablation, model, orders, images, labels, steps=STEPS)
        number, question = ORDERS * (STEPS + 1), f"{NETWORK}, {scope}"
        timings = {}
        for engine in ("incremental", "vmap"):
            for kind, values in (("means", mean), ("linear", fill)):
                call = functools.partial(run, values, engine=engine)
                timings[f"{kind}, {engine}"] = measure(lambda call=call: np.asarray(call()), repeats=3)

        def loop(order=orders[0]) -> list[np.ndarray]:
            masks = [
                ~np.isin(np.arange(sum(model.hidden)), order[: k * STEPS // LOOP_STEPS]) for k in range(LOOP_STEPS + 1)
            ]
            return [logits_by_loop(weights, fill, model.hidden, keep, images) for keep in masks]

        timing, logits = measure(loop, repeats=1)
        differing = 0
        for k, outputs in enumerate(logits):
            second, best = np.sort(outputs, axis=1)[:, -2:].T
            allowed = int((best - second < NEAR_TIE * np.abs(outputs).max()).sum())
            for engine in ("incremental", "vmap"):
                counted = timings[f"linear, {engine}"][1][0, k * STEPS // LOOP_STEPS]
                difference = abs(int(counted) - int((outputs.argmax(axis=1) == labels).sum()))
                assert difference <= allowed, f"{question}, step {k}: counts differ by {difference}"
                differing += difference > 0
        assert (np.abs(timings["linear, incremental"][1] - timings["linear, vmap"][1]) <= 2).all()
        check = f"{2 * len(logits)} counts equal a float64 loop, {differing} of them up to a near tie"
        baseline = make_row(question, "", timings["means, incremental"][0], number, check).value
        for name, (taken, _) in timings.items():
            report.add(make_row(question, name, taken, number, check, against=baseline))
        report.add(make_row(question, "NumPy loop with a solve per step", timing, len(logits), check, against=baseline))
    report.finish()


if __name__ == "__main__":
    main()
