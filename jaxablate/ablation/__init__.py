"""Ablation: a network and masks (or orders, or sets of neurons) come in, what the network still gets right goes out.

Two engines give the same counts. `vmap` evaluates any masks of any network by batched masked forward passes;
`incremental` follows cumulative orders in a chain, updating at each step what the neuron that goes has changed. Both
share the examples out among the cores of a CPU, and keep their activations within `memory_limit`.
"""

from jaxablate.ablation._alone import greedy_order, pair_ablation, single_ablation
from jaxablate.ablation._arguments import PRECISIONS
from jaxablate.ablation._evaluate import ENGINES, cumulative_ablation, evaluate_masks
from jaxablate.ablation._execute import MEMORY_LIMIT
from jaxablate.ablation._outcomes import OUTCOMES
from jaxablate.ablation._shapley import shapley_values

__all__ = [
    "ENGINES",
    "MEMORY_LIMIT",
    "OUTCOMES",
    "PRECISIONS",
    "cumulative_ablation",
    "evaluate_masks",
    "greedy_order",
    "pair_ablation",
    "shapley_values",
    "single_ablation",
]
