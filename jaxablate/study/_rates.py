"""How fast this machine does the work of a study, measured in a few seconds: products, activation functions, steps of
training."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._parallel import COMPILER_OPTIONS, num_cores, run_all
from jaxablate.datasets import Dataset, Source, Split
from jaxablate.models import ACTIVATIONS
from jaxablate.training import train_many

CHUNK = 500  # examples whose activations stay in a core's cache
CHUNK_ELSEWHERE = 10_000
OPERATIONS = 4e9  # floating-point operations that are timed, on each core
OPERATIONS_ELSEWHERE = 1e12
EPOCHS = 4  # the first is left out, since it compiles
MOST_TOGETHER = 32  # networks whose steps are timed in one program


@dataclass(frozen=True)
class Rates:
    """Seconds that one device takes with all its cores at work.

    Attributes:
        links: of one example through an activation function (none where all products of these widths are first ones)
            and a product, by the widths before and behind it.
        readout: of one example from logits to whether it is right.
        steps: of one step of training of one network, where as many are trained side by side as will be, by the
            network's hidden layers.
    """

    links: dict[tuple[int, int], float]
    readout: float
    steps: dict[tuple[int, ...], float]

    @property
    def operations(self) -> float:
        """Floating-point operations of products in a second, where they are the fastest."""
        return max(2 * before * behind / seconds for (before, behind), seconds in self.links.items())


def measure_rates(
    features: int,
    num_classes: int,
    networks: Sequence[Sequence[int]],
    *,
    activation: str = "sigmoid",
    batch_size: int = 32,
    together: int = 1,
) -> Rates:
    """Time the products and activation functions of networks, and steps of their training, on random numbers.

    Args:
        features: numbers of one example.
        num_classes: logits.
        networks: hidden layers of each.
        activation: of the hidden layers.
        batch_size: examples of one step of training.
        together: networks that are trained side by side.

    Returns:
        The `Rates`, each the best of three.
    """
    activated: dict[tuple[int, int], bool] = {}
    for hidden in networks:
        for place, shape in enumerate(itertools.pairwise([features, *hidden, num_classes])):
            activated[shape] = activated.get(shape, False) or place > 0
    links = {}
    for shape, is_so in activated.items():
        function = partial(_link, ACTIVATIONS[activation] if is_so else None)
        kernel = np.full(shape, 1e-3, np.float32)
        links[shape] = _seconds_per_example(function, shape[0], 2 * shape[0] * shape[1], kernel)
    readout = _seconds_per_example(_readout, num_classes, 20 * num_classes, np.int32(0))
    steps = {
        tuple(hidden): _seconds_per_step(features, num_classes, hidden, activation, batch_size, together)
        for hidden in networks
    }
    return Rates(links, readout, steps)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=COMPILER_OPTIONS)
def _link(activate: Callable[[jax.Array], jax.Array] | None, repeats: int, outputs, kernel):
    def step(outputs, _):
        after = (outputs if activate is None else activate(outputs)) @ kernel
        # depends on the result, so that the work is not done once for all
        return outputs + after.mean() * 1e-30, None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, outputs, None, length=repeats)[0].sum()


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _readout(repeats: int, logits, label):
    def step(logits, _):
        return logits + (logits.argmax(axis=1) == label).sum() * 1e-30, None

    return jax.lax.scan(step, logits, None, length=repeats)[0].sum()


def _seconds_per_example(function: Callable, width: int, operations: int, *others) -> float:
    """Of function(repeats, outputs [example, width], *others) on every core at a time."""
    on_cpu = jax.default_backend() == "cpu"
    shards = num_cores() if on_cpu else 1
    chunk = CHUNK if on_cpu else CHUNK_ELSEWHERE
    repeats = int(np.clip((OPERATIONS if on_cpu else OPERATIONS_ELSEWHERE) / (chunk * operations), 1, 10_000))
    inputs = [jnp.full((chunk, width), 1e-3 * i, jnp.float32) for i in range(shards)]
    times = []
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        run_all(lambda one, _: jax.block_until_ready(function(repeats, one, *others)), inputs, threads=shards)
        times.append(time.perf_counter() - start)
    return min(times) / (repeats * chunk * shards)


def _seconds_per_step(
    features: int, num_classes: int, hidden: Sequence[int], activation: str, batch_size: int, together: int
) -> float:
    """Of one step of training and one network, by training on random numbers."""
    widths = [features, *hidden, num_classes]
    operations = 6 * batch_size * sum(a * b for a, b in itertools.pairwise(widths))
    on_cpu, together = jax.default_backend() == "cpu", min(together, MOST_TOGETHER)
    steps = int(np.clip((OPERATIONS if on_cpu else OPERATIONS_ELSEWHERE) / operations / together, 2, 200))
    random = np.random.default_rng(0)
    images = random.random((steps * batch_size, features), np.float32)
    split = Split(images, random.integers(num_classes, size=len(images), dtype=np.int32))
    few = Split(split.images[:batch_size], split.labels[:batch_size])
    data, ends = Dataset(split, few, few, num_classes, Source("random", "", {})), []
    train_many(
        data, hidden, range(together), activation=activation, epochs=EPOCHS, batch_size=batch_size, l2=0.0,
        on_epoch=lambda *_: ends.append(time.perf_counter()),
    )  # fmt: skip
    of_epochs = np.diff(ends[len(ends) // EPOCHS - 1 :: len(ends) // EPOCHS])
    return float(of_epochs.min()) / (together * steps)
