"""Ablation: evaluate a network with some of its neurons removed, by masks, orders, single neurons, pairs or greedily.

Two engines give the same counts. `vmap` evaluates any masks of any network by batched masked forward passes.
`incremental` follows cumulative orders in a chain and updates at each step only what the removed neuron changes. Both
split the examples among the cores of a CPU and keep their activations within `memory_limit`.
"""

from jaxablate.ablation._evaluate import ENGINES, cumulative_ablation, evaluate_masks
from jaxablate.ablation._execute import MEMORY_LIMIT
from jaxablate.ablation._outcomes import OUTCOMES
from jaxablate.ablation._shapley import ShapleyValues, shapley_values
from jaxablate.ablation._single import GreedyOrder, greedy_order, pair_ablation, single_ablation

__all__ = [
    "ENGINES",
    "MEMORY_LIMIT",
    "OUTCOMES",
    "GreedyOrder",
    "ShapleyValues",
    "cumulative_ablation",
    "evaluate_masks",
    "greedy_order",
    "pair_ablation",
    "shapley_values",
    "single_ablation",
]
