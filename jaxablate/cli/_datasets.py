"""`jaxablate datasets`: list the datasets."""

from typing import Any

from rich.table import Table

from jaxablate.cli._console import DataDir, command, console

__all__ = ["datasets"]


@command
def datasets(data_dir: DataDir = None) -> dict[str, Any]:
    """List the datasets and where each would be read from: a folder, the cache or a server.

    Example: jaxablate datasets --data-dir ~/mnist
    """
    from jaxablate.datasets import KNOWN, dataset_status

    statuses = dataset_status(data_dir)
    table = Table("name", "description", "source")
    for name, status in statuses.items():
        table.add_row(name, KNOWN[name], status)
    console.print(table)
    console.print("A path also works: of a folder with the four IDX files, or of an .npz file.")
    return {name: {"what": KNOWN[name], "where": status} for name, status in statuses.items()}
