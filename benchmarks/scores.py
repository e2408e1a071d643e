"""Time the scores of all neurons and the information of all pairs against scikit-learn's loop and NumPy.

Neurons: mutual information, entropy and KL selectivity of all neurons of the 3-layer network, from their activations.
Pairs: I(T_i,T_j;Y) in the first layer. The baselines run on a sample of pairs, and their total is extrapolated.
Checked: all neurons, and the pairs of the sample. scikit-learn (`pip install ".[test]"`) is optional.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import entropy

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import dataset, trained

TOLERANCE = 1e-6
SAMPLE = 20  # pairs


def scikit_learn_scores(codes: np.ndarray, labels: np.ndarray, one_table: bool) -> np.ndarray:
    """Return mutual information, entropy and KL selectivity [metric, neuron], computed neuron by neuron.

    scikit-learn counts a contingency table for mutual information; with `one_table` it reuses the existing table.
    """
    from sklearn.metrics import mutual_info_score  # pyright: ignore[reportMissingImports] (optional)
    from sklearn.metrics.cluster import contingency_matrix  # pyright: ignore[reportMissingImports] (optional)

    scores = []
    for column in codes.T:
        table = np.asarray(contingency_matrix(labels, column))
        information = mutual_info_score(labels, column, contingency=table if one_table else None)
        code_counts = table.sum(axis=0)
        scores.append((information, entropy(code_counts), entropy(table, code_counts[None], axis=1).max()))
    return np.transpose(scores)


def scikit_learn_information(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return mutual information [column], computed column by column."""
    from sklearn.metrics import mutual_info_score  # pyright: ignore[reportMissingImports] (optional)

    return np.array([mutual_info_score(labels, column) for column in codes.T])


def numpy_counts(codes: np.ndarray, labels: np.ndarray, num_codes: int) -> np.ndarray:
    """Return joint counts [column, class, code] of all columns at once."""
    shape = (codes.shape[1], int(labels.max()) + 1, num_codes)
    cell = (np.arange(shape[0]) * shape[1] + labels[:, None]) * num_codes + codes
    return np.bincount(cell.ravel(), minlength=int(np.prod(shape))).reshape(shape)


def numpy_information(counts: np.ndarray) -> np.ndarray:
    """Return mutual information H(T) + H(Y) - H(T,Y) [column]."""
    marginal = entropy(counts.sum(axis=1), axis=1) + entropy(counts.sum(axis=2), axis=1)
    return marginal - entropy(counts.reshape(len(counts), -1), axis=1)


def numpy_scores(codes: np.ndarray, labels: np.ndarray, num_codes: int) -> np.ndarray:
    """Return mutual information, entropy and KL selectivity [metric, column]."""
    counts = numpy_counts(codes, labels, num_codes)
    code_counts = counts.sum(axis=1)
    selectivity = entropy(counts, code_counts[:, None], axis=2).max(axis=1)
    return np.stack([numpy_information(counts), entropy(code_counts, axis=1), selectivity])


def compare(report: Report, question: str, total: int, ways: dict[str, tuple[Callable[[], np.ndarray], int]]) -> None:
    """Add a row for each variant; raise unless its answer equals that of the first.

    `ways` maps a variant to its function and to the number of neurons or pairs, of `total`, that it evaluates.
    """
    first, expected = None, None
    for variant, (function, number) in ways.items():
        if variant.startswith("scikit-learn") and not importlib.util.find_spec("sklearn"):
            print(f"  {question}: {variant}: skipped, not installed")
            continue
        timing, answer = measure(function)
        check, note = "the reference", f"all: {timing.median / number * total:.3g} s"
        if expected is not None:
            np.testing.assert_allclose(answer, expected, rtol=0, atol=TOLERANCE)
            check = f"equal to {TOLERANCE:g}"
        row = report.add(make_row(question, variant, timing, number, check, against=first, note=note))
        first, expected = first or row.value, answer if expected is None else expected


def compare_neurons(report: Report, layers: list[jax.Array], labels: np.ndarray) -> None:
    activations, device_labels = jnp.concatenate(layers, axis=1), jnp.asarray(labels)
    host, number, classes = np.asarray(activations), activations.shape[1], int(labels.max()) + 1
    for num_codes in (2, 32):
        quantizer = ja.quantizers.uniform(num_codes, 0, 1)

        def host_codes(num_codes=num_codes) -> np.ndarray:
            return np.minimum((num_codes * host).astype(np.int32), num_codes - 1)

        def ours(quantizer=quantizer) -> np.ndarray:
            codes = quantizer(activations)
            counts = ja.joint_histogram(codes, device_labels, num_codes=quantizer.num_codes, num_classes=classes)
            return np.stack([ja.mutual_information(counts), ja.entropy(counts), ja.kl_selectivity(counts)])

        def loop(one_table: bool, codes=host_codes) -> np.ndarray:
            return scikit_learn_scores(codes(), labels, one_table)

        ways = {
            "scikit-learn": (partial(loop, one_table=False), number),
            "scikit-learn, one table each": (partial(loop, one_table=True), number),
            "NumPy and SciPy": (lambda codes=host_codes, k=num_codes: numpy_scores(codes(), labels, k), number),
            "quantizer, joint_histogram, metrics": (ours, number),
        }
        compare(report, f"{number} neurons, {num_codes} codes", number, ways)


def compare_pairs(report: Report, layer: jax.Array, labels: np.ndarray) -> None:
    pairs = np.stack(np.triu_indices(layer.shape[1], k=1))
    total, classes = pairs.shape[1], int(labels.max()) + 1
    i, j = np.random.default_rng(0).permutation(pairs, axis=1)[:, :SAMPLE]
    for num_codes in (2, 8):
        codes = np.asarray(ja.quantizers.uniform(num_codes, 0, 1)(layer))

        def joint_codes(codes=codes, num_codes=num_codes) -> np.ndarray:
            return num_codes * codes[:, i] + codes[:, j]

        def vectorized(joint_codes=joint_codes, num_codes=num_codes) -> np.ndarray:
            return numpy_information(numpy_counts(joint_codes(), labels, num_codes**2))

        def ours(codes=codes, num_codes=num_codes) -> np.ndarray:
            information = ja.interactions.pair_information(codes, labels, num_codes=num_codes, num_classes=classes)
            return np.asarray(information.joint)[i, j]

        ways = {
            "scikit-learn": (lambda codes=joint_codes: scikit_learn_information(codes(), labels), len(i)),
            "NumPy and SciPy": (vectorized, len(i)),
            "pair_information": (ours, total),
        }
        compare(report, f"{total} pairs of {layer.shape[1]} neurons, {num_codes} codes", total, ways)


def main() -> None:
    data, (model, _) = dataset(), trained("3-layer")
    layers = [jnp.asarray(layer) for layer in ja.record_activations(model, data.test.images)]
    labels = np.asarray(data.test.labels)
    title = f"Scores of neurons and pairs, {len(labels)} examples of {data.source.name}"
    report = Report("scores", title, "ms each", ("scikit-learn", "scikit-learn, one table each", "NumPy and SciPy"))
    compare_neurons(report, layers, labels)
    compare_pairs(report, layers[0], labels)
    report.finish()


if __name__ == "__main__":
    main()
