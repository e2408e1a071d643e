"""Interactions: codes of a layer's neurons come in, what each pair of them tells of the class goes out, in nats.

All pairs come from matrix products: with the codes of the examples of one class as one-hot columns X_c, the products
X_c^T X_c hold the joint counts N[c, (i, t), (j, s)] of every pair at once, exact integers. Memory: the one-hot
columns of `BLOCK` examples, and about five arrays of `CELLS` joint counts (or of one neuron's with all others, where
these are more), whatever the number of neurons and examples.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jaxablate._checks import (
    require,
    require_count,
    require_finite,
    require_integers,
    require_labels,
    require_range,
    require_shape,
)
from jaxablate._typing import AnyArray, Codes, Labels, Scores

Pairs = Float[AnyArray, "neuron neuron"]

BLOCK = 256  # examples in one matrix product: its float32 sums of ones stay far below 2^24 and so are exact
CELLS = 2**22  # joint counts made at a time
BATCH = 16  # permutations judged at a time


@dataclass(frozen=True, eq=False)
class PairInformation:
    """What neurons i and j of a layer tell of the class Y, alone and together, in nats: symmetric float32 matrices.

    Redundancy, unique information and synergy are the minimum-MI decomposition, which splits I(T_i,T_j;Y) into the
    four; co-information is redundancy less synergy. On the diagonal stands the neuron with itself: all redundant.

    Attributes:
        joint: I(T_i,T_j;Y), float32 [neuron, neuron].

    Source: Barrett 2015, Physical Review E 91, 052802 (minimum-MI redundancy); Williams and Beer 2010,
        arXiv:1004.2515 (the decomposition).
    """

    joint: Pairs

    @property
    def alone(self) -> Scores:
        """I(T_i;Y), float32 [neuron] in nats."""
        return jnp.diagonal(self.joint)

    @property
    def redundancy(self) -> Pairs:
        """min(I(T_i;Y), I(T_j;Y)), float32 [neuron, neuron] in nats: a function of the neurons' own information only,
        so a bound on what the two share; co-information tells whether they do."""
        return jnp.minimum(self.alone[:, None], self.alone)

    @property
    def unique(self) -> Pairs:
        """I(T_i;Y) - redundancy, float32 [neuron i, neuron j] in nats: what i has beyond j; not symmetric."""
        return self.alone[:, None] - self.redundancy

    @property
    def synergy(self) -> Pairs:
        """I(T_i,T_j;Y) - max(I(T_i;Y), I(T_j;Y)), float32 [neuron, neuron] in nats, never negative."""
        return self.joint - jnp.maximum(self.alone[:, None], self.alone)

    @property
    def co_information(self) -> Pairs:
        """I(T_i;Y) + I(T_j;Y) - I(T_i,T_j;Y), float32 [neuron, neuron] in nats: above 0 where the two repeat each
        other, below 0 where they say more together than the sum of each alone."""
        return self.redundancy - self.synergy


def pair_information(codes: Codes, labels: Labels, *, num_codes: int, num_classes: int) -> PairInformation:
    """What all pairs of neurons tell of the class, together and alone, in one pass.

    I(T_i,T_j;Y) = sum_{c,t,s} P(c,t,s) log(P(c,t,s) / (P(c) P(t,s))), plug-in, from exact counts; all else follows
    from it, as `I(T_i,T_i;Y) = I(T_i;Y)`. For a few pairs of many neurons, hand in the columns of these alone.

    The plug-in estimate is too high by about (K-1)(C-1)/2N nats, K being the number of code pairs that occur and C of
    classes: more so for pairs than for neurons, and synergy carries the difference.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1, of one layer or several.
        labels: integers [example] in 0..num_classes-1.
        num_codes: the number of codes of the quantizer.
        num_classes: the number of classes.

    Returns:
        A `PairInformation`, its matrices float32 [neuron, neuron] in nats.

    Raises:
        InputError: for codes or labels of another shape, dtype or range, for no example or neuron, or for so many codes
            and classes that the counts of one neuron with all others are 2^31 cells or more.

    Source: paper, equation 4, for the joint code of two neurons.

    Example:
        >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> pairs = ja.interactions.pair_information(codes, codes[:, 0] ^ codes[:, 1], num_codes=2, num_classes=2)
        >>> pairs.redundancy.tolist(), pairs.synergy[0].round(4).tolist()
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.6930999755859375])
    """
    num_codes, num_classes = require_count("num_codes", num_codes), require_count("num_classes", num_classes)
    host_codes, host_labels = np.asarray(codes), np.asarray(labels)
    require_integers("codes", host_codes)
    require_shape("codes", host_codes, (None, None), "example, neuron")
    require(host_codes.size > 0, f"codes: expected at least one example and neuron, got shape {host_codes.shape}")
    require_range("codes", host_codes, 0, num_codes - 1)
    require_labels(host_labels, len(host_codes), num_classes)
    neurons = host_codes.shape[1]
    cells = num_classes * num_codes**2 * neurons
    require(cells < 2**31, f"joint counts: expected fewer than 2^31 cells for a neuron, got {cells}; use fewer codes")
    chunks = -(-neurons // max(1, CELLS // cells))
    blocks, class_of_block = _blocks_of_one_class(host_codes, host_labels, num_classes)
    sizes = np.bincount(host_labels, minlength=num_classes).astype(np.int32)
    return PairInformation(_joint_information(blocks, class_of_block, sizes, num_codes, -(-neurons // chunks)))


def _blocks_of_one_class(codes: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes in blocks of one class each, int32 [block, example, neuron], -1 where a class has run out, and the
    class of each block; their number depends on those of examples and classes only, so that few programs are compiled.
    """
    block = min(BLOCK, -(-len(codes) // num_classes))
    sizes = np.bincount(labels, minlength=num_classes)
    used = -(-sizes // block)
    class_of_block = np.zeros(len(codes) // block + num_classes, np.int32)
    class_of_block[: used.sum()] = np.repeat(np.arange(num_classes), used)
    shift = block * (np.cumsum(used) - used) - (np.cumsum(sizes) - sizes)
    order = np.argsort(labels, kind="stable")
    blocks = np.full((len(class_of_block) * block, codes.shape[1]), -1, np.int32)
    blocks[np.arange(len(codes)) + shift[labels[order]]] = codes[order]
    return blocks.reshape(-1, block, codes.shape[1]), class_of_block


@partial(jax.jit, static_argnames=("num_codes", "rows"))
def _joint_information(
    blocks: Int32[AnyArray, "block example neuron"],
    class_of_block: Int32[AnyArray, "block"],
    sizes: Int32[AnyArray, "class"],
    num_codes: int,
    rows: int,
) -> Pairs:
    """I(T_i,T_j;Y), the pairs of `rows` neurons with all others at a time."""
    neurons = blocks.shape[2]
    shape = (len(sizes), rows, num_codes, neurons, num_codes)
    starts = jnp.minimum(jnp.arange(0, neurons, rows), neurons - rows)

    def of_rows(start: jax.Array) -> jax.Array:
        def add(counts: jax.Array, block: tuple[AnyArray, AnyArray]) -> tuple[jax.Array, None]:
            codes, of_class = block
            columns = jax.nn.one_hot(codes, num_codes, dtype=jnp.float32)  # a code of -1 is a row of zeros
            own = jax.lax.dynamic_slice_in_dim(columns, start, rows, axis=1)
            return counts.at[of_class].add(jnp.einsum("eit,ejs->itjs", own, columns).astype(jnp.int32)), None

        counts, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.int32), (blocks, class_of_block))
        return _information(counts, sizes)

    found = jax.lax.map(of_rows, starts)
    neuron = jnp.arange(neurons)
    upper = jnp.triu(found[neuron // rows, neuron - starts[neuron // rows]])
    # (i, j) and (j, i) add the same terms in another order: take one of them; and no rounding below the neurons alone
    joint = upper + jnp.triu(upper, 1).T
    alone = jnp.diagonal(joint)
    return jnp.maximum(joint, jnp.maximum(alone[:, None], alone))


def _information(counts: Int32[AnyArray, "class row t neuron s"], sizes: Int32[AnyArray, "class"]) -> jax.Array:
    """I(T_i,T_j;Y) [row, neuron], from terms P(c,t,s) log(N[c,t,s] N / (N[c] N[t,s])) of which none is large."""
    n, total = counts.astype(jnp.float32), sizes.sum().astype(jnp.float32)
    above = n * total
    below = sizes.astype(jnp.float32)[:, None, None, None, None] * counts.sum(axis=0).astype(jnp.float32)
    # equal products are a ratio of exactly 1, whatever a device makes of the division: a constant neuron has exactly 0
    ratio = jnp.where((n > 0) & (above != below), above / jnp.maximum(below, 1), 1)
    return jnp.maximum((n / total * jnp.log(ratio)).sum(axis=(0, 2, 4)), 0)


def super_additivity(damage: Pairs) -> Pairs:
    """How much worse it is to ablate two neurons together than each alone: D(i,j) - D(i) - D(j).

    Args:
        damage: [neuron, neuron], that of a pair off the diagonal and of a neuron alone on it, more being worse: what
            `ja.ablation.pair_ablation` finds less the intact network's value for a loss, the other way round for
            correct predictions.

    Returns:
        float64 [neuron, neuron] in the unit of the damage, 0 on the diagonal; above 0 where one neuron stands in for
        the other.

    Raises:
        InputError: for a matrix that is not square, symmetric or finite.

    Example:
        >>> ja.interactions.super_additivity(np.array([[1.0, 5.0], [5.0, 2.0]])).tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    host = _checked("damage", damage)
    alone = np.diagonal(host)
    found = host - alone[:, None] - alone
    np.fill_diagonal(found, 0)
    return found


@dataclass(frozen=True)
class MantelTest:
    """A correlation between two matrices over the pairs of neurons, and how rarely chance makes one as strong.

    Attributes:
        correlation: Spearman's, in -1..1; NaN where one of the matrices is the same for all pairs.
        p_value: the share of permutations with a correlation as strong, either sign, this one counted among them.
        permutations: how many were drawn.
    """

    correlation: float
    p_value: float
    num_permutations: int


def mantel_test(first: Pairs, second: Pairs, key: jax.Array, *, num_permutations: int = 9999) -> MantelTest:
    """Test whether two properties of pairs of neurons go together, by Spearman's correlation over the pairs.

    A neuron is in many pairs, so the pairs are not independent and their usual p-value is far too small. Here the
    neurons of one matrix are permuted, rows and columns alike: p = (1 + #{|r_permuted| >= |r|}) / (1 + permutations).

    Args:
        first: [neuron, neuron], symmetric, in any unit; the diagonal is left out. For instance
            `pair_information(...).co_information`.
        second: likewise, of the same neurons. For instance `super_additivity(damage)`.
        key: a JAX random key; the same key draws the same permutations.
        permutations: how many to draw; the least p-value is 1 / (permutations + 1).

    Returns:
        A `MantelTest`. Memory: a few matrices for each of 16 permutations at a time.

    Raises:
        InputError: for matrices that are not square, symmetric, finite or of one size, fewer than 3 neurons, or no
            permutation.

    Source: Mantel 1967, Cancer Research 27, 209-220.

    Example:
        >>> distance = abs(np.arange(8.0)[:, None] - np.arange(8))
        >>> test = ja.interactions.mantel_test(distance, distance**2, jax.random.key(0), num_permutations=999)
        >>> round(test.correlation, 6), test.p_value < 0.01
        (1.0, True)
    """
    matrices = [_checked("first", first), _checked("second", second)]
    neurons = len(matrices[0])
    require(len(matrices[1]) == neurons, f"second: expected {neurons} neurons as in the first, got {len(matrices[1])}")
    require(neurons >= 3, f"first: expected 3 neurons or more, got {neurons}")
    num_permutations = require_count("permutations", num_permutations)
    a, b = (_standard_ranks(matrix) for matrix in matrices)
    correlation = float((a * b).sum())
    if not np.isfinite(correlation):
        return MantelTest(float("nan"), float("nan"), num_permutations)
    shuffled = _permuted_correlations(
        *(jnp.asarray(m, jnp.float32) for m in (a, b)), jax.random.split(key, num_permutations)
    )
    as_strong = np.abs(shuffled) >= abs(correlation) - 1e-5  # float32 sums: a permutation that changes nothing counts
    return MantelTest(correlation, float((1 + as_strong.sum()) / (1 + num_permutations)), num_permutations)


def _standard_ranks(matrix: np.ndarray) -> np.ndarray:
    """Ranks of the pairs, so shifted and scaled that the sum of products of two such matrices is Spearman's rho."""
    from scipy import stats

    upper = np.triu_indices(len(matrix), k=1)
    ranks = stats.rankdata(matrix[upper])
    ranks -= ranks.mean()
    norm = np.sqrt((ranks**2).sum())
    found = np.zeros(matrix.shape)
    found[upper] = ranks / norm if norm > 0 else np.nan
    return (found + found.T) / np.sqrt(2)


@jax.jit
def _permuted_correlations(a: jax.Array, b: jax.Array, keys: jax.Array) -> jax.Array:
    def correlation(key: jax.Array) -> jax.Array:
        neurons = jax.random.permutation(key, len(a))
        return (a[neurons][:, neurons] * b).sum()

    return jax.lax.map(correlation, keys, batch_size=BATCH)


def _checked(what: str, matrix: Pairs) -> np.ndarray:
    """As float64, once it is known to be square, finite and symmetric."""
    host = np.asarray(matrix, np.float64)
    square = host.ndim == 2 and host.shape[0] == host.shape[1]
    require(square, f"{what}: expected shape [neuron, neuron], got {host.shape}")
    require_finite(what, host)
    apart, largest = float(np.abs(host - host.T).max(initial=0)), float(np.abs(host).max(initial=0))
    require(apart <= 1e-6 * largest, f"{what}: expected a symmetric matrix, got differences of {apart}")
    return host
