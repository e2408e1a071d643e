"""Several processes over the loopback: the same numbers as one, and all end when one does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_resume import same
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate.cli import app

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "scripts"), os.environ.get("PYTHONPATH", "")]),
}
SMALL = ["--set", "networks=12x10"]
STUDY = ["reproduce", "--epochs", "1", "--steps", "4", "--random-orders", "2", "--seeds", "2", *SMALL, "--dataset"]


def free_port() -> int:
    with socket.socket() as free_socket:
        free_socket.bind(("localhost", 0))
        return free_socket.getsockname()[1]


def start(command: list, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **(environment or {})},
    )


def all_ended(processes: list[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, outputs, strict=True)]


def study(number: int, data: Path, out: Path) -> list[subprocess.Popen[str]]:
    """Start processes of one command; all but process 0 get a folder that they need not see."""
    command = [
        HERE / "without_pictures.py",
        *STUDY,
        data,
        "--coordinator",
        f"localhost:{free_port()}",
        "--num-processes",
        number,
    ]
    outs = [out / "elsewhere" if process else out for process in range(number)]
    return [start([*command, "--process-id", process, "--out", folder]) for process, folder in enumerate(outs)]


@pytest.fixture(scope="module")
def dataset() -> str:
    return "mnist" if os.environ.get("JAXABLATE_DATA_DIR") else "mnist5k"


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory) -> dict[str, np.ndarray]:
    """Return the results of one process."""
    out = tmp_path_factory.mktemp("alone") / "0.npz"
    ((status, _, errors),) = all_ended([start([HERE / "on_processes.py", "", 1, 0, 1, dataset, out])])
    assert status == 0, errors
    return dict(np.load(out))


@pytest.mark.slow
def test_processes_find_together_what_one_finds(alone, dataset, tmp_path):
    number, devices = 2, 3
    address = f"localhost:{free_port()}"
    outs = [tmp_path / f"{process}.npz" for process in range(number)]
    ended = all_ended(
        [start([HERE / "on_processes.py", address, number, i, devices, dataset, out]) for i, out in enumerate(outs)]
    )
    assert [status for status, _, _ in ended] == [0] * number, ended
    assert np.ptp(alone["two networks"]) > 0
    for out in outs:
        arrays = dict(np.load(out))
        assert list(arrays) == list(alone)
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.integer):
                np.testing.assert_array_equal(array, alone[name], name)
            else:
                np.testing.assert_allclose(array, alone[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(alone["own parts"], alone["confusion"])
    np.testing.assert_array_equal(alone["own histogram"], alone["histogram"])


@pytest.fixture(scope="module")
def undisturbed(small_data, tmp_path_factory):
    """The results of one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    ((status, _, errors),) = all_ended([start([HERE / "without_pictures.py", *STUDY, small_data, "--out", out])])
    assert status == 0, errors
    return ja.results.load_results(out / "results.nc")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_all_end_when_one_is_killed_and_the_run_goes_on(victim, small_data, undisturbed, tmp_path):
    processes, patience = study(2, small_data, tmp_path), time.monotonic() + 300
    while not list(tmp_path.glob("units/*")):
        assert all(process.poll() is None for process in processes), all_ended(processes)
        assert time.monotonic() < patience, all_ended(processes, timeout=10)
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    ended = all_ended(processes, timeout=30)
    assert ended[victim][0] == -signal.SIGKILL
    assert ended[1 - victim][0] not in (0, -signal.SIGKILL)
    assert not (tmp_path / "results.nc").exists()
    ended = all_ended(study(2, small_data, tmp_path))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert ("Resuming: process" in ended[0][1]) == (victim == 0)
    assert all(line.startswith("[Gloo]") for line in ended[1][1].splitlines())  # process 0 alone prints, and writes
    assert not (tmp_path / "elsewhere").exists()
    assert same(ja.results.load_results(tmp_path / "results.nc"), undisturbed, rounding=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "line"), [(1, "waits"), (2, "works"), (2, "broadcasts")])
def test_a_signal_ends_a_process(number, line):
    """Also one that waits for a process that has not started, or for one that is stopped."""
    code = """
import sys, time
from jaxablate.cli._processes import initialize_distributed
print("waits", flush=True)
initialize_distributed(sys.argv[1], 2, int(sys.argv[2]), None)
print("works", flush=True)
if sys.argv[3] == "works":
    time.sleep(60)
from jaxablate.devices import broadcast_text
for i in range(10**9):
    broadcast_text(lambda: str(i))
    if i == 1:
        print("broadcasts", flush=True)
"""
    address = f"localhost:{free_port()}"
    processes = [start(["-c", code, address, process, line]) for process in range(number)]
    for process in processes:
        assert process.stdout is not None
        while line not in process.stdout.readline():
            assert process.poll() is None, all_ended(processes)
    if line == "broadcasts":
        processes[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    processes[0].send_signal(signal.SIGTERM)
    assert processes[0].wait(timeout=30) == -signal.SIGTERM
    for process in processes:
        process.kill()
    all_ended(processes)


@pytest.mark.slow
def test_processes_of_other_settings_are_refused(small_data, tmp_path):
    command = [HERE / "without_pictures.py", *STUDY, small_data, "--out", tmp_path, "--num-processes", 2]
    command += ["--coordinator", f"localhost:{free_port()}"]
    ended = all_ended(
        [start([*command, "--process-id", 0]), start([*command, "--process-id", 1, "--activation", "tanh"])]
    )
    for status, _, errors in ended:
        assert status == 1
        assert "process 1: settings, data or versions differ from process 0" in errors.replace("\n", " ")
        assert "activation: sigmoid in process 0, tanh in process 1" in errors.replace("\n", " ")


@pytest.mark.slow
def test_processes_of_other_devices_are_refused():
    code = """
import sys, jax, jaxablate as ja
address, process = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 1 + int(process))
jax.distributed.initialize(address, 2, int(process))
try:
    ja.run_study(ja.StudyConfig(dataset="mnist5k"))
except ja.InputError as error:
    print(error)
"""
    address = f"localhost:{free_port()}"
    for status, output, errors in all_ended([start(["-c", code, address, process]) for process in range(2)]):
        assert status == 0, errors
        assert "devices: the processes have 1, 2 devices; give all the same --devices N" in output


@pytest.mark.slow
def test_an_error_is_told_by_all_processes(tmp_path):
    """Process 0 cannot write; process 1 has no folder; all train a network that diverges."""
    code = """
import sys, jax, jaxablate as ja
address, process, *outs = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
for out, rate in zip(outs, (1e-3, 1e38)):
    config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, steps=4, seeds=(1,), learning_rate=rate)
    for run_dir in (out if process == "0" else None, out):
        try:
            ja.run_study(config, run_dir=run_dir)
        except ja.InputError as error:
            print(error)
    print("next")
"""
    (tmp_path / "file").write_text("")
    address, outs = f"localhost:{free_port()}", [tmp_path / "file" / "run", tmp_path / "run"]
    ended = all_ended([start(["-c", code, address, process, *outs]) for process in range(2)])
    for status, output, errors in ended:
        assert status == 0, errors
        unwritable, diverged, _ = output.split("next\n")
        assert "output folder " in unwritable, (output, errors)
        assert "run_dir: " not in unwritable
        assert "training of seed 1 diverged in epoch 1" in diverged, (output, errors)
        assert "(run_dir: True in process 0, False in process 1)" in diverged
    assert {path.name for path in (tmp_path / "run" / "networks").iterdir()} == {"1-layer-8_seed1_epoch0.safetensors"}
    assert "the network before that epoch is in" in ended[0][1]
    ja.load_model(tmp_path / "run" / "networks" / "1-layer-8_seed1_epoch0.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", "open mpi"])
def test_launchers_are_understood(launcher):
    code = """
import jax
from jaxablate.cli._processes import initialize_distributed
print(initialize_distributed("auto", None, None, 2), jax.device_count())
"""
    job = str(free_port() % 4000)  # JAX derives the port from the job's number

    def environment(process: int) -> dict[str, str]:
        if launcher == "slurm":
            return {
                "SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process), "SLURM_STEP_NUM_NODES": "1",
            }  # fmt: skip
        return {
            "OMPI_MCA_orte_hnp_uri": f"{int(job) * 4096}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(process), "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
        }  # fmt: skip

    for status, output, errors in all_ended([start(["-c", code], environment(i)) for i in range(2)]):
        assert status == 0, errors
        assert output.endswith("4 4\n")


@pytest.mark.slow
def test_a_job_that_srun_has_not_started_is_told():
    code = """
import jaxablate as ja
from jaxablate.cli._processes import initialize_distributed
try:
    initialize_distributed("auto", None, None, None)
except ja.InputError as error:
    print(error)
"""
    job = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    ((status, output, errors),) = all_ended([start(["-c", code], job)])
    assert status == 0, errors
    assert output.startswith("coordinator: JAX cannot connect the processes (")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--process-id", "0"],
            "coordinator: missing; give HOST:PORT of process 0 with --num-processes and --process-id",
        ),
        (["--coordinator", "node1"], "coordinator: expected HOST:PORT, such as node1:12345, got 'node1'"),
        (["--coordinator", "node1:99999"], "coordinator: expected HOST:PORT, such as node1:12345, got 'node1:99999'"),
        (["--coordinator", "a:1"], "process: expected --num-processes N and --process-id 0 to N-1, got None and None"),
        (
            ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            "process: expected --num-processes N and --process-id 0 to N-1, got 2 and 2",
        ),
        (
            ["--coordinator", "auto"],
            "coordinator: JAX cannot connect the processes (",
        ),
    ],
)
def test_half_said_options_are_refused(options, message, tmp_path):
    outcome = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path / "out"), *options])
    assert outcome.exit_code == 1
    assert message in " ".join(outcome.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_port_in_use_ends_the_process(tmp_path):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        options = ["--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", 0]
        ((status, _, errors),) = all_ended(
            [start(["-m", "jaxablate", *STUDY, "mnist5k", "--out", tmp_path / "out", *options])]
        )
    assert status == 1
    message = f"coordinator: port {port} of this machine is in use or not permitted; choose another port"
    assert errors == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
