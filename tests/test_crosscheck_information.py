"""Information of neurons and pairs from infomeasure, dit and hoi, which share no code with this package."""

import itertools
import math
from functools import partial

import jax
import numpy as np
import pytest
from helpers import informed_codes

import jaxablate as ja
from jaxablate.interactions import pair_information

NEURONS = 9
PAIRS = np.array(list(itertools.combinations(range(NEURONS), 2)))
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=itertools.product(["random", "network"], [2, 8]), ids="{0[0]} {0[1]}".format)
def coded(request, small_model, mnist5k):
    """Codes of nine neurons, labels, numbers of codes and classes: drawn, or of a trained network on real images."""
    kind, num_codes = request.param
    if kind == "random":
        return *informed_codes(num_codes, num_codes, 10, 700, NEURONS), num_codes, 10
    split = mnist5k.validation
    activations = np.concatenate(ja.record_activations(small_model, split.images), axis=1)[:, ::3]
    quantizer = ja.quantizers.threshold(0.5) if num_codes == 2 else ja.quantizers.quantile(num_codes).fit(activations)
    return np.asarray(quantizer(activations)).astype(int), split.labels.astype(int), num_codes, 10


@pytest.fixture(scope="module")
def pairs(coded):
    codes, labels, num_codes, num_classes = coded
    return pair_information(codes, labels, num_codes=num_codes, num_classes=num_classes)


def test_miller_madow_equals_infomeasure(coded):
    infomeasure = pytest.importorskip("infomeasure")
    codes, labels, num_codes, num_classes = coded
    counts = ja.joint_histogram(codes, labels, num_codes=num_codes, num_classes=num_classes)
    for estimator in ja.metrics.ESTIMATORS:
        named = {"approach": {"plugin": "discrete"}.get(estimator, estimator), "base": "e"}
        entropies = [infomeasure.entropy(column, **named) for column in codes.T]
        close(ja.entropy(counts, estimator=estimator), entropies)
        information = [infomeasure.mutual_information(column, labels, **named) for column in codes.T]
        close(ja.mutual_information(counts, estimator=estimator), information)
    assert np.ptp(information) > 0.01


def test_decomposition_equals_dit(coded, pairs):
    dit = pytest.importorskip("dit")
    from dit.pid import PID_MMI

    codes, labels, *_ = coded
    for i, j in PAIRS:
        events, counts = np.unique(np.stack([codes[:, i], codes[:, j], labels], 1), axis=0, return_counts=True)
        table = dit.Distribution(list(map(tuple, events.tolist())), list(counts / counts.sum()))
        pid = PID_MMI(table, [[0], [1]], [2])
        bits = [pid[atom] for atom in (((0,), (1,)), ((0,),), ((1,),), ((0, 1),))]
        bits += [dit.multivariate.coinformation(table), dit.shannon.mutual_information(table, [0, 1], [2])]
        got = [pairs.redundancy[i, j], pairs.unique[i, j], pairs.unique[j, i], pairs.synergy[i, j]]
        close([*got, pairs.co_information[i, j], pairs.joint[i, j]], math.log(2) * np.array(bits))
    assert np.asarray(pairs.synergy).max() > 0.01


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of its docstrings, where Python compiles them first
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")  # its results are float32
def test_decomposition_equals_hoi(coded, pairs):
    metrics = pytest.importorskip("hoi.metrics")
    codes, labels, *_ = coded
    expected = {"RedundancyMMI": pairs.redundancy, "SynergyMMI": pairs.synergy, "RSI": -pairs.co_information}
    for name, matrix in expected.items():
        with jax.enable_x64(True):  # its differences of entropies are off by 1.7e-6 in float32
            estimator = getattr(metrics, name)(codes, labels, multiplets=PAIRS.tolist(), verbose=False)
            bits = np.asarray(estimator.fit(minsize=2, maxsize=2, method="binning"), np.float64)
        close(np.asarray(matrix)[tuple(PAIRS.T)], math.log(2) * bits[:, 0], err_msg=name)
