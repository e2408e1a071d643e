"""Time both engines on networks that are no multilayer perceptron: a residual MLP and a CNN, as plain JAX functions.

The networks are untrained, because the work does not depend on the weights. Checked: the counts of the engines against
each other, up to near ties.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxablate as ja
from benchmarks._harness import Report, make_row, measure
from benchmarks._setup import dataset

EXAMPLES, ORDERS = 4_000, 4
NEAR_TIE = 2  # examples by which a count may differ


def residual_mlp(params: dict, images: jax.Array) -> jax.Array:
    """Return the logits of four pre-norm residual blocks."""
    stream = images.reshape(len(images), -1) @ params["embed"]
    for block in params["blocks"]:
        centred = stream - stream.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        stream = stream + jax.nn.gelu(normed @ block["up"]) @ block["down"]
    return stream @ params["head"]


def cnn(params: dict, images: jax.Array) -> jax.Array:
    """Return the logits of three convolutions with pooling, and a linear map."""
    maps = images[..., None]
    for kernel in params["convolutions"]:
        maps = jax.nn.relu(jax.lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT))
        maps = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return maps.reshape(len(maps), -1) @ params["head"]


LAYOUT = ("NHWC", "HWIO", "NHWC")


def make_params() -> dict[str, tuple]:
    """Return the function and the parameters of each network."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)

    blocks = [{"up": normal(64, 128), "down": normal(128, 64)} for _ in range(4)]
    convolutions = [normal(3, 3, n, m) for n, m in ((1, 16), (16, 16), (16, 16))]
    return {
        "residual MLP, 4 blocks of 128 hidden units": (
            residual_mlp, {"embed": normal(784, 64), "blocks": blocks, "head": normal(64, 10)},
        ),
        "CNN, 3 convolutions of 16 channels": (cnn, {"convolutions": convolutions, "head": normal(144, 10)}),
    }  # fmt: skip


def main() -> None:
    data, report = dataset(), Report("functions", "Both engines on other networks than the paper's", "ms per mask")
    images, labels = (jnp.asarray(array[:EXAMPLES]) for array in (data.test.images, data.test.labels))
    for name, (function, params) in make_params().items():
        model = ja.from_function(function, params, data.test.images[:2])
        sites = ja.models.site_neurons(model, images[:2])
        fill = ja.mean_activations(model, images)
        for site, neurons in {"all sites": np.concatenate([*sites.values()]), **dict([[*sites.items()][-1]])}.items():
            steps = min(64, len(neurons))
            orders = np.asarray(ja.random_orders(len(neurons), ORDERS, key=jax.random.key(0))) + neurons[0]
            run = functools.partial(ja.cumulative_ablation, model, orders, images, labels, fill, steps=steps)
            question = f"{name}, {'all sites' if site == 'all sites' else 'last site'}"
            timings = {
                engine: measure(lambda engine=engine, run=run: np.asarray(run(engine=engine)), repeats=3)
                for engine in ("vmap", "incremental")
            }
            (masked, first), (_, second) = timings.values()
            differing = np.abs(first - second)
            assert differing.max() <= NEAR_TIE, f"{question}: counts differ by {differing.max()}"
            check = f"{first.size} counts equal, {(differing > 0).sum()} of them up to a near tie"
            number = ORDERS * (steps + 1)
            baseline = make_row(question, "", masked, number, check).value
            for engine, (timing, _) in timings.items():
                report.add(make_row(question, f"engine {engine}", timing, number, check, against=baseline))
    report.finish()


if __name__ == "__main__":
    main()
