"""Run by test_meshes.py in a process whose CPU counts as eight devices: the same numbers on every mesh."""

import re
import sys
import warnings
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from helpers import raises_input_error, with_less_training
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxablate as ja
from jaxablate.ablation._execute import Layout

jax.config.update("jax_num_cpu_devices", 8)


def main(dataset: str) -> None:
    random, data = np.random.default_rng(0), with_less_training(ja.load_dataset(dataset))
    models = [ja.train(data, (12, 10), seed, epochs=1)[0] for seed in (0, 1)]
    # a number that no number of devices divides
    images, labels = data.test.images[: len(data.test) - 3], data.test.labels[: len(data.test) - 3]
    fill = ja.mean_activations(models[0], data.validation.images)
    resample = ja.compute_fill(
        models[0], "resample", data.validation.images, data.validation.labels, key=jax.random.key(0)
    )
    masks = random.random((37, 22)) < 0.6
    orders = np.stack([random.permutation(22) for _ in range(13)])
    codes = ja.quantizers.threshold(0.5)(ja.record_activations(models[0], images)[0])

    def everything(mesh: Mesh | None) -> list:
        return [
            ja.evaluate_masks(models[0], masks, images, labels, fill, outcomes=("confusion", "loss"), mesh=mesh),
            ja.cumulative_ablation(models[0], orders, images, labels, resample, steps=9, engine="vmap", mesh=mesh),
            ja.cumulative_ablation(
                models, np.stack([orders, orders[::-1]]), images, labels, np.stack([fill, fill]), steps=9, mesh=mesh
            ),
            ja.single_ablation(models[0], images, labels, fill, mesh=mesh),
            ja.joint_histogram(codes, labels, num_codes=2, num_classes=10, mesh=mesh),
        ]

    alone = everything(None)
    assert np.ptp(np.asarray(alone[2])) > 0
    for number in (1, 3, 8):
        jax.tree.map(compare, alone, everything(ja.devices.make_mesh(number)))
        print(f"{number} devices: the same", flush=True)

    mesh = ja.devices.make_mesh(2)
    even = len(labels) // 2 * 2
    spread = jax.device_put(images[:even], NamedSharding(mesh, P("data", None)))
    counts = ja.evaluate_masks(models[0], masks, spread, labels[:even], fill)
    compare(ja.evaluate_masks(models[0], masks, images[:even], labels[:even], fill), counts)
    spread_labels = jax.device_put(labels[:even], NamedSharding(mesh, P("data")))
    compare(counts, ja.evaluate_masks(models[0], masks, images[:even], spread_labels, fill))
    spread = jax.device_put(np.asarray(codes[:even]), NamedSharding(mesh, P("data")))
    counts = ja.joint_histogram(spread, labels[:even], num_codes=2, num_classes=10)
    compare(ja.joint_histogram(codes[:even], labels[:even], num_codes=2, num_classes=10), counts)
    refused = jax.device_put(images[:even], NamedSharding(mesh, P(None, "data")))
    with raises_input_error(r"expected examples along 'data' on the devices .*, got P\(None, 'data'\) on"):
        ja.evaluate_masks(models[0], masks, refused, labels[:even], fill)

    with raises_input_error("expected examples along 'data' on the devices .* on the devices "):
        ja.evaluate_masks(models[0], masks, images[:even], spread_labels, fill, mesh=ja.devices.make_mesh(4))
    negative = jax.device_put(labels[:even] - 1, NamedSharding(mesh, P("data")))
    with raises_input_error("labels: expected values in 0..9, got -1..8"):
        ja.evaluate_masks(models[0], masks, images[:even], negative, fill)
    with raises_input_error("mesh: not used inside jax.jit"):
        jax.jit(lambda arguments: ja.joint_histogram(arguments, labels, num_codes=2, num_classes=10, mesh=mesh))(codes)
    with raises_input_error("devices: a device is repeated; give each once"):
        ja.devices.make_mesh(devices=jax.devices() * 2)
    examples_are_not_added(models[0], images[:103], labels[:103], masks)
    the_limit_is_of_each_device(models[0], images[:103], labels[:103], masks)
    labels_may_be_of_any_dtype(models[0], images[:1102], labels[:1102], fill, orders)
    memory_may_run_out(models[0], images[:1102], labels[:1102], masks)
    states_may_hold_keys(mesh, images, labels)

    epochs = []
    by_two = NamedSharding(mesh, P("data"))
    train, validation = (
        type(split)(*(jax.device_put(array, by_two) for array in (split.images, split.labels)))
        for split in (data.train, data.validation)
    )
    sharded = replace(data, train=train, validation=validation)
    histories = [ja.train(dataset_, (12,), epochs=1)[1] for dataset_ in (data, sharded)]
    np.testing.assert_allclose(histories[0].loss, histories[1].loss, rtol=1e-4)

    trained = ja.training.train_many(data, (12,), (0, 1, 2), epochs=1, parallel="vmap")
    shared = ja.training.train_many(
        data,
        (12,),
        (0, 1, 2),
        epochs=1,
        mesh=ja.devices.make_mesh(2),
        on_epoch=lambda *arguments: epochs.append(arguments),
    )
    assert [call[:2] for call in epochs] == [(3, 3)]  # not of the seed that was added
    np.testing.assert_allclose(epochs[0][2], np.mean([history.loss for _, history in trained]), rtol=1e-4)
    for (_, history), (model, of_mesh) in zip(trained, shared, strict=True):
        np.testing.assert_allclose(history.loss, of_mesh.loss, rtol=1e-4)
        ja.evaluate_masks(model, np.ones((1, 12), bool), images, labels)


def examples_are_not_added(model: ja.MLP, images: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> None:
    """Functions without padding see no extra example if the devices do not divide the examples."""
    mesh = ja.devices.make_mesh()
    expected = ja.mean_activations(model, images), ja.evaluate_masks(model, masks, images, labels)
    spread = ja.devices.shard_examples(mesh, images, labels)
    jax.tree.map(compare, expected, (ja.mean_activations(model, spread[0]), ja.evaluate_masks(model, masks, *spread)))
    batches = [(images[start : start + 40], labels[start : start + 40]) for start in range(0, 103, 40)]
    streamed = ja.streams.combine(
        batches, lambda x, y: (ja.mean_activations(model, x), ja.evaluate_masks(model, masks, x, y)), mesh=mesh
    )
    jax.tree.map(compare, expected, streamed)


def labels_may_be_of_any_dtype(model, images: np.ndarray, labels: np.ndarray, fill, orders: np.ndarray) -> None:
    """Chunks overlap, and the label -1 leaves out what is there twice."""

    codes = (images.reshape(len(images), -1)[:, :9] > 0.5).astype(np.uint8)

    def found(labels: np.ndarray, mesh: Mesh | None) -> list:
        examples = images, labels, fill
        return [
            ja.cumulative_ablation(model, orders, *examples, steps=9, outcomes=("correct", "loss"), mesh=mesh),
            ja.joint_histogram(codes, labels, num_codes=2, num_classes=256, mesh=mesh),
        ]

    expected = found(labels, None)
    for dtype in (np.uint8, np.uint16, np.uint32, np.int8, np.int64):
        jax.tree.map(compare, expected, found(labels.astype(dtype), ja.devices.make_mesh(2)))


def memory_may_run_out(model: ja.MLP, images: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> None:
    on_mesh = Layout.on_mesh

    def limited(layout: Layout, task) -> object:
        if layout.chunk > 100:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")
        return on_mesh(layout, task)

    Layout.on_mesh = limited
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        counts = ja.evaluate_masks(model, masks, images, labels, mesh=ja.devices.make_mesh(2))
    Layout.on_mesh = on_mesh
    each = -(-len(labels) // 2)
    assert f"memory ran out with {each} examples at a time; continuing with {each // 2}" in str(
        caught_warnings[0].message
    ), caught_warnings[0]
    compare(ja.evaluate_masks(model, masks, images, labels), counts)


def the_limit_is_of_each_device(model: ja.MLP, images: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> None:
    with raises_input_error(r"memory_limit: \d+ bytes are less than the \d+") as caught:
        ja.evaluate_masks(model, masks, images, labels, memory_limit=1)
    least = int(re.findall(r"than the (\d+) that", str(caught.value))[0])
    counts = ja.evaluate_masks(model, masks, images, labels, memory_limit=least, mesh=ja.devices.make_mesh())
    compare(ja.evaluate_masks(model, masks, images, labels), counts)


def states_may_hold_keys(mesh: Mesh, images: np.ndarray, labels: np.ndarray) -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        lambda x: x.reshape(len(x), -1), nnx.Linear(784, 8, rngs=rngs), nnx.relu, ja.Site("hidden"),
        nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 10, rngs=rngs),
    )  # fmt: skip
    masks = np.eye(8, dtype=bool)
    compare(ja.evaluate_masks(model, masks, images, labels), ja.evaluate_masks(model, masks, images, labels, mesh=mesh))


def compare(first, second) -> None:
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    if np.issubdtype(first.dtype, np.integer):
        np.testing.assert_array_equal(first, second)
    else:
        np.testing.assert_allclose(first, second, rtol=2e-5, atol=1e-6)


if __name__ == "__main__":
    main(sys.argv[1])
