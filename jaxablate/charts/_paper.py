"""Specify the figures of the paper.

Output: `FigureSpec`s; `figure_chart` makes their charts.
"""

from dataclasses import dataclass

from jaxablate.charts._names import METRIC_NAMES
from jaxablate.results import NETWORK_SCOPE


@dataclass(frozen=True)
class FigureSpec:
    """Specification of a figure.

    Attributes:
        number: number in the paper; None for an extra figure.
        network: node of the results.
        kind: `training` (subject: accuracy or cost), `scores` (subject: a score), `balancing` (random and mutual
            information, each with both fills) or `orders` (random and every score, bias balanced).
        subject: see `kind`.
        scope: ablated layer or network, for `balancing` and `orders`.
        direction: values first, for `balancing` and `orders`.
    """

    number: int | None
    network: str
    kind: str
    subject: str = ""
    scope: str = ""
    direction: str = "low"

    @property
    def stem(self) -> str:
        """The file name without its suffix, such as `fig06_2layer_bias_balancing_layer1`."""
        parts = {
            "training": f"training_{self.subject}",
            "scores": self.subject,
            "balancing": f"bias_balancing_{self.scope}",
            "orders": f"{self.scope}_{self.direction}_first",
        }
        prefix = "extra" if self.number is None else f"fig{self.number:02d}"
        return f"{prefix}_{self.network.replace('-', '')}_{parts[self.kind]}"


def _descriptions(network: str, first: int | None) -> list[FigureSpec]:
    """Specify training curves and score distributions; in the paper, figures 1 to 5 show the 3-layer network."""
    kinds = [("training", "accuracy"), ("training", "cost"), *(("scores", metric) for metric in METRIC_NAMES)]
    return [
        FigureSpec(None if first is None else first + i, network, kind, subject)
        for i, (kind, subject) in enumerate(kinds)
    ]


def _sweeps(network: str, depth: int, balancing: int, high: int, low: int, whole: int) -> list[FigureSpec]:
    """Specify the ablation figures of one network, from the first number of each group."""
    # the paper counts through the layers of one kind before it goes on to the next kind
    groups = (("balancing", "low", balancing), ("orders", "high", high), ("orders", "low", low))
    return [
        *(
            FigureSpec(first + i, network, kind, scope=f"layer{i + 1}", direction=direction)
            for kind, direction, first in groups
            for i in range(depth)
        ),
        FigureSpec(whole, network, "orders", scope=NETWORK_SCOPE),
    ]


_NUMBERED = [
    *_descriptions("3-layer", 1),
    *_sweeps("2-layer", 2, balancing=6, high=11, low=13, whole=21),
    *_sweeps("3-layer", 3, balancing=8, high=15, low=18, whole=22),
]


FIGURES = {spec.number: spec for spec in sorted(_NUMBERED, key=lambda spec: spec.number or 0)}
"""The 22 figures of the paper by number."""

EXTRAS = _descriptions("2-layer", None)
"""Training curves and score distributions of the 2-layer network, which the paper leaves out."""
