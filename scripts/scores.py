"""Rank and ablate saved networks under many quantizers, and test what pairs of neurons share.

`python scripts/scores.py RUN [--seeds 10] [--pairs 5] [--images 2000]` reads the results and networks that
`jaxablate reproduce` wrote to the folder RUN. For each kind of network it writes `sensitivity_NETWORK.nc`,
`pairs_FILL_NETWORK.nc` and the heat maps `pairs_NETWORK.png` of the first network's last layer into that folder;
`scripts/findings.py` reads them.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.cli._console import Bars
from jaxablate.datasets import Split
from jaxablate.figures import draw_pair_information

BINS = (2, 4, 8, 16, 32)
QUANTIZERS = ("activation", *(f"quantile:{bins}" for bins in BINS), *(f"uniform:{bins}:0:1" for bins in BINS[1:]))
"""Uniform codes cover the range of a sigmoid; two uniform codes equal the first quantizer and are left out."""
FILLS = ("mean", "zero")


def main() -> None:
    parser = argparse.ArgumentParser(description="Study quantizers and pairs on saved networks.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=10, help="how many networks of each kind; default: %(default)s")
    parser.add_argument(
        "--pairs", type=int, default=5, help="how many of these networks for pairs; default: %(default)s"
    )
    parser.add_argument("--images", type=int, default=2000, help="test images for pairs; default: %(default)s")
    arguments = parser.parse_args()
    try:
        study(arguments.run, arguments.seeds, arguments.pairs, arguments.images)
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def study(run: Path, num_seeds: int, num_pairs: int, images: int) -> None:
    config = json.loads(ja.results.load_results(run / "results.nc").attrs["config"])
    if config["activation"] != "sigmoid" or not 1 <= num_seeds <= len(config["seeds"]):
        raise ja.InputError(
            f"run {run}: expected networks of sigmoid units and at least {num_seeds} seeds, got {config['activation']} "
            f"and {len(config['seeds'])}"
        )
    data = ja.load_dataset(config["dataset"], seed=config["split_seed"], data_dir=config["data_dir"])
    fewer = replace(data, test=Split(data.test.images[:images], data.test.labels[:images]))
    for hidden in config["networks"]:
        name = ja.study.network_name(hidden)
        files = [run / "networks" / f"{name}_seed{seed}.safetensors" for seed in config["seeds"][:num_seeds]]
        models = [ja.load_model(file).model for file in files]
        bars = Bars()
        with bars.progress:
            sensitivity = ja.study.quantizer_sensitivity(models, data, QUANTIZERS, on_progress=bars)
            ja.results.save_table(sensitivity, run / f"sensitivity_{name}.nc")
            draw_pairs(models[0], data, run / f"pairs_{name}.png", f"{name} network, seed {config['seeds'][0]}")
            for fill in FILLS:
                pairs = ja.study.redundancy_test(models[:num_pairs], fewer, fill=fill, on_progress=bars)
                ja.results.save_table(pairs, run / f"pairs_{fill}_{name}.nc")


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


if __name__ == "__main__":
    main()
