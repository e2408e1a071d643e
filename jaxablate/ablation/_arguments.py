"""Check the arguments of ablation functions, and turn the engines' sums into results.

Input: a user's model, images, labels and fill; later the engines' sums over examples.
Output: an `AblationProblem`; later the array of each outcome.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import (
    InputError,
    as_array,
    describe_value,
    host_numbers,
    require,
    require_finite,
    require_in_order,
    require_known,
    require_same_index,
    require_shape,
)
from jaxablate._precision import matmul_precision
from jaxablate._typing import Fill, Images
from jaxablate.ablation._execute import AblationProblem, Tables
from jaxablate.ablation._outcomes import NOT_FINITE, Outcomes, average, check_outcomes, require_computable
from jaxablate.devices import first_example, mesh_for, pad_and_shard, range_of, require_examples, to_device
from jaxablate.fills import AffineFill, AnyFill, LinearFill, PerExampleFill
from jaxablate.linear_compensation import check_linear_fill
from jaxablate.models._model import AnyModel, ModelSpec, State, no_network, require_held, trace_model


def make_problem(
    model: AnyModel | Sequence[AnyModel],
    images: Images,
    labels: Any,
    fill: AnyFill | None,
    outcomes: Outcomes,
    memory_limit: int | None,
    mesh: Mesh | None,
) -> tuple[AblationProblem, tuple[int, ...]]:
    """Check all arguments; return the problem and the leading axes of its arrays, (network,) or () for one model.

    Raises:
        InputError: as in `evaluate_masks`.
    """
    pairs = check_outcomes(outcomes)
    require_same_index("labels", images, labels)
    images, labels = as_array("images", images), as_array("labels", labels)
    mesh = mesh_for(mesh, images, labels)
    # On a mesh, one example is enough to trace the models; the images themselves stay where they are.
    network, states, problem_images, leading = _trace_networks(model, images if mesh is None else first_example(images))
    targets = None
    if any(callable(function) for _, function in pairs):
        targets = labels if isinstance(labels, jax.Array) else host_numbers("labels", labels)
    require_computable(pairs, network, targets)
    if all(callable(function) for _, function in pairs):  # the labels mean something to the functions alone
        num_examples = len(images)
        assert targets is not None
        require_shape("labels", targets, (num_examples, *targets.shape[1:]), "example, ...")
        int_labels = jnp.zeros(num_examples, jnp.int32)
    else:
        num_examples = require_examples(labels, len(images), network.num_classes)
        int_labels = jnp.asarray(labels).astype(jnp.int32)  # -1 marks an example that does not count

    def check_values(what: str, values: Fill) -> np.ndarray:
        require(
            not isinstance(values, str | Mapping),
            f"{what}: expected numbers [neuron], got {describe_value(values)}; ja.compute_fill makes them",
        )
        require_in_order(what, values)
        values = host_numbers(what, values).astype(np.float32)
        require_leading(what, values, leading, (network.num_neurons,), "neuron")
        require_finite(what, values)
        return values.reshape(len(states), network.num_neurons)

    rows = scale = linear = None
    if isinstance(fill, PerExampleFill):
        by_label = int_labels
        if fill.key is None and targets is not None:
            by_label = np.asarray(targets)
            require(
                by_label.ndim == 1 and np.issubdtype(by_label.dtype, np.integer),
                f"fill: a fill for each class needs integer labels [example], got {by_label.dtype} of shape "
                f"{by_label.shape}; pass such labels, or another kind of fill",
            )
        rows = fill.rows(by_label)
        values = _check_tables(network, fill, rows, leading)
    elif isinstance(fill, LinearFill):
        linear = check_linear_fill(fill, dict(zip(network.sites, network.sizes, strict=True)), leading)
        values = linear.means.astype(np.float32)
    elif isinstance(fill, AffineFill):
        values, scale = check_values("fill offset", fill.offset), check_values("fill scale", fill.scale)
    else:
        values = check_values("fill", np.zeros((*leading, network.num_neurons)) if fill is None else fill)
    for numbers in (values, scale):
        if numbers is not None:
            tables = numbers if isinstance(numbers, tuple) else np.split(numbers, network.offsets[1:-1], axis=-1)
            require_held(network, tables, linear is not None)
    if mesh is not None:
        images = _convert(images, problem_images.dtype)
        problem_images, int_labels, targets, rows = pad_and_shard(mesh, images, int_labels, targets, rows)
    elif targets is not None:
        targets = to_device(targets)
    examples = problem_images, int_labels, targets, rows, num_examples, mesh
    precision = matmul_precision()
    return AblationProblem(network, states, values, scale, linear, *examples, pairs, memory_limit, precision), leading


def _convert(images: Images, dtype: np.dtype) -> Images:
    """Convert images to a dtype without moving them between host and devices."""
    return images.astype(dtype) if isinstance(images, jax.Array) else np.asarray(images, dtype)


def make_site_problem(model: AnyModel, site: str | None, *arguments) -> tuple[AblationProblem, np.ndarray]:
    """Check the arguments of `make_problem` for one network; return the problem and the ids of the site's neurons.

    Raises:
        InputError: for several networks, an unknown site, or as in `evaluate_masks`.
    """
    require(isinstance(model, AnyModel), f"model: expected one network, got {no_network(model)}")
    problem, _ = make_problem(model, *arguments)
    return problem, np.arange(*site_range(problem.network, site))


def _check_tables(network: ModelSpec, fill: PerExampleFill, rows: jax.Array, leading: tuple[int, ...]) -> Tables:
    """Check the tables of a fill and return them as [network, row, ..., neuron], with one network.

    Raises:
        InputError: for several networks, or tables that do not fit the network's sites or the labels.
    """
    require(not leading, "fill: a PerExampleFill goes with one network; evaluate the networks one at a time")
    require(
        len(fill.tables) == len(network.sites),
        f"fill: expected {len(network.sites)} tables, one for each site, got {len(fill.tables)}",
    )
    # A row beyond the table would be clamped by JAX's indexing and give the last row without an error.
    num_rows = int(range_of(rows)[1]) + 1  # the examples use the rows 0 to num_rows - 1
    for site, output, table in zip(network.sites, network.outputs, fill.tables, strict=True):
        require(
            table.shape[1:] in (output.shape, output.shape[-1:]) and len(table) >= num_rows,
            f"fill: expected a table [row, {output.shape[-1]}] or [row, {', '.join(map(str, output.shape))}] of at "
            f"least {num_rows} rows for site {site!r}, got shape {table.shape}",
        )
        require_finite(f"fill of site {site!r}", np.asarray(table))
    return tuple(jnp.asarray(table, jnp.float32)[None] for table in fill.tables)


def _trace_networks(
    model: AnyModel | Sequence[AnyModel], images: Images
) -> tuple[ModelSpec, list[State], jax.Array, tuple[int, ...]]:
    """Trace one model or several of one architecture.

    Returns:
        The specification that all models share, the state of each model, the images as an array, and the leading axes
        of the results: (network,), or () for one model.
    """
    if isinstance(model, AnyModel):
        network, state, images = trace_model(model, images)
        return network, [state], images, ()
    require(isinstance(model, Iterable), f"model: expected a network or several, got {no_network(model)}")
    models = list(model)
    require(len(models) > 0, "model: expected at least one network, got none")
    for index, module in enumerate(models):
        require(isinstance(module, AnyModel), f"model: expected networks, at place {index} got {no_network(module)}")
    traced = [trace_model(module, images) for module in models]
    network = traced[0][0]
    for index, (spec, _, _) in enumerate(traced):
        require(
            spec == network,
            f"model: expected networks of one architecture, got sites {_site_sizes(network)} for network 0 and "
            f"{_site_sizes(spec)} for network {index}, or different inputs, classes or operations",
        )
    return network, [state for _, state, _ in traced], traced[0][2], (len(models),)


def _site_sizes(network: ModelSpec) -> str:
    return ", ".join(f"{name} ({size})" for name, size in zip(network.sites, network.sizes, strict=True))


def site_range(network: ModelSpec, site: str | None) -> tuple[int, int]:
    """Return the network-wide id of a site's first neuron, and the id after its last neuron.

    The site None stands for the whole network.

    Raises:
        InputError: for an unknown site.
    """
    if site is None:
        return 0, network.num_neurons
    require_known("site", site, network.sites)
    first, last = network.offsets[network.sites.index(site) :][:2]
    return int(first), int(last)


def require_leading(
    what: str, array: np.ndarray, leading: tuple[int, ...], shape: tuple[int | None, ...], meaning: str
) -> None:
    """Raise unless an array has the shape (*leading, *shape); `meaning` names the axes of `shape`."""
    require_shape(what, array, (*leading, *shape), "network, " * len(leading) + meaning)


def format_result(
    sums: dict[str, np.ndarray], problem: AblationProblem, outcomes: Outcomes, axes: tuple[str, ...]
) -> jax.Array | dict[str, jax.Array]:
    """Return the outcomes by name, or one array if `outcomes` is one name.

    Args:
        sums: sums over the examples, by outcome and for `NOT_FINITE`.
        problem: the problem that was evaluated.
        outcomes: as the user gave them.
        axes: names of the axes of the sums, for the error message.

    Raises:
        InputError: if an output is not finite.
    """
    # argmax of NaN predicts some class, so counts alone would hide that the network has failed.
    finite = sums[NOT_FINITE] == 0
    if not finite.all():
        first_bad = zip(axes, np.unravel_index(finite.argmin(), finite.shape), strict=True)
        raise InputError(
            f"outputs: NaN or infinite numbers under {(~finite).sum()} of {finite.size} {axes[-1]}s, the first at "
            f"{', '.join(f'{axis} {index}' for axis, index in first_bad)}; check the weights and the images"
        )
    # Padding is in no sum, so means divide by the number of real examples.
    averages = average(sums, problem.num_examples)
    results = {name: to_device(values) for name, values in averages.items() if name != NOT_FINITE}
    return results[outcomes] if isinstance(outcomes, str) else results
