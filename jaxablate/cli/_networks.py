"""`jaxablate score`, `ablate` and `prune`: commands for the user's network in a file."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from jaxablate.cli._console import (
    Bars,
    Cache,
    DataDir,
    Devices,
    ExtraFills,
    command,
    console,
    keep_compiled_programs,
    parse_steps,
    show,
)
from jaxablate.cli._origin import command_line, file_facts
from jaxablate.cli._processes import Coordinator, NumProcesses, ProcessId, initialize_distributed
from jaxablate.cli._tables import accuracy_of, dataset_of, print_dataset, print_summary

__all__ = ["ablate", "prune", "score"]

if TYPE_CHECKING:
    from flax import nnx

    from jaxablate import MLP

# Options that several commands share. `jaxablate score --help` lists all names; the other commands refer to it, so that
# theirs stays short.
NetworkFile = Annotated[
    Path,
    typer.Argument(
        help="Network from jaxablate, or PyTorch state dict.",
        show_default=False,
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(
        metavar="DATA", help="Dataset: an .npz file, a folder of IDX files, or a name from `jaxablate datasets`."
    ),
]
Activation = Annotated[
    str | None, typer.Option(metavar="NAME", help="Activation function that a PyTorch file lacks.", show_default=False)
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Order of the layers of a PyTorch file.", show_default=False),
]
StateKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="State dict in a PyTorch checkpoint of several.", show_default=False),
]
Reference = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Inputs and outputs (.npz) to reproduce.", show_default=False),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--score",
        metavar="NAME",
        help="Score of a neuron: entropy, mutual_information, kl_selectivity (default: these), entropy_miller_madow, "
        "mutual_information_miller_madow, conditional_entropy, specific_information_CLASS, class_selectivity, "
        "mean_activation, activation_variance, zero_fraction, incoming_norm, outgoing_norm, contribution_sd, taylor, "
        "single_damage, unique_variance, brain_surgeon, elimination_rank, shapley; repeatable.",
    ),
]
ScoresInShort = Annotated[
    list[str] | None, typer.Option("--score", metavar="NAME", help="Score from `jaxablate score --help`; repeatable.")
]
Quantizer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Quantizer: activation (does the neuron fire?), mean (is it at its mean or above?), positive (is it above "
        "0?), quantile:BINS, uniform:BINS:LOW:HIGH, levels:EDGE:EDGE:..., or a threshold.",
    ),
]
QuantizerInShort = Annotated[
    str, typer.Option(metavar="NAME", help="Quantizer; see `score --help`.", show_default=False)
]


@command
def score(
    network: NetworkFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table of the scores: .csv or .nc.", show_default=False)],
    scores: Scores = None,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    layers: Layers = None,
    state_key: StateKey = None,
    reference: Reference = None,
    quantizer: Quantizer = "activation",
) -> dict[str, Any]:
    """Score every neuron of a network: by default entropy, mutual information with the class, KL selectivity (nats).

    Example: jaxablate score network.safetensors --dataset data.npz --out scores.csv
    """
    from jaxablate import load_dataset
    from jaxablate.metrics import METRICS
    from jaxablate.results import check_table_path, save_table
    from jaxablate.study import score_neurons

    # The path is checked before the work, so that no scores are lost to a spelling mistake.
    check_table_path(out)
    model, _, file = _read_network(network, activation, layers, state_key, reference, dataset, data_dir)
    data = load_dataset(dataset, data_dir=data_dir)
    scored = score_neurons(model, data, scores=tuple(scores or METRICS), quantizer=quantizer)
    scored.attrs["file"] = json.dumps(file)
    save_table(scored, out)
    table = Table(
        "layer",
        Column("neurons", justify="right"),
        title="Mean score (entropies, information and damage in nats)",
        title_justify="left",
    )
    names = [str(name) for name in scored["score"].values]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    mean_scores = {}
    # Only means per layer are printed: a terminal has no room for a row per neuron, and the file has all of them.
    for site, group in scored.groupby("site"):
        means = group["scores"].mean("neuron").values.tolist()
        table.add_row(str(site), str(group.sizes["neuron"]), *(f"{mean:.4f}" for mean in means))
        mean_scores[str(site)] = dict(zip(names, means, strict=True))
    console.print(table)
    print_dataset(scored, asked=dataset)
    show(f"Scores: {out}")
    return {"scores": out, "file": file, **dataset_of(scored), "mean_score": mean_scores}


@command
def ablate(
    context: typer.Context,
    network: NetworkFile,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Table of the curves: .csv, or .nc for all results.", show_default=False),
    ],
    scores: ScoresInShort = None,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    layers: Layers = None,
    state_key: StateKey = None,
    reference: Reference = None,
    quantizer: QuantizerInShort = "activation",
    extra_fills: ExtraFills = None,
    # Any: Typer takes no union of types, and `parse_steps` returns a number or a text
    steps: Annotated[
        Any,
        typer.Option(
            parser=parse_steps,
            metavar="N|all|P%",
            help="Neurons to ablate, or all (P% in each step); default: 80 or all.",
        ),
    ] = None,
    normalization: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Normalization of scores per layer in whole-network orders: none, rank, z, share."
        ),
    ] = "none",
    random_orders: Annotated[int, typer.Option(min=1, metavar="N", help="Number of random orders.")] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the random orders.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page to write, as by `jaxablate report`.", show_default=False),
    ] = None,
    devices: Devices = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    cache: Cache = True,
) -> dict[str, Any]:
    """Ablate neurons by score and in random order; count correct predictions.

    Example: jaxablate ablate network.safetensors --dataset data.npz --score mutual_information --out curves.csv
    """
    from jaxablate import StudyConfig, from_module, load_dataset, run_study
    from jaxablate.devices import is_primary
    from jaxablate.metrics import METRICS
    from jaxablate.results import check_table_path, save_results, save_table

    devices = initialize_distributed(coordinator, num_processes, process_id, devices)
    if is_primary():
        check_table_path(out)
    if report is not None and is_primary():
        from jaxablate.report import check_report_path

        check_report_path(report)
    model, _, file = _read_network(network, activation, layers, state_key, reference, dataset, data_dir)
    name = _name_in_results(network)
    if name != network.stem:
        show(f"Name of the network in the results: {name}")
    if steps is None:
        sizes = from_module(model, load_dataset(dataset, data_dir=data_dir).test.images).spec.sizes
        steps = min(80, *sizes)
    config = StudyConfig(
        dataset=dataset,
        data_dir=None if data_dir is None else str(data_dir),
        networks=(),
        scores=tuple(scores or METRICS),
        quantizer=quantizer,
        normalization=normalization,
        extra_fills=tuple(extra_fills or ()),
        steps=steps,
        num_random_orders=random_orders,
        seeds=(seed,),
    )
    if cache:
        keep_compiled_programs()
    if not is_primary():
        run_study(config, {name: model}, mesh=devices)
        return {}
    bars = Bars()
    with bars.progress:
        results = run_study(config, {name: model}, on_progress=bars, mesh=devices)
    results.attrs |= {"command": command_line(context), "files": json.dumps({name: file})}
    if out.suffix == ".csv":
        save_table(results[name].to_dataset()[["correct", "accuracy"]], out)
    else:
        save_results(results, out)
    print_summary(results)
    print_dataset(results, asked=dataset)
    show(f"Curves: {out}")
    if report is not None:
        from jaxablate.report import write_report

        data = load_dataset(dataset, seed=config.split_seed, data_dir=data_dir)
        write_report(results, report, networks={name: model}, data=data)
        show(f"Report: {report}")
    return {
        "curves": out,
        "report": report,
        "file": file,
        "command": results.attrs["command"],
        **dataset_of(results),
        "accuracy": accuracy_of(results),
    }


@command
def prune(
    network: NetworkFile,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Smaller network: .safetensors, or .pt.", show_default=False)
    ],
    score: Annotated[
        str, typer.Option(metavar="NAME", help="Score from `jaxablate score --help`.")
    ] = "mutual_information",
    direction: Annotated[
        str, typer.Option(metavar="NAME", help="Scores of the neurons to remove: low or high.")
    ] = "low",
    keep_fraction: Annotated[
        float, typer.Option(metavar="FRACTION", help="Fraction of the neurons to keep, above 0 and up to 1.")
    ] = 0.6,
    scope: Annotated[
        str, typer.Option(metavar="NAME", help="Neurons that are ranked together: layer or network.")
    ] = "layer",
    fill: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Output of removed neurons, added to the next layer: mean, median, zero or linear."
        ),
    ] = "mean",
    fine_tune: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Epochs of further training; a new network of the same size is trained for comparison.",
        ),
    ] = 0,
    dataset: DatasetName = "auto",
    data_dir: DataDir = None,
    activation: Activation = None,
    layers: Layers = None,
    state_key: StateKey = None,
    reference: Reference = None,
    quantizer: QuantizerInShort = "activation",
) -> dict[str, Any]:
    """Remove the neurons with the lowest (or highest) scores, and write the smaller network.

    Example: jaxablate prune network.safetensors --score mutual_information --keep-fraction 0.6 --out small.safetensors
    """
    from jaxablate import load_dataset, save_model
    from jaxablate._checks import require
    from jaxablate._files import require_writable
    from jaxablate.models._mlp import is_mlp
    from jaxablate.models._pytorch import in_words
    from jaxablate.models._torch_modules import import_torch, save_state_dict
    from jaxablate.study import prune_by_score

    # All mistakes in paths are reported before anything is scored or trained.
    require(
        out.suffix in (".safetensors", ".pt"),
        f"--out {out}: expected .safetensors or .pt, got {out.suffix!r}; choose a name with such an ending",
    )
    if out.suffix == ".pt":
        import_torch(f"--out {out}: needs")
    require(not out.is_dir(), f"--out {out}: this is a folder; choose a file")
    require(
        out.resolve() != network.resolve(), f"--out {out}: this is the file of the network itself; choose another file"
    )
    require_writable(out.parent)
    model, names, file = _read_network(network, activation, layers, state_key, reference, dataset, data_dir)
    data = load_dataset(dataset, data_dir=data_dir)
    comparison = prune_by_score(
        model, data, score=score, direction=direction, keep_fraction=keep_fraction, scope=scope, fill=fill,
        fine_tune_epochs=fine_tune, quantizer=quantizer,
    )  # fmt: skip
    note = f"{score}, {direction} values first; {keep_fraction:g} of each {scope} kept; {fill} added to the next layer"
    metadata = {"pruned_from": network.name, "pruned_from_sha256": file["sha256"], "pruned_by": note}
    # A state dict of PyTorch becomes one again, with the names of its modules.
    is_state_dict = names is not None or out.suffix == ".pt"
    if is_state_dict:
        save_state_dict(comparison.model, out, data.test.images[:100], names, metadata)
    else:
        save_model(comparison.model, out, metadata)
    table = Table("network", "hidden layers", title=note, title_justify="left")
    for name in ("parameters", "FLOPs per example", "test accuracy in %"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        widths = " ".join(map(str, row.hidden))
        table.add_row(row.name, widths, f"{row.parameters:,}", f"{row.flops:,}", f"{100 * row.accuracy:.2f}")
    console.print(table)
    console.print(f"Dataset: {data.source.name} ({data.source.origin})", highlight=False, markup=False)
    facts = {}
    if is_state_dict:  # it says neither what it takes nor what is between its layers
        shape = data.test.images.shape[1:]
        axes = ("channel", "height", "width") if len(shape) == 3 else shape
        facts = {"format": "PyTorch state dict", "inputs": f"inputs [example, {', '.join(map(str, axes))}]"}
        if is_mlp(comparison.model):
            facts["activation"] = f"{in_words(comparison.model.activation)} between its layers"
    listed = f" ({'; '.join(facts.values())})" if facts else ""
    show(f"Network: {out}{listed}")
    return {
        **facts,
        "network": out,
        "file": file,
        "dataset": data.source.name,
        "dataset_origin": data.source.origin,
        "networks": [asdict(row) for row in comparison.rows],
    }


def _name_in_results(path: Path) -> str:
    """Return the name of a file without its ending, changed where results cannot have it."""
    from jaxablate._checks import SEPARATORS
    from jaxablate.protocols import SETS

    name = "".join(c if c.isprintable() and c not in SEPARATORS else "_" for c in path.stem)[:90]
    is_taken = name.strip(". ") == "" or any(name in protocols for protocols in SETS.values())
    return f"network {name}" if is_taken else name


def _read_network(
    path: Path,
    activation: str | None,
    layers: str | None,
    state_key: str | None,
    reference: Path | None,
    dataset: str,
    data_dir: Path | None,
) -> "tuple[MLP | nnx.Sequential, dict[str, list[str]] | None, dict[str, Any]]":
    """Return the network of a file, the names of its modules if PyTorch wrote it, and the facts about the file.

    The other arguments are options of a command.
    """
    from jaxablate import MLP, InputError, load_dataset, load_model
    from jaxablate._checks import JaxablateWarning
    from jaxablate._files import require_file
    from jaxablate.models._files import is_saved_model
    from jaxablate.models._mlp import without_ones
    from jaxablate.models._pytorch import TORCH_ACTIVATIONS, in_words, read_state_dict, require_reference
    from jaxablate.models._tensors import AssumptionWarning

    require_file("network file", path)
    pair = None if reference is None else _read_reference(reference)
    names, data, assumed, notes = None, None, "", []
    # The header of a file that jaxablate wrote names its format and its activation function. A state dict of PyTorch
    # has weights only.
    if is_saved_model(path):
        model = load_model(path).model
        stated = model.activation if isinstance(model, MLP) else "functions of its layers"
        if activation not in (None, stated):
            raise InputError(f"--activation: {activation} is not the {stated} of {path}; leave the option out")
        for option, value in (("--layers", layers), ("--state-key", state_key)):
            if value is not None:
                raise InputError(f"{option}: {path} is a whole network, with its layers in order; leave the option out")
    else:
        if activation is None:
            raise InputError(
                f"network file {path}: a PyTorch state dict does not name its activation function; give --activation "
                f"{' or '.join(TORCH_ACTIVATIONS)}"
            )
        data = load_dataset(dataset, data_dir=data_dir)
        images = data.test.images
        shape, low, high = images.shape, float(images.min()), float(images.max())
        is_reordered = len(shape) == 4 and shape[-1] > 1
        with warnings.catch_warnings(record=True) as warned:
            model, names = read_state_dict(
                path, None, activation=activation, shape=shape if is_reordered else None,
                layers=None if layers is None else [name.strip() for name in layers.split(",")], state_key=state_key,
                is_checked=pair is not None,
            )  # fmt: skip
        for note in warned:
            warnings.warn(note.message, note.category, stacklevel=2)
            notes.append(str(note.message))
        assert isinstance(model, MLP)
        stated, sizes = in_words(model.activation), without_ones(shape)
        assumed = f"takes examples as the dataset has them, with numbers from {low:g} to {high:g}"
        if is_reordered:
            assumed += (
                ", and flattens images channel by channel, as PyTorch does; its first weights were reordered for "
                "images with the channels last"
            )
        elif len(sizes) > 2 or len(set(sizes)) > 1:
            assumed += f", and flattens examples of shape {shape[1:]} with their axes in this order"
    if pair is not None:
        require_reference(f"network file {path}", model, *pair)
        data = load_dataset(dataset, data_dir=data_dir) if data is None else data
        if not any(_has_example(split.images, pair[0]) for split in (data.test, data.train, data.validation)):
            notes.append(
                "--reference: its first input is no example of the dataset, so it does not check the layout and scale "
                "of the dataset; compute the reference for examples of the dataset"
            )
            warnings.warn(notes[-1], JaxablateWarning, stacklevel=2)
    if names is not None:
        for text in (
            f"Layers: assumed {', '.join(names)} in this order, with {stated} between them",
            f"Inputs: assumed that the network of {path.name} {assumed}",
        ):
            if pair is None:  # a note, which --quiet prints too
                warnings.warn(f"{text}; --reference checks this", AssumptionWarning, stacklevel=2)
            else:
                show(f"{text}; checked by the reference, for its own inputs")
    facts = file_facts(
        path, activation=stated, is_pytorch=names is not None, layers=layers, names=names or (), state_key=state_key,
        assumed=assumed, notes=notes, reference=reference,
    )  # fmt: skip
    return model, names, facts


def _has_example(images: Any, inputs: Any) -> bool:
    """Return True if the first of the inputs is among the images, in the same shape but for axes of size 1."""
    import numpy as np

    from jaxablate.models._mlp import without_ones

    if without_ones(inputs.shape) != without_ones(images.shape):
        return False
    differences = np.abs(images.reshape(len(images), -1) - np.asarray(inputs[0], np.float32).ravel())
    return bool((differences.max(axis=1) < 1e-6).any())


def _read_reference(path: Path) -> tuple[Any, Any]:
    """Return the arrays `inputs` and `outputs` of an .npz file."""
    import numpy as np

    from jaxablate import InputError
    from jaxablate._files import require_file

    require_file("--reference", path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["inputs"], arrays["outputs"]
    except Exception as error:  # a damaged archive raises anything
        raise InputError(
            f"--reference {path}: expected an .npz file with the arrays inputs and outputs, got {str(error)[:100]}; "
            "write it by np.savez(path, inputs=..., outputs=...)"
        ) from None
