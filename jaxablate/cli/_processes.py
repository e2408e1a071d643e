"""Several processes of one command: how they find each other, and how all end when one does."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Annotated

import typer

Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where process 0 is, to share the work with others; auto: as SLURM or MPI say.",
        show_default=False,
    ),
]
NumProcesses = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many there are.", show_default=False)]
ProcessId = Annotated[
    int | None, typer.Option(min=0, metavar="I", help="Which one this is, from 0.", show_default=False)
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIMEOUT = 300
"""Seconds to wait for the others at the beginning."""

GRACE = 10
"""Seconds that a process has to end after a signal; then it waits for another one, where Python hears no signals."""

STARTED = "coordinator: expected to be started by srun, or mpirun of Open MPI 4, for 'auto'"

WATCH = "import sys; lines = sys.stdin.readlines(); sys.stderr.write((lines or [''])[-1].lstrip('\\n'))"
"""Says, when a process is gone, what it said last: JAX ends a process from C++ when another one is lost."""

_watcher: subprocess.Popen[str] | None = None


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None, devices: int | None
) -> int | None:
    """Make this process one of several, if it is asked to, and let a CPU count as so many devices; both have to come
    before anything else of JAX.

    Returns:
        The number of devices of all processes, if it was given.

    Raises:
        InputError: for some of the options without the others.
    """
    global _watcher
    import jax

    from jaxablate._checks import InputError, require

    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)
    if coordinator is None:
        require(
            num_processes is None and process_id is None,
            "coordinator: expected HOST:PORT of process 0 beside --num-processes and --process-id, got none",
        )
        return devices
    if coordinator == "auto":
        coordinator = None
        found = any(name in os.environ for name in ("SLURM_PROCID", "OMPI_MCA_orte_hnp_uri"))
        require(found, f"{STARTED}, got neither; give HOST:PORT")
    else:
        host, _, port = coordinator.rpartition(":")
        require(
            host != "" and port.isdecimal() and 0 < int(port) < 2**16,
            f"coordinator: expected HOST:PORT, such as node1:12345, got {coordinator!r}",
        )
        require(
            num_processes is not None and process_id is not None and process_id < num_processes,
            f"process: expected --num-processes N and --process-id 0 to N-1, got {num_processes} and {process_id}",
        )
        if process_id == 0:
            _require_free(int(port))
    # what this process prints stays apart from what JAX's collectives do, who have no manners
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors="replace")
    os.dup2(2, 1)
    _watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    _say_last(
        f"processes: expected all to meet at {coordinator or 'the address that the job names'} within {TIMEOUT} s; is "
        "each started once, with its own number and the same --num-processes, and can it reach that address?"
    )
    jax.config.update("jax_enable_preemption_service", False)  # which would keep SIGTERM for itself
    signals = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # Python hears none while it waits
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=TIMEOUT, shutdown_timeout_seconds=24 * 3600
        )
    except ValueError as error:  # inside sbatch, but not started by srun
        raise InputError(f"{STARTED}, but JAX finds no address ('{error}'); give HOST:PORT") from None
    for number, handler in signals.items():
        signal.signal(number, handler)
    _say_last(ended())
    _end_while_waiting()
    return None if devices is None else devices * jax.process_count()


def _end_while_waiting() -> None:
    """Let a thread end this process when a signal has come and it still waits for another process."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def end(kept: socket.socket = told) -> None:
        while (number := heard.recv(1)[0]) not in SIGNALS:
            pass
        time.sleep(GRACE)
        os._exit(128 + number)

    threading.Thread(target=end, daemon=True).start()


def _require_free(port: int) -> None:
    from jaxablate._checks import InputError

    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an ended run has left is free
        try:
            found.bind(("", port))
        except OSError as error:
            raise InputError(
                f"coordinator: expected a free port for process 0, got {port} ({error.strerror}); give all another"
            ) from None


def ended() -> str:
    """What there is to say when a process ends because another one has."""
    import jax

    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot go on: it was ended, or another process has "
        "ended or cannot be reached (see what that one says); the same commands, all given again, go on from what is "
        "finished"
    )


def joined() -> bool:
    """Whether this process is one of several."""
    return _watcher is not None


def is_primary() -> bool:
    """Whether this process is the one that prints and writes."""
    import jax

    return not joined() or jax.process_index() == 0


def shutdown(end: BaseException) -> None:
    """At the end of this process, wait for the others; where it failed, exit at once, since they wait for it."""
    import jax

    code = end.code if isinstance(end, SystemExit) else 1
    if not code:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        jax.distributed.shutdown()
    elif not isinstance(end, SystemExit):
        traceback.print_exception(end)
    _say_last("")
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _say_last(text: str) -> None:
    assert _watcher is not None
    assert _watcher.stdin is not None
    _watcher.stdin.write(f"error: {text}\n" if text else "\n")
    _watcher.stdin.flush()
