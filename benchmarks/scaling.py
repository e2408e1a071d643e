"""Measure strong and weak scaling over devices and processes.

Strong scaling divides the same examples among more devices; weak scaling gives each device as many examples as one had.
Efficiency is the number of examples per second and core (on GPUs: per device) relative to one device on one core.
Therefore n devices or processes are pinned to n cores. On a machine with fewer cores they share all cores and show the
cost of smaller shards, not the gain of more cores. Each case runs in separate processes. Checked: all counts equal the
counts of one device without a mesh.
"""

import functools
import json
import os
import socket
import subprocess
import sys

import numpy as np

from benchmarks._harness import Report, Row
from benchmarks._setup import dataset

NETWORK, ORDERS, STEPS, EACH = "3-layer", 16, 80, 5_000
NUMBERS = 1, 2, 4, 8
PROCESSES = 2, 4
REPEATS = {"curves": 3, "histogram": 30}
CORES = sorted(os.sched_getaffinity(0))


def run_case(
    task: str,
    examples: int,
    repeats: int,
    devices: int = 1,
    processes: int = 1,
    process: int = 0,
    address: str = "",
) -> dict:
    """Time a task whose examples are already on the devices; runs in the child process."""
    import jax
    import jax.numpy as jnp

    import jaxablate as ja
    from benchmarks._harness import measure
    from benchmarks._setup import trained

    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(address, processes, process)
    data, (model, mean) = dataset(), trained(NETWORK)
    local = np.array_split(np.resize(np.arange(len(data.test)), examples), processes)[process]
    values, labels = data.test.images[local], data.test.labels[local]
    if task == "histogram":
        activations = ja.record_activations(model, values)
        values = np.concatenate([ja.quantizers.threshold(0.5)(layer) for layer in activations], axis=1)
    if devices * processes > 1:
        mesh = ja.devices.make_mesh(devices * processes)
        values, labels = ja.devices.shard_examples(mesh, values, labels)
    else:
        values, labels = jnp.asarray(values), jnp.asarray(labels)
    orders = ja.random_orders(len(mean), ORDERS, key=jax.random.key(0))
    calls = {
        "curves": lambda: ja.cumulative_ablation(model, orders, values, labels, mean, steps=STEPS),
        "histogram": lambda: ja.joint_histogram(values, labels, num_codes=2, num_classes=data.num_classes),
    }
    timing, counts = measure(lambda: np.asarray(calls[task]()), repeats)
    hardware = {"backend": jax.default_backend(), "devices": jax.device_count()}
    return {"timing": vars(timing), "counts": counts.tolist(), **hardware}


def run(case: dict, cores: list[int]) -> dict:
    """Run a case in one or several processes, pinned to the cores in turn; return the result of process 0."""
    number, processes = case.get("processes", 1), []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    for process in range(number):
        case_text = json.dumps({**case, "process": process, "address": address})
        os.sched_setaffinity(0, cores if number == 1 else [cores[process % len(cores)]])  # the child inherits it
        command = [sys.executable, "-m", "benchmarks.scaling", case_text]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    os.sched_setaffinity(0, CORES)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{case} failed")
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    results[0]["timing"]["cores"] = sum(result["timing"]["cores"] for result in results)
    return results[0]


@functools.cache
def without_mesh(task: str, examples: int, repeats: int) -> dict:
    """Run the default call: one device without a mesh, on all cores."""
    return run({"task": task, "examples": examples, "repeats": repeats}, CORES)


def add_question(report: Report, question: str, task: str, cases: list[dict], each: int | None = None) -> None:
    """Add a row for each case; the first case, one device, is the reference.

    `each` is the number of examples per device or process; None divides the whole test split among them.
    """
    first: Row | None = None
    for case in cases:
        default, number = not case, case.get("devices", 1) * case.get("processes", 1)
        examples = each * number if each else len(dataset().test)
        reference = without_mesh(task, examples, 1 if each else REPEATS[task])
        on_cpu = reference["backend"] == "cpu"
        cores = CORES if default or not on_cpu else CORES[:number]
        case = {"task": task, "examples": examples, "repeats": REPEATS[task], **case}
        result = reference if default else run(case, cores)
        np.testing.assert_array_equal(result["counts"], reference["counts"])
        timing, scale = result["timing"], 1e6 / examples / (ORDERS * STEPS if task == "curves" else 1)
        row = Row(
            question,
            name_of(case, default) + (f", {len(cores)} core{'s' * (len(cores) > 1)}" if on_cpu else ""),
            timing["median"] * scale,
            timing["low"] * scale,
            timing["high"] * scale,
            "counts equal",
            compile_s=timing["compile"],
            cores=timing["cores"],
        )
        first = first or row
        row.against, row.ceiling = first.value, first.value / (len(cores) if on_cpu else number)
        if on_cpu:
            row.note = f"processor time {row.value * timing['cores'] / first.value / (first.cores or 1):.2f}x"
        report.add(row)


def name_of(case: dict, default: bool) -> str:
    """Name the devices or processes of a case."""
    if default:
        return "no mesh"
    kind, number = ("process", case["processes"]) if "processes" in case else ("device", case["devices"])
    plural = "" if number == 1 else "es" if kind == "process" else "s"
    return f"{number} {kind}{plural}"


def main() -> None:
    data = dataset()
    reference = without_mesh("curves", len(data.test), REPEATS["curves"])
    on_cpu = reference["backend"] == "cpu"
    devices = [{"devices": number} for number in NUMBERS if on_cpu or number <= reference["devices"]]
    default = [{}] if on_cpu else []
    processes = [{"processes": number} for number in PROCESSES] if on_cpu else []
    title = f"Scaling of {ORDERS} curves and of histograms, {NETWORK} network on {data.source.name}"
    report = Report("scaling", title, "ms per 1,000 examples")
    alike, tested = [*devices[:1], *default, *devices[1:]], f"{len(data.test)} examples"
    add_question(report, f"mask of a curve, {tested}", "curves", [*alike, *processes])
    add_question(report, f"mask of a curve, {EACH} examples each", "curves", [*devices, *processes], EACH)
    add_question(report, f"histogram, {tested}", "histogram", alike)
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run_case(**json.loads(sys.argv[1]))))
    else:
        main()
