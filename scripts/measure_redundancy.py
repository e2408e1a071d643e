"""Measure the linear redundancy of layers: train networks, ablate every layer to its end and compress the results.

`python scripts/measure_redundancy.py RUN --data-dir FOLDER [--seeds 20] [--fewer-seeds 5] [--data docs/findings/data]`
trains the paper's two networks on MNIST, and fewer of them with ReLU and on Fashion-MNIST. FOLDER has one folder for
each dataset. RUN keeps each network's results, so that an interrupted run resumes. About an hour on two idle cores.
"""

import argparse
import itertools
import lzma
import sys
from pathlib import Path

import xarray as xr

import jaxablate as ja
from jaxablate._files import atomic_path

PAPER = "mnist", "sigmoid"
OTHERS = [("mnist", "relu"), ("fashion_mnist", "sigmoid"), ("fashion_mnist", "relu")]
NETWORKS = (200, 200), (200, 200, 200)
NEURONS_PER_STEP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the linear redundancy of layers.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with one folder for each dataset")
    parser.add_argument("--seeds", type=int, default=20, help="networks of each kind; default: %(default)s")
    parser.add_argument("--fewer-seeds", type=int, default=5, help="the same in other settings; default: %(default)s")
    parser.add_argument("--epochs", type=int, help="default: the paper's")
    parser.add_argument("--data", type=Path, default=Path("docs/findings/data"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        arguments.run.mkdir(parents=True, exist_ok=True)
        measure(arguments.run, arguments.data_dir, arguments.seeds, arguments.fewer_seeds, arguments.epochs)
        compress(arguments.run, arguments.data)
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def measure(run: Path, data_dir: Path | None, num_seeds: int, fewer_seeds: int, epochs: int | None) -> None:
    # Seed by seed, so that an interrupted run has the same number of networks in all settings.
    kinds = [(seed, *PAPER) for seed in range(num_seeds)]
    kinds += [(seed, *setting) for seed in range(fewer_seeds) for setting in OTHERS]
    datasets: dict[str, ja.Dataset] = {}
    for (seed, dataset, activation), hidden in itertools.product(kinds, NETWORKS):
        file = run / f"{dataset}_{activation}_{ja.study.network_name(hidden)}_seed{seed}.nc"
        if file.exists():
            continue
        if dataset not in datasets:
            folder = None if data_dir is None else data_dir / dataset
            datasets[dataset] = ja.load_dataset(dataset, data_dir=folder)
        data = datasets[dataset]
        model, _ = ja.train(data, hidden, seed, activation=activation, epochs=epochs)
        redundancy = ja.study.linear_redundancy(model, data, neurons_per_step=NEURONS_PER_STEP)
        ja.results.save_table(redundancy.assign_coords(network=[seed]), file)
        print(file.name, flush=True)


def compress(run: Path, folder: Path) -> None:
    """Join the networks of each setting, and write them compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for (dataset, activation), hidden in itertools.product([PAPER, *OTHERS], NETWORKS):
        name = f"{dataset}_{activation}_{ja.study.network_name(hidden)}"
        files = sorted(run.glob(f"{name}_seed*.nc"), key=lambda path: int(path.stem.rpartition("seed")[2]))
        if not files:
            continue
        parts = [xr.load_dataset(file, engine="h5netcdf") for file in files]
        joined = xr.concat(parts, "network", data_vars="minimal", combine_attrs="drop_conflicts")
        whole = run / f"redundancy_{name}.nc"
        ja.results.save_table(joined, whole)
        with atomic_path(folder / f"{whole.name}.xz") as temporary:
            temporary.write_bytes(lzma.compress(whole.read_bytes()))


if __name__ == "__main__":
    main()
