"""Meshes: several devices that share one computation.

`evaluate_masks`, `cumulative_ablation` and the functions on them take such a mesh, or images that are sharded over one,
and give the same counts.
"""

from jaxablate._mesh import DATA, STUDY, make_mesh, shard_examples

__all__ = ["DATA", "STUDY", "make_mesh", "shard_examples"]
