"""Compare joint histograms of codes and labels: bincount, a one-hot product, NumPy. Checked: all are equal."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure

NEURONS, EXAMPLES, CLASSES = 600, 10_000, 10


def main() -> None:
    report = Report(
        "histograms", f"Joint histograms of {NEURONS} neurons and {EXAMPLES} examples", "ms", ("NumPy bincount",)
    )
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    for num_codes in (2, 8, 32):
        codes = random.integers(0, num_codes, (EXAMPLES, NEURONS)).astype(np.int32)
        device_codes, device_labels = jnp.asarray(codes), jnp.asarray(labels)

        @jax.jit
        def one_hot(codes, labels, num_codes=num_codes):
            hot = jax.nn.one_hot(codes, num_codes, dtype=jnp.float32)
            classes = jax.nn.one_hot(labels, CLASSES, dtype=jnp.float32)
            counts = jnp.einsum("ent,ec->nct", hot, classes, precision="highest")
            return counts.astype(jnp.int32)

        def numpy_bincount(codes=codes, num_codes=num_codes):
            cells = CLASSES * num_codes
            flat = (np.arange(NEURONS) * cells + labels[:, None] * num_codes + codes).ravel()
            return np.bincount(flat, minlength=NEURONS * cells).reshape(NEURONS, CLASSES, num_codes)

        def bincount(codes=device_codes, labels=device_labels, num_codes=num_codes):
            return jax.block_until_ready(ja.joint_histogram(codes, labels, num_codes=num_codes, num_classes=CLASSES))

        timing, expected = measure(numpy_bincount)
        question = f"{num_codes} codes"
        base = report.add(make_row(question, "NumPy bincount", timing, 1, "the reference"))
        ways = {
            "joint_histogram (jitted bincount)": bincount,
            "one-hot product": lambda args=(device_codes, device_labels), f=one_hot: jax.block_until_ready(f(*args)),
        }
        for variant, function in ways.items():
            timing, got = measure(function)
            np.testing.assert_array_equal(got, expected)
            report.add(make_row(question, variant, timing, 1, "equal", against=base.value))
    report.finish()


if __name__ == "__main__":
    main()
