"""Time the sweep of the paper's figures 6 to 22, for each scope and in total, against the baselines.

The curves are the curves of these figures. Each layer has random orders, mutual information low values first with
zeros, and every metric in both directions with bias balancing. The whole network has random orders and every metric low
values first. The engines `auto` and `incremental` run all masks; slower variants run a sample, and their total is
extrapolated per mask. Only the engine `incremental` has a ceiling: `auto` takes the engine `certified`, which evaluates
the deeper layers for few examples, so that no number of products bounds it.
"""

import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxablate as ja
from benchmarks import _baselines
from benchmarks._ceilings import seconds_per_product, seconds_per_readout
from benchmarks._harness import Report, Row, make_row, measure
from benchmarks._setup import NETWORKS, assert_same_counts, dataset, scopes_of, trained

STEPS = 80
SAMPLE = {
    "naive JAX loop": 16,
    "torch, DataLoader of 32": 2,
    "torch, slices of 32": 2,
    "torch.func.vmap": 10,
    "NumPy loop": 4,
}
VMAP_CURVES = 2
CHECKED = 64  # masks of each scope and fill


def figure_orders(name: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return the orders of the figures for each scope of a network, each with the name of its fill."""
    data, (model, _) = dataset(), trained(name)
    quantize = ja.quantizers.threshold(0.5)
    codes = np.concatenate([quantize(a) for a in ja.record_activations(model, data.validation.images)], 1)
    counts = ja.joint_histogram(codes, data.validation.labels, num_codes=2, num_classes=data.num_classes)
    scores = {metric: np.asarray(ja.metrics.METRICS[metric](counts)) for metric in ja.metrics.METRICS}
    orders = {}
    for i, (scope, (start, stop)) in enumerate(scopes_of(name).items()):

        def ranked(metric, direction, start=start, stop=stop):
            return np.asarray(ja.ablation_order(scores[metric][start:stop], direction=direction)) + start

        random = np.asarray(ja.random_orders(stop - start, 10, key=jax.random.fold_in(jax.random.key(0), i))) + start
        directions = ("low",) if scope == "network" else ("low", "high")
        balanced = np.stack([*(ranked(m, d) for m in ja.metrics.METRICS for d in directions), *random])
        orders[scope] = [("mean", balanced)]
        if scope != "network":
            orders[scope].append(("zero", np.stack([ranked("mutual_information", "low"), *random])))
    return orders


def ceilings(name: str, num_examples: int) -> dict[str, float]:
    """Return the least milliseconds of an ablation step in each layer: the sigmoids, products and argmax after it."""
    model, num_classes = trained(name)[0], dataset().num_classes
    products = [seconds_per_product(*widths) for widths in itertools.pairwise([*model.hidden, num_classes])]
    readout = seconds_per_readout(num_classes)
    return {f"layer{i}": (sum(products[i:]) + readout) * num_examples * 1e3 for i in range(1, len(model.hidden) + 1)}


def variants_for(device: str) -> dict:
    """Return the baselines to run; PyTorch's only if it is installed."""
    variants = {"naive JAX loop": _baselines.naive_jax, "NumPy loop": _baselines.numpy_loop}
    if importlib.util.find_spec("torch") and device == "cpu":
        variants["torch, DataLoader of 32"] = _baselines.torch_data_loader
        variants["torch, slices of 32"] = _baselines.torch_batches_of_32
        variants["torch.func.vmap"] = _baselines.torch_func_vmap
    return variants


def main() -> None:
    data, device = dataset(), jax.default_backend()
    images, labels = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)
    report = Report("sweep", f"The sweep of figures 6 to 22 on {data.source.name}", "ms per mask", tuple(SAMPLE))
    totals: dict[str, list[float]] = {}
    num_masks = 0
    for name in NETWORKS:
        model, mean = trained(name)
        fills = {"mean": mean, "zero": np.zeros_like(mean)}
        step_ceiling = ceilings(name, len(labels)) if device == "cpu" else {}
        for scope, curves in figure_orders(name).items():
            question = f"{name}, {scope}"
            masks = sum(len(orders) for _, orders in curves) * STEPS
            num_masks += masks
            fill, orders = curves[0]

            def sweep(engine, curves, model=model, fills=fills):
                return [
                    np.asarray(ja.cumulative_ablation(model, o, images, labels, fills[f], steps=STEPS, engine=engine))
                    for f, o in curves
                ]

            auto, counts = measure(functools.partial(sweep, "auto", curves), repeats=3)
            incremental, incremental_counts = measure(functools.partial(sweep, "incremental", curves), repeats=3)
            same = functools.partial(assert_same_counts, images=data.test.images, labels=data.test.labels)
            random, checks = np.random.default_rng(2), []
            for (kind, all_orders), correct, updated in zip(curves, counts, incremental_counts, strict=True):
                # check some masks of every curve by the vmap engine, which the naive loop checks below
                keep = ja.orders.masks_of_orders(all_orders, sum(model.hidden), STEPS)
                some = random.choice(len(keep), CHECKED, replace=False)
                expected = ja.evaluate_masks(model, keep[some], images, labels, fills[kind])
                same(correct.ravel()[some], np.asarray(expected), model, keep=keep[some], fill=fills[kind])
                checks.append(same(updated.ravel(), correct.ravel(), model, keep=keep, fill=fills[kind]))
            some = [(f, o[-VMAP_CURVES:]) for f, o in curves[:1]]
            vmap, few = measure(functools.partial(sweep, "vmap", some), repeats=3)
            keep = ja.orders.masks_of_orders(orders[-VMAP_CURVES:], sum(model.hidden), STEPS)
            whole = counts[0][-VMAP_CURVES:].ravel()
            same = functools.partial(same, model=model, fill=fills[fill])
            pick = np.random.default_rng(1).permutation(len(keep))
            rows = []
            for variant, function in variants_for(device).items():
                chosen = pick[: SAMPLE[variant]]
                run = functools.partial(function, model, keep[chosen], fills[fill], data.test.images, data.test.labels)
                timing, answer = measure(run, repeats=3)
                check = same(whole[chosen], answer, keep=keep[chosen])
                rows.append(make_row(question, variant, timing, len(chosen), check))
            naive = rows[0].value
            check = same(few[0].ravel(), whole, keep=keep)
            ceiling = step_ceiling.get(scope)
            if scope == "network" and step_ceiling:
                bounds = [stop for _, stop in scopes_of(name).values()][:-1]
                layers = np.searchsorted(bounds, np.unique(orders[:, :STEPS], axis=0), side="right")
                ceiling = float(np.mean([step_ceiling[f"layer{layer + 1}"] for layer in layers.ravel()]))
                ceiling *= len(np.unique(orders[:, :STEPS], axis=0)) / len(orders)
            elif ceiling:
                unique = sum(len(np.unique(o[:, :STEPS], axis=0)) for _, o in curves)
                ceiling *= unique * STEPS / masks
            for row in rows:
                row.against = naive
            rows.append(make_row(question, "engine vmap", vmap, VMAP_CURVES * STEPS, check, against=naive))
            check_all = "; ".join(checks)
            rows.append(
                make_row(question, "engine incremental", incremental, masks, check_all, against=naive, ceiling=ceiling)
            )
            rows.append(make_row(question, "engine auto", auto, masks, check, against=naive))
            for row in rows:
                report.add(row)
                totals.setdefault(row.variant, []).append(row.value * masks / 1e3)
    add_totals(report, totals, num_masks)
    report.finish()


def add_totals(report: Report, totals: dict[str, list[float]], num_masks: int) -> None:
    """Add one row for each variant with its time for all masks of all figures."""
    naive = sum(totals["naive JAX loop"]) * 1e3 / num_masks
    for variant, seconds in totals.items():
        value = sum(seconds) * 1e3 / num_masks
        note = f"{sum(seconds):.1f} s for {num_masks} masks"
        report.add(Row("all figures", variant, value, value, value, "as above", against=naive, note=note))


if __name__ == "__main__":
    main()
