"""Write docs/findings.md, docs/published_figures.md, their pictures and claims.json from saved results, never by hand.

`python scripts/findings.py [DATA] [--out docs]`: DATA is the folder that `scripts/measure.py` filled, by default
docs/findings/data. The same data give the same text and claims, byte for byte.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from findings_claims import (
    Spread,
    baseline_control,
    claim_sections,
    constant_code_control,
    effect_table,
    in_either_direction,
    spread_summary,
    spreads_between_networks,
    tie_control,
)
from findings_common import PAPER, PUBLISHED, Measurements
from findings_published import PUBLISHED_CURVES, reproduction, write_published_page
from findings_questions import damage, overfitting, pairs, quantizers, reasons, whole_network
from findings_settings import (
    FIRST,
    LAST,
    WHOLE,
    Effects,
    Kind,
    measure_effects,
    read_kinds,
    settings_abstract,
    settings_section,
    verdict_counts,
)
from measure_settings import settings

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.claims import CLAIMS, Verdict
from jaxablate.figures import save_finding_figures
from jaxablate.protocols import SETS
from jaxablate.statistics import estimate
from jaxablate.training import default_epochs

METHOD = """**How to read this page.** A comparison is a difference within each network: of AUC (the mean accuracy over
all steps except the intact network's, in accuracy points), of mean scores (nats) or of log variances
(natural logarithm), or by how much a rank correlation or a loss exceeds a threshold. A positive number
supports the claim. Brackets hold 95% t-intervals of the mean over networks. They cover the randomness of
training; they do not cover another split, another test set or another architecture, and they are not
corrected for their number. LVF ablates neurons with low values of a score first, HVF neurons with high
values first; "A over B" is A minus B. "Balanced" means bias balancing: ablated neurons output their mean on
the validation split. Linear compensation: they output what the other neurons of their layer predict by
linear regression on that split. "Zeros" means that ablated neurons output 0.

Under the *published protocol* the same words stand for what the code behind the published figures computes:
"balanced" multiplies the activation by the neuron's firing rate, "MI" is H(T) + H(T|Y), and "random" is a
new subset of neurons at every step. Entropy is NaN for a code that never changes, MI also for a code that
never changes within one class. Neurons whose score is NaN rank as the largest: last in LVF, first in HVF.
Means of scores and correlations omit them. KL selectivity is the same under both, so C9 is one test
with two marks in the picture. A seventh point is in no protocol: that code averages accuracy over batches
of unequal size.

A comparison shows *no difference* if its 90% interval lies within a margin (0.25 points, 0.02 nats, 0.05 of
a correlation, 0.1 of a log ratio): at the 5% level the mean difference is smaller than that, whatever its
p-value against 0. Otherwise it *holds* for a positive mean with p < 0.05, and *does not hold* for a
negative mean with p < 0.05 after Holm's correction over the comparisons of its claim, in its kind of
network, under its protocol. Such a mean may be smaller than the margin. If all networks have the same
value, it decides without a test. A claim holds if all its comparisons hold, which needs no correction; the
counts of single comparisons that hold are therefore uncorrected. A claim does not hold if one comparison
does not. It shows *no difference* if all its comparisons show none; otherwise it *holds in part* if each
holds or shows no difference. Only comparisons of C2 and C9 can be *reversed*: all of their group (C2: both
sides of random, for one score and layer; C9: all) are significantly negative. A claim without a failing
comparison is *reversed* if all are reversed, and *reversed in part* if some are; counts add both to those
that do not hold. Nothing is corrected across claims.

The paper gives no numbers for falling strongly, staying flat, costing little and correlating strongly. Here
they mean more than 3, less than 1 and less than 2 points on average over the steps, and a rank correlation
above 0.5. The bounds in points were chosen after looking at the published figures 21 and 22. For each
threshold the page says over which range the verdict stands, among values from 0 to 20 points or 0 to 1,
with the other thresholds of the claim kept. [The theory page](theory.md#statistics) has the rules in full."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/findings.md from saved results.")
    parser.add_argument("data", type=Path, nargs="?", default=Path("docs/findings/data"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="output folder; default: %(default)s")
    arguments = parser.parse_args()
    try:
        print(write_findings(Measurements(arguments.data), arguments.out))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def write_findings(measured: Measurements, folder: Path) -> Path:
    """Write the pages, claims.json, and the pictures into the subfolder `findings`; return the path of the page."""
    results, pictures = measured.results, folder / "findings"
    verdicts = ja.judge_claims(results)
    committed = [verdict for verdict in verdicts if verdict.protocol in SETS["controls"]]
    for file in (
        *ja.claims.save_claims(committed, results, pictures),
        *save_finding_figures(results, verdicts, pictures),
    ):
        if file.suffix in (".pdf", ".csv"):
            file.unlink()
    published = json.loads(PUBLISHED_CURVES.read_text())
    write_published_page(measured, published, folder)
    names = list(settings())
    measured_kinds = read_kinds(measured.folder, names)
    kinds = [kind for kind in measured_kinds if kind.has_learned]
    effects, twenty = measure_effects(kinds), measure_effects(paper_kinds(measured))
    spreads = spreads_between_networks(measured)
    causes = {
        "Where the published protocol differs, and why": reasons(verdicts),
        "Does the published protocol reproduce the published figures?": reproduction(measured, published),
        "Is overfitting the cause?": overfitting(measured),
        "Does the result depend on the quantizer?": quantizers(measured, pictures, verdicts),
        "Can neurons that share information replace each other?": pairs(measured, pictures),
    }
    parts = [
        "# Which of the paper's claims hold",
        "Written by `scripts/findings.py` from saved results: every result and verdict is computed. Only questions, "
        "rules, and what the paper and its pictures say, are typed.",
        "## Abstract",
        abstract(measured, verdicts, measured_kinds, effects, twenty, spreads),
        "**Causes.**\n\n" + "\n".join(f"- {section.summary}" for section in causes.values()),
        "![Verdict on every claim, for each kind of network and protocol](findings/claims.png)",
        "## Methods",
        provenance(measured),
        METHOD,
        "## Verdicts, claim by claim",
        claim_sections(verdicts, spreads),
        "## Controls",
        constant_code_control(measured, verdicts),
        baseline_control(measured),
        tie_control(measured, verdicts),
        "## Other settings",
        settings_section(measured_kinds, effects, twenty, names, pictures),
        "## Which neurons whole-network rankings ablate",
        whole_network(measured),
        "## Do scores track the damage of a single neuron?",
        damage(measured),
        *itertools.chain.from_iterable((f"## {title}", section.text) for title, section in causes.items()),
        "## Limits",
        limits(kinds, effects),
        "## What would change these conclusions",
        CHANGES,
        "## Every comparison",
        effect_table(verdicts),
    ]
    path = folder / "findings.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return path


def paper_kinds(measured: Measurements) -> list[Kind]:
    """Return the twenty networks of each kind of the paper like the kinds of the other settings."""
    networks = [(measured.network(name), measured.network(name, "constant_last")) for name in measured.names]
    return [Kind("paper", {}, int(network["layer"].max()), network, control, {}, {}) for network, control in networks]


def abstract(
    measured: Measurements,
    verdicts: Sequence[Verdict],
    kinds: Sequence[Kind],
    effects: Effects,
    twenty: Effects,
    spreads: Sequence["Spread"],
) -> str:
    """Sum up the verdicts of the paper's setting, and what other settings change."""
    config = json.loads(measured.results.attrs["config"])
    either = ", ".join(
        f"{in_either_direction(verdict)} ({verdict.network}, {'formulas' if verdict.protocol == PAPER else 'code'})"
        for verdict in verdicts
        if verdict.claim == "C2" and verdict.protocol in (PAPER, PUBLISHED)
    )
    return "\n\n".join(
        [
            '*Using information theoretic metrics to study the importance of individual neurons in DNNs* ("the paper") '
            "ranks the hidden neurons of trained MLPs by information, ablates them one after another, and reads "
            f"importance and redundancy off the accuracy. Here {len(CLAIMS)} claims are tested on "
            f"{len(config['seeds'])} networks of each of its two kinds (2 and 3 layers of {config['networks'][0][0]} "
            f"{config['activation']} units), by its formulas and by what its code computes instead. The last two "
            "columns count the kinds of networks of all settings below, by the formulas, with all neurons and "
            "without those whose code never changes. Brackets: of the kinds before them, those in which the claim "
            "holds in part. Open: no difference, or undecided. The counts add *reversed*, all or in part, to *does "
            "not hold*. The columns share networks or data and are not independent.",
            "Four claims go beyond the paper's words. It says that random pruning is moderate, and C2 adds the "
            f"direction (in either direction C2: {either}). It says that entropy and MI fall strongly, and C7 adds "
            "that KL does not. It says that bias balancing reduces the variation between training results, and C11 "
            f"takes random orders of one network. {spread_summary(spreads)}. It calls MI and KL "
            "strongly correlated with the results of classification, without a measure, and C12 takes the rank "
            "correlation with the damage of a single neuron, above 0.5 in every layer and in the network.",
            claims_table(measured, verdicts, [kind for kind in kinds if kind.has_learned]),
            settings_abstract(kinds, effects, twenty),
        ]
    )


def claims_table(measured: Measurements, verdicts: Sequence[Verdict], kinds: Sequence[Kind]) -> str:
    """Return a table of the claims in words: the verdict on each network of the paper, and counts over all kinds."""
    judged = {(verdict.protocol, verdict.network, verdict.claim): verdict.verdict for verdict in verdicts}
    columns = list(itertools.product((PAPER, PUBLISHED), measured.names))
    titles = [f"{name}, {'formulas' if protocol == PAPER else 'code'}" for protocol, name in columns]
    titles += ["all kinds: holds (in part) / open / does not", "the same without constant codes"]
    counted = [kind.verdicts for kind in kinds], [kind.controlled for kind in kinds]
    rows = [f"| claim | {' | '.join(titles)} |", "| --- |" + " --- |" * len(titles)]
    for number, claim in CLAIMS.items():
        cells = [judged.get((*column, number), "-") for column in columns]
        cells += [verdict_counts(verdicts, number) for verdicts in counted]
        rows.append(f"| {number}. {claim.text} | {' | '.join(cells)} |")
    return "\n".join(rows)


def limits(kinds: Sequence[Kind], effects: Effects) -> str:
    """Return the limits of the study."""
    widths = [
        f"{np.median([np.ptp(each.interval()) / 2 for each in effects['random'][f'MI, {place}'].values()]):.2f} in the "
        f"{place}"
        for place in (FIRST, LAST, WHOLE)
    ]
    usual = ja.StudyConfig.split_seed
    splits = [name for name, changes in settings().items() if changes.get("split_seed", usual) != usual]
    near = [kind for kind in kinds if not kind.is_drawn]
    return LIMITS + (
        f"\n- {len(splits)} settings have another split. {len(near)} of {len(kinds)} kinds differ from the paper's "
        "in at most one point, and totals weigh them accordingly.\n"
        "- Curves end at 40% of the narrowest layer or earlier. [Later in a layer](redundancy.md) zeros can keep more "
        "accuracy than means.\n"
        "- In other settings five networks stand behind each interval, which reaches 2.8 standard errors to each side. "
        f"For low MI over random its half width has a median of {', '.join(widths)}: smaller differences are mostly "
        "not shown."
    )


LIMITS = """- The networks are MLPs on two datasets of small grey images. Nothing here is about convolutions, attention
  or other data.
- An interval covers the randomness of training. All networks of a dataset share one test set, and the networks of a
  setting share one split.
- The settings are a stated design of this page, not a sample of what people train. Some are drawn at random, from the
  values of that design alone. The design was made with the first results in sight, and the split by activation, the
  range of the AUC without constant codes and the rule for networks near chance after more of them.
- Settings share data, seeds and orders, so their effects are not independent; a count of settings is no test, and
  nothing is corrected across the rows of a table.
- Verdicts use margins and thresholds that the paper does not give. The bounds of C7 and C10 were read off the paper's
  figures for sigmoid units on MNIST, and are applied to every setting and depth.
- In the whole network fewer neurons are ablated than in a layer, in proportion: 20% of networks with 2 layers of equal
  widths, 13% with 3 and 8% with 5. The only layer of a network counts as its last one and as the whole network.
- Other settings are measured by the paper's formulas alone.
- A score is measured on the validation split with the paper's one bit for each neuron, unless stated."""
CHANGES = """- *A claim that does not hold here*: twenty networks of the same recipe whose intervals for every
  comparison that does not hold lie on the other side of 0.
- *A claim that fails in no setting*: one setting with five networks or more in which one of its comparisons has a
  negative mean with p < 0.05 after Holm's correction over these comparisons and over the kinds of networks.
- *That a score without labels finds safer neurons*: a code or estimator of information whose orders cost less than the
  orders by `contribution_sd`, without the neurons of constant code.
- *That shared information is not shown to predict replacement*: co-information, or another measure that grows with
  what two neurons share and not with what each has alone, that predicts super-additive damage in first layers given
  the curvature of the loss, without neurons of constant code: with a rank correlation whose interval lies above 0.1,
  in both kinds of networks and under both fills."""


def provenance(measured: Measurements) -> str:
    attrs = measured.results.attrs
    config = json.loads(attrs["config"])
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(attrs["versions"]).items())
    files = "; ".join(f"`{name}` {digest[:16]}..." for name, digest in json.loads(attrs["dataset_sha256"]).items())
    epochs = config["epochs"] or default_epochs(50_000, config["batch_size"])
    seeds, device = config["seeds"], attrs["device"].replace("cpu: cpu", "CPU")
    accuracies = []
    for name in measured.names:
        intact = estimate(100 * measured.network(name)["accuracy"].values[:, 0, 0, 0, 0])  # no neuron ablated
        low, high = intact.interval()
        accuracies.append(f"{intact.mean:.2f}% [{low:.2f}, {high:.2f}] ({name})")
    return (
        f"**Data:** {attrs['dataset']} (SHA-256: {files}). **Networks:** {len(seeds)} of each kind, seeds {seeds[0]} "
        f"to {seeds[-1]}, trained by Adam (learning rate {config['learning_rate']:g}, batches of "
        f"{config['batch_size']}, {epochs} epochs, L2 {config['l2']:g} added to the gradient); 10,000 of the "
        f"60,000 training images are the validation split (seed {config['split_seed']}), which gives scores and fills, "
        f"and the 10,000 test images give accuracy. Intact networks reach {' and '.join(accuracies)}. "
        f"{config['steps']} neurons are ablated one after another, in the order of each score and in "
        f"{config['num_random_orders']} random orders (under the published protocol, two random curves). A neuron's "
        "one-bit code says whether "
        "its activation reaches 0.5 (tanh: 0; ReLU and GELU: exceeds 0). With T the code and Y the class, entropy is "
        "H(T), mutual information (MI) is H(T) - H(T|Y), and KL selectivity (KL) is the largest divergence of "
        f"p(t|y) from p(t) over the classes y, in nats ([formulas](theory.md#scores)). **Run on** {device}, "
        f"{attrs['created'][:10]}; {versions}."
    )


if __name__ == "__main__":
    main()
