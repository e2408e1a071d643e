"""Settings of JAX that change numbers: the precision of matrix products, and how keys become random numbers."""

import jax


def matmul_precision() -> str:
    """Return the user's `jax_default_matmul_precision` if it is set, otherwise "highest".

    JAX's own default lets GPUs round the factors of a product to TensorFloat-32, which changes counts near ties. With
    "highest" every product is a full float32 product on every device.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]


RANDOM = {"jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "jax_random_seed_offset": 0}
"""Defaults of the settings by which JAX makes random numbers from seeds."""


def random_settings() -> dict[str, str]:
    """Return the settings of random numbers that differ from JAX's defaults, by name.

    With other settings, the same seed gives other networks, orders and fills.
    """
    values = {name: getattr(jax.config, name, default) for name, default in RANDOM.items()}
    return {name: str(value) for name, value in values.items() if value != RANDOM[name]}
