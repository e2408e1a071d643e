"""Compute how much information pairs of neurons have about the class, and compare it with the damage of pairs.

The joint counts of all pairs come from matrix products. X_c holds the codes of the examples of class c as one-hot
columns [example, (neuron, code)]. Then X_c^T X_c holds the exact joint counts N[c, (i, t), (j, s)] of every pair of
neurons i, j and codes t, s.

Input: codes [example, neuron] of a layer and labels [example]; damages [neuron, neuron]; or changes of logits.
Output: one number for each pair of neurons [neuron, neuron], in nats for information.
Memory: the one-hot columns of `BLOCK` examples and about five arrays of `CELLS` joint counts, for any number of neurons
    and examples. If one neuron has more than `CELLS` joint counts with all neurons, arrays of that size instead.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jaxablate._checks import (
    check_labels,
    host_array,
    host_numbers,
    require,
    require_count,
    require_finite,
    require_integers,
    require_key,
    require_range,
    require_shape,
    short_repr,
)
from jaxablate._typing import AnyArray, Codes, Labels, Scores

__all__ = ["MantelTest", "PairInformation", "loss_curvature", "mantel_test", "pair_information", "super_additivity"]

Pairs = Float[AnyArray, "neuron neuron"]

BLOCK = 256  # examples in one matrix product; its float32 sums of ones stay far below 2^24 and are exact
CELLS = 2**22  # joint counts in memory at a time
BATCH = 16  # permutations evaluated at a time


@dataclass(frozen=True, eq=False)
class PairInformation:
    """Information of neurons i and j about the class Y, alone and together, in nats.

    Redundancy, unique information and synergy are the minimum-MI decomposition of I(T_i,T_j;Y) into four parts.
    Co-information is redundancy minus synergy. The diagonal pairs a neuron with itself, which is all redundancy.

    Attributes:
        joint: I(T_i,T_j;Y), float32 [neuron, neuron], symmetric.

    Source: Barrett 2015, Physical Review E 91, 052802 (minimum-MI redundancy); Williams and Beer 2010,
        arXiv:1004.2515 (the decomposition).
    """

    joint: Pairs

    __repr__ = short_repr

    @property
    def single(self) -> Scores:
        """I(T_i;Y), float32 [neuron] in nats."""
        return jnp.diagonal(self.joint)

    @property
    def redundancy(self) -> Pairs:
        """min(I(T_i;Y), I(T_j;Y)), float32 [neuron, neuron] in nats.

        It depends only on the information of each neuron. It bounds from above what the two neurons share, and does
        not show that they share any; a positive co-information shows it.
        """
        return jnp.minimum(self.single[:, None], self.single)

    @property
    def unique(self) -> Pairs:
        """I(T_i;Y) - redundancy, float32 [neuron i, neuron j] in nats: what i knows beyond j; not symmetric."""
        return self.single[:, None] - self.redundancy

    @property
    def synergy(self) -> Pairs:
        """I(T_i,T_j;Y) - max(I(T_i;Y), I(T_j;Y)), float32 [neuron, neuron] in nats, never negative."""
        return self.joint - jnp.maximum(self.single[:, None], self.single)

    @property
    def co_information(self) -> Pairs:
        """I(T_i;Y) + I(T_j;Y) - I(T_i,T_j;Y), float32 [neuron, neuron] in nats.

        Positive only if the neurons share information. 0 or less does not exclude that they share some: synergy of
        the same pair is subtracted. Negative if together they know more than the sum of their parts.
        """
        return self.redundancy - self.synergy


def pair_information(codes: Codes, labels: Labels, *, num_codes: int, num_classes: int) -> PairInformation:
    """Return the information of all pairs of neurons about the class.

    I(T_i,T_j;Y) = sum_{c,t,s} P(c,t,s) log(P(c,t,s) / (P(c) P(t,s))), a plug-in estimate from exact counts. All other
    quantities follow from it, because I(T_i,T_i;Y) = I(T_i;Y). If you need only a few neurons, pass their columns.

    With many examples for each code pair and class, the plug-in estimate is too high by about (K-1)(C-1)/2N nats, where
    K is the number of code pairs that occur and C the number of classes. Pairs have more codes than single neurons, so
    synergy contains the difference of the biases.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1, of one layer or several.
        labels: integers [example] in 0..num_classes-1.
        num_codes: number of codes of the quantizer.
        num_classes: number of classes.

    Returns:
        A `PairInformation` with float32 matrices [neuron, neuron] in nats.

    Raises:
        InputError: if codes or labels have another shape, dtype or range, if there is no example or neuron, or if one
            neuron has 2^31 or more joint counts with all neurons.

    Source: paper, equation 4, for the joint code of two neurons.

    Example:
        >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> pairs = ja.interactions.pair_information(codes, codes[:, 0] ^ codes[:, 1], num_codes=2, num_classes=2)
        >>> pairs.redundancy.tolist(), pairs.synergy[0].round(4).tolist()
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.6930999755859375])
    """
    num_codes, num_classes = require_count("num_codes", num_codes), require_count("num_classes", num_classes)
    host_codes = host_array("codes", codes)
    require_integers("codes", host_codes)
    require_shape("codes", host_codes, (None, None), "example, neuron")
    require(host_codes.size > 0, f"codes: expected at least one example and neuron, got shape {host_codes.shape}")
    require_range("codes", host_codes, 0, num_codes - 1)
    host_labels = check_labels(labels, len(host_codes), num_classes)
    neurons = host_codes.shape[1]
    cells = num_classes * num_codes**2 * neurons
    require(cells < 2**31, f"joint counts: expected fewer than 2^31 cells for a neuron, got {cells}; use fewer codes")
    # Each chunk of neurons has at most CELLS joint counts with all neurons, or consists of a single neuron.
    chunks = -(-neurons // max(1, CELLS // cells))
    blocks, block_class = _blocks_by_class(host_codes, host_labels, num_classes)
    sizes = np.bincount(host_labels, minlength=num_classes).astype(np.int32)
    return PairInformation(_joint_information(blocks, block_class, sizes, num_codes, -(-neurons // chunks)))


def _blocks_by_class(codes: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the examples into blocks of one class each.

    Returns:
        Codes int32 [block, example, neuron], -1 after the last example of a class, and the class of each block.
    """
    # The examples are sorted by class, and each class starts a new block. Class c thus moves by `shift[c]`: the start
    # of its blocks minus its start among the sorted examples. The number of blocks depends only on the numbers of
    # examples and classes (an upper bound, filled with empty blocks), so labels never cause a new compilation.
    block = min(BLOCK, -(-len(codes) // num_classes))
    sizes = np.bincount(labels, minlength=num_classes)
    used = -(-sizes // block)
    block_class = np.zeros(len(codes) // block + num_classes, np.int32)
    block_class[: used.sum()] = np.repeat(np.arange(num_classes), used)
    shift = block * (np.cumsum(used) - used) - (np.cumsum(sizes) - sizes)
    order = np.argsort(labels, kind="stable")
    blocks = np.full((len(block_class) * block, codes.shape[1]), -1, np.int32)
    blocks[np.arange(len(codes)) + shift[labels[order]]] = codes[order]
    return blocks.reshape(-1, block, codes.shape[1]), block_class


@partial(jax.jit, static_argnames=("num_codes", "rows"))
def _joint_information(
    blocks: Int32[AnyArray, "block example neuron"],
    block_class: Int32[AnyArray, "block"],
    sizes: Int32[AnyArray, "class"],
    num_codes: int,
    rows: int,
) -> Pairs:
    """Return I(T_i,T_j;Y) [neuron, neuron], computed for `rows` neurons i and all neurons j at a time."""
    # For each chunk of `rows` neurons, a scan over the blocks adds one matrix product per block:
    #   chunk [example, row, t] x columns [example, neuron, s] -> [row, t, neuron, s], added to the counts of its class.
    # A block holds one class, so the class needs no axis in the product. The counts are exact: a block has at most
    # 256 examples, float32 represents its sums, and the running total is int32.
    # The last chunk starts early enough to be full, so it may repeat neurons of the chunk before it.
    neurons = blocks.shape[2]
    shape = (len(sizes), rows, num_codes, neurons, num_codes)
    starts = jnp.minimum(jnp.arange(0, neurons, rows), neurons - rows)

    def information_of_chunk(start: jax.Array) -> jax.Array:
        def add_block(counts: jax.Array, block: tuple[AnyArray, AnyArray]) -> tuple[jax.Array, None]:
            codes, label = block
            columns = jax.nn.one_hot(codes, num_codes, dtype=jnp.float32)  # a code of -1 (padding) is a row of zeros
            chunk = jax.lax.dynamic_slice_in_dim(columns, start, rows, axis=1)
            return counts.at[label].add(jnp.einsum("eit,ejs->itjs", chunk, columns).astype(jnp.int32)), None

        counts, _ = jax.lax.scan(add_block, jnp.zeros(shape, jnp.int32), (blocks, block_class))
        return _information(counts, sizes)

    chunks = jax.lax.map(information_of_chunk, starts)
    neuron = jnp.arange(neurons)
    upper = jnp.triu(chunks[neuron // rows, neuron - starts[neuron // rows]])
    # (i, j) and (j, i) add the same terms in different orders, so the upper triangle serves for both. A pair never
    # knows less than either neuron; the maximum removes rounding that says otherwise.
    joint = upper + jnp.triu(upper, 1).T
    single = jnp.diagonal(joint)
    return jnp.maximum(joint, jnp.maximum(single[:, None], single))


def _information(counts: Int32[AnyArray, "class row t neuron s"], sizes: Int32[AnyArray, "class"]) -> jax.Array:
    """Return I(T_i,T_j;Y) [row, neuron], the sum of P(c,t,s) log(N[c,t,s] N / (N[c] N[t,s]))."""
    n, total = counts.astype(jnp.float32), sizes.sum().astype(jnp.float32)
    above = n * total
    below = sizes.astype(jnp.float32)[:, None, None, None, None] * counts.sum(axis=0).astype(jnp.float32)
    # Equal products give a ratio of exactly 1 on every device, so a constant neuron has exactly 0. Empty cells also
    # get the ratio 1: 0 log 0 = 0 without a NaN.
    ratio = jnp.where((n > 0) & (above != below), above / jnp.maximum(below, 1), 1)
    return jnp.maximum((n / total * jnp.log(ratio)).sum(axis=(0, 2, 4)), 0)


def super_additivity(damage: Pairs) -> Float[np.ndarray, "neuron neuron"]:
    """Return how much worse it is to ablate two neurons together than each alone: D(i,j) - D(i) - D(j).

    Args:
        damage: [neuron, neuron], finite and symmetric; larger is worse. Off the diagonal the damage of the pair, on the
            diagonal the damage of the single neuron. For a loss: `ja.ablation.pair_ablation` minus the intact loss.
            For correct predictions: the intact number minus `pair_ablation`.

    Returns:
        float64 [neuron, neuron] in the unit of the damage, 0 on the diagonal. It is positive if one neuron compensates
        for the loss of the other. For a loss it is also positive if two ablations merely push the logits in similar
        directions, because the cross-entropy is convex: see `loss_curvature`.

    Raises:
        InputError: if the matrix is not square, symmetric and finite.

    Example:
        >>> ja.interactions.super_additivity(np.array([[1.0, 5.0], [5.0, 2.0]])).tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    host = _symmetric_matrix("damage", damage)
    single = np.diagonal(host)
    excess = host - single[:, None] - single
    np.fill_diagonal(excess, 0)
    return excess


def loss_curvature(
    logit_changes: Float[AnyArray, "neuron example class"], probabilities: Float[AnyArray, "example class"]
) -> Float[np.ndarray, "neuron neuron"]:
    """Return the super-additive damage of pairs that the curvature of the cross-entropy alone causes.

    It is E[d_i^T (diag p - p p^T) d_j] over the examples. d_i is the change of the logits if neuron i alone is ablated,
    and p is the intact prediction. diag p - p p^T is the second derivative of the cross-entropy with respect to the
    logits, whatever the label. If the changes of two neurons add up, as in the last hidden layer, this is the
    super-additivity of the loss to second order: neither neuron then compensates for the other.

    Args:
        logit_changes: [neuron, example, class], ablated minus intact logits.
        probabilities: [example, class], the intact prediction, for example `jax.nn.softmax(logits)`.

    Returns:
        float64 [neuron, neuron] in nats, symmetric, with no negative eigenvalue. For batches of examples, average the
        matrices with the numbers of examples as weights. Memory: two float64 arrays of the size of `logit_changes`.

    Raises:
        InputError: if the shapes do not fit, there is no example, numbers are not finite, or rows of probabilities do
            not sum to 1.

    Source: second-order Taylor expansion of the loss, as in LeCun, Denker and Solla 1989 (Optimal brain damage).

    Example:
        >>> changes = np.array([[[1.0, -1.0]], [[0.5, 0.5]]])  # the second neuron moves both logits alike
        >>> ja.interactions.loss_curvature(changes, np.array([[0.5, 0.5]])).round(6).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    changes = host_numbers("logit_changes", logit_changes).astype(np.float64)
    p = host_numbers("probabilities", probabilities).astype(np.float64)
    require_shape("logit_changes", changes, (None, None, None), "neuron, example, class")
    require_shape("probabilities", p, changes.shape[1:], "example, class")
    require(p.size > 0, f"probabilities: expected at least one example and class, got shape {p.shape}")
    require_finite("logit_changes", changes)
    sums = p.sum(axis=1)
    require(
        bool((p >= 0).all() and (np.abs(sums - 1) < 1e-3).all()),
        "probabilities: the rows are not distributions; apply a softmax to the logits",
    )
    # d_i^T (diag p - p p^T) d_j is the covariance of d_i and d_j under p. Centred changes need a single matrix product.
    centred = changes - (changes * p).sum(axis=2, keepdims=True)
    weighted = (centred * np.sqrt(p)).reshape(len(changes), -1)
    return weighted @ weighted.T / len(p)


@dataclass(frozen=True)
class MantelTest:
    """A correlation between two matrices over pairs of neurons, with its permutation p-value.

    Attributes:
        correlation: Spearman's correlation, or partial correlation given a control, in -1..1. NaN if one of the
            matrices is the same for all pairs, or ranks the pairs exactly as the control does.
        p_value: fraction of permutations with a correlation at least as strong, of either sign; the unpermuted
            matrices count as one of them. NaN if the correlation is NaN.
        num_permutations: number of permutations drawn.
    """

    correlation: float
    p_value: float
    num_permutations: int


def mantel_test(
    first: Pairs, second: Pairs, *, control: Pairs | None = None, num_permutations: int = 9999, key: jax.Array
) -> MantelTest:
    """Test whether two properties of pairs of neurons are correlated (Spearman), also given a third property.

    Each neuron is in many pairs, so the pairs are not independent, and the usual p-value is far too small. The Mantel
    test permutes the neurons of one matrix (rows and columns together):
    p = (1 + #{|r_permuted| >= |r|}) / (1 + num_permutations).

    With a control, the correlation is the partial one, (r_12 - r_1c r_2c) / sqrt((1 - r_1c^2)(1 - r_2c^2)). The test
    then permutes the neurons of the residual that the ranks of `first` have after a linear regression on the ranks of
    the control.

    Args:
        first: [neuron, neuron], symmetric, in any unit; the diagonal is ignored. For example
            `pair_information(...).co_information`.
        second: [neuron, neuron], symmetric, of the same neurons. For example `super_additivity(damage)`.
        control: [neuron, neuron], symmetric, of the same neurons. For example `loss_curvature(...)`.
        num_permutations: number of permutations; the smallest possible p-value is 1 / (num_permutations + 1).
        key: a JAX random key; the same key draws the same permutations.

    Returns:
        A `MantelTest`. Memory: a few matrices for each of 16 permutations at a time.

    Raises:
        InputError: if a matrix is not square, symmetric and finite, if the sizes differ, or if there are fewer than 3
            neurons or no permutations.

    Source: Mantel 1967, Cancer Research 27, 209-220; Smouse, Long and Sokal 1986, Systematic Zoology 35, 627-632 (the
        partial test); Legendre 2000, J. Statist. Comput. Simul. 67, 37-73 (its residuals).

    Example:
        >>> distance = abs(np.arange(8.0)[:, None] - np.arange(8))
        >>> test = ja.interactions.mantel_test(distance, distance**2, num_permutations=999, key=jax.random.key(0))
        >>> round(test.correlation, 6), test.p_value < 0.01
        (1.0, True)
    """
    named = {"first": first, "second": second} | ({} if control is None else {"control": control})
    matrices = {name: _symmetric_matrix(name, matrix) for name, matrix in named.items()}
    neurons = len(matrices["first"])
    for name, matrix in matrices.items():
        require(len(matrix) == neurons, f"{name}: expected {neurons} neurons as in the first, got {len(matrix)}")
    require(neurons >= 3, f"first: expected 3 neurons or more, got {neurons}")
    num_permutations = require_count("num_permutations", num_permutations)
    require_key(key)
    a, b, *controls = (_standard_ranks(matrix) for matrix in matrices.values())
    for c in controls:
        a, b = _residual(a, c), _residual(b, c)
    correlation = float((a * b).sum())
    if not np.isfinite(correlation):
        return MantelTest(float("nan"), float("nan"), num_permutations)
    keys = jax.random.split(key, num_permutations)
    permuted = np.asarray(_permuted_correlations(*_float32(a, b), keys))
    for c in controls:
        # A permuted residual correlates with the control again; b does not. Taking that part out of `a` leaves the
        # product with b as it is and makes `a` shorter.
        with_control = np.asarray(_permuted_correlations(*_float32(a, c), keys))
        permuted = permuted / np.sqrt(np.maximum(1 - with_control**2, 1e-12))
    # The sums are float32: without the tolerance, a permutation that changes nothing might not count.
    as_strong = np.abs(permuted) >= abs(correlation) - 1e-5
    return MantelTest(correlation, float((1 + as_strong.sum()) / (1 + num_permutations)), num_permutations)


def _standard_ranks(matrix: np.ndarray) -> np.ndarray:
    """Return the ranks of the pairs, standardized: the sum of products of two such matrices is Spearman's rho."""
    from scipy import stats

    upper = np.triu_indices(len(matrix), k=1)
    ranks = stats.rankdata(matrix[upper])
    ranks -= ranks.mean()
    norm = np.sqrt((ranks**2).sum())
    standard = np.zeros(matrix.shape)
    standard[upper] = ranks / norm if norm > 0 else np.nan
    # Every pair is in both triangles, so the full sum of products would count it twice.
    return (standard + standard.T) / np.sqrt(2)


def _residual(ranks: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Return standardized ranks without their part along the control's, standardized again; NaN if nothing remains."""
    residual = ranks - (ranks * control).sum() * control
    norm = np.sqrt((residual**2).sum())
    return residual / (norm if norm > 1e-6 else np.nan)


def _float32(*matrices: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(matrix, jnp.float32) for matrix in matrices]


@jax.jit
def _permuted_correlations(a: jax.Array, b: jax.Array, keys: jax.Array) -> jax.Array:
    """Return Spearman's correlation [permutation] after permuting the neurons of `a`."""

    def correlation(key: jax.Array) -> jax.Array:
        neurons = jax.random.permutation(key, len(a))
        return (a[neurons][:, neurons] * b).sum()

    return jax.lax.map(correlation, keys, batch_size=BATCH)


def _symmetric_matrix(argument: str, matrix: Pairs) -> np.ndarray:
    """Return the matrix as float64; raise unless it is square, finite and symmetric."""
    host = host_numbers(argument, matrix).astype(np.float64)
    square = host.ndim == 2 and host.shape[0] == host.shape[1]
    require(square, f"{argument}: expected shape [neuron, neuron], got {host.shape}")
    require_finite(argument, host)
    difference, largest = float(np.abs(host - host.T).max(initial=0)), float(np.abs(host).max(initial=0))
    require(difference <= 1e-6 * largest, f"{argument}: expected a symmetric matrix, got differences of {difference}")
    return host
