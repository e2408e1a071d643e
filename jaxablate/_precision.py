"""The precision of matrix products."""

import jax


def matmul_precision() -> str:
    """Return the user's `jax_default_matmul_precision` if it is set, otherwise "highest".

    JAX's own default lets GPUs round the factors of a product to TensorFloat-32, which changes counts near ties. With
    "highest" every product is a full float32 product on every device.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]
