"""Evaluate a network with some of its neurons ablated: by masks, along orders, single neurons, pairs, or greedily.

An ablated neuron outputs a fill (zero, its mean, ...) instead of its activation. Three engines give the same counts,
up to rounding. `vmap` evaluates any masks, by one masked forward pass for each mask. `incremental` follows cumulative
orders and updates at each step only what the newly ablated neuron changes. `certified` updates like `incremental`, in
multilayer perceptrons, and evaluates the deeper layers only for examples whose predicted class may change. All engines
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
