"""Files: results are written as netCDF, and checked when they are read."""

from pathlib import Path

import xarray as xr

from jaxablate._checks import InputError, require
from jaxablate._files import atomic_path
from jaxablate.results._labels import COORDINATES, FORMAT, HISTORY, VARIABLES, protocols_of, select_protocol


def save_results(results: xr.DataTree, path: str | Path) -> None:
    """Write results as netCDF, atomically.

    Args:
        results: from `run_study`.
        path: the file.

    Raises:
        InputError: if the folder cannot be written.

    Example:
        >>> ja.results.save_results(results, tmp_path / "results.nc")
    """
    try:
        with atomic_path(path) as temporary:
            results.to_netcdf(temporary, engine="h5netcdf")
    except OSError as error:
        raise InputError(f"results file {path}: expected a place that can be written, got '{error}'") from None


def load_results(path: str | Path) -> xr.DataTree:
    """Read what `save_results` wrote.

    Args:
        path: the file.

    Returns:
        The results, in memory.

    Raises:
        InputError: for a file that is not there or that `save_results` did not write.

    Example:
        >>> ja.results.load_results(tmp_path / "results.nc").attrs["dataset"]
        'mnist5k'
    """
    path = Path(path)
    require(path.is_file(), f"results file {path}: expected a file, got none; `jaxablate reproduce` writes one")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            results = tree.load()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"results file {path}: expected netCDF, got an unreadable file ({error})") from None
    found = results.attrs.get("format")
    require(found == FORMAT, f"results file {path}: expected format {FORMAT!r}, got {found!r}")
    absent = [name for name in ("dataset", "dataset_origin", "versions", "config") if name not in results.attrs]
    require(not absent, f"results file {path}: expected the attributes {', '.join(absent)}; the file is damaged")
    for protocol in protocols_of(results):
        for name, node in select_protocol(results, protocol).children.items():
            _require_whole(path, f"{name} ({protocol})", node.to_dataset())
    return results


def _require_whole(path: Path, name: str, network: xr.Dataset) -> None:
    """Raise unless a network's node has all that `network_results` puts there."""
    given = {*HISTORY} & {*network.variables}
    for variable, (dims, _, _) in VARIABLES.items():
        if variable in HISTORY and not given:  # trained elsewhere
            continue
        require(
            variable in network and network[variable].dims == dims and network[variable].size > 0,
            f"results file {path}: expected {variable} over {', '.join(dims)} in {name}; the file is damaged",
        )
    require(
        {*COORDINATES, "layer", "ranking", "direction"} - ({"epoch"} if not given else set()) <= set(network.coords)
        and "zero" in network["fill"].values
        and network.sizes["fill"] >= 2
        and {"protocol", "first_step"} <= set(network.attrs),
        f"results file {path}: expected the labels that jaxablate writes in {name}; the file is damaged",
    )


def save_table(data: xr.Dataset, path: str | Path) -> None:
    """Write a dataset as a table with a row for each value of its coordinates (.csv), or as it is (.nc), atomically.

    Args:
        data: such as a node of the results, `results["3-layer"].to_dataset()[["accuracy"]]`.
        path: the file; what it ends with decides the format.

    Raises:
        InputError: for another ending, or if the folder cannot be written.

    Example:
        >>> network = results["2-layer-12-10"].to_dataset()
        >>> ja.results.save_table(network[["accuracy"]], tmp_path / "accuracy.csv")
    """
    path = Path(path)
    check_table_path(path)
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".csv":
                data.to_dataframe().reset_index().to_csv(temporary, index=False)
            else:
                data.to_netcdf(temporary, engine="h5netcdf")
    except OSError as error:
        raise InputError(f"table {path}: expected a place that can be written, got '{error}'") from None


def check_table_path(path: Path) -> None:
    """Raise unless `save_table` knows the format."""
    require(path.suffix in (".csv", ".nc"), f"table {path}: expected a name that ends in .csv or .nc")
    require(not path.is_dir(), f"table {path}: expected a file or nothing, got a folder")
