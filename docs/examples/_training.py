"""Training helpers of the three examples: a loop over shuffled batches, and the accuracy of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxablate as ja

BATCH_SIZE = 128


@nnx.jit
def train_step(model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Update the model on one batch and return the loss before the update."""

    def compute_loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(compute_loss)(model)
    optimizer.update(model, gradients)
    return loss


def train(model: nnx.Module, data: ja.Dataset, *, epochs: int, seed: int, learning_rate: float = 1e-3) -> None:
    """Train a model in place with Adam, and print its accuracy on the validation split after each epoch."""
    steps = len(data.train) // BATCH_SIZE
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)  # sites have no nnx.Param
    random = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        shuffled = random.permutation(len(data.train))[: steps * BATCH_SIZE]
        for batch in shuffled.reshape(steps, BATCH_SIZE):
            train_step(model, optimizer, data.train.images[batch], data.train.labels[batch])
        correct = count_correct(model, data.validation)
        print(f"epoch {epoch}: {correct / len(data.validation):.2%} of {len(data.validation)} validation images")


@nnx.jit
def predict(model: nnx.Module, images: jax.Array) -> jax.Array:
    """Return the class with the largest logit, [example]."""
    with jax.default_matmul_precision("highest"):
        return model(images).argmax(axis=-1)


def count_correct(model: nnx.Module, split: ja.datasets.Split, batch_size: int = 1000) -> int:
    """Count the images of a split that the model gets right."""
    starts = range(0, len(split), batch_size)
    predicted = [predict(model, split.images[start : start + batch_size]) for start in starts]
    return int((jnp.concatenate(predicted) == split.labels).sum())
