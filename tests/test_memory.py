"""Memory that runs out: work goes on in smaller chunks with the same counts, or says what it needs."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import typer
from helpers import OPTIMIZED, raises_input_error

import jaxablate as ja
from jaxablate import devices, interactions
from jaxablate.ablation import _execute
from jaxablate.cli._console import one_sentence_errors

LIMITED = """
import resource, warnings, sys
from pathlib import Path
import numpy as np
from flax import nnx
import jaxablate as ja
from jaxablate.ablation import _incremental, _vmap

model = ja.MLP(784, (400, 400), 10, rngs=nnx.Rngs(0))
random = np.random.default_rng(0)
images, labels = random.random((4000, 784), np.float32), random.integers(0, 10, 4000).astype(np.int32)
keep, orders = random.random((60, 800)) > 0.3, np.stack([random.permutation(800) for _ in range(3)])

def counts(**options):
    masks = ja.evaluate_masks(model, keep, images, labels, **options)
    steps = ja.cumulative_ablation(model, orders, images, labels, steps=2, engine="incremental", **options)
    return [np.asarray(of) for of in (masks, steps, ja.single_ablation(model, images, labels, **options))]

wanted = counts()
_vmap.CACHED_BYTES["cpu"] = 2**40  # as if a cache held everything: all examples in one chunk
_incremental.CHUNK = 10**6
virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + 60 * 2**20,) * 2)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = counts(memory_limit=2**40)
assert all((a == b).all() for a, b in zip(found, wanted, strict=True))
print([str(w.message) for w in told if "memory" in str(w.message)])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_a_limit_of_the_operating_system_is_met_with_smaller_chunks():
    command = [sys.executable, "-c", LIMITED]
    process = subprocess.run(command, capture_output=True, text=True, env=OPTIMIZED, timeout=600)
    assert process.returncode == 0, process.stderr[-2000:]
    warned = re.findall(r"memory ran out with (\d+) examples at a time; continuing with (\d+)", process.stdout)
    assert len(warned) >= 1
    assert all(int(after) == int(before) // 2 for before, after in warned)


@pytest.fixture
def short_of_memory(monkeypatch):
    """A machine that has room for so many examples at a time."""
    run_shards, room = _execute.run_shards, []

    def limited(function, shards):
        if shards[0].valid.shape[1] > room[0]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")
        return run_shards(function, shards)

    monkeypatch.setattr(_execute, "run_shards", limited)
    return room


@pytest.mark.parametrize("engine", ["vmap", "incremental"])
def test_a_device_short_of_memory_gives_the_same_counts(engine, short_of_memory, small_model, mnist5k):
    test, orders = (mnist5k.test.images, mnist5k.test.labels), np.arange(27)[None]
    short_of_memory.append(10**9)
    expected = ja.cumulative_ablation(small_model, orders, *test, steps=20, engine=engine)
    short_of_memory[0] = 30
    with pytest.warns(_execute.MemoryWarning, match="memory ran out with .* examples at a time; continuing with"):
        curves = ja.cumulative_ablation(small_model, orders, *test, steps=20, engine=engine)
    np.testing.assert_array_equal(curves, expected)


@pytest.mark.filterwarnings("ignore::jaxablate.ablation._execute.MemoryWarning")
def test_what_is_needed_is_said(short_of_memory, small_model, mnist5k):
    short_of_memory.append(0)
    with raises_input_error(r"memory: it ran out with two examples at a time, and each takes \d+ bytes"):
        ja.single_ablation(small_model, mnist5k.test.images, mnist5k.test.labels)


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 9 GiB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")],
)
def test_the_command_line_says_that_memory_ran_out(error, capsys):
    """Memory for data or training cannot be saved by smaller chunks."""
    with pytest.raises(typer.Exit), one_sentence_errors():
        raise error
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: memory: no room for the data and the networks (")
    assert str(error) in stderr
    assert stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_too_little_to_start_is_told():
    command = f"ulimit -v 1000000; {sys.executable} -m jaxablate datasets"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr == (
        "error: memory: JAX may crash with a limit of 976 MiB of address space; raise it to 2560 MiB (ulimit -v)\n"
    )


def test_other_errors_of_the_device_are_not_hidden(monkeypatch, small_model, mnist5k):
    def broken(function, shards):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(_execute, "run_shards", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"), one_sentence_errors():
        ja.single_ablation(small_model, mnist5k.test.images, mnist5k.test.labels)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the number of mappings is limited by Linux")
@pytest.mark.parametrize("what", ["train", "study"])
def test_programs_are_forgotten_before_their_mappings_run_out(what, small_model, mnist5k, monkeypatch, tmp_path):
    config = ja.StudyConfig(dataset="mnist5k", num_random_orders=1, num_random_subsets=1, steps=1, scores=("entropy",))

    def work():
        if what == "train":
            return ja.train(mnist5k, (3,), epochs=1)
        return ja.run_study(config, {"own": small_model})

    jax.clear_caches()  # what other tests compiled
    program = jax.jit(lambda x: x + 1)
    program(1.0)
    monkeypatch.setattr(devices, "MAX_MAPPINGS", tmp_path / "max_map_count")
    # the limit is far away; half of it is used until the programs of the library are dropped; then half is always used
    for case, library_programs, user_programs in (("far", 1, 1), ("near", 0, 1), ("past", 0, 0)):
        ja.interactions.pair_information(np.eye(4, dtype=np.int32), np.arange(4) % 2, num_codes=2, num_classes=2)
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        devices.MAX_MAPPINGS.write_text(f"{ {'far': 10**6, 'near': 2 * used - 2, 'past': 100}[case] }\n")
        work()
        assert interactions._joint_information._cache_size() == library_programs, case
        assert program._cache_size() == user_programs, case
    devices.MAX_MAPPINGS.unlink()  # as on another operating system
    work()
