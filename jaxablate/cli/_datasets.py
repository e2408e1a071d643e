"""`jaxablate datasets`: what data are at hand."""

from rich.table import Table

from jaxablate.cli._console import DataDir, console, one_sentence_errors


def datasets(
    data_dir: DataDir = None,
) -> None:
    """List the datasets by name and where each would come from: a folder, the cache, a server.

    Example: jaxablate datasets --data-dir ~/mnist
    """
    with one_sentence_errors():
        from jaxablate.datasets import KNOWN, dataset_status

        table = Table("name", "what it is", "where")
        for name, status in dataset_status(data_dir).items():
            table.add_row(name, KNOWN[name], status)
        console.print(table)
        console.print("Also: a folder with the four canonical IDX files, or an .npz file, given by its path.")
