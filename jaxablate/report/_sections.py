"""Lay out results as the sections of a page: cards, charts and tables for the template, no statistics.

Input: results of a study.
Output: dictionaries and dataclasses that the template reads.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from jaxablate.charts import (
    INTERVAL,
    MAX_SCORES,
    LineChart,
    ScatterChart,
    ViolinChart,
    balancing_chart,
    class_chart,
    correlation_chart,
    damage_chart,
    fill_name,
    keep_chart,
    layers_of,
    main_score,
    names_of,
    order_charts,
    place_name,
    score_chart,
    score_name,
    share_charts,
    short_name,
    training_chart,
)
from jaxablate.models import AnyModel
from jaxablate.protocols import DEPARTURES, PAPER, PUBLISHED
from jaxablate.report._examples import Examples, intact_correct
from jaxablate.report._pictures import picture, weights_of
from jaxablate.results import (
    NETWORK_SCOPE,
    balanced_fill,
    conditions_of,
    curve,
    protocols_of,
    select_protocol,
)
from jaxablate.results._labels import is_passed, stated_settings, studies_of
from jaxablate.results._summaries import distinct_orders
from jaxablate.scores import is_user_defined

EXTREMES = 3
"""Number of neurons at each end of a layer's ranking in the table."""
PICTURES = (
    "Pictures: incoming weights, scaled for each neuron, violet above 0 and orange below; after the first layer they "
    "are products of the layers' weights, as if the layers between were linear. "
)
HIGHEST = " Highest activations: the five test examples with the neuron's highest activations, among the first 10,000."
METRIC_MEANINGS = {
    "entropy": "Entropy is of the neuron's code.",
    "mutual_information": "Mutual information is of code and class.",
    "kl_selectivity": "KL selectivity is the largest divergence of the code within a class from its overall "
    "distribution.",
}
FILE_FACTS = {
    "format": "format",
    "activation": "activation function",
    "layers": "order of the layers",
    "images": "inputs",
    "reference": "reference outputs",
    "notes": "notes",
}
"""Names of the facts about a file, from `jaxablate ablate`, in the table of the origin."""


@dataclass
class Section:
    """A question, a hint how to read the answer, and the charts (for each network) and tables that answer it."""

    question: str
    see: str
    charts: Sequence[Sequence[LineChart | ScatterChart | ViolinChart]] = field(default_factory=list)
    tables: list[dict] = field(default_factory=list)
    neurons: list[dict] = field(default_factory=list)


def cards_of(results: xr.DataTree) -> list[tuple[str, str, str]]:
    """Return the name, number and text of each card."""
    nodes = select_protocol(results, protocols_of(results)[0]).children
    seconds = results.attrs.get("seconds")
    cards = [("Data", results.attrs["dataset"], results.attrs["dataset_origin"])]
    for name, node in nodes.items():
        network = node.to_dataset()
        intact = 100 * network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values
        mean = f"s, mean of {len(intact)}, {intact.min():.2f} to {intact.max():.2f}%" if len(intact) > 1 else ""
        tests = f"{network.attrs['num_test_examples']:,}"
        words = f"test accuracy of the intact network{mean}; {_architecture(network)}; {tests} test images" + (
            "; not trained by this study" if is_passed(network) else ""
        )
        cards.append((f"{name} network", f"{intact.mean():.2f}%", words))
    if seconds is not None:
        cards.append(("Time", duration(float(seconds)), f"to compute it on {_device(results)}"))
    return cards


def _architecture(network: xr.Dataset) -> str:
    """Return neurons and activation function in words; without an activation function, the sites and the kind."""
    widths, activation = json.loads(network.attrs["hidden"]), network.attrs["activation"]
    if activation != "other":
        return f"{' + '.join(map(str, widths))} neurons, {activation}"
    sites = zip(layers_of(network), widths, strict=True)
    return ", ".join([*(f"{place_name(site)} with {width} neurons" for site, width in sites), _kind(network)])


def _kind(network: xr.Dataset) -> str:
    """Return the kind of a network that was passed to the study; earlier results lack it."""
    return network.attrs.get("model", "unknown kind of network")


def _device(results: xr.DataTree) -> str:
    """Return the device in words; a CPU is named once."""
    return results.attrs["device"].replace("cpu: cpu", "CPU")


def duration(seconds: float) -> str:
    """Return a duration as text: `4.2 s`, `5 min` or `1 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def meaning_of(protocol: str) -> str:
    """Describe a protocol in a sentence."""
    if protocol == PAPER.name:
        return "The paper's formulas."
    departures = [words for name, words in DEPARTURES.items() if name in protocol.split("+") or protocol == PUBLISHED]
    whose = "As the published code did" if protocol == PUBLISHED else "The paper's formulas, except for this"
    return f"{whose}: {'; '.join(departures)}."


def sections_of(
    results: xr.DataTree,
    protocol: str,
    models: Mapping[str, AnyModel],
    examples: Mapping[str, Examples],
    *,
    first: bool,
) -> list[Section]:
    """Return the questions of a study under one protocol with their answers; training is shown only for the first."""
    tree = select_protocol(results, protocol)
    networks = [(name, node.to_dataset()) for name, node in tree.children.items()]
    # "all", or a percentage: the curves end with the last neuron
    is_complete = isinstance(json.loads(results.attrs["config"]).get("steps"), str)
    neurons = [
        {"title": _first_network(name, network), **_neurons(network, models.get(name), examples.get(name))}
        for name, network in networks
    ]
    metrics = "".join(
        f" {METRIC_MEANINGS[score]}" for score in names_of(networks[0][1], "score") if score in METRIC_MEANINGS
    )
    if metrics:
        metrics += " A wide foot near 0 means neurons that carry next to no information about the class."
    pictures = PICTURES if any(table["rows"][0]["picture"] for table in neurons) else ""
    scores = names_of(networks[0][1], "score")
    low, high = "a score's line with low values first", "its line with high values first"
    if len(scores) <= MAX_SCORES:  # one chart has both directions
        low, high = "a solid line (low values first)", "the dashed line of its colour (high values first)"
    sections = [
        Section(
            "Did the networks learn?",
            "Training values are means over an epoch; validation follows the epoch. If training ends better than "
            "validation, the network memorises its examples.",
            [
                [training_chart(name, network, subject) for subject in ("accuracy", "cost")]
                for name, network in networks
                if first and "epoch" in network.coords
            ],
        ),
        Section(
            "Where does the information sit?" if metrics else "How are the scores distributed?",
            "Each violin shows the neurons of a layer, of all networks, whose score is defined." + metrics,
            [[score_chart(name, network, score) for score in names_of(network, "score")] for name, network in networks],
        ),
        Section(
            "Does bias balancing soften the damage?",
            f"An ablated neuron outputs zero or, bias balanced, {_balanced_output(networks[0][1])}. The "
            "further a solid line lies above the dashed line of its colour, the more of the lost accuracy was due to "
            "the shift of the next layer's inputs, not to lost information."
            + _abbreviations([main_score(networks[0][1])]),
            [[balancing_chart(name, network, scope) for scope in layers_of(network)] for name, network in networks],
        ),
        Section(
            "Does the ranking matter within a layer?",
            f"If {low} stays above random and {high} falls below, the score separates neurons that matter from neurons "
            "that do not." + (_abbreviations(scores) if len(scores) <= MAX_SCORES else ""),
            [
                [chart for scope in layers_of(network) for chart in order_charts(name, network, scope)]
                for name, network in networks
            ],
        ),
        Section(
            "And over the whole network?",
            "Compare the accuracy with the layers that the neurons come from: an order that empties one layer first "
            "says more about layers than about neurons.",
            [
                [
                    *order_charts(name, network, NETWORK_SCOPE),
                    # one layer always has the whole share
                    *(share_charts(name, network) if len(layers_of(network)) > 1 else ()),
                ]
                for name, network in networks
            ],
        ),
        Section(
            "How few neurons suffice?",
            "The curves of low values first, read from their end: only the k neurons with the highest scores are kept. "
            "The sooner a line reaches the intact accuracy, the fewer neurons the network needs. A line above random "
            "means that the score finds them.",
            [
                [keep_chart(name, network, scope) for scope in names_of(network, "scope")]
                for name, network in networks
                if is_complete
            ],
        ),
        Section(
            "Does ablation hit all classes alike?",
            "Accuracy within a class. Classes whose accuracy falls at different steps depend on different neurons. In "
            "the end the network predicts one class for all images, so the accuracy within all others ends at 0.",
            [
                [class_chart(name, network, scope) for scope in names_of(network, "scope")]
                for name, network in networks
                if "class_accuracy" in network
            ],
        ),
        Section(
            "Does a score predict the damage of one neuron?",
            "Spearman's correlation of the score and the rise of the test loss if that neuron alone is ablated, bias "
            "balanced. A value near 0 means that the score does not predict this damage. Ablating a redundant neuron "
            "alone costs nothing, so that little damage does not prove a neuron unimportant. Each point is a neuron of "
            "the first network.",
            [
                [damage_chart(name, network, score, slice(1)) for score in names_of(network, "score")]
                for name, network in networks
            ],
            tables=[_correlations(name, network) for name, network in networks],
        ),
        Section(
            "Which neurons are the most and the least informative?",
            f"Neurons are named by layer and number within the layer, and by their id in the whole network. In the "
            "library, orders and masks use these ids, or the number within the layer together with site=. Bars: "
            f"{_describe_bars(networks[0][1])}. {pictures}Damage alone: rise of the test loss if only that neuron is "
            "ablated, bias balanced, in thousandths of a nat (mnat). Class drop: the largest fall of the accuracy "
            "within a class, in points; its bars show every class, scaled for each neuron." + HIGHEST * bool(examples),
            neurons=neurons,
        ),
        Section(
            "The numbers",
            "Test accuracy in percent after half of the steps, at the end, and its mean over all steps but the first "
            "(the area under the curve); means over networks and random orders. The third column has the numbers of "
            "ablated neurons at half of the steps and at the end.",
            tables=[_numbers(name, network) for name, network in networks],
        ),
    ]
    return [section for section in sections if any(section.charts) or section.tables or section.neurons]


def _abbreviations(scores: Sequence[str]) -> str:
    """Return the sentence that explains the short names of scores; empty if no score has one."""
    known = {"mutual_information": "MI: mutual information", "kl_selectivity": "KL: KL selectivity"}
    words = [known[score] for score in scores if score in known]
    return f" {', '.join(words)}." if words else ""


def _first_network(name: str, network: xr.Dataset) -> str:
    """Return the name of the first network of a kind; a seed names only a network that the study trained."""
    if not is_passed(network):
        return f"{name} network, seed {int(network['seed'][0])}"
    return f"{name} network" + (f", the first of {network.sizes['seed']}" if network.sizes["seed"] > 1 else "")


def provenance_of(results: xr.DataTree) -> dict:
    """Return the origin of the results, and the programs or the command that compute them and this page again."""
    names = ("created", "device", "dataset", "dataset_origin", "matmul_precision", "format")
    files = json.loads(results.attrs["dataset_sha256"])
    is_grid = bool(conditions_of(results))
    if is_grid:  # a grid has the checksums of each dataset by its name
        prefixes = {dataset: f"{dataset}, " if len(files) > 1 else "" for dataset in files}
        files = {prefixes[dataset] + name: value for dataset in files for name, value in files[dataset].items()}
    data_passed = "data_passed" in results.attrs
    in_memory = data_passed or "train_images" in files  # the names of files end with their kind
    # networks that were passed to a grid are the same in every condition
    study = next(iter(studies_of(results).values()))
    nodes = select_protocol(study, protocols_of(study)[0]).children
    networks = {name: node.to_dataset() for name, node in nodes.items()}
    passed = {name: network for name, network in networks.items() if is_passed(network)}
    trained = [name for name in networks if name not in passed]
    config = json.loads(results.attrs["config"])
    of_passed = stated_settings(config, is_trained=False)
    config = stated_settings(config, is_trained=bool(trained))
    if data_passed:
        of_passed, config = (
            {name: value for name, value in settings.items() if name not in ("dataset", "data_dir", "split_seed")}
            for settings in (of_passed, config)
        )
    rows = {name.replace("_", " "): results.attrs[name] for name in names} | {"device": _device(results)}
    if passed:
        rows |= _passed_rows(results, passed)
        rows |= {f"network {name}": "trained by the study" for name in trained}
    programs = []
    if trained:
        programs.append((_sentence(config, in_memory), _python(config, {}, in_memory, is_grid)))
    if passed and "command" in results.attrs:
        words = (
            "With the versions above, and files of these checksums, this command computes the same results. Its paths "
            "start from the folder where it ran; of an absolute path only the name is left:"
        )
        programs.append((words, results.attrs["command"]))
    elif passed:
        programs.append((_sentence(of_passed, True), _python(of_passed, passed, in_memory, is_grid)))
    return {
        "rows": rows,
        "checksums": files if isinstance(files, dict) else {"data": files},
        "versions": json.loads(results.attrs["versions"]),
        "config": {name: json.dumps(value) for name, value in config.items()},
        "config_of": ", ".join(trained) if passed else "",
        "programs": programs,
        "is_passed": bool(passed),
    }


def _passed_rows(results: xr.DataTree, networks: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """Return what is known of networks that were passed to the study, as rows of the table of the origin."""
    files, rows = json.loads(results.attrs.get("files", "{}")), {}
    for name, network in networks.items():
        widths = json.loads(network.attrs["hidden"])
        sites = ", ".join(f"{site} ({width})" for site, width in zip(layers_of(network), widths, strict=True))
        parts = [f"{_kind(network)}, not trained by this study", f"neurons: {sites}"]
        parts += [f"activation function: {network.attrs['activation']}"] * (network.attrs["activation"] != "other")
        parts += [f"parameters: {network.attrs[key]:,}" for key in ("num_parameters",) if key in network.attrs]
        rows[f"network {name}"] = "; ".join(parts)
        if file := files.get(name):
            rows[f"file of {name}"] = f"{file['name']}, {file['bytes']:,} bytes"
            rows[f"SHA-256 of the file of {name}"] = file["sha256"]
            rows |= {f"{words} of {name}": file[fact] for fact, words in FILE_FACTS.items() if fact in file}
        checksums = [str(checksum) for checksum in network["model_sha256"].values] if "model_sha256" in network else []
        for number, checksum in enumerate(checksums, 1):
            which = name if len(checksums) == 1 else f"{name}, {number} of {len(checksums)}"
            rows[f"SHA-256 of the state of {which}"] = checksum
    seeds = dict.fromkeys(int(seed) for network in networks.values() for seed in network["seed"].values)
    rows["seeds"] = f"{', '.join(map(str, seeds))}, of random orders, fills and scores; no network depends on them"
    return rows


def _sentence(config: Mapping[str, Any], has_placeholders: bool) -> str:
    """Return the sentence before a program with these settings."""
    notes = ["first replace ... in the lines marked as placeholders"] * has_placeholders
    if config.get("data_dir") or str(config.get("dataset")).endswith(".npz"):
        notes.append("of an absolute path of the data only the name is left")
    words = "With the versions above, this program computes the same results and writes this page"
    return "; ".join([words, *notes]) + ":"


def _python(config: dict, passed: Mapping[str, xr.Dataset], in_memory: bool, is_grid: bool) -> str:
    """Return the program that computes the results again and writes this page.

    Args:
        config: settings of the study.
        passed: networks that were passed to the study; {} for the program that trains the networks.
        in_memory: True if the data were passed to the study.
        is_grid: True for a study of several conditions, whose page shows no networks.
    """
    settings = {**config, "networks": ()} if passed else config
    arguments = ", ".join(f"{name}={_tuple(value)!r}" for name, value in settings.items())
    lines = ["import jaxablate as ja", "from jaxablate.report import networks_beside, write_report", ""]
    if passed:
        lines[1] = "from jaxablate.report import write_report"
    for score in filter(is_user_defined, config.get("scores", ())):
        lines.append(f"ja.scores.SCORES[{score!r}] = ...  # placeholder: your score")
    lines.append(f"config = ja.StudyConfig({arguments})")
    if in_memory:
        lines.append("data = ...  # placeholder: your dataset, of the checksums above")
    elif passed and not is_grid:
        lines.append("data = ja.load_dataset(config.dataset, seed=config.split_seed, data_dir=config.data_dir)")
    if passed:
        node = "results[CONDITION][NAME]" if is_grid else "results[NAME]"
        # checksums of the state say nothing about the code, such as the activation function
        lines.append(f'# placeholders: your networks; {node}["model_sha256"] must be the checksums above, and the')
        lines.append("# intact networks must have as many correct predictions as stated here")
        lines.append("networks = {")
        for name, network in passed.items():
            number = network.sizes["seed"]
            value = "..." if number == 1 else f"[{', '.join(['...'] * number)}]"
            correct = intact_correct(network)
            lines.append(f"    {name!r}: {value},  # {_kind(network)}; {', '.join(map(str, correct))} correct")
        lines.append("}")
    run = "config" + (", networks" if passed else "") + (", data=data" if in_memory else "")
    lines.append(f'results = ja.run_study({run}, run_dir="run")')
    pictures = ', networks=networks_beside(results, "run")[0]'
    if passed:
        firsts = ", ".join(
            f"{name!r}: networks[{name!r}]{'[0]' * (network.sizes['seed'] > 1)}" for name, network in passed.items()
        )
        pictures = "" if is_grid else f", networks={{{firsts}}}"
    lines.append(f'write_report(results, "report.html"{pictures})')
    return "\n".join([*lines, ""])


def _tuple(value):
    """Convert JSON's lists back into tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _correlations(name: str, network: xr.Dataset) -> dict:
    """Return a table of the correlations, with intervals in brackets."""
    chart = correlation_chart(name, network)

    def text(mean: float, low: float, high: float) -> str:
        interval = f" [{low:+.2f}, {high:+.2f}]" if low < high else ""
        return f"{mean:+.2f}{interval}" if mean == mean else "undefined"

    note = f"; in brackets: {INTERVAL}" if chart.num_networks > 1 else ""
    note += ", cut at -1 and +1" if chart.is_cut else ""
    cells = np.stack([chart.mean, chart.low, chart.high], axis=-1)  # [score, place, value]
    rows = [[score, *(text(*cell) for cell in row)] for score, row in zip(chart.scores, cells.tolist(), strict=True)]
    return {"title": f"{chart.title}{note}", "head": ["score", *chart.places], "rows": rows, "text_columns": 1}


def _balanced_output(network: xr.Dataset) -> str:
    """Describe the output of an ablated neuron under bias balancing."""
    scaled = balanced_fill(network) == "scaled"
    return "its activation times its firing rate" if scaled else "its mean on the validation images"


def _describe_bars(network: xr.Dataset) -> str:
    """Describe the bars of a neuron's classes."""
    if network.sizes["code"] == 2:
        return "the share of each class's validation images with the neuron's code 1, the upper one"
    return "the mean of the neuron's code over each class's validation images, in percent of the highest code"


def _neurons(network: xr.Dataset, model: AnyModel | None, examples: Examples | None) -> dict:
    """Return the first seed's neurons at both ends of every layer's ranking.

    The ranking is by mutual information, or by the first score. Neurons without a score are left out if others have
    one.
    """
    metrics = names_of(network, "score")
    by = main_score(network)
    first = network.isel(seed=0)
    scores = first["scores"].transpose("score", "neuron").values
    counts = first["joint_counts"].transpose("neuron", "class", "code").values.astype(np.float64)
    # a neuron's profile is its mean code within each class, as a fraction of the highest code; NaN without images
    codes = np.arange(counts.shape[2]) / max(counts.shape[2] - 1, 1)
    totals = counts.sum(axis=2)
    profiles = np.where(totals > 0, counts @ codes / np.maximum(totals, 1), np.nan)
    damage = 1000 * first["single_damage"].values
    drops = first["single_class_drop"].transpose("neuron", "class").values if "single_class_drop" in first else None
    weights = None if model is None else weights_of(model)
    layers, ranking, rows = first["layer"].values, scores[metrics.index(by)], []
    for i, site in enumerate(layers_of(network)):
        members = np.flatnonzero(layers == i + 1)
        is_ranked = np.isfinite(ranking[members])
        ranked = members[is_ranked] if is_ranked.any() else members
        ordered = ranked[np.argsort(-ranking[ranked], kind="stable")]
        # at most EXTREMES neurons from each end, and none twice in a small layer
        count = min(EXTREMES, -(-len(ranked) // 2))
        chosen = [*range(count), *range(max(len(ranked) - count, count), len(ranked))]
        for rank in chosen:
            neuron = ordered[rank]
            rows.append(
                {
                    "layer": place_name(site),
                    "rows": len(chosen) if rank == 0 else 0,  # the layer's cell spans its rows
                    "rank": f"{rank + 1} of {len(ranked)}",
                    "neuron": f"{site}/{neuron - members[0]}, id {neuron}",
                    "scores": [f"{score:.4f}" if score == score else "undefined" for score in scores[:, neuron]],
                    "damage": f"{damage[neuron]:+.2f}",
                    "drop": "" if drops is None else _largest_drop(drops[neuron]),
                    "profile": [
                        (c, round(float(share), 3), _percent(share, "no images"))
                        for c, share in enumerate(profiles[neuron])
                    ],
                    "drops": [] if drops is None else _drop_profile(drops[neuron]),
                    "examples": None if examples is None else examples.of_neuron(int(neuron)),
                    "picture": None if weights is None else picture(weights[i][neuron - members[0]]),
                }
            )
    undefined = int((~np.isfinite(ranking)).sum())
    return {
        "by": by.replace("_", " ") + (f" ({undefined} neurons without it are not ranked)" if undefined else ""),
        "metrics": [score_name(m) for m in metrics],
        "bars": _describe_bars(network),
        "rows": rows,
    }


def _drop_profile(drops: np.ndarray) -> list[tuple[int, float, str]]:
    """Return the fall within each class, relative to the largest, and its text; a rise has a bar of no height."""
    largest = float(np.nanmax(drops, initial=0)) or 1.0
    return [
        (c, round(float(np.maximum(drop, 0)) / largest, 3), _percent(drop, "no test images"))
        for c, drop in enumerate(drops)
    ]


def _percent(share: float, undefined: str) -> str:
    """Return a fraction in percent; `undefined` for NaN."""
    return f"{100 * share:.1f}%" if share == share else undefined


def _largest_drop(drops: np.ndarray) -> str:
    """Return the class whose accuracy falls most and its fall in points, from fractions [class]."""
    if np.isnan(drops).all() or np.nanmax(drops) <= 0:
        return "none"
    largest = int(np.nanargmax(drops))
    return f"{100 * drops[largest]:.1f} (class {largest})"


def _numbers(name: str, network: xr.Dataset) -> dict:
    """Return a table of accuracies of a network: after half of the steps, at the end, and the mean over the steps."""
    fills, rows = names_of(network, "fill"), []
    for scope, (ranking, direction) in itertools.product(names_of(network, "scope"), distinct_orders(network)):
        summaries = [curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill) for fill in fills]
        steps = summaries[0].step
        last = len(steps) - 1
        half = -(-last // 2)
        values = [value for s in summaries for value in (s.mean[half], s.mean[last], s.mean[1:].mean())]
        words = [place_name(scope), f"{short_name(ranking)} {direction}".strip(), f"{steps[half]}, {steps[last]}"]
        rows.append([*words, *(f"{100 * value:.2f}" for value in values)])
    columns = [f"{fill_name(network, fill)}, {kind}" for fill in fills for kind in ("half", "end", "mean")]
    head = ["ablated", "order", "half, end", *columns]
    return {"title": f"{name} network", "head": head, "rows": rows, "text_columns": 3}
