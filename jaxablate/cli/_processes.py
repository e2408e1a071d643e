"""Several processes of one command, connected by `jax.distributed`."""

import signal
import socket
import sys
from typing import Annotated

import typer

__all__ = ["Coordinator", "NumProcesses", "ProcessId", "initialize_distributed", "is_distributed"]

Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address of process 0; auto: from SLURM or MPI.", show_default=False),
]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of processes that share the run.", show_default=False)
]
ProcessId = Annotated[
    int | None, typer.Option(min=0, metavar="I", help="Number of this process, from 0.", show_default=False)
]

SHUTDOWN_TIMEOUT = 24 * 3600
"""Seconds for which the other processes wait at the end while process 0 writes figures and the report."""


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None, devices: int | None
) -> int | None:
    """Connect this process to the others, and split a CPU into devices; call before any other JAX function.

    Returns:
        The number of devices of all processes, or None if `devices` is None.

    Raises:
        InputError: for an incomplete combination of options, or processes that JAX cannot connect.
    """
    import jax

    from jaxablate._checks import InputError, require

    # JAX fixes its devices when they are first used; after that this setting would have no effect.
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)
    if coordinator is None:
        require(
            num_processes is None and process_id is None,
            "coordinator: missing; give HOST:PORT of process 0 with --num-processes and --process-id",
        )
        return devices
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        require(
            host != "" and port.isdecimal() and 0 < int(port) < 2**16,
            f"coordinator: expected HOST:PORT, such as node1:12345, got {coordinator!r}",
        )
        require(
            num_processes is not None and process_id is not None and process_id < num_processes,
            f"process: expected --num-processes N and --process-id 0 to N-1, got {num_processes} and {process_id}",
        )
        # With its port in use, jaxlib 0.10.1 crashes about every other time. JAX opens the port on all addresses.
        try:
            if process_id == 0:
                socket.create_server(("", int(port))).close()
        except OSError:
            raise InputError(
                f"coordinator: port {port} of this machine is in use or not permitted; choose another port"
            ) from None
    # Python runs no signal handler while JAX waits for another process, so a signal ends the process directly; JAX's
    # preemption service would swallow SIGTERM
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        raise InputError(
            f"coordinator: JAX cannot connect the processes ({error}); start each process once with the same "
            "HOST:PORT, or take a job array with --first-seed and jaxablate merge"
        ) from None
    return None if devices is None else devices * jax.process_count()


def is_distributed() -> bool:
    """Return True if this process is connected to others."""
    jax = sys.modules.get("jax")  # not imported for this question
    return jax is not None and jax.distributed.is_initialized()
