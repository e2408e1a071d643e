"""`jaxablate datasets`: what data are at hand."""

from typing import Any

from rich.table import Table

from jaxablate.cli._console import DataDir, command, console


@command
def datasets(data_dir: DataDir = None) -> dict[str, Any]:
    """List the datasets by name and where each would come from: a folder, the cache, a server.

    Example: jaxablate datasets --data-dir ~/mnist
    """
    from jaxablate.datasets import KNOWN, dataset_status

    found = dataset_status(data_dir)
    table = Table("name", "what it is", "where")
    for name, status in found.items():
        table.add_row(name, KNOWN[name], status)
    console.print(table)
    console.print("Also: a folder with the four canonical IDX files, or an .npz file, given by its path.")
    return {name: {"what": KNOWN[name], "where": status} for name, status in found.items()}
