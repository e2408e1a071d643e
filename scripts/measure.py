"""Measure everything that the findings need: train networks, run the study, and study quantizers and pairs.

`python scripts/measure.py RUN [--seeds 20] [--data docs/findings/data]` writes to the folder RUN, where an interrupted
run resumes, and copies the results into the folder of `--data`, compressed. `scripts/findings.py` reads them there. The
data are full MNIST; about two hours on two idle cores.
"""

import argparse
import itertools
import lzma
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.cli._console import Bars
from jaxablate.datasets import Split
from jaxablate.figures import draw_pair_information
from jaxablate.protocols import protocol_names

BASELINE = "contribution_sd"
BINS = (2, 4, 8, 16, 32)
QUANTIZERS = ("activation", *(f"quantile:{bins}" for bins in BINS), *(f"uniform:{bins}:0:1" for bins in BINS[1:]))
"""Uniform codes cover the range of a sigmoid; two uniform codes equal the first quantizer and are left out."""
FILLS, COMPARED = ("mean", "zero"), ("all", "changing")
FEWER_SEEDS, TRAINING_IMAGES = 10, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure everything that the findings need.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--dataset", default="mnist", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=20, help="networks of each kind; default: %(default)s")
    parser.add_argument("--epochs", type=int, help="default: the paper's")
    parser.add_argument("--images", type=int, default=2000, help="test images for pairs; default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("docs/findings/data"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        measure(arguments.run, arguments.dataset, arguments.seeds, arguments.epochs, arguments.images)
        compress(arguments.run, arguments.data)
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def measure(run: Path, dataset: str, num_seeds: int, epochs: int | None, images: int) -> None:
    config = ja.StudyConfig(
        dataset=dataset,
        seeds=range(num_seeds),
        epochs=epochs,
        protocols=protocol_names("departures,controls"),
        scores=(*ja.metrics.METRICS, BASELINE),
    )
    bars = Bars()
    with bars.progress:
        results = ja.run_study(config, run_dir=run, on_progress=bars)
    ja.results.save_results(results, run / "results.nc")
    data = ja.load_dataset(dataset, seed=config.split_seed)
    fewer = replace(data, test=Split(data.test.images[:images], data.test.labels[:images]))
    for hidden in config.networks:
        name = ja.study.network_name(hidden)
        models = [ja.load_model(run / "networks" / f"{name}_seed{seed}.safetensors").model for seed in config.seeds]
        training = training_curves(models, results[name].to_dataset(), data)
        ja.results.save_table(training, run / f"training_{name}.nc")
        bars = Bars()
        with bars.progress:
            sensitivity = ja.study.quantizer_sensitivity(models[:FEWER_SEEDS], data, QUANTIZERS, on_progress=bars)
            ja.results.save_table(sensitivity, run / f"sensitivity_{name}.nc")
            draw_pairs(models[0], data, run / f"pairs_{name}.png", f"{name} network, seed {config.seeds[0]}")
            for fill, compared in itertools.product(FILLS, COMPARED):
                pairs = ja.study.redundancy_test(
                    models[:FEWER_SEEDS], fewer, fill=fill, only_changing=compared == "changing", on_progress=bars
                )
                ja.results.save_table(pairs, run / f"pairs_{compared}_{fill}_{name}.nc")


def training_curves(models: list[ja.MLP], network: xr.Dataset, data: ja.Dataset) -> xr.Dataset:
    """Repeat the curves of all rankings within layers on training examples: fractions (seed, scope, ordering, step)."""
    examples = Split(data.train.images[:TRAINING_IMAGES], data.train.labels[:TRAINING_IMAGES])
    ranked = network.isel(ordering=network["ranking"].values != "random", scope=slice(0, -1))
    curves = np.empty(tuple(ranked["accuracy"].isel(fill=0).sizes[d] for d in ("seed", "scope", "ordering", "step")))
    for seed, model in enumerate(models):
        fill = ja.compute_fill(model, "mean", data.validation.images)
        for scope in range(ranked.sizes["scope"]):
            orders = ranked["ablated"].isel(seed=seed, scope=scope).values
            counts = ja.cumulative_ablation(model, orders, examples.images, examples.labels, fill)
            curves[seed, scope] = np.asarray(counts) / len(examples)
    coords = {name: ranked[name].values for name in ("seed", "scope", "ordering", "step")}
    accuracy = xr.DataArray(curves, coords, list(coords), attrs={"long_name": "accuracy on training examples"})
    return xr.Dataset({"accuracy": accuracy}, attrs={"num_examples": len(examples)})


def draw_pairs(model: ja.MLP, data: ja.Dataset, path: Path, title: str) -> None:
    """Draw the information of all pairs of the last layer about the class; the code says if a neuron fires."""
    activations = ja.record_activations(model, data.validation.images)[-1]
    codes = ja.quantizers.default_quantizer(model.activation)(activations)
    pairs = ja.interactions.pair_information(
        codes, data.validation.labels, num_codes=2, num_classes=data.num_classes
    )  # fmt: skip
    figure = draw_pair_information(pairs, arranged="clusters", title=f"Pairs of neurons of the last layer, {title}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def compress(run: Path, folder: Path) -> None:
    """Copy the results and pictures of a run; curves that protocols share make results compress to a few percent."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(run.glob("pairs_*.png")):
        with atomic_path(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
    smaller = run / "results_without_accuracy.nc"
    results = ja.results.load_results(run / "results.nc")
    # the counts determine the accuracies
    xr.map_over_datasets(lambda node: node.drop_vars("accuracy", errors="ignore"), results).to_netcdf(
        smaller, engine="h5netcdf"
    )
    tables = [*run.glob("training_*.nc"), *run.glob("sensitivity_*.nc"), *run.glob("pairs_*.nc")]
    for file, name in [(smaller, "results.nc"), *((table, table.name) for table in sorted(tables))]:
        with atomic_path(folder / f"{name}.xz") as temporary:
            # The curves that protocols share lie far apart, hence the large dictionary.
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}]
            temporary.write_bytes(lzma.compress(file.read_bytes(), filters=filters))
    smaller.unlink()


if __name__ == "__main__":
    main()
