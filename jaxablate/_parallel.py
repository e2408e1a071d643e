"""Processors: how many cores there are, how to compile for them, how many programs to keep, and work shared out among
threads that stops when one part fails."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import jax

COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""Of the programs that take the time, no global flag: XLA's default of 256 bits leaves a tenth of a modern CPU's speed
behind."""

MOST_MAPPINGS = Path("/proc/sys/vm/max_map_count")

Job = TypeVar("Job")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Raised inside a job that ends early because another one failed or the user interrupted."""


class Stop:
    """Asks running jobs to end: they call `check` now and then."""

    def __init__(self):
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the jobs to end."""
        self._event.set()

    def check(self) -> None:
        """Raise `StoppedError` if the jobs are asked to end."""
        if self._event.is_set():
            raise StoppedError


def num_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_room_for_programs() -> None:
    """Forget JAX's compiled programs where a process has half of the memory mappings that Linux gives it.

    A program takes some six, and past the limit (65 530) the process crashes: after 70 shapes of networks in a study.
    """
    try:
        taken = Path("/proc/self/maps").read_bytes().count(b"\n")
        most = int(MOST_MAPPINGS.read_bytes())
    except OSError:  # another operating system
        return
    if taken > most // 2:
        jax.clear_caches()


def run_all(function: Callable[[Job, Stop], Result], jobs: Sequence[Job], *, threads: int) -> list[Result]:
    """Call function(job, stop) for every job, on several threads, and return the results in the order of the jobs.

    Where a job fails, or an interrupt reaches the calling thread, jobs not begun are dropped, running ones are asked
    to end, and the error is raised when they have.
    """
    if len(jobs) <= 1:
        return [function(job, Stop()) for job in jobs]
    stop = Stop()
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(function, job, stop) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            errors = [error for future in done if (error := future.exception()) is not None]
            if errors:
                raise errors[0]
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
