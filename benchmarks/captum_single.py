"""Single neurons: captum's `LayerFeatureAblation` against masks that drop one neuron each, on the last hidden layer.

Needs captum (`pip install ".[bench]"`). Checked: captum's change of a logit equals ours, by a forward pass in JAX.
"""

import functools

import jax.numpy as jnp
import numpy as np

import jaxablate as ja
from benchmarks import _baselines
from benchmarks._harness import Report, measure, row_of
from benchmarks._setup import dataset, trained

LAYER, TARGET, TOLERANCE = 2, 3, 1e-5


def main() -> None:
    data = dataset()
    model, fill = trained("3-layer")
    images, labels = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)
    start, width = sum(model.hidden[:LAYER]), model.hidden[LAYER]
    report = Report("captum_single", "Each of 200 neurons ablated alone", "ms per neuron")
    question = f"layer {LAYER + 1} of the 3-layer network"
    run = functools.partial(_baselines.captum_single_neurons, model, LAYER, fill, data.test.images, TARGET)
    timing, change = measure(run, repeats=1)
    outputs = ja.record_activations(model, images)[LAYER]
    kernel = model.stages[-1].weights[0][:, TARGET]
    expected = ((outputs - fill[start:]) * kernel).mean(axis=0)
    np.testing.assert_allclose(change, expected, atol=TOLERANCE)
    captum = report.add(row_of(question, "captum", timing, width, f"logits equal the closed form to {TOLERANCE:g}"))
    keep = np.ones((width, sum(model.hidden)), bool)
    keep[np.arange(width), start + np.arange(width)] = False
    timing, counts = measure(lambda: np.asarray(ja.evaluate_masks(model, keep, images, labels, fill)))
    sample = np.arange(0, width, 10)
    naive = _baselines.naive_jax(model, keep[sample], fill, data.test.images, data.test.labels)
    np.testing.assert_array_equal(counts[sample], naive)
    report.add(row_of(question, "evaluate_masks", timing, width, f"{len(sample)} counts equal", against=captum.value))
    report.finish()


if __name__ == "__main__":
    main()
