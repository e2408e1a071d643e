"""Write docs/published_figures.md, and the part of docs/findings.md that compares the published figures."""

from pathlib import Path

import numpy as np
import xarray as xr
from findings_common import PAPER, PUBLISHED, Measurements, Section
from scipy import stats

from jaxablate._files import atomic_path
from jaxablate.charts import FIGURES, Prediction, PublishedCurve, compare_published
from jaxablate.claims import SHORT, NetworkSummary
from jaxablate.figures import draw_published
from jaxablate.results import select_protocol
from jaxablate.statistics import estimate

PUBLISHED_CURVES = Path(__file__).parents[1] / "docs" / "findings" / "published_curves.json"
READING_ERROR = 0.3
"""Largest error of a curve that was read off a picture, in points."""
SAME_CURVE = 0.05
"""Two published curves with a smaller mean distance, in points, are the same curve; all other pairs are further apart
than 0.1."""


def published_curves(published: dict[str, dict[str, list[float]]], figure: int) -> dict[str, list[float]]:
    return published[f"fig{figure:02}"]


def reproduction(measured: Measurements, published: dict[str, dict[str, list[float]]]) -> Section:
    """Compare the published figures with the prediction interval of a new network under the published protocol."""
    compared = {protocol: compared_figures(measured, published, protocol) for protocol in (PUBLISHED, PAPER)}
    rows = []
    for figure, curves in compared[PUBLISHED].items():
        cells, spec = [], FIGURES[figure]
        for curve in curves:
            outside = [
                f"{kind} {prediction.published:.1f}, predicted {prediction.low:.1f} to {min(prediction.high, 100):.1f}"
                for kind, prediction in {"AUC": curve.area, "end": curve.end}.items()
                if not prediction.is_inside
            ]
            if outside:
                cells.append(f"{curve.name} ({'; '.join(outside)})")
        inside = sum(curve.area.is_inside for curve in curves)
        rows.append(f"| {figure} | {spec.network}, {spec.scope} | {inside} of {len(curves)} | {'; '.join(cells)} |")
    counts, inside_of, distance_of = {}, {}, {}
    for protocol, figures in compared.items():
        curves = distinct_curves(figures)
        effects = published_effects(measured, published, protocol)
        compared_values = [c.area for c in curves], [c.end for c in curves], [*effects.values()]
        areas, ends, gaps = (sum(prediction.is_inside for prediction in values) for values in compared_values)
        distances = [np.median([abs(p.published - p.mean) for p in values]) for values in compared_values]
        inside_of[protocol], distance_of[protocol] = areas, f"{distances[0]:.1f}"
        width = np.median([curve.area.high - curve.area.low for curve in curves])
        counts[protocol] = (
            f"{areas} of {len(curves)} AUCs, {ends} of {len(curves)} end points and {gaps} of {len(effects)} "
            f"differences of two AUCs lie inside (median width for an AUC {width:.1f} points); the median distances "
            f"of all, inside or not, from our mean are {distances[0]:.1f}, {distances[1]:.1f} and {distances[2]:.1f} "
            "points"
        )
    effects = published_effects(measured, published, PUBLISHED)
    outside = [
        f"{label} ({effect.published:+.1f}; predicted {effect.low:+.1f} to {effect.high:+.1f})"
        for label, effect in effects.items()
        if not effect.is_inside
    ]
    c4 = {
        label: effect.published
        for label, effect in effects.items()
        if "last hidden layer" in label and "entropy" not in label
    }
    clear = {label: gap for label, gap in c4.items() if abs(gap) > 2 * READING_ERROR}
    support = sum(gap > 0 for gap in c4.values()), sum(gap > 0 for gap in clear.values())
    cases = "; ".join(f"{label} {gap:+.1f}" for label, gap in c4.items())
    in_two_layers = sum("2-layer" in label for label, effect in effects.items() if not effect.is_inside)
    scores = [measured.network(name, PUBLISHED)["scores"].sel(score="mutual_information") for name in measured.names]
    ranges = [f"{float(mi.min()):.2f} and {float(mi.max()):.2f}" for mi in scores]
    summary = (
        f"Of {len(distinct_curves(compared[PUBLISHED]))} published curves, {inside_of[PUBLISHED]} have a mean accuracy "
        "that a network trained here would give (95% prediction interval) by the quantities of the code, and "
        f"{inside_of[PAPER]} by the formulas. The median distance of all from our mean is {distance_of[PUBLISHED]} "
        f"points by the code and {distance_of[PAPER]} by the formulas."
    )
    text = "\n".join(
        [
            "The curves of figures 6 to 22 were read off the published pictures (to about 0.1 to 0.3 points) and "
            f"compared with the 95% prediction interval of one new network; a random curve has one random order, a "
            "difference of curves the mean of all. Under the "
            f"published protocol {counts[PUBLISHED]}; under the paper's formulas {counts[PAPER]}. Curves of a network "
            f"that differ by less than {SAME_CURVE} points on average count once. If the published networks were "
            "trained as these were, 95% are expected, but the curves of a network are not independent, and the "
            "intervals are wide: coverage alone would favour the protocol with the wider intervals, so the distances "
            "are given as well. "
            "[The pictures](published_figures.md) show all 17 figures.",
            "",
            "Differences of two curves say more, since a network's general level cancels. Outside under the published "
            f"protocol: {'; '.join(outside) or 'none'}. {'All' if in_two_layers == len(outside) else in_two_layers} "
            "are in the 2-layer network; differences that share a curve are not independent. A difference of HVF and "
            "LVF takes its curves from two figures and assumes that they show one network.",
            "",
            "The paper claims that high values first is better in the last hidden layer (C4). Its own figures have "
            f"the sign of the claim in {support[0]} of {len(c4)} cases ({cases} points). Only {len(clear)} differ "
            f"from 0 by more than {2 * READING_ERROR:g} points, the largest reading error of a difference, and "
            f"{support[1]} of these supports the claim. One network stands behind each figure, so these numbers have "
            "no interval.",
            "",
            "Figure 4 shows mutual information of up to 1.1 nats and more. A one-bit code cannot carry more than ln 2 "
            "= 0.69 nats. H(T) + H(T|Y), which the published protocol computes in its place, lies between "
            f"{ranges[-1]} nats in the {measured.names[-1]} networks and between {ranges[0]} in the others, where it "
            "is defined.",
            "",
            "| figure | shows | AUCs inside | outside (AUC or end point) |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )
    return Section(summary, text)


def compared_figures(
    measured: Measurements, published: dict[str, dict[str, list[float]]], protocol: str
) -> dict[int, list[PublishedCurve]]:
    """Return the curves of each published figure with the predictions of a protocol."""
    results = select_protocol(measured.results, protocol)
    return {n: compare_published(results, n, published_curves(published, n)) for n in range(6, 23)}


def distinct_curves(figures: dict[int, list[PublishedCurve]]) -> list[PublishedCurve]:
    """Return each published curve once, also if several figures show it."""
    seen: dict[str, list[PublishedCurve]] = {}
    for figure, curves in figures.items():
        earlier = seen.setdefault(FIGURES[figure].network, [])
        earlier += [
            curve
            for curve in curves
            if not any(100 * np.abs(curve.values - e.values).mean() < SAME_CURVE for e in earlier)
        ]
    return [curve for curves in seen.values() for curve in curves]


def published_effects(
    measured: Measurements, published: dict[str, dict[str, list[float]]], protocol: str
) -> dict[str, Prediction]:
    """Return differences of AUC, in points, that the paper's text speaks of."""
    results = select_protocol(measured.results, protocol)
    names = {"mutual_information": "mutual information", "kl_selectivity": "KL selectivity", "entropy": "entropy"}
    pairs_of_figures = {("2-layer", 1): (11, 13), ("2-layer", 2): (12, 14), ("3-layer", 1): (15, 18),
                        ("3-layer", 2): (16, 19), ("3-layer", 3): (17, 20)}  # fmt: skip
    effects = {}

    def add(label: str, in_paper: float, ours: np.ndarray) -> None:
        estimated = estimate(ours)
        effects[label] = Prediction(in_paper, *map(float, (estimated.mean, *estimated.prediction_interval())))

    def area(figure: int, curve: str) -> float:
        return float(np.mean(published_curves(published, figure)[curve]))

    for (name, layer), (high_first, low_first) in pairs_of_figures.items():
        summary = NetworkSummary(results[name].to_dataset())
        scope = f"layer{layer}"
        last = " (last hidden layer)" if scope == summary.layers[-1] else ""
        for score, curve in names.items():
            gap = summary.area(scope, score, "high") - summary.area(scope, score, "low")
            in_paper = area(high_first, curve) - area(low_first, curve)
            add(f"{name} {scope}{last}, {SHORT[score]}: HVF minus LVF", in_paper, gap)
    for figure, (name, scope) in {6: ("2-layer", "layer1"), 7: ("2-layer", "layer2"), 8: ("3-layer", "layer1"),
                                  9: ("3-layer", "layer2"), 10: ("3-layer", "layer3")}.items():  # fmt: skip
        summary = NetworkSummary(results[name].to_dataset())
        for ranking, label in (("random", "random"), ("mutual_information", "MI low first")):
            gap = summary.area(scope, ranking) - summary.area(scope, ranking, fill="zero")
            in_paper = area(figure, f"{label}, balanced") - area(figure, f"{label}, zeros")
            add(f"{name} {scope}, {label}: balanced minus zeros", in_paper, gap)
    for figure, name in ((21, "2-layer"), (22, "3-layer")):
        summary = NetworkSummary(results[name].to_dataset())
        for score, curve in names.items():
            gap = summary.area("network", score) - summary.area("network", "random")
            add(f"{name} network, {SHORT[score]}-LVF minus random", area(figure, curve) - area(figure, "random"), gap)
    return effects


def skewness_at_the_end(results: xr.DataTree) -> float:
    """Return the median skewness over networks of the accuracy at the last step, over scopes, orders and fills."""
    skewness = [
        stats.skew(node["accuracy"].isel(step=-1).transpose("seed", ...).values) for node in results.children.values()
    ]
    return float(np.median(np.concatenate([values.ravel() for values in skewness])))


def write_published_page(measured: Measurements, published: dict[str, dict[str, list[float]]], folder: Path) -> None:
    """Write the page with the 17 published figures over the curves of these networks."""
    results = select_protocol(measured.results, PUBLISHED)
    lines = [
        "# The published figures and the published protocol",
        "",
        "Written by `scripts/findings.py`. Lines: the curves of the paper's figures 6 to 22, read off the published "
        "pictures. Dashed lines: the mean of our networks. Bands: 95% prediction interval of one new network under "
        "the published protocol, for each step and not for a whole curve. They assume a normal distribution and are "
        "cut at 0 and 100%. The accuracies are skewed: over all curves, their skewness at the last step has a median "
        f"of {skewness_at_the_end(results):+.1f}. Where curves cover each other, the published values were "
        "interpolated. [The findings](findings.md) count AUCs, end points and differences that lie inside.",
        "",
    ]
    for figure in range(6, 23):
        file = folder / "findings" / f"published_fig{figure:02}.png"
        with atomic_path(file) as temporary:
            drawn = draw_published(results, figure, published_curves(published, figure))
            drawn.savefig(temporary, format="png", dpi=150)
        lines += [f"![Figure {figure} over the prediction interval](findings/{file.name})", ""]
    with atomic_path(folder / "published_figures.md") as temporary:
        temporary.write_text("\n".join(lines))
