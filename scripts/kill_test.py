"""Kill `jaxablate reproduce` at random moments and check that the resumed run gives the same results.

`python scripts/kill_test.py [--kills 50] [--seed 0] [--grid]` runs a small study of the embedded data, or a grid of
four conditions, once without interruption.
Then the same command is killed (SIGKILL) a random time after it began to work in the folder. It is repeated in the same
folder until it completes. Its arrays and networks must equal the uninterrupted run's byte for byte. A difference ends
the script with exit code 1.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

import jaxablate as ja

COMMAND = [
    *(sys.executable, "-m", "jaxablate", "reproduce", "--dataset", "mnist5k", "--epochs", "1", "--steps", "4"),
    *("--random-orders", "2", "--seeds", "2", "--out"),
]
GRID = ["--vary", "l2=0,1e-3", "--vary", "quantizer=activation,mean"]
TIMEOUT = 600


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a run at random moments and compare the resumed results.")
    parser.add_argument("--kills", type=int, default=50, help="number of kills; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments; default: %(default)s")
    parser.add_argument("--grid", action="store_true", help="kill a grid of conditions")
    arguments = parser.parse_args()
    COMMAND[-1:-1] = GRID if arguments.grid else []
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(test(Path(folder), arguments.kills, random.Random(arguments.seed), [signal.SIGKILL]))


def test(folder: Path, num_kills: int, moments: random.Random, signals: Sequence[signal.Signals]) -> int:
    whole = folder / "undisturbed"
    run(whole)  # compiles, so that the timed run does not
    takes = run(folder / "timed") or 0.0
    kills, at_work, ended, resumed = 0, 0, 0, folder / "killed0"
    while kills < num_kills:
        if run(resumed, moments.uniform(0, takes), signals[kills % len(signals)]) is None:
            kills += 1
            at_work += (resumed / "run.owner").exists()  # a process that ends by itself removes this file
            print(f"{kills} of {num_kills} killed", flush=True)
        else:
            ended += compare(whole, resumed)
            resumed = folder / f"killed{ended}"
    run(resumed)
    ended += compare(whole, resumed)
    print(
        f"{kills} kills, {at_work} of them at work in the folder; {ended} runs ended, each with the arrays and "
        "networks of the undisturbed one"
    )
    return 0


def run(out: Path, seconds: float = TIMEOUT, sent: signal.Signals = signal.SIGKILL) -> float | None:
    """Run the command and kill it after it has worked in the folder for a number of seconds.

    Returns:
        How long it worked in the folder, in seconds; None if it was killed.
    """
    owner = out / "run.owner"
    with subprocess.Popen([*COMMAND, out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        # an earlier process, if it was killed, leaves the file with its own number
        while process.poll() is None and not (owner.exists() and f"process {process.pid} " in owner.read_text()):
            time.sleep(0.01)
        start = time.monotonic()
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            process.communicate(timeout=TIMEOUT)
            if seconds == TIMEOUT:
                sys.exit(f"{' '.join(map(str, COMMAND))} {out}: no end after {TIMEOUT} s")
            return None
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, COMMAND))} {out}: exit {process.returncode}\n{output}")
    return time.monotonic() - start


def compare(whole: Path, resumed: Path) -> int:
    """Return 1 if both folders hold the same results; end the program otherwise."""
    first, second = (ja.results.load_results(out / "results.nc") for out in (whole, resumed))
    for (path, node), resumed_node in zip(first.subtree_with_keys, second.subtree, strict=True):
        if node.data_vars and not node.to_dataset().identical(resumed_node.to_dataset()):
            sys.exit(f"{path} differs in {resumed}")
    names = [sorted(path.relative_to(out) for path in out.rglob("networks/*")) for out in (whole, resumed)]
    if names[0] != names[1]:
        sys.exit(f"networks differ: {names}")
    for name in names[0]:
        ja.load_model(resumed / name)  # load_model compares the arrays with the checksum in the header
        if header(whole / name) != header(resumed / name):
            sys.exit(f"{name} differs in {resumed}")
    leftovers = [path for path in resumed.rglob(".*") if path.is_dir()]
    if leftovers:
        sys.exit(f"temporary folders remain: {leftovers}")
    return 1


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


if __name__ == "__main__":
    main()
