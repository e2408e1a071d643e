"""Compute the weights that PyTorch's parametrizations stand for.

Input: tensors of a state dict by name.
Output: the same with plain names: `fc.weight` instead of `fc.weight_g` and `fc.weight_v`.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxablate._checks import require


def _masked(original: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`torch.nn.utils.prune`."""
    return original * mask


def _weight_norm(norm: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """`torch.nn.utils.weight_norm`: the norm has the size 1 along the axes over which it is taken, or no axes."""
    axes = tuple(axis for axis in range(direction.ndim) if norm.ndim == 0 or norm.shape[axis] == 1)
    return direction * (norm / np.sqrt((direction.astype(np.float64) ** 2).sum(axis=axes, keepdims=True)))


def _spectral_norm(original: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`torch.nn.utils.spectral_norm` in evaluation mode: its two vectors stay as they are."""
    return original / (left.astype(np.float64) @ original.reshape(len(original), -1) @ right)


# For each kind, the endings that stand in place of the plain name's ending, in the order of the function's arguments.
KINDS: list[tuple[Callable[..., np.ndarray], tuple[str, ...]]] = [
    (_masked, ("{}_orig", "{}_mask")),
    (_spectral_norm, ("{}_orig", "{}_u", "{}_v")),
    (_weight_norm, ("{}_g", "{}_v")),
    (_spectral_norm, ("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v")),
    (_weight_norm, ("parametrizations.{}.original0", "parametrizations.{}.original1")),
]


def compute_parametrized(what: str, tensors: Mapping[str, np.ndarray], *, is_checked: bool) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict with its masks, weight norms and spectral norms computed.

    Args:
        what: names the source in messages.
        tensors: float arrays by name.
        is_checked: True if the outputs will be compared with a reference.

    Raises:
        InputError: for another parametrization, parts that do not fit together, or names that leave the parametrization
            open if there is no reference.
    """
    tensors = dict(tensors)
    # A mask may lie on a part of a weight norm, so the search starts again after each weight.
    while match := _find(tensors):
        plain, names, compute = match
        require(
            plain not in tensors,
            f"{what}: {plain} and its parts {', '.join(names)} are both there, and one of them is left over; leave out "
            "what does not count",
        )
        parts = [tensors[name] for name in names]
        # Any class of `torch.nn.utils.parametrize` may have these names; and a square weight may be normed by columns.
        is_open = "parametrizations." in names[0] or (compute is _spectral_norm and len(set(parts[0].shape[:2])) == 1)
        require(
            is_checked or not is_open,
            f"{what}: the names of {', '.join(names)} do not settle the parametrization; give a reference, or call "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name) before you save",
        )
        try:
            weight = compute(*parts)
        except (ValueError, IndexError):
            weight = None
        shapes = ", ".join(f"{name} {part.shape}" for name, part in zip(names, parts, strict=True))
        require(
            weight is not None,
            f"{what}: expected parts of one weight, got {shapes}; a spectral norm of other rows than the first axis's "
            "is not read: call torch.nn.utils.parametrize.remove_parametrizations(module, name), or "
            "remove_spectral_norm, before you save",
        )
        assert weight is not None
        # in the place of its first part, since the order of the names may count
        tensors = {
            plain if name == names[0] else name: weight.astype(np.float32) if name == names[0] else tensor
            for name, tensor in tensors.items()
            if name not in names[1:]
        }
    unknown = [name for name in tensors if "parametrizations." in name]
    require(
        not unknown,
        f"{what}: {', '.join(unknown)} is a parametrization other than weight norm and spectral norm; call "
        "torch.nn.utils.parametrize.remove_parametrizations(module, name) before you save",
    )
    return tensors


def _find(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[str], Callable[..., np.ndarray]] | None:
    """Return the plain name, the names of the parts and the function of a parametrized weight; None without one."""
    for compute, endings in KINDS:
        pattern = re.escape(endings[0]).replace(r"\{\}", r"(\w+)")
        for name in tensors:
            if match := re.fullmatch(rf"((?:.*\.)?){pattern}", name):
                module, part = match.groups()
                names = [module + ending.format(part) for ending in endings]
                if all(each in tensors for each in names):
                    return module + part, names, compute
    return None
