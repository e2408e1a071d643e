"""The study: a `StudyConfig` comes in, the labelled results of the whole experiment go out.

The one place where the stages meet: load, train, record, score, order, ablate, label.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import xarray as xr

from jaxablate._files import require_writable
from jaxablate._parallel import Stop, run_all
from jaxablate.datasets import load_dataset
from jaxablate.models import MLP
from jaxablate.results import study_results
from jaxablate.study._ablate import ablate_networks
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._networks import OnProgress, trained_networks
from jaxablate.training import History

__all__ = ["OnProgress", "StudyConfig", "network_name", "run_study"]


def run_study(
    config: StudyConfig, *, network_dir: str | Path | None = None, on_progress: OnProgress | None = None
) -> xr.DataTree:
    """Run the whole experiment: train, score, rank and ablate every network.

    Args:
        config: what to run.
        network_dir: a folder for the trained networks; those found there with the same training settings and data
            are used again. None keeps nothing.
        on_progress: called with (what, done, total, note) as the work goes on.

    Returns:
        An `xarray.DataTree` with one node for each network (`results["3-layer"]`; under another protocol than the
        paper's `results["published/3-layer"]`, which `select_protocol` gets for all networks). A node holds the
        training history (seed, epoch), `scores` (seed, metric, neuron) with the coordinate `layer`, `ablated` (seed,
        scope, ordering, rank), `correct` and `accuracy` (seed, scope, ordering, fill, step), and `correct_alone` (seed,
        neuron), where that neuron alone is ablated; provenance is in `attrs`.

    Raises:
        InputError: for a dataset that cannot be loaded, or a folder that cannot be written.

    Example:
        >>> config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, random_orders=2, steps=4)
        >>> dict(ja.run_study(config)["1-layer-8"]["accuracy"].sizes)
        {'seed': 1, 'scope': 2, 'ordering': 8, 'fill': 2, 'step': 5}
    """
    report = on_progress or (lambda what, done, total, note: None)
    folder = None if network_dir is None else Path(network_dir)
    if folder:
        require_writable(folder)
    report("data", 0, 1, str(config.dataset))
    data = load_dataset(config.dataset, seed=config.split_seed, data_dir=config.data_dir)
    report("data", 1, 1, f"{data.source.name}: {data.source.origin}")

    def train(hidden: Sequence[int], stop: Stop) -> list[tuple[MLP, History]]:
        def report_unless_stopped(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            report(what, done, total, note)

        return trained_networks(config, hidden, data, folder, report_unless_stopped)

    # one network's small steps do not fill a CPU, so there the kinds are trained side by side
    threads = len(config.networks) if jax.default_backend() == "cpu" else 1
    trained = run_all(train, config.networks, threads=threads)
    networks = {
        network_name(hidden): ablate_networks(config, hidden, data, models, report)
        for hidden, models in zip(config.networks, trained, strict=True)
    }
    by_protocol = {
        protocol: {name: found[protocol] for name, found in networks.items()} for protocol in config.protocols
    }
    return study_results(by_protocol, dataclasses.asdict(config), data.source)
