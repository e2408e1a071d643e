"""`jaxablate merge`: join runs of different seeds."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import Bars, command
from jaxablate.cli._outputs import print_outputs, write_outputs


@command
def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders that `jaxablate reproduce` wrote, with different seeds.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the merged run.", show_default=False)],
) -> dict[str, Any]:
    """Merge runs of equal settings and different seeds into one run, and judge the paper's claims on all networks.

    Example: jaxablate merge run0 run10 run20 --out merged
    """
    import json

    from jaxablate._checks import require
    from jaxablate._files import PRIVATE, require_writable
    from jaxablate.results import merge_results
    from jaxablate.study._grid import CONDITIONS

    start = time.monotonic()
    require(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"output folder {out}: it already holds files, maybe of another run; choose a new folder",
    )
    results = {str(run): load_run(run) for run in runs}
    require(len(results) == len(runs), "runs: a folder is named twice; name each run once")
    merged = merge_results(results)
    require_writable(out)
    bars = Bars()
    out.parent.mkdir(parents=True, exist_ok=True)
    # write next to the new folder, in a private one: if anything fails, no half-written run is left
    private = Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{out.name}-", dir=out.parent))
    try:
        folder = private / out.name
        folder.mkdir()
        # The networks come first, because the report shows their weights. Each run gives the networks of its own seeds
        # only, since its folder may hold networks of other runs.
        for run, tree in zip(runs, results.values(), strict=True):
            # the conditions of a grid have folders of their own, and some share the networks of another condition
            for place in [run / "networks", *run.glob(f"{CONDITIONS}/*/networks")]:
                for seed in json.loads(tree.attrs["config"])["seeds"]:
                    for file in place.glob(f"*_seed{seed}.safetensors"):
                        copy = folder / file.relative_to(run)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, copy)
        with bars.progress:
            verdicts = write_outputs(merged, folder, bars)
        # On Windows a rename does not replace even an empty folder, so it is removed first.
        if out.exists():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return print_outputs(merged, out, verdicts, dataset=merged.attrs["dataset"], seconds=time.monotonic() - start)


def load_run(run: Path):
    """Load the results of a finished run.

    Raises:
        InputError: for a folder without results, or where a run is at work or was killed.
    """
    from jaxablate._checks import require
    from jaxablate._rundir import OWNER_FILE
    from jaxablate.results import load_results

    require(run.is_dir(), f"run {run}: there is no such folder; name the --out of `jaxablate reproduce`")
    file = run / "results.nc"
    require(
        file.is_file() and not (run / OWNER_FILE).exists(),
        f"run {run}: it is not finished; repeat its command `jaxablate reproduce ... --out {run}`; if a Python program "
        "made it (run_study with run_dir), compare its results by ja.compare",
    )
    return load_results(file)
