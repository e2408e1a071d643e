"""Write results as netCDF, read them with checks, and write tables.

Input: results, or a file.
Output: a file, or results that have everything that figures, claims and reports rely on.
Memory: a file may declare at most 4 GiB of arrays.
"""

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from jaxablate._checks import InputError, as_path, require, require_name, require_type
from jaxablate._files import MAX_BYTES, atomic_path, require_file, require_writable
from jaxablate.results._labels import (
    COORDINATES,
    FORMAT,
    HISTORY,
    OPTIONAL,
    VARIABLES,
    has_true_accuracy,
    protocols_of,
    require_results,
    select_protocol,
    studies_of,
)

if TYPE_CHECKING:
    import h5py

JSON = ("config", "dataset_sha256", "versions")
ATTRIBUTES = ("created", "dataset", "dataset_origin", "device", "matmul_precision", *JSON)
MAX_DEPTH = 2  # protocol, network; the conditions of a grid are one level above
LABELS = ("score", "scope", "ordering", "fill", "ranking", "direction", "site")
"""Coordinates that hold text."""
NETCDF_ATTRIBUTES = frozenset(
    ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties")
)
"""Attributes by which netCDF describes dimensions in HDF5."""
DATASET_SUFFIXES = (".csv", ".nc")
TABLE_SUFFIXES = (".csv", ".parquet")
NEURON_IDS = ("neuron_in_site", "layer", "ablated_in_site", "ablated_layer")
"""Coordinates that hold integers, in addition to the dimensions."""


def save_results(results: xr.DataTree, path: str | Path) -> None:
    """Write results as netCDF, atomically.

    Args:
        results: from `run_study`.
        path: path of the file.

    Raises:
        InputError: if the folder cannot be written.

    Example:
        >>> ja.results.save_results(results, tmp_path / "results.nc")
    """
    require_results(results)
    path = as_path("results file", path)
    with atomic_path(path) as temporary:
        # h5netcdf reads and writes by h5py alone and needs no netCDF library in C.
        # A copy has no parent, so one condition of a grid can be written alone.
        temporary.write_bytes(_netcdf(results.copy()))


def load_results(path: str | Path) -> xr.DataTree:
    """Read results that `save_results` wrote.

    Args:
        path: path of the file. The file and its arrays may take at most 4 GiB, and it must not refer to other files.

    Returns:
        The results, in memory.

    Raises:
        InputError: for a missing file, or a file that `save_results` did not write.

    Example:
        >>> ja.results.load_results(tmp_path / "results.nc").attrs["dataset"]
        'mnist5k'
    """
    path = as_path("results file", path)
    import h5py

    path = Path(path)
    require_file("results file", path, "; `jaxablate reproduce` writes one")
    try:
        with h5py.File(path, "r") as file:
            _require_declared(path, file)
            results = read_tree(file)
    except InputError:
        raise
    except Exception as error:  # the libraries raise anything for a damaged file
        raise InputError(
            f"results file {path}: expected netCDF as jaxablate writes it, got an unreadable file ({error})"
        ) from None
    for study in studies_of(results).values():
        for protocol in protocols_of(study):
            for name, node in select_protocol(study, protocol).children.items():
                _require_whole(path, f"{name} ({protocol})", node.to_dataset())
    return results


def read_tree(file: "h5py.File") -> xr.DataTree:
    """Read a netCDF file that xarray wrote: its groups in their order, each with its own dimensions.

    xarray's own reader asks HDF5 for the name of every dimension, for which HDF5 searches the whole file. The time then
    grows with the square of the number of groups: two minutes for a grid of 80 conditions. Here dimensions are found by
    their addresses.
    """
    import h5py

    datasets, groups = {}, [file]
    for group in groups:  # grows in the loop
        datasets[group.name] = _read_group(group)
        groups += [item for item in group.values() if isinstance(item, h5py.Group)]
    return xr.DataTree.from_dict(datasets)


def _read_group(group: "h5py.Group") -> xr.Dataset:
    """Return the arrays and attributes of a group."""
    import h5py
    import h5py.h5o

    def address(array: h5py.Dataset) -> int:
        return h5py.h5o.get_info(array.id).addr

    def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
        values = {name: value for name, value in item.attrs.items() if name not in NETCDF_ATTRIBUTES}
        return {name: value[0] if np.shape(value) == (1,) else value for name, value in values.items()}

    arrays = {name: array for name, array in group.items() if isinstance(array, h5py.Dataset)}
    names, variables = {address(array): name for name, array in arrays.items()}, {}
    for name, array in arrays.items():
        title: Any = array.attrs.get("NAME", b"")
        if array.is_scale and title.startswith(b"This is a netCDF dimension but not a netCDF variable"):
            continue
        dims = [name] if array.is_scale else [names[address(dim[0])] for dim in array.dims]
        is_text = h5py.check_string_dtype(array.dtype)
        values = np.asarray(array.asstr()[()], str) if is_text else array[()]
        variables[name] = dims, values, attributes(array)
    return xr.decode_cf(xr.Dataset(variables, attrs=attributes(group)))


def _require_declared(path: Path, file: "h5py.File") -> None:
    """Raise unless a file has the format of results, holds all its arrays itself, and declares at most `MAX_BYTES`.

    Raises:
        InputError: before anything large is read.
    """
    # A hostile file can declare terabytes, link to other files of this machine, or link groups in a circle. Only the
    # declarations are read here, each object once, and every kind of link but the plain one is refused.
    import h5py
    import h5py.h5o

    _require_attributes(path, file)
    conditions = _from_json(file.attrs.get("conditions", "{}"))
    require(
        isinstance(conditions, dict)
        and all(isinstance(values, dict) for values in conditions.values())
        and (not conditions or set(conditions) == set(file)),
        f"results file {path}: its conditions are not those that it declares; the file is damaged",
    )
    size, addresses = 0, set()
    # Depth 0 is the root of a study. The root of a grid is one level above and holds studies only.
    groups: list[tuple[int, h5py.Group]] = [(-1 if conditions else 0, file)]
    while groups:
        depth, group = groups.pop()
        if depth == 0:
            _require_attributes(path, group)
        for name in group:
            is_plain = isinstance(group.get(name, getlink=True), h5py.HardLink)
            # Opening a soft or external link would already follow it, so the kind of link is looked at first.
            item = group[name] if is_plain else None
            address = h5py.h5o.get_info(item.id).addr if item is not None else None
            require(address not in addresses, f"results file {path}: {name!r} is there twice; the file is damaged")
            addresses.add(address)
            if isinstance(item, h5py.Group) and depth < MAX_DEPTH:
                require_name(f"results file {path}: network", name)
                groups.append((depth + 1, item))
                continue
            require(
                isinstance(item, h5py.Dataset) and depth >= 0 and not item.is_virtual and not item.external,
                f"results file {path}: {name!r} is no array in the file itself; the file is damaged",
            )
            assert isinstance(item, h5py.Dataset)
            # A chunk is decompressed as a whole, so a large chunk of a small array counts too.
            size += item.dtype.itemsize * (math.prod(item.shape or ()) + math.prod(item.chunks or ()))
            require(
                size <= MAX_BYTES,
                f"results file {path}: it declares more than {MAX_BYTES} bytes of arrays; the file is damaged",
            )


def _require_attributes(path: Path, group: "h5py.Group") -> None:
    """Raise unless a group has the attributes that `study_results` writes."""
    file_format = group.attrs.get("format")
    require(
        isinstance(file_format, str) and file_format == FORMAT,
        f"results file {path}: expected format {FORMAT!r}, got {file_format!r}; another program or version wrote it",
    )
    bad = [name for name in ATTRIBUTES if not isinstance(group.attrs.get(name), str)]
    bad += [name for name in JSON if not isinstance(_from_json(group.attrs.get(name)), dict) and name not in bad]
    seconds = np.asarray(group.attrs.get("seconds", 0.0))  # older files lack it
    if seconds.size != 1 or seconds.dtype.kind not in "iuf":
        bad.append("seconds")
    # networks from files have these two
    if not isinstance(group.attrs.get("command", ""), str):
        bad.append("command")
    if not _are_file_facts(_from_json(group.attrs.get("files", "{}"))):
        bad.append("files")
    require(not bad, f"results file {path}: missing or invalid attributes {', '.join(bad)}; the file is damaged")


def _are_file_facts(files: Any) -> bool:
    """Return True for facts of files by network, as `jaxablate ablate` stores them."""
    kinds = {"name": str, "bytes": int, "sha256": str}
    return isinstance(files, dict) and all(
        isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in kinds.items())
        for facts in files.values()
    )


def _from_json(text: object) -> Any:
    """Return the value of a JSON text, or None if the argument is not such a text."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # a hostile text may nest without end
        return None


def _require_whole(path: Path, name: str, network: xr.Dataset) -> None:
    """Raise unless a network's node has everything that `network_results` writes."""
    # Figures, claims and reports index these arrays without further checks. Everything they rely on is checked here
    # once, so that a damaged file ends in one sentence and not in a traceback.
    history = {*HISTORY} & {*network.variables}
    num_layers = network.sizes.get("scope", 1) - 1  # one scope is the whole network
    for variable, (dims, _, _) in VARIABLES.items():
        if variable in HISTORY and not history:  # trained elsewhere
            continue
        if variable in OPTIONAL and variable not in network:
            continue
        require(
            variable in network
            and network[variable].dims == dims
            and network[variable].size > 0
            and network[variable].dtype.kind in "iuf",
            f"results file {path}: {name} lacks numbers {variable} over {', '.join(dims)}; the file is damaged",
        )
    # Zero and one more fill: `balanced_fill` takes the first fill that is not zero.
    require(
        {*COORDINATES, *LABELS, *NEURON_IDS} - ({"epoch"} if not history else set()) <= set(network.coords)
        and "zero" in network["fill"].values
        and network.sizes["fill"] >= 2
        and all(isinstance(value, str) for label in LABELS for value in network[label].values)
        and all(network[label].dtype.kind in "iu" for label in NEURON_IDS)
        and all(network[f"ablated_{label}"].dims == network["ablated"].dims for label in ("in_site", "layer"))
        and all(isinstance(network.attrs.get(name), str) for name in ("protocol", "activation"))
        and _from_json(network.attrs.get("hidden"))
        == [int((network["layer"] == i + 1).sum()) for i in range(num_layers)]
        and all(isinstance(network.attrs.get(name), int | np.integer) for name in ("first_step", "num_test_examples"))
        and isinstance(network.attrs.get("model", ""), str)
        and isinstance(network.attrs.get("num_parameters", 0), int | np.integer)
        and ("model_sha256" not in network or _are_texts(network["model_sha256"], "seed")),
        f"results file {path}: {name} lacks labels that jaxablate writes; the file is damaged",
    )
    require(
        has_true_accuracy(network),
        f"results file {path}: the accuracy of {name} is not the fraction of correct predictions; the file was "
        "changed, take the original",
    )


def _are_texts(values: xr.DataArray, dim: str) -> bool:
    """Return True for an array of texts over one dimension."""
    return values.dims == (dim,) and all(isinstance(value, str) for value in values.values)


def _netcdf(data: xr.Dataset | xr.DataTree) -> bytes:
    """Return the netCDF file of data; HDF5 may crash if it writes to a full disk itself."""
    return bytes(data.to_netcdf(engine="h5netcdf"))


def save_table(data: xr.Dataset | pd.DataFrame, path: str | Path) -> None:
    """Write a table or a dataset to a file, atomically.

    Args:
        data: a table from `tidy`, for a .csv or .parquet file. Or a dataset, for example
            `results["3-layer"].to_dataset()[["accuracy"]]`, for a .csv or .nc (netCDF) file. The .csv file of a dataset
            has one row for each combination of coordinates.
        path: path of the file; its suffix decides the format.

    Raises:
        InputError: for another suffix, a folder that cannot be written, or .parquet if pyarrow is not installed.

    Example:
        >>> network = results["2-layer-12-10"].to_dataset()
        >>> ja.results.save_table(network[["accuracy"]], tmp_path / "accuracy.csv")
        >>> ja.results.save_table(ja.results.tidy(results), tmp_path / "curves.csv")
    """
    path = as_path("table", path)
    require_type("data", data, xr.Dataset | pd.DataFrame, "a dataset of xarray or a table of pandas")
    path = Path(path)
    check_table_path(path, TABLE_SUFFIXES if isinstance(data, pd.DataFrame) else DATASET_SUFFIXES)
    with atomic_path(path) as temporary:
        if isinstance(data, xr.Dataset) and path.suffix == ".nc":
            temporary.write_bytes(_netcdf(data))
        elif path.suffix == ".parquet":
            data.to_parquet(temporary, engine="pyarrow", index=False)
        else:
            # A data frame has the coordinates as an index of several levels; `reset_index` makes columns of them.
            table = data if isinstance(data, pd.DataFrame) else data.to_dataframe().reset_index()
            table.to_csv(temporary, index=False)


def check_table_path(path: Path, suffixes: tuple[str, ...] = DATASET_SUFFIXES) -> None:
    """Raise unless the path has one of the suffixes and `save_table` can write it; call this before any work.

    Raises:
        InputError: for another suffix, a folder of that name, a folder that cannot be written, or .parquet if pyarrow
            is not installed.
    """
    path = as_path("table", path)
    choice = " or ".join(suffixes)
    require(path.suffix in suffixes, f"table {path}: unknown suffix; choose a name that ends in {choice}")
    require(
        path.suffix != ".parquet" or importlib.util.find_spec("pyarrow") is not None,
        f"table {path}: Parquet files need pyarrow; install it (pip install pyarrow), or choose a .csv file",
    )
    require(not path.is_dir(), f"table {path}: it is a folder; name a file")
    require_writable(path.parent)
