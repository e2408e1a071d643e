"""Write docs/redundancy.md and its picture from saved measurements, never by hand.

`python scripts/redundancy.py [DATA] [--out docs]`: DATA is the folder that `scripts/measure_redundancy.py` filled, by
default docs/findings/data. The same data give the same text, byte for byte.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from findings_settings import unpacked
from matplotlib.figure import Figure

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.charts import place_name
from jaxablate.figures._draw import styled
from jaxablate.statistics import estimate, paired_difference

PAPER = "mnist_sigmoid"
GONE = 180
FILLS = {"zero": "zeros", "mean": "means", "linear": "linear compensation"}
ORDERS = {"random 0": "random", "mutual_information": "MI, low first", "elimination_rank": "elimination"}
COLORS = {"zero": "#D55E00", "mean": "#0072B2", "linear": "#009E73", "readout": "#000000"}
INTRODUCTION = """# Redundancy of layers

The paper conjectures that deep layers are redundant, and infers it from curves. But a curve depends on what an
ablated neuron outputs. Under *linear compensation* it outputs what the kept neurons of its layer predict, by ridge
regression on the validation split: the fill `ja.compute_fill(model, "linear", images)`. The layer then loses only what
is no linear function of the kept neurons. So this fill is a null model: its curves show how far linear redundancy alone
goes. `ja.prune(model, keep, fill)` adds the predictions to the next layer's weights, without training.

{picture}

{caption}

**How to read this page.** Numbers are means over networks with their 95% t-interval. The interval covers the
randomness of training. It does not cover another split, test set, order or architecture. A value that all networks
share has no interval. Fills and scores come from the validation split, accuracies and R^2 from the test split. *Random*
is one random order of each layer, the same in all networks. *MI, low first* ablates the neurons with least mutual
information first. *Elimination* removes at each step the neuron whose removal changes the next pre-activation least
(`elimination_rank`). Each step ablates {step} neurons. All networks have 200 neurons in each layer and the paper's
training (Adam, L2 = 0.001). Layers of networks with other data or activation functions count as different layers."""
SETTINGS = """## After {gone} of 200 neurons of one layer are ablated

Test accuracy in %, random order:"""
NEEDED = """## How many neurons a layer needs

Number of kept neurons at the last step before the accuracy first falls below 99% of the intact network's accuracy: an
upper bound, within {step} neurons. A *readout* is a new linear classifier (ridge regression of one-hot labels on the
training split) that reads the kept neurons of the intact network alone. It lacks the later layers, so even all neurons
of a layer may fall short of 99% of the intact network's accuracy. "short" counts the networks for which they do; the
mean leaves these networks out."""
RANK = """## How much of each layer is linear in the rest

*Effective rank* is the number of principal components with 99% of the layer's variance on the validation split. R^2 is
the fraction of a neuron's variance on the test split that the other neurons of its layer predict. Constant neurons
have no R^2 and are left out."""
LIMITS = """## What this does not show

- R^2 of single neurons does not say how many neurons can be ablated together, because a prediction needs the other
  neurons. The tables of accuracies say that.
- A neuron that others predict may still be used by the network.
- Part of the redundancy is due to rank: a layer of 200 neurons with a small effective rank is redundant by its width.
- Constant neurons, for example ReLU units that are never active, cost nothing under any fill and count as not needed.
- The L2 penalty and the widths were not varied, and the depths were only two and three layers."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/redundancy.md from saved measurements.")
    parser.add_argument("data", type=Path, nargs="?", default=Path("docs/findings/data"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="output folder; default: %(default)s")
    arguments = parser.parse_args()
    try:
        tables = read_tables(arguments.data)
        (arguments.out / "findings").mkdir(parents=True, exist_ok=True)
        with atomic_path(arguments.out / "findings" / "redundancy.png") as temporary:
            draw(tables).savefig(temporary)
        with atomic_path(arguments.out / "redundancy.md") as temporary:
            temporary.write_text(page(tables))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def read_tables(folder: Path) -> dict[tuple[str, str], xr.Dataset]:
    """Return the measurements by setting and network, for example ("mnist_sigmoid", "2-layer")."""
    tables = {}
    for file in sorted(folder.glob("redundancy_*.nc.xz")):
        match = re.fullmatch(r"redundancy_(\w+_\w+)_(\d-layer).*\.nc\.xz", file.name)
        assert match is not None
        tables[match[1], match[2]] = unpacked(file.read_bytes()).to_dataset()
    if (PAPER, "2-layer") not in tables or (PAPER, "3-layer") not in tables:
        raise ja.InputError(
            f"{folder}: there are no measurements; `python scripts/measure_redundancy.py RUN` makes them"
        )
    return dict(sorted(tables.items(), key=lambda item: (item[0][0] != PAPER, item[0])))


@styled
def draw(tables: dict[tuple[str, str], xr.Dataset]) -> Figure:
    """Draw accuracy against the number of ablated neurons in random order, for every layer of the paper's networks."""
    panels = [(net, scope) for net in ("2-layer", "3-layer") for scope in tables[PAPER, net]["scope"].values]
    figure = Figure(figsize=(10, 2.6))
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (net, scope) in zip(axes, panels, strict=True):
        curves = 100 * tables[PAPER, net]["accuracy"].sel(scope=scope, ordering="random 0")
        for fill, name in FILLS.items():
            values = estimate(curves.sel(fill=fill).values)
            axis.plot(curves["step"], values.mean, color=COLORS[fill], label=name)
            axis.fill_between(curves["step"], *values.interval(), color=COLORS[fill], alpha=0.2, linewidth=0)
        axis.set(title=f"{net}, {place_name(str(scope))}", xlabel="ablated neurons", ylim=(0, 100))
    axes[0].set_ylabel("test accuracy in %")
    axes[0].legend(loc="lower left", fontsize="x-small")
    figure.tight_layout()
    return figure


def page(tables: dict[tuple[str, str], xr.Dataset]) -> str:
    """Return the page."""
    first = tables[PAPER, "2-layer"]
    step = int(first["step"][1] - first["step"][0])
    caption = (
        "Test accuracy while a layer is ablated to its end in random order: means of "
        f"{first.sizes['network']} networks of each kind on MNIST, with 95% t-intervals."
    )
    picture = (
        "![Accuracy against the number of ablated neurons of each layer, for zeros, means and linear compensation]"
    )
    parts = [
        INTRODUCTION.format(picture=f"{picture}(findings/redundancy.png)", caption=caption, step=step),
        "## In short\n\n" + summary(tables),
        SETTINGS.format(gone=GONE),
        gone_table(tables),
        NEEDED.format(step=step),
        needed_table(tables),
        RANK,
        rank_table(tables),
        LIMITS,
        "Made by `scripts/measure_redundancy.py` and `scripts/redundancy.py`; the measurements are in "
        "`docs/findings/data`.",
    ]
    return "\n\n".join(parts) + "\n"


def summary(tables: dict[tuple[str, str], xr.Dataset]) -> str:
    """Return sentences that are counted from the measurements."""
    lines = []
    kept, layers, better, worse, deeper = 0, 0, 0, 0, []
    for table in tables.values():
        for scope in table["scope"].values:
            layers += 1
            needed = table["needed"].sel(scope=scope, ordering="random 0")
            low, high = paired_difference(needed.sel(fill="mean").values, needed.sel(fill="linear").values).interval()
            better, worse = better + int(low > 0), worse + int(high < 0)
            curves = 100 * table["accuracy"].sel(scope=scope, ordering="random 0")
            loss = paired_difference(
                curves.sel(fill="linear", step=0).values, curves.sel(fill="linear", step=GONE).values
            )
            kept += int(loss.interval()[1] < 1)
        ends = table["needed"].sel(ordering="random 0", fill="linear")
        deeper.append(paired_difference(ends.isel(scope=0).values, ends.isel(scope=-1).values))
    lines.append(
        f"- In {kept} of {layers} layers, {GONE} of 200 neurons can be ablated in random order under linear "
        "compensation for less than one point of accuracy (upper end of the interval)."
    )
    lines.append(
        f"- A layer needs fewer neurons under linear compensation than under means in {better} of {layers} layers, and "
        f"more in {worse} (random order; the interval of the paired difference excludes 0)."
    )
    later = sum(float(difference.interval()[0]) > 0 for difference in deeper)
    earlier = sum(float(difference.interval()[1]) < 0 for difference in deeper)
    lines.append(
        f"- Under linear compensation the last hidden layer needs fewer neurons than the first in {later} of "
        f"{len(deeper)} kinds of network, and more in {earlier}."
    )
    return "\n".join(lines)


def cell(values: np.ndarray, digits: int = 1) -> str:
    """Return a mean with its interval (a value that all networks share has none) and the number of networks without."""
    values = np.asarray(values, float)
    short = int(np.isnan(values).sum())
    note = f" ({short} short)" if short else ""
    values = values[~np.isnan(values)]
    if len(values) < 2 or np.ptp(values) == 0:
        return f"{values[0]:.{digits}f}{note}" if len(values) else note.strip()
    result = estimate(values)
    low, high = result.interval()
    return f"{float(result.mean):.{digits}f} [{float(low):.{digits}f}, {float(high):.{digits}f}]{note}"


def row_name(setting: str, net: str, scope: str, number: int) -> str:
    dataset, _, activation = setting.rpartition("_")
    name = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[dataset]
    return f"| {name}, {activation} ({number}) | {net} | {place_name(scope)} "


def gone_table(tables: dict[tuple[str, str], xr.Dataset]) -> str:
    lines = ["| data, activation (networks) | network | layer | intact | zeros | means | linear |", "| --- " * 7 + "|"]
    for (setting, net), table in tables.items():
        for scope in table["scope"].values:
            curves = 100 * table["accuracy"].sel(scope=scope, ordering="random 0")
            cells = [cell(curves.sel(fill="zero", step=0).values)]
            cells += [cell(curves.sel(fill=fill, step=GONE).values) for fill in FILLS]
            lines.append(row_name(setting, net, str(scope), table.sizes["network"]) + f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def needed_table(tables: dict[tuple[str, str], xr.Dataset]) -> str:
    lines = [
        "| data, activation (networks) | network | layer | order | zeros | means | linear | readout |",
        "| --- " * 8 + "|",
    ]
    for (setting, net), table in tables.items():
        for scope in table["scope"].values:
            for ordering, name in ORDERS.items():
                row = table.sel(scope=scope, ordering=ordering)
                cells = [cell(row["needed"].sel(fill=fill).values, 0) for fill in FILLS]
                cells.append(cell(row["readout_needed"].values, 0))
                start = row_name(setting, net, str(scope), table.sizes["network"])
                lines.append(f"{start}| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rank_table(tables: dict[tuple[str, str], xr.Dataset]) -> str:
    lines = [
        "| data, activation (networks) | network | layer | effective rank | median R^2 | neurons with R^2 > 0.9 | "
        "constant neurons |",
        "| --- " * 7 + "|",
    ]
    for (setting, net), table in tables.items():
        for scope in table["scope"].values:
            values = table["r_squared"].values[:, table["site"].values == scope]
            columns = [
                (table["effective_rank"].sel(scope=scope).values, 1),
                (np.nanmedian(values, axis=1), 3),
                ((values > 0.9).sum(axis=1), 0),
                (np.isnan(values).sum(axis=1), 0),
            ]
            cells = [cell(column, digits) for column, digits in columns]
            lines.append(row_name(setting, net, str(scope), table.sizes["network"]) + f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
