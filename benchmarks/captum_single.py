"""Compare captum's `LayerFeatureAblation` with `single_ablation` on every layer of the 2-layer network.

Needs captum (`pip install ".[bench]"`). Checked: captum's change of the mean loss equals that of `single_ablation`.
"""

import functools

import jax.numpy as jnp
import numpy as np

import jaxablate as ja
from benchmarks import _baselines
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import dataset, trained

TOLERANCE = 1e-5


def main() -> None:
    data = dataset()
    model, fill = trained("2-layer")
    images, labels = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)
    report = Report("captum_single", "Each neuron ablated alone", "ms per neuron", ("captum",))
    neurons = ja.models.site_neurons(model, images)
    whole = np.ones((1, sum(model.hidden)), bool)
    intact = float(ja.evaluate_masks(model, whole, images, labels, outcomes="loss")[0])
    for layer, (site, ids) in enumerate(neurons.items()):
        question = f"{site}, {len(ids)} neurons on {len(images)} images"
        run = functools.partial(
            _baselines.captum_single_neurons, model, layer, fill, data.test.images, data.test.labels
        )
        timing, change = measure(run, repeats=3)
        captum = report.add(make_row(question, "captum", timing, len(ids), "the reference"))
        masks = np.ones((len(ids), sum(model.hidden)), bool)
        masks[np.arange(len(ids)), ids] = False
        single = functools.partial(ja.single_ablation, model, images, labels, fill, site=site)
        ways = {
            "evaluate_masks, loss": lambda m=masks: ja.evaluate_masks(model, m, images, labels, fill, outcomes="loss"),
            "single_ablation, loss": functools.partial(single, outcomes="loss"),
        }
        for name, way in ways.items():
            timing, losses = measure(lambda way=way: np.asarray(way()))
            np.testing.assert_allclose(intact - losses, change, atol=TOLERANCE)
            check = f"losses equal to {TOLERANCE:g}"
            report.add(make_row(question, name, timing, len(ids), check, against=captum.value))
        timing, counts = measure(lambda single=single: np.asarray(single()))
        np.testing.assert_array_equal(counts, ja.evaluate_masks(model, masks, images, labels, fill))
        report.add(make_row(question, "single_ablation", timing, len(ids), "counts equal", against=captum.value))
    report.finish()


if __name__ == "__main__":
    main()
