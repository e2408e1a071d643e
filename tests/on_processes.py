"""Run by test_processes.py in each of several processes: what they find together, as one file for each."""

import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from helpers import raises_input_error, with_less_training

import jaxablate as ja


def main(address: str, number: str, process: str, devices: str, dataset: str, out: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(number) > 1:
        jax.distributed.initialize(address, int(number), int(process))
    assert jax.process_count() == int(number)
    assert jax.device_count() == int(number) * int(devices)
    random, data = np.random.default_rng(0), with_less_training(ja.load_dataset(dataset))
    models = [ja.train(data, (12, 10), seed, epochs=1)[0] for seed in (0, 1)]
    # a number that no number of devices divides
    images, labels = data.test.images[: len(data.test) - 3], data.test.labels[: len(data.test) - 3]
    fill = ja.mean_activations(models[0], data.validation.images)
    validation = data.validation.images, data.validation.labels
    resample = ja.compute_fill(models[0], "resample", *validation, key=jax.random.key(0))
    class_mean = ja.compute_fill(models[0], "class_mean", *validation)
    masks = random.random((37, 22)) < 0.6
    orders = np.stack([random.permutation(22) for _ in range(13)])
    codes = np.asarray(ja.quantizers.threshold(0.5)(ja.record_activations(models[0], images)[0]))
    mesh = ja.devices.make_mesh()
    # each process has a part of the examples, and they are not of one size
    cuts = np.linspace(0, len(labels), int(number) + 1).astype(int)
    cuts[1:-1] += 7
    local = slice(*cuts[int(process) : int(process) + 2])
    spread = ja.devices.shard_examples(
        mesh, images[local], labels[local].astype((np.uint8, np.int64)[int(process) % 2])
    )
    spread_codes = ja.devices.shard_examples(mesh, codes[local], labels[local])
    # nor are their batches, or as many
    size = 99 * (int(process) + 1)
    batches = (
        (images[local][i : i + size], labels[local][i : i + size]) for i in range(0, local.stop - local.start, size)
    )
    streamed = ja.streams.combine(
        batches,
        lambda x, y: (ja.evaluate_masks(models[0], masks, x, y, fill), ja.mean_activations(models[0], x)),
        mesh=mesh,
    )
    shapley = ja.ablation.shapley_values(
        models[0], *spread, fill, key=jax.random.key(0), num_permutations=2, site="layer2"
    ).values
    if int(number) > 1:
        with raises_input_error("images: other processes hold a part of the examples; pass the mesh"):
            ja.mean_activations(models[0], spread[0])
        with raises_input_error("mesh: its devices belong to the processes .*; take the devices of every process"):
            ja.devices.shard_examples(ja.devices.make_mesh(devices=others()), images[local], labels[local])
        with raises_input_error("images: expected one dtype and shape in all processes, got float"):
            ja.devices.shard_examples(
                mesh, images[local].astype((np.float16, np.float32)[int(process) % 2]), labels[local]
            )
        with pytest.raises(OSError if process == "0" else ja.InputError, match="the file is gone"):
            ja.streams.combine(
                broken(images, labels) if process == "0" else [(images, labels)], lambda x, y: 1, mesh=mesh
            )
        with raises_input_error("batches: there is none"):  # in all, though process 0 has one
            ja.streams.combine([(images, labels)][: int(process) == 0], lambda x, y: x.sum(), mesh=mesh)
    trained = ja.training.train_many(data, (12,), (0, 1, 2), epochs=1, mesh=mesh)
    answers = {
        "confusion": ja.evaluate_masks(models[0], masks, images, labels, fill, outcomes="confusion", mesh=mesh),
        "own parts": ja.evaluate_masks(models[0], masks, *spread, fill, outcomes="confusion"),
        "own parts, incremental": ja.cumulative_ablation(models[0], orders, *spread, class_mean, steps=9),
        "vmap": ja.cumulative_ablation(models[0], orders, images, labels, resample, steps=9, engine="vmap", mesh=mesh),
        "two networks": ja.cumulative_ablation(
            models, np.stack([orders, orders[::-1]]), images, labels, np.stack([fill, fill]), steps=9, mesh=mesh
        ),
        "single": ja.single_ablation(models[0], images, labels, fill, mesh=mesh),
        "histogram": ja.joint_histogram(codes, labels, num_codes=2, num_classes=10, mesh=mesh),
        "own histogram": ja.joint_histogram(*spread_codes, num_codes=2, num_classes=10),
        "loss": ja.evaluate_masks(models[0], masks, *spread, fill, outcomes="loss"),
        "shapley": shapley,
        "streamed": streamed[0],
        "streamed mean": streamed[1],
        "trained": np.stack([history.validation_loss for _, history in trained]),
        "weights": np.stack([np.asarray(model.stages[0].linear.kernel[...]) for model, _ in trained]),
    }
    np.savez(out, **{name: np.asarray(array) for name, array in answers.items()})


def broken(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield images, labels
    raise OSError("the file is gone")


def others() -> list[jax.Device]:
    """The devices of one other process."""
    process = (jax.process_index() + 1) % jax.process_count()
    return [device for device in jax.devices() if device.process_index == process]


if __name__ == "__main__":
    main(*sys.argv[1:])
