"""Files: results are written as netCDF, and checked when they are read."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from jaxablate._checks import InputError, require, require_name
from jaxablate._files import MAX_BYTES, atomic_path, require_file, require_writable
from jaxablate.results._labels import COORDINATES, FORMAT, HISTORY, VARIABLES, protocols_of, select_protocol

if TYPE_CHECKING:
    import h5py

JSON = ("config", "dataset_sha256", "versions")
ATTRIBUTES = ("created", "dataset", "dataset_origin", "device", "matmul_precision", *JSON)
DEEPEST = 2  # a protocol's networks
LABELS = ("score", "scope", "ordering", "fill", "ranking", "direction")


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
    with atomic_path(path) as temporary:
        results.to_netcdf(temporary, engine="h5netcdf")


def load_results(path: str | Path) -> xr.DataTree:
    """Read what `save_results` wrote.

    Args:
        path: the file; it and the arrays that it declares may take 4 GiB, and it must not refer to other files.

    Returns:
        The results, in memory.

    Raises:
        InputError: for a file that is not there or that `save_results` did not write.

    Example:
        >>> ja.results.load_results(tmp_path / "results.nc").attrs["dataset"]
        'mnist5k'
    """
    import h5py

    path = Path(path)
    require_file("results file", path, "; `jaxablate reproduce` writes one")
    try:
        with h5py.File(path, "r") as file:
            _require_declared(path, file)
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            results = tree.load()
    except InputError:
        raise
    except Exception as error:  # the libraries raise anything for a damaged file
        raise InputError(
            f"results file {path}: expected netCDF as jaxablate writes it, got an unreadable file ({error})"
        ) from None
    for protocol in protocols_of(results):
        for name, node in select_protocol(results, protocol).children.items():
            _require_whole(path, f"{name} ({protocol})", node.to_dataset())
    return results


def _require_declared(path: Path, file: "h5py.File") -> None:
    """Raise unless a file calls itself results, holds all by itself, and declares arrays of at most `MAX_BYTES`.

    Raises:
        InputError: before anything large is read.
    """
    import h5py
    import h5py.h5o

    found = file.attrs.get("format")
    require(
        isinstance(found, str) and found == FORMAT,
        f"results file {path}: expected format {FORMAT!r}, got {found!r}; another program or version wrote it",
    )
    bad = [name for name in ATTRIBUTES if not _is_text(file.attrs.get(name), name in JSON)]
    seconds = np.asarray(file.attrs.get("seconds", 0.0))  # older files lack it
    if seconds.size != 1 or seconds.dtype.kind not in "iuf":
        bad.append("seconds")
    require(not bad, f"results file {path}: expected the attributes {', '.join(bad)}; the file is damaged")
    size, seen = 0, set()
    groups: list[tuple[int, h5py.Group]] = [(0, file)]
    while groups:
        depth, group = groups.pop()
        for name in group:
            own = isinstance(group.get(name, getlink=True), h5py.HardLink)
            item = group[name] if own else None
            address = h5py.h5o.get_info(item.id).addr if item is not None else None
            require(address not in seen, f"results file {path}: expected each array once, got {name!r} again")
            seen.add(address)
            if isinstance(item, h5py.Group) and depth < DEEPEST:
                require_name(f"results file {path}: network", name)
                groups.append((depth + 1, item))
                continue
            require(
                isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external,
                f"results file {path}: expected networks of arrays in the file itself, got another thing or a link: "
                f"{name!r}",
            )
            assert isinstance(item, h5py.Dataset)
            size += item.dtype.itemsize * (math.prod(item.shape or ()) + math.prod(item.chunks or ()))
            require(
                size <= MAX_BYTES,
                f"results file {path}: expected arrays of at most {MAX_BYTES} bytes, it declares more",
            )


def _is_text(value: object, is_json: bool) -> bool:
    """Whether an attribute is text, that of a JSON object if so asked."""
    if not isinstance(value, str):
        return False
    try:
        return not is_json or isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def _require_whole(path: Path, name: str, network: xr.Dataset) -> None:
    """Raise unless a network's node has all that `network_results` puts there."""
    given = {*HISTORY} & {*network.variables}
    layers = network.sizes.get("scope", 1) - 1  # one scope is the whole network
    for variable, (dims, _, _) in VARIABLES.items():
        if variable in HISTORY and not given:  # trained elsewhere
            continue
        require(
            variable in network
            and network[variable].dims == dims
            and network[variable].size > 0
            and network[variable].dtype.kind in "iuf",
            f"results file {path}: expected numbers {variable} over {', '.join(dims)} in {name}; the file is damaged",
        )
    require(
        {*COORDINATES, "layer", "ranking", "direction"} - ({"epoch"} if not given else set()) <= set(network.coords)
        and "zero" in network["fill"].values
        and network.sizes["fill"] >= 2
        and all(isinstance(value, str) for label in LABELS for value in network[label].values)
        and all(isinstance(network.attrs.get(name), str) for name in ("protocol", "activation"))
        and _widths(network.attrs.get("hidden")) == [int((network["layer"] == i + 1).sum()) for i in range(layers)]
        and all(isinstance(network.attrs.get(name), int | np.integer) for name in ("first_step", "num_test_examples")),
        f"results file {path}: expected the labels that jaxablate writes in {name}; the file is damaged",
    )


def _widths(hidden: object) -> list | None:
    """The neurons of each layer, if an attribute tells them."""
    try:
        found = json.loads(hidden) if isinstance(hidden, str) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


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
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            data.to_dataframe().reset_index().to_csv(temporary, index=False)
        else:
            data.to_netcdf(temporary, engine="h5netcdf")


def check_table_path(path: Path) -> None:
    """Raise before any work unless `save_table` can write there."""
    require(path.suffix in (".csv", ".nc"), f"table {path}: expected a name that ends in .csv or .nc")
    require(not path.is_dir(), f"table {path}: expected a file or nothing, got a folder")
    require_writable(path.parent)
