"""Activations: a network and images come in, the outputs of every site (or their means) and fills go out."""

from jaxablate.activations._fills import FILLS, compute_fill
from jaxablate.activations._record import mean_activations, record_activations, zero_fractions

__all__ = ["FILLS", "compute_fill", "mean_activations", "record_activations", "zero_fractions"]
