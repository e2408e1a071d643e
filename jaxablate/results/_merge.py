"""Merge the results of runs with equal settings and different seeds.

Input: the results of each run, by name.
Output: results as from one run of all seeds.
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from jaxablate._checks import InputError, require, require_type
from jaxablate._rundir import format_differences
from jaxablate.results._labels import conditions_of, grid_results, require_results

PER_RUN = ("seeds", "dataset", "data_dir")
"""Settings that may differ between runs: the checksums of the data are compared instead of names and paths."""
ORIGIN = ("command", "files")
"""Attributes of results from networks in files, which describe one run only."""


def merge_results(results: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Merge the results of runs with equal settings and different seeds into one.

    Args:
        results: the results of each run, from `run_study` or `load_results`, by the name of the run, for example its
            folder.

    Returns:
        The results of one run of all seeds, in ascending order of the seeds. The attribute `merged_from` lists
        the seeds, versions, device, duration, date, command and files of each run, as JSON. Grids are merged condition
        by condition.

    Raises:
        InputError: for fewer than two runs, settings, data or networks that differ, or a seed that two runs share; the
            message names the runs and the difference.

    Example:
        >>> settings = {"dataset": "mnist5k", "networks": ((8,),), "epochs": 1, "num_random_orders": 2, "steps": 4}
        >>> runs = {f"run{seed}": ja.run_study(ja.StudyConfig(**settings, seeds=(seed,))) for seed in (0, 1)}
        >>> ja.results.merge_results(runs)["1-layer-8"]["seed"].values.tolist()
        [0, 1]
    """
    require_type("runs", results, Mapping, "results by name")
    for tree in results.values():
        require_results(tree, "runs", whole=True)
    require(len(results) > 1, f"runs: {len(results)} is not enough to merge; name at least two")
    names = list(results)
    results = {name: tree.copy() for name, tree in results.items()}  # a copy of a condition has no grid as parent
    # All differences are found before anything is joined. Each run is compared with the first, since equality is
    # transitive.
    first = results[names[0]]
    conditions = conditions_of(first)
    different = [name for name, tree in results.items() if conditions_of(tree) != conditions]
    require(not different, f"run {', '.join(different)}: its conditions differ; merge runs of the same conditions")
    if conditions:
        studies = {
            condition: merge_results({name: tree.children[condition] for name, tree in results.items()})
            for condition in conditions
        }
        # Each condition has passed the checks below, and all conditions of a run have the same seeds.
        merged = _merged_attrs(results, json.loads(next(iter(studies.values())).attrs["config"])["seeds"])
        grid = grid_results(studies, json.loads(merged["config"]), merged["seconds"])
        # `grid_results` takes most attributes from the first condition; these must describe whole runs.
        grid.attrs.update({name: merged[name] for name in ("created", "versions", "merged_from")})
        return grid
    settings = {name: _settings(tree) for name, tree in results.items()}
    for name in names[1:]:
        differences = format_differences(settings[names[0]], settings[name], (f"in {names[0]}", f"in {name}"))
        require(not differences, f"run {name}: its settings differ ({differences}); merge runs of the same settings")
    # Verdicts treat networks as independent samples. A seed that comes twice would count one network as two.
    run_of_seed: dict[int, str] = {}
    for name, tree in results.items():
        for seed in json.loads(tree.attrs["config"])["seeds"]:
            if seed in run_of_seed:
                raise InputError(
                    f"run {name}: it has seed {seed}, as {run_of_seed[seed]} has; merge runs of different seeds "
                    "(--first-seed)"
                )
            run_of_seed[seed] = name
    nodes = {}
    for path in [node.path for node in results[names[0]].subtree if node.data_vars]:
        datasets = [tree[path].to_dataset() for tree in results.values()]
        # all settings agree, so that only `seed` differs; join="exact" raises if another coordinate does
        merged = xr.concat(
            datasets,
            "seed",
            data_vars="minimal",
            coords="minimal",
            compat="equals",
            join="exact",
            combine_attrs="override",
        )
        nodes[path] = merged.sortby("seed")
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=_merged_attrs(results, sorted(run_of_seed))), **nodes})


def _settings(results: xr.DataTree) -> dict[str, Any]:
    """Return everything that must be equal in merged runs, by name."""
    config = {name: value for name, value in json.loads(results.attrs["config"]).items() if name not in PER_RUN}
    networks = {
        node.path: {
            **node.attrs,
            # Equal settings can still meet other networks, if users passed their own: sites, sizes and variables must
            # agree as well.
            "sizes": {dim: size for dim, size in node.sizes.items() if dim != "seed"},
            "variables": sorted(map(str, node.data_vars)),
        }
        for node in results.subtree
        if node.data_vars
    }
    return {
        **config,
        "data": json.loads(results.attrs["dataset_sha256"]),
        "matmul_precision": results.attrs["matmul_precision"],
        **networks,
    }


def _merged_attrs(results: Mapping[str, xr.DataTree], seeds: list[int]) -> dict[str, Any]:
    """Return the attributes of the merged results."""
    # Merged results look like the results of one run, so every reader of results takes them. What differs between the
    # runs is kept in `merged_from`, or joined by " | ".
    attrs = [{str(name): value for name, value in tree.attrs.items()} for tree in results.values()]
    common = {name: value for name, value in attrs[0].items() if name not in ORIGIN}
    versions = [json.loads(run["versions"]) for run in attrs]
    merged_from = [
        {
            "run": name,
            "seeds": json.loads(run["config"])["seeds"],
            "versions": run_versions,
            **{key: run[key] for key in ("created", "device", "seconds", *ORIGIN) if key in run},
        }
        for name, run, run_versions in zip(results, attrs, versions, strict=True)
    ]
    return {
        **common,
        "config": json.dumps({**json.loads(attrs[0]["config"]), "seeds": seeds}, sort_keys=True),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": sum(float(run.get("seconds", 0.0)) for run in attrs),
        "device": " | ".join(dict.fromkeys(run["device"] for run in attrs)),
        # one text for each package, with every version that took part
        "versions": json.dumps(
            {
                name: " | ".join(dict.fromkeys(str(run.get(name, "none")) for run in versions))
                for name in dict.fromkeys(name for run in versions for name in run)
            }
        ),
        "merged_from": json.dumps(merged_from),
    }
