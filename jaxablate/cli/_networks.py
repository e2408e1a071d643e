"""`jaxablate score`, `ablate` and `prune`: a network of the user's own, from a file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from jaxablate.cli._console import Bars, Cache, DataDir, Devices, command, console, keep_compiled_programs
from jaxablate.cli._processes import Coordinator, NumProcesses, ProcessId, initialize_distributed, is_primary
from jaxablate.cli._tables import accuracy_of, dataset_of, print_dataset, print_summary

if TYPE_CHECKING:
    from jaxablate import MLP

NetworkFile = Annotated[
    Path,
    typer.Argument(
        help="A multilayer perceptron: what jaxablate wrote, or a PyTorch state dict (.safetensors, .pt).",
        show_default=False,
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(metavar="DATA", help="An .npz file, a folder of IDX files, or as `jaxablate datasets` lists."),
]
Activation = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of a PyTorch file: sigmoid, relu, tanh, gelu.", show_default=False),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCORE",
        help="entropy, mutual_information, kl_selectivity (these by default), entropy_miller_madow, "
        "mutual_information_miller_madow, conditional_entropy, specific_information_CLASS, class_selectivity, "
        "mean_activation, activation_variance, zero_fraction, incoming_norm, outgoing_norm, taylor, single_damage, "
        "shapley; repeat for several.",
    ),
]
ByAsInScore = Annotated[
    list[str] | None, typer.Option("--by", metavar="SCORE", help="As in `jaxablate score --help`; repeat for several.")
]
Quantizer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="activation (does the neuron fire?), mean (is it at its mean or above?), positive, quantile:BINS, "
        "uniform:BINS:LOW:HIGH, levels:EDGE:EDGE:..., or a threshold.",
    ),
]
QuantizerAsInScore = Annotated[str, typer.Option(metavar="NAME", help="As in `jaxablate score --help`.")]


@command
def score(
    network: NetworkFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table to write: .csv or .nc.", show_default=False)],
    by: By = None,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    quantizer: Quantizer = "activation",
) -> dict[str, Any]:
    """Score every neuron of a network: by default entropy, mutual information with the class, KL selectivity (nats).

    Example: jaxablate score network.safetensors --dataset data.npz --out scores.csv
    """
    from jaxablate import load_dataset
    from jaxablate.metrics import METRICS
    from jaxablate.results import check_table_path, save_table
    from jaxablate.study import score_neurons

    check_table_path(out)
    model = _read_network(network, activation)
    data = load_dataset(dataset, data_dir=data_dir)
    scores = score_neurons(model, data, scores=tuple(by or METRICS), quantizer=quantizer)
    save_table(scores, out)
    table = Table(
        "layer",
        Column("neurons", justify="right"),
        title="Mean score (entropies, information and damage in nats)",
        title_justify="left",
    )
    metrics = [str(metric) for metric in scores["score"].values]
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right")
    found = {}
    for site, of_site in scores.groupby("site"):
        means = of_site["scores"].mean("neuron").values.tolist()
        table.add_row(str(site), str(of_site.sizes["neuron"]), *(f"{mean:.4f}" for mean in means))
        found[str(site)] = dict(zip(metrics, means, strict=True))
    console.print(table)
    print_dataset(scores, asked=dataset)
    console.print(f"Scores: {out}", highlight=False, soft_wrap=True)
    return {"scores": out, **dataset_of(scores), "mean_score": found}


@command
def ablate(
    network: NetworkFile,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Curves: .csv, or .nc for all results.", show_default=False)
    ],
    by: ByAsInScore = None,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    quantizer: QuantizerAsInScore = "activation",
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Beside zero and mean: median, class_mean, resample; repeat for several."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: 80, or all of the smallest layer.")
    ] = None,
    normalization: Annotated[
        str, typer.Option(metavar="NAME", help="In whole-network orders: none, rank, z or share.")
    ] = "none",
    random_orders: Annotated[int, typer.Option(min=1, metavar="N", help="For each scope.")] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the random orders.")] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the page of `jaxablate report`.", show_default=False)
    ] = None,
    devices: Devices = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    cache: Cache = True,
) -> dict[str, Any]:
    """Ablate the neurons of a network one after another, low and high scores first and at random, and count what it
    still gets right.

    Example: jaxablate ablate network.safetensors --dataset data.npz --by mutual_information --out curves.csv
    """
    from jaxablate import StudyConfig, run_study
    from jaxablate.metrics import METRICS
    from jaxablate.report import check_report_path, write_report
    from jaxablate.results import check_table_path, save_results, save_table

    devices = initialize_distributed(coordinator, num_processes, process_id, devices)
    if is_primary():
        check_table_path(out)
    if report is not None and is_primary():
        check_report_path(report)
    model = _read_network(network, activation)
    config = StudyConfig(
        dataset=dataset,
        data_dir=None if data_dir is None else str(data_dir),
        networks=(),
        scores=tuple(by or METRICS),
        quantizer=quantizer,
        normalization=normalization,
        extra_fills=tuple(fill or ()),
        steps=min(80, *model.hidden) if steps is None else steps,
        num_random_orders=random_orders,
        seeds=(seed,),
    )
    if cache:
        keep_compiled_programs()
    if not is_primary():
        run_study(config, {network.stem: model}, mesh=devices)
        return {}
    bars = Bars()
    with bars.progress:
        results = run_study(config, {network.stem: model}, on_progress=bars, mesh=devices)
    if out.suffix == ".csv":
        save_table(results[network.stem].to_dataset()[["correct", "accuracy"]], out)
    else:
        save_results(results, out)
    print_summary(results)
    print_dataset(results, asked=dataset)
    console.print(f"Curves: {out}", highlight=False, soft_wrap=True)
    if report is not None:
        write_report(results, report, networks={network.stem: model})
        console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return {"curves": out, "report": report, **dataset_of(results), "accuracy": accuracy_of(results)}


@command
def prune(
    network: NetworkFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The smaller network: .safetensors.", show_default=False)],
    by: Annotated[str, typer.Option(metavar="SCORE", help="As in `jaxablate score --help`.")] = "mutual_information",
    direction: Annotated[str, typer.Option(metavar="NAME", help="low or high values first.")] = "low",
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Of the neurons to keep, above 0 and up to 1.")] = 0.6,
    scope: Annotated[
        str, typer.Option(metavar="NAME", help="layer keeps that share of each; network ranks all together.")
    ] = "layer",
    fill: Annotated[
        str, typer.Option(metavar="NAME", help="What goes into the biases for removed neurons: mean, median or zero.")
    ] = "mean",
    fine_tune: Annotated[
        int, typer.Option(min=0, metavar="N", help="Epochs to train the smaller network on, and a new one of its size.")
    ] = 0,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    quantizer: QuantizerAsInScore = "activation",
) -> dict[str, Any]:
    """Remove the neurons that score lowest (or highest) for good, and write the smaller network.

    Example: jaxablate prune network.safetensors --by mutual_information --keep 0.6 --out small.safetensors
    """
    from jaxablate import load_dataset, save_model
    from jaxablate._checks import require
    from jaxablate._files import require_writable
    from jaxablate.study import prune_by_score

    require(out.suffix == ".safetensors", f"--out {out}: expected a name that ends in .safetensors")
    require(not out.is_dir(), f"--out {out}: expected a file or nothing, got a folder")
    require(out.resolve() != network.resolve(), f"--out {out}: expected another file than the network's own")
    require_writable(out.parent)
    model = _read_network(network, activation)
    data = load_dataset(dataset, data_dir=data_dir)
    comparison = prune_by_score(
        model, data, score=by, direction=direction, keep_fraction=keep, scope=scope, fill=fill,
        fine_tune_epochs=fine_tune, quantizer=quantizer,
    )  # fmt: skip
    note = f"{by}, {direction} values first; {keep:g} of each {scope} kept; {fill} folded into the biases"
    save_model(comparison.model, out, {"pruned_from": network.name, "pruned_by": note})
    table = Table("network", "hidden layers", title=note, title_justify="left")
    for name in ("parameters", "FLOPs per example", "test accuracy in %"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        widths = " ".join(map(str, row.hidden))
        table.add_row(row.name, widths, f"{row.parameters:,}", f"{row.flops:,}", f"{100 * row.accuracy:.2f}")
    console.print(table)
    console.print(f"Dataset: {data.source.name} ({data.source.origin})", highlight=False, markup=False)
    console.print(f"Network: {out}", highlight=False, soft_wrap=True)
    return {
        "network": out,
        "dataset": data.source.name,
        "dataset_origin": data.source.origin,
        "networks": [asdict(row) for row in comparison.rows],
    }


def _read_network(path: Path, activation: str | None) -> "MLP":
    """The network of a file, by jaxablate or by PyTorch."""
    from jaxablate import MLP, InputError, load_model
    from jaxablate._files import require_file
    from jaxablate.models import ACTIVATIONS, load_pytorch
    from jaxablate.models._files import is_saved_model

    require_file("network file", path)
    if is_saved_model(path):
        model = load_model(path).model
        if activation not in (None, model.activation):
            raise InputError(f"--activation: expected none or {model.activation}, which {path} says, got {activation}")
        return model
    if activation is None:
        raise InputError(
            f"network file {path}: expected --activation, which a PyTorch state dict does not say, got none; give "
            f"{' or '.join(ACTIVATIONS)}"
        )
    model = load_pytorch(path, activation=activation)
    assert isinstance(model, MLP)
    return model
