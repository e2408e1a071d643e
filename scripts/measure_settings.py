"""Run the paper's study in other settings: data, activations, weight decay, widths, depths, epochs, splits and noise.

`python scripts/measure_settings.py RUN --data-dir FOLDER [--seeds 5] [--data docs/findings/data]` measures every
setting that differs from the paper's in one point, and a random sample of all combinations. FOLDER has one folder for
each dataset. RUN keeps each setting, so that an interrupted run resumes. `scripts/findings.py` reads the compressed
results. About an hour and a half on two idle cores.
"""

import argparse
import itertools
import json
import lzma
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.layer_analysis import spearman
from jaxablate.study._scores import compute_score, evidence_of, quantizer_of

SCORES = (*ja.metrics.METRICS, "contribution_sd")
QUANTIZERS = ("activation", *(f"quantile:{bins}" for bins in (2, 4, 8, 16, 32)))
PAPER = {"dataset": "mnist", "activation": "sigmoid", "l2": 1e-3, "networks": ((200,) * 2, (200,) * 3), "epochs": 10}
ONE_CHANGED: list[dict[str, Any]] = [
    {},
    {"dataset": "fashion_mnist"},
    *({"activation": name} for name in ("relu", "tanh", "gelu")),
    *({"l2": l2} for l2 in (0.0, 1e-4)),
    *({"networks": ((width,) * 2, (width,) * 3)} for width in (100, 400)),
    *({"networks": ((200,) * depth,)} for depth in (1, 4, 5)),
    *({"epochs": epochs} for epochs in (5, 40)),
    *({"split_seed": seed} for seed in (1, 2)),
    {"dropout": 0.2},
    {"label_noise": 0.2},
]
"""What is different from the paper's setting; nothing in the first."""
ALL_VALUES: dict[str, tuple[Any, ...]] = {
    "dataset": ("mnist", "fashion_mnist"),
    "activation": ("sigmoid", "relu", "tanh", "gelu"),
    "l2": (0.0, 1e-4, 1e-3),
    "networks": tuple(((width,) * depth,) for width in (100, 200, 400) for depth in range(1, 6)),
    "epochs": (5, 10),
    "split_seed": (2045, 1, 2),
}
NUM_SAMPLED = 10
RANDOM_ORDERS, LINEAR_ORDERS = 5, 3  # linear compensation takes many times as long as the other fills


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the paper's study in other settings.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with one folder for each dataset")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind; default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("docs/findings/data"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        for name, changes in settings().items():
            measure(name, changes, arguments.run, arguments.data_dir, arguments.seeds)
        compress(arguments.run, arguments.data)
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def settings() -> dict[str, dict[str, Any]]:
    """Return what each setting changes, by its name: one point, or a combination drawn at random."""
    drawn = random.Random(0).sample(list(itertools.product(*ALL_VALUES.values())), NUM_SAMPLED)
    sampled = [dict(zip(ALL_VALUES, values, strict=True)) for values in drawn]
    names = {", ".join(map(_name, changes, changes.values())) or "paper": changes
             for changes in ONE_CHANGED}  # fmt: skip
    return names | {f"sample {i + 1}": changes for i, changes in enumerate(sampled)}


def _name(setting: str, value: Any) -> str:
    """Describe a setting in a few words, such as "width 100"."""
    if setting == "networks":
        return f"width {value[0][0]}" if len(value) > 1 else f"depth {len(value[0])}"
    return f"{setting.replace('_', ' ')} {value}"


def file_name(name: str) -> str:
    """Return the name of the file of a setting."""
    return f"{name.replace(' ', '_')}.nc"


def measure(name: str, changes: Mapping[str, Any], run: Path, data_dir: Path | None, num_seeds: int) -> None:
    """Run the study of a setting, and keep its results as one file."""
    file = run / file_name(name)
    if file.exists():
        return
    values = {**PAPER, **changes}
    narrowest = min(min(hidden) for hidden in values["networks"])
    config = ja.StudyConfig(
        **values,
        data_dir=None if data_dir is None else data_dir / values["dataset"],
        seeds=range(num_seeds),
        protocols=("paper", "constant_last"),
        scores=SCORES,
        num_random_orders=RANDOM_ORDERS,
        steps=narrowest * 2 // 5,  # the fraction of a layer that the paper ablates
    )
    folder = run / file.stem
    results = ja.run_study(config, run_dir=folder, on_progress=None)
    data = ja.load_dataset(config.dataset, data_dir=config.data_dir, seed=config.split_seed)
    for hidden in config.networks:
        network = ja.study.network_name(hidden)
        models = [
            ja.load_model(folder / "networks" / f"{network}_seed{seed}.safetensors").model for seed in config.seeds
        ]
        node = results[network].to_dataset()
        added = {
            "code_correlations": code_correlations(models, node, data),
            "linear_correct": linear_curves(models, node, data),
        }
        results[network] = xr.DataTree(node.assign(added))
    results.attrs["changes"] = json.dumps(dict(changes))
    reduced = xr.map_over_datasets(_without_large_arrays, results)
    with atomic_path(file) as temporary:
        reduced.to_netcdf(temporary, engine="h5netcdf")
    print(name, flush=True)


def code_correlations(models: list[ja.MLP], network: xr.Dataset, data: ja.Dataset) -> xr.DataArray:
    """Correlate mutual information under each quantizer with the damage of ablating only that neuron.

    Only neurons whose activations on the validation split differ have a part. Spearman's correlation
    (seed, site, quantizer).
    """
    damage, layers = network["single_damage"].values, network["layer"].values
    correlations = np.empty((len(models), layers.max(), len(QUANTIZERS)))
    for seed, model in enumerate(models):
        evidence = evidence_of(model, data, quantizer_of(QUANTIZERS[0], model))
        varies = np.ptp(np.asarray(evidence.activations), axis=0) > 0
        for i, quantizer in enumerate(QUANTIZERS):
            coded = evidence.with_quantizer(quantizer_of(quantizer, model))
            information = np.asarray(compute_score("mutual_information", coded))
            chosen = varies & (layers == np.arange(1, layers.max() + 1)[:, None])
            correlations[seed, :, i] = spearman(np.where(chosen, information, np.nan), damage[seed])
    coords = {"seed": network["seed"].values, "quantizer": list(QUANTIZERS)}
    return xr.DataArray(correlations, coords, ("seed", "site", "quantizer"))


def linear_curves(models: list[ja.MLP], network: xr.Dataset, data: ja.Dataset) -> xr.DataArray:
    """Repeat a few random orders of every scope under linear compensation: counts (seed, scope, random_order, step)."""
    chosen = network["ablated"].isel(ordering=np.flatnonzero(network["ranking"] == "random")[:LINEAR_ORDERS]).values
    shape = (len(models), network.sizes["scope"], LINEAR_ORDERS, network.sizes["step"])
    counts = np.empty(shape, np.int32)
    for seed, model in enumerate(models):
        fill = ja.compute_fill(model, "linear", data.validation.images, data.validation.labels)
        for scope in range(shape[1]):
            counts[seed, scope] = ja.cumulative_ablation(
                model, chosen[seed, scope], data.test.images, data.test.labels, fill, steps=shape[-1] - 1
            )
    return xr.DataArray(counts, {"seed": network["seed"].values}, ("seed", "scope", "random_order", "step"))


def _without_large_arrays(node: xr.Dataset) -> xr.Dataset:
    """Leave out what counts determine, and what the findings do not read."""
    left_out = ("accuracy", "single_class_drop", "class_accuracy")
    return node.drop_vars([name for name in left_out if name in node])


def compress(run: Path, folder: Path) -> None:
    """Write every setting that was measured as one compressed file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in settings():
        file = run / file_name(name)
        if not file.exists():
            continue
        with atomic_path(folder / f"setting_{file.name}.xz") as temporary:
            temporary.write_bytes(lzma.compress(file.read_bytes(), preset=9))


if __name__ == "__main__":
    main()
