"""Lay out results as the sections of a page: cards, charts and tables for the template, no statistics.

Input: results of a study.
Output: dictionaries and dataclasses that the template reads.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from flax import nnx

from jaxablate.claims import CLAIMS, SHORT, Verdict
from jaxablate.figures import FIGURES, METRIC_NAMES
from jaxablate.layer_analysis import damage_correlations, layer_shares, lost_predictions, mean_and_interval
from jaxablate.metrics import METRICS
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import DEPARTURES, PAPER, PUBLISHED
from jaxablate.report._charts import Series, line_chart, violin_chart
from jaxablate.report._pictures import picture, weights_of
from jaxablate.results import NETWORK_SCOPE, RANDOM, balanced_fill, curve, protocols_of, select_protocol, summarize

EXTREMES = 3
"""Number of neurons at each end of a layer's ranking in the table."""
COLORS = {RANDOM: "color0", "mutual_information": "color1", "kl_selectivity": "color2", "entropy": "color3"}
DASHES = {"low": "", "high": "dashed"}


@dataclass
class Section:
    """A question, a hint how to read the answer, and the charts (for each network) and tables that answer it."""

    question: str
    see: str
    charts: list[list[dict]] = field(default_factory=list)
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
        hidden = " + ".join(map(str, json.loads(network.attrs["hidden"])))
        tests = f"{network.attrs['num_test_examples']:,}"
        words = (
            f"test accuracy of the intact network{mean}; {hidden} neurons, {network.attrs['activation']}; "
            f"{tests} test images"
        )
        cards.append((f"{name} network", f"{intact.mean():.2f}%", words))
    if seconds is not None:
        cards.append(("Time", _duration(float(seconds)), f"to compute it on {_device(results)}"))
    return cards


def _device(results: xr.DataTree) -> str:
    """Return the device in words; a CPU is named once."""
    return results.attrs["device"].replace("cpu: cpu", "CPU")


def _duration(seconds: float) -> str:
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


def claims_of(verdicts: Sequence[Verdict]) -> dict:
    """Return the protocols, and the verdicts by claim, network and protocol."""
    protocols = list(dict.fromkeys(verdict.protocol for verdict in verdicts))
    claims: dict[str, dict[str, dict]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: list(CLAIMS).index(verdict.claim)):
        by_network = claims.setdefault(f"{verdict.claim}. {verdict.text}", {})
        by_network.setdefault(verdict.network, {})[verdict.protocol] = verdict
    return {"protocols": protocols, "claims": claims}


def sections_of(results: xr.DataTree, protocol: str, models: Mapping[str, nnx.Module], *, first: bool) -> list[Section]:
    """Return the questions of a study under one protocol with their answers; training is shown only for the first."""
    tree = select_protocol(results, protocol)
    networks = {name: node.to_dataset() for name, node in tree.children.items()}
    sections = [
        Section(
            "Did the networks learn?",
            "Training values are means over an epoch; validation follows the epoch. If training ends better than "
            "validation, the network memorises its examples.",
            [list(_training(name, network)) for name, network in networks.items() if first],
        ),
        Section(
            "Where does the information sit?",
            "Each violin shows the neurons of a layer, of all networks, whose score is defined. Entropy is of the "
            "neuron's code, mutual information of code and class, KL selectivity the largest divergence of the code "
            "within a class from its overall distribution. A wide foot near 0 means neurons that carry next to no "
            "information about the class.",
            [list(_violins(name, network)) for name, network in networks.items()],
        ),
        Section(
            "Does bias balancing soften the damage?",
            f"An ablated neuron outputs zero or, bias balanced, {_balanced_output(next(iter(networks.values())))}. The "
            "further a solid line lies above the dashed line of its colour, the more of the lost accuracy was due to "
            "the shift of the next layer's inputs, not to lost information. MI: mutual information.",
            [[_balancing(name, network, scope) for scope in _layers(network)] for name, network in networks.items()],
        ),
        Section(
            "Does the ranking matter within a layer?",
            "If a solid line (low values first) stays above random and the dashed line of its colour (high values "
            "first) falls below, the score separates neurons that matter from neurons that do not. MI: mutual "
            "information, KL: KL selectivity.",
            [[_orders(name, network, scope) for scope in _layers(network)] for name, network in networks.items()],
        ),
        Section(
            "And over the whole network?",
            "Compare the accuracy with the layers that the neurons come from: an order that empties one layer first "
            "says more about layers than about neurons.",
            [
                [_orders(name, network, NETWORK_SCOPE) for name, network in networks.items()],
                *(list(_shares(name, network)) for name, network in networks.items()),
            ],
        ),
        Section(
            "Does a score predict the loss of one neuron?",
            "Spearman's correlation of the score and the test predictions lost if that neuron alone is ablated, bias "
            "balanced. A value near 0 means that the score does not predict this loss. Ablating a redundant neuron "
            "alone costs nothing, so that a small loss does not prove a neuron unimportant.",
            tables=[_correlations(name, network) for name, network in networks.items()],
        ),
        Section(
            "Which neurons are the most and the least informative?",
            f"Neurons are named by layer and number within the layer, and by their id in the whole network. In the "
            "library, orders and masks use these ids, or the number within the layer together with site=. Bars: "
            f"{_describe_bars(next(iter(networks.values())))}. Pictures: incoming weights, scaled for each neuron, "
            "violet above 0 and orange below; after the first layer they are products of the layers' weights, as if "
            "the layers between were linear. Points lost alone: test accuracy lost if only that neuron is ablated, "
            "bias balanced.",
            neurons=[
                {"title": f"{name} network, seed {int(network['seed'][0])}", **_neurons(network, models.get(name))}
                for name, network in networks.items()
            ],
        ),
        Section(
            "The numbers",
            "Test accuracy in percent after k ablated neurons, mean over networks (and random orders).",
            tables=_numbers(tree),
        ),
    ]
    return [section for section in sections if any(section.charts) or section.tables or section.neurons]


def provenance_of(results: xr.DataTree) -> dict:
    """Return the origin of the results, and the program that computes them and this page again."""
    config = json.loads(results.attrs["config"])
    names = ("created", "device", "dataset", "dataset_origin", "matmul_precision", "format")
    files = json.loads(results.attrs["dataset_sha256"])
    return {
        "rows": {name.replace("_", " "): results.attrs[name] for name in names} | {"device": _device(results)},
        "checksums": files if isinstance(files, dict) else {"data": files},
        "versions": json.loads(results.attrs["versions"]),
        "config": {name: json.dumps(value) for name, value in config.items()},
        "python": _python(config),
        "with_models": "" if config.get("networks") else ", with your networks by name in `networks`",
    }


def _python(config: dict) -> str:
    """Return the program that computes the results again and writes this page."""
    settings = ", ".join(f"{name}={_tuple(value)!r}" for name, value in config.items())
    models = "" if config.get("networks") else ", networks"  # the user's networks by name
    return (
        "import jaxablate as ja\nfrom jaxablate.report import networks_beside, write_report\n\n"
        f"config = ja.StudyConfig({settings})\n"
        f'results = ja.run_study(config{models}, run_dir="run")\n'
        'write_report(results, "report.html", networks=networks_beside(results, "run")[0])\n'
    )


def _tuple(value):
    """Convert JSON's lists back into tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _layers(network: xr.Dataset) -> list[str]:
    return [str(scope) for scope in network["scope"].values if scope != NETWORK_SCOPE]


def _place(scope: str) -> str:
    return "whole network" if scope == NETWORK_SCOPE else re.sub(r"^layer(\d+)$", r"layer \1", scope)


def metric_name(metric: str) -> str:
    """Return a score in words."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def _paper(**attributes: str) -> str:
    """Name the paper's figures whose specification has these attributes."""
    numbers = [
        str(number)
        for number, spec in FIGURES.items()
        if all(getattr(spec, name) == value for name, value in attributes.items())
    ]
    return f"The paper's figure{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}." if numbers else ""


def _training(name: str, network: xr.Dataset) -> Iterator[dict]:
    if "epoch" not in network.coords:
        return
    for quantity, y_label, subject in (("accuracy", "Accuracy", "accuracy"), ("loss", "Cross-entropy (nats)", "cost")):
        series = []
        for split, look in (("train", "color1"), ("validation", "color2 dashed")):
            mean, low, high = mean_and_interval(network[f"{split}_{quantity}"])
            bands = (low.values, high.values) if network.sizes["seed"] > 1 else (None, None)
            series.append(Series({"train": "training"}.get(split, split), look, mean.values, *bands))
        yield line_chart(
            f"{name} network: {quantity}",
            f"{_paper(network=name, kind='training', subject=subject)} {_bands(network)}",
            network["epoch"].values,
            series,
            x_label="Epoch",
            y_label=y_label,
            percent=quantity == "accuracy",
        )


def _bands(network: xr.Dataset) -> str:
    seeds = network.sizes["seed"]
    return f"Mean of {seeds} networks; band: 95% t-interval of the mean." if seeds > 1 else "One network."


def _violins(name: str, network: xr.Dataset) -> Iterator[dict]:
    sites = _layers(network)
    for metric in map(str, network["score"].values):
        values = network["scores"].sel(score=metric).values
        groups = {_place(site): values[:, network["layer"].values == i + 1].ravel() for i, site in enumerate(sites)}
        unit = (
            f" ({network['scores'].attrs['units']}s)" if metric in METRICS else ""
        )  # other scores have different units
        yield violin_chart(
            f"{name} network: {metric_name(metric)}",
            f"{_paper(network=name, kind='scores', subject=metric)} Lines: quartiles.",
            groups,
            y_label=f"{metric_name(metric)}{unit}",
        )


def _series(
    network: xr.Dataset,
    scope: str,
    ranking: str,
    direction: str,
    fill: str,
    *,
    name: str,
    look: str,
) -> Series:
    summary = curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill)
    part = slice(int(network.attrs["first_step"]), None)
    bands = (summary.low[part], summary.high[part]) if summary.band else (None, None)
    return Series(name, look, summary.mean[part], *bands)


def _sweep(title: str, about: str, network: xr.Dataset, scope: str, series: list[Series]) -> dict:
    band = curve(network, scope=scope, ranking=RANDOM, direction="low", fill="zero").band
    return line_chart(
        title,
        f"{about} {f'Band: {band}.' if band else ''}",
        network["step"].values[int(network.attrs["first_step"]) :],
        series,
        x_label="Ablated neurons",
        y_label="Test accuracy",
        percent=True,
    )


def _metrics(network: xr.Dataset) -> dict[str, str]:
    """Return the colour of each score."""
    names = [str(metric) for metric in network["score"].values]
    free = (f"color{i % 6 + 1}" for i in range(len(names)) if f"color{i % 6 + 1}" not in COLORS.values() or i >= 6)
    return {name: COLORS.get(name) or next(free, "color6") for name in names}


def _balanced_output(network: xr.Dataset) -> str:
    """Describe the output of an ablated neuron under bias balancing."""
    scaled = balanced_fill(network) == "scaled"
    return "its activation times its firing rate" if scaled else "its mean on the validation images"


def _balancing(name: str, network: xr.Dataset, scope: str) -> dict:
    metrics = _metrics(network)
    ranking = "mutual_information" if "mutual_information" in metrics else next(iter(metrics))
    series = []
    fills = [balanced_fill(network), *(str(f) for f in network["fill"].values if f != balanced_fill(network))]
    for order, words in ((RANDOM, "random"), (ranking, f"{SHORT.get(ranking, metric_name(ranking))}, low first")):
        for i, fill in enumerate(fills):
            dash = "dashed" if fill == "zero" else ("", "", "dotted", "dashdot", "sparse")[i % 5]
            series.append(
                _series(
                    network, scope, order, "low", fill,
                    name=f"{words}; {'zeros' if fill == 'zero' else fill.replace('_', ' ')}",
                    look=f"{COLORS[RANDOM] if order == RANDOM else metrics[order]} {dash}".strip(),
                )
            )  # fmt: skip
    about = f"{_paper(network=name, kind='balancing', scope=scope)} {fills[0].capitalize()}: bias balanced."
    return _sweep(f"{name} network, {_place(scope)}", about, network, scope, series)


def _orders(name: str, network: xr.Dataset, scope: str) -> dict:
    fill = balanced_fill(network)
    series = [_series(network, scope, RANDOM, "low", fill, name="random", look=COLORS[RANDOM])]
    for direction in DIRECTIONS:
        for metric, color in _metrics(network).items():
            words = f"{SHORT.get(metric, metric_name(metric))}, {direction} first"
            look = f"{color} {DASHES[direction]}".strip()
            series.append(_series(network, scope, metric, direction, fill, name=words, look=look))
    about = f"{_paper(network=name, kind='orders', scope=scope)} Bias balanced."
    return _sweep(f"{name} network, {_place(scope)}", about, network, scope, series)


def _shares(name: str, network: xr.Dataset) -> Iterator[dict]:
    if len(_layers(network)) < 2:
        return
    mean, low, high = mean_and_interval(layer_shares(network))
    for metric in map(str, network["score"].values):
        series = []
        for i, (layer, site) in enumerate(zip(mean["layer"].values, _layers(network), strict=True)):
            chosen = {"ordering": f"{metric}_low", "layer": layer}
            bands = (low.sel(chosen).values, high.sel(chosen).values) if network.sizes["seed"] > 1 else (None, None)
            dash = ("", "dashed", "dotted", "dashdot")[i % 4]
            series.append(Series(_place(site), f"color{i % 6 + 1} {dash}".strip(), mean.sel(chosen).values, *bands))
        yield line_chart(
            f"{name} network: {metric_name(metric)}, low first",
            f"Share of each layer among the neurons ablated so far. {_bands(network)}",
            mean["rank"].values,
            series,
            x_label="Ablated neurons",
            y_label="Share of the layer",
            percent=True,
        )


def _correlations(name: str, network: xr.Dataset) -> dict:
    mean, low, high = mean_and_interval(damage_correlations(network))
    rows, cut = [], False
    for metric in map(str, network["score"].values):
        cells = []
        for scope in map(str, network["scope"].values):
            cell = {"score": metric, "scope": scope}
            value, ends = float(mean.sel(cell)), (float(low.sel(cell)), float(high.sel(cell)))
            cut = cut or max(abs(end) for end in ends) > 1
            between = f" [{max(ends[0], -1):+.2f}, {min(ends[1], 1):+.2f}]" if ends[0] < ends[1] else ""
            cells.append(f"{value:+.2f}{between}" if value == value else "undefined")
        rows.append([metric_name(metric), *cells])
    places = ["across layers" if s == NETWORK_SCOPE else _place(str(s)) for s in network["scope"].values]
    note = "; in brackets: 95% t-interval of the mean" if network.sizes["seed"] > 1 else ""
    note += ", cut at -1 and +1" if cut else ""
    return {"title": f"{name} network{note}", "head": ["score", *places], "rows": rows, "text_columns": 1}


def _describe_bars(network: xr.Dataset) -> str:
    """Describe the bars of a neuron's classes."""
    if network.sizes["code"] == 2:
        return "the share of each class's validation images with the neuron's code 1, the upper one"
    return "the mean of the neuron's code over each class's validation images, in percent of the highest code"


def _neurons(network: xr.Dataset, model: nnx.Module | None) -> dict:
    """Return the first seed's neurons at both ends of every layer's ranking.

    The ranking is by mutual information, or by the first score. Neurons without a score are left out if others have
    one.
    """
    metrics = [str(metric) for metric in network["score"].values]
    by = "mutual_information" if "mutual_information" in metrics else metrics[0]
    first = network.isel(seed=0)
    scores = first["scores"].transpose("score", "neuron").values
    counts = first["joint_counts"].transpose("neuron", "class", "code").values.astype(np.float64)
    codes = np.arange(counts.shape[2]) / max(counts.shape[2] - 1, 1)
    totals = counts.sum(axis=2)
    profiles = np.where(totals > 0, counts @ codes / np.maximum(totals, 1), np.nan)
    points = 100 * lost_predictions(network)[0] / network.attrs["num_test_examples"]
    weights = None if model is None else weights_of(model)
    layers, ranking, rows = first["layer"].values, scores[metrics.index(by)], []
    for i, site in enumerate(_layers(network)):
        members = np.flatnonzero(layers == i + 1)
        is_ranked = np.isfinite(ranking[members])
        ranked = members[is_ranked] if is_ranked.any() else members
        ordered = ranked[np.argsort(-ranking[ranked], kind="stable")]
        count = min(EXTREMES, -(-len(ranked) // 2))
        chosen = [*range(count), *range(max(len(ranked) - count, count), len(ranked))]
        for rank in chosen:
            neuron = ordered[rank]
            rows.append(
                {
                    "layer": _place(site),
                    "rows": len(chosen) if rank == 0 else 0,  # the layer's cell spans its rows
                    "rank": f"{rank + 1} of {len(ranked)}",
                    "neuron": f"{site}/{neuron - members[0]}, id {neuron}",
                    "scores": [f"{score:.4f}" if score == score else "undefined" for score in scores[:, neuron]],
                    "damage": f"{points[neuron]:+.2f}",
                    "profile": [(c, round(float(share), 3)) for c, share in enumerate(profiles[neuron])],
                    "picture": None if weights is None else picture(weights[i][neuron - members[0]]),
                }
            )
    undefined = int((~np.isfinite(ranking)).sum())
    return {
        "by": by.replace("_", " ") + (f" ({undefined} neurons without it are not ranked)" if undefined else ""),
        "metrics": [metric_name(m) for m in metrics],
        "bars": _describe_bars(network),
        "rows": rows,
    }


def _numbers(tree: xr.DataTree) -> list[dict]:
    """Return a table of accuracies for each network."""
    cells: dict[str, dict[tuple[str, str], list[str]]] = {}
    heads: dict[str, dict[str, None]] = {}
    for row in summarize(tree):
        order = f"{SHORT.get(row.ranking, metric_name(row.ranking))} {row.direction}".strip()
        order_cells = cells.setdefault(row.network, {}).setdefault((_place(row.scope), order), [])
        order_cells += [f"{100 * value:.2f}" for value in row.accuracy.values()]
        columns = {f"{row.fill.replace('_', ' ')}, k = {step}": None for step in row.accuracy}
        heads.setdefault(row.network, {}).update(columns)
    return [
        {
            "title": f"{network} network",
            "head": ["ablated", "order", *heads[network]],
            "rows": [[*place, *numbers] for place, numbers in rows.items()],
            "text_columns": 2,
        }
        for network, rows in cells.items()
    ]
