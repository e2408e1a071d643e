"""The engine for predictions of multilayer perceptrons: each step evaluates only examples that may change their class.

Input: orders of neuron ids [network, order, step], and an `AblationProblem`.
Output: sums of the outcomes [network, order, step + 1, ...].
Memory: for one chunk of examples, a few values for each unit of the largest layer.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard
from jaxablate.ablation._incremental import LARGE_OUTPUT, ablated_sites, reader_weights, row_size
from jaxablate.ablation._outcomes import Batch, measure, zero_sums
from jaxablate.models._analysis import describe_values
from jaxablate.models._graph import called_jaxpr, evaluate, needed, replaced, shape_of, variables
from jaxablate.models._model import (
    TRACED,
    ModelSpec,
    State,
    bind_inputs,
    peak_activation_bytes,
    replacements,
    stack_states,
)

# Let a chain of layers follow the first ablated site: z = h W_0 + ..., p = f(z), then further products W_1, W_2, ...
# up to the logits l. A step changes a row of h, so z changes by a row of W_0, and p costs little. The products after p
# cost most, and their results serve a single purpose: the class with the largest logit. For any two values p and p',
# and any two classes a and b,
#
#     |(l_a - l_b)(p) - (l_a - l_b)(p')| <= c_ab |p - p'|,
#     c_ab = s |W_1| ... |W_m-2| (|W_m-1 w| + |W_m-1| |w|) / 2,  w = W_m[:, a] - W_m[:, b].
#
# |W| is the spectral norm, and s the product of the largest slopes of the activation functions in between; no slope is
# negative. The last of them multiplies the k-th unit's change by some s_k (1 + e_k) / 2 with |e_k| <= 1, hence the
# two terms: for 1 and for e. So an example that was last evaluated at p', its reference, with the logits l, keeps its
# class a as long as |p - p'| < min_b (l_a - l_b) / c_ab, its radius. Each step computes p for all examples, and the
# products only for examples beyond their radius; p becomes their new reference.
# If the logits are f(z) W_1, p is z itself: the activation function is then evaluated for few examples too.
# Masks after p: sites on the way may be ablated too. Ablating units of p's own site changes p itself. Ablating a unit
# of the last site changes the logits at the reference by its row of W_m, since the last site is read by the logits
# alone. Both leave the bound valid: a mask is a slope of 0.
# Exactness: the bound holds for exact numbers. SLACK covers the rounding of norms and distances, ROUNDING that of the
# logits. As in the other engines, counts can differ from a forward pass only for near ties.

BLOCK = 24  # number of examples that are evaluated together
DENSE = 0.5  # above this fraction, all examples of a chunk are evaluated, which takes no longer
CHUNK = 1000  # examples whose state fits a CPU core's cache
SLACK = 0.99
ROUNDING = 1e-5
PREDICTIONS = {"correct", "class_correct", "confusion"}  # outcomes that depend on the predicted class alone
SLOPES = {"logistic": 0.25, "tanh": 1.0, "max": 1.0, "name": 1.0, "add": 1.0}
"""Largest slope of operations on one value, or on a value and a constant; their least slope is 0 or more."""
PLAIN_PRODUCT = (((1,), (0,)), ((), ()))  # [example, unit] times [unit, result]


class _Chain(NamedTuple):
    """The layers after a site. Values are given by their positions in `Graph.values`.

    Attributes:
        result: z, the result of the product that reads the site.
        probe: p, the operand of the second product; None if that product gives the logits. Then p is z.
        last: operand of the last product.
        weights: weights of the products, W_0 first.
        slope: product of the largest slopes of the operations between the product that reads p (or z) and the last.
        reads_last: True if units of the last site are ablated too.
    """

    result: int
    probe: int | None
    last: int
    weights: tuple[int, ...]
    slope: float
    reads_last: bool


def can_certify(problem: AblationProblem, sites: tuple[int, ...]) -> bool:
    """Return True if this engine applies: predictions of a chain of layers, ablated where the bound holds."""
    return (
        problem.precision in ("highest", "float32")  # the factors of a product rounded further would exceed ROUNDING
        and problem.linear is None
        and problem.scale is None
        and isinstance(problem.fill, np.ndarray)
        and all(function in PREDICTIONS for _, function in problem.outcomes)
        and problem.network.num_classes > 1  # the only class never changes, so an overflow would not be seen
        and _find_chain(problem.network, sites) is not None
        # `_Curve.active` counts units, not the terms of each output, and 0 times infinity is NaN
        and all(weight.all() and np.isfinite(weight).all() for weight in reader_weights(problem, sites))
    )


@functools.lru_cache(maxsize=256)
def _find_chain(network: ModelSpec, sites: tuple[int, ...]) -> _Chain | None:
    """Return the chain after the first of these sites, or None if the bound does not hold for orders over the sites."""
    graph = network.graph(TRACED[0])
    flows = describe_values(graph)
    first, *deeper = (graph.values[network.site_specs[site].ordinal] for site in sites)
    # links[i] are the operations after i products; link_of[value] is the number of products before the value.
    value, products, links, link_of = first, [], [[]], {first: 0}
    while value is not graph.outputs[0]:
        users = [eqn for eqn in graph.equations if value in variables(eqn.invars)]
        if len(users) != 1 or sum(flows[var] is not None for var in variables(users[0].invars)) != 1:
            return None
        (eqn,) = users
        if eqn.primitive.name == "dot_general":
            if (
                eqn.invars[0] is not value
                or eqn.params["dimension_numbers"] != PLAIN_PRODUCT
                or not _is_precise(eqn.params["precision"])
                or len(shape_of(value)) != 2
            ):
                return None
            products.append(eqn)
            links.append([])
        elif _slope(eqn) is None:
            return None
        else:
            links[-1].append(eqn)
        value = eqn.outvars[0]
        link_of[value] = len(products)
    dtypes = {atom.aval.dtype for eqn in products for atom in (*eqn.invars, *eqn.outvars)}
    if len(products) < 2 or dtypes != {np.dtype(np.float32)}:
        return None
    # Further sites are that of p, or the last one next to it. Steps at others would change neither p nor the logits.
    allowed = (1, 2) if len(products) == 3 else (1,)
    if any(link_of.get(var) not in allowed for var in deeper):
        return None
    # An ablated unit replaces a column of the operand, so only names lie between. Only a bias follows the last product.
    last_link = len(products) - 1
    last = [var for var in deeper if link_of[var] == last_link]
    made = [eqn.outvars[0] for eqn in links[last_link]]
    after_last = links[last_link][made.index(last[0]) + 1 :] if last and last[0] in made else []
    if (
        not _only(links[0], {"name"})
        or not _only(links[-1], {"name", "add"})
        or (last and (len(last) > 1 or last[0] not in made or not _only(after_last, {"name"})))
    ):
        return None
    place = {var: i for i, var in enumerate(graph.values)}
    is_short = len(products) == 2
    return _Chain(
        place[products[0].outvars[0]],
        None if is_short else place[products[1].invars[0]],
        place[products[-1].invars[0]],
        tuple(place[eqn.invars[1]] for eqn in products),
        math.prod(_slope(eqn) or 0.0 for link in links[1 if is_short else 2 :] for eqn in link),
        bool(last),
    )


def _is_precise(precision: object) -> bool:
    """Return True if the precision of a product itself allows no rounding of its factors."""
    highest = jax.lax.Precision.HIGHEST
    return precision in (highest, (highest, highest))


def _only(equations: Iterable[JaxprEqn], names: set[str]) -> bool:
    """Return True if all equations are operations of these names."""
    return all(eqn.primitive.name in names for eqn in equations)


def _slope(eqn: JaxprEqn) -> float | None:
    """Return the largest slope of an operation on one value and constants; None if it is not known."""
    inner = called_jaxpr(eqn)
    if inner is None:
        return SLOPES.get(eqn.primitive.name)
    jaxpr, _ = inner
    values = [*jaxpr.invars, *(var for inner_eqn in jaxpr.eqns for var in inner_eqn.outvars)]
    operands = [variables(inner_eqn.invars) for inner_eqn in jaxpr.eqns]
    # A chain of its own: each operation takes the result of the one before.
    if operands != [[value] for value in values[:-1]] or jaxpr.outvars != values[-1:]:
        return None
    slopes = [_slope(inner_eqn) for inner_eqn in jaxpr.eqns]
    return None if None in slopes else math.prod(slope or 0.0 for slope in slopes)


def measure_orders(problem: AblationProblem, orders: np.ndarray, num_distinct: np.ndarray) -> dict[str, np.ndarray]:
    """Follow orders and sum the problem's outcomes at every step.

    Args:
        problem: the networks; `can_certify` is True.
        orders: network-wide ids [network, order, step].
        num_distinct: number of orders to follow [network]; the remaining ones are padding.

    Returns:
        Sums [network, order, step + 1, ...].
    """
    network = problem.network
    sites = ablated_sites(network, orders)
    runner = ChunkRunner(problem, 6 * peak_activation_bytes(network, sites), CHUNK)
    static = network, sites, problem.outcomes, problem.precision
    return runner.run(_engine, static, (orders, num_distinct, problem.states, problem.fill))


class _Curve(NamedTuple):
    """The state of a curve for one chunk of examples.

    Attributes:
        keep: bool [neuron], True = kept.
        z: result of the first product [example, unit].
        active: number of outputs of the first site that are not 0 [example].
        distance: squared distance of p from the reference [example].
        reference: p at which the products were evaluated last [example, unit].
        last: operand of the last product at the reference [example, unit]; None unless units of its site are ablated.
        logits: logits at the reference under the present masks [example, class].
        radius: squared distance within which the class of the largest logit stays [example].
    """

    keep: jax.Array
    z: jax.Array
    active: jax.Array
    distance: jax.Array
    reference: jax.Array
    last: jax.Array | None
    logits: jax.Array
    radius: jax.Array


@Engine
def _engine(static, replicated, shard: Shard):
    """Follow orders on one shard of examples; return sums [network, order, step, ...].

    Args:
        static: the network, the ablated sites, outcomes, precision.
        replicated: orders [network, order, step], the number of orders to follow [network], the state of each network,
            fill [network, neuron].
        shard: the examples.
    """
    network, sites, outcomes, precision = static
    orders, num_distinct, states, fill = replicated
    num_steps = orders.shape[2] + 1
    chain = _find_chain(network, sites)
    assert chain is not None

    def measure_network(arguments):
        state, orders, number, fill = arguments
        block = _Layers(network, chain, sites, BLOCK)
        constants = block.constants(state)
        weights = [constants[block.graph.values[place]] for place in chain.weights]
        bounds = _bounds(chain, weights)

        def add_chunk(totals, images, labels, targets, _):
            layers = _Layers(network, chain, sites, len(images))
            graph, env = bind_inputs(network, state, images)
            evaluate(layers.before, env)
            follow = _Follow(layers, block, env, constants, weights, bounds, fill, sites)
            start = follow.start(env[graph.values[chain.result]])
            examples = Batch(labels, targets, None)

            def add_curve(i, totals):
                def add_step(step, state):
                    curve, sums = state
                    curve = follow.ablate(curve, orders[i, step - 1])
                    return curve, put(sums, step, curve)

                def put(sums, step, curve):
                    new = measure(outcomes, network.kind, curve.logits, examples)
                    return jax.tree.map(lambda sums, new: sums.at[step].set(new), sums, new)

                zeros = {name: jnp.zeros(values.shape[1:], values.dtype) for name, values in totals.items()}
                _, sums = jax.lax.fori_loop(1, num_steps, add_step, (start, put(zeros, 0, start)))
                return jax.tree.map(lambda total, sums: total.at[i].add(sums), totals, sums)

            return jax.lax.fori_loop(0, number, add_curve, totals)

        return shard.add_chunks(add_chunk, zero_sums(outcomes, network, shard.targets, (orders.shape[0], num_steps)))

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), orders, num_distinct, fill))


class _Layers:
    """The chain of layers for one number of examples.

    Attributes:
        graph: the graph for this number of examples.
        before: operations that do not depend on z.
        after: operations that depend on z, up to the logits.
    """

    def __init__(self, network: ModelSpec, chain: _Chain, sites: tuple[int, ...], num_examples: int):
        self.network, self.chain, self.sites = network, chain, sites
        self.graph = network.graph(num_examples)
        self.result = self.graph.values[chain.result]
        self.before, self.after = self.graph.split([self.result])

    def constants(self, state: State) -> dict:
        """Return the values, by variable, that the layers take in addition to z, and all weights."""
        made = {self.result, *(var for eqn in self.after for var in eqn.outvars)}
        used = {var for eqn in self.after for var in variables(eqn.invars)} - made
        used |= {self.graph.values[place] for place in self.chain.weights}
        inputs = dict(zip(self.graph.inputs, state, strict=False))  # without the images, on which no constant depends
        return evaluate(needed(self.before, used), inputs)

    def forward(self, env: Mapping, z: jax.Array, keep: jax.Array, fill: jax.Array) -> tuple[jax.Array, ...]:
        """Return p, the operand of the last product, and the logits."""
        last, logits = self.graph.values[self.chain.last], self.graph.outputs[0]
        env = self._evaluate(env, z, keep, fill, [last, logits])
        return z if self.chain.probe is None else env[self.graph.values[self.chain.probe]], env[last], env[logits]

    def probe(self, env: Mapping, z: jax.Array, keep: jax.Array, fill: jax.Array) -> jax.Array:
        """Return p alone."""
        if self.chain.probe is None:
            return z
        p = self.graph.values[self.chain.probe]
        return self._evaluate(env, z, keep, fill, [p])[p]

    def _evaluate(self, env: Mapping, z: jax.Array, keep: jax.Array, fill: jax.Array, results: list) -> dict:
        """Return the results and all values on which they depend, by variable."""
        offsets = self.network.offsets
        masks = {site: slice(*offsets[site : site + 2]) for site in self.sites[1:]}
        replace = replacements(
            self.network, self.graph, {site: (keep[part], fill[part], None) for site, part in masks.items()}
        )
        env = replaced({**env, self.result: z}, replace)
        return evaluate(needed(self.after, results), env, replace)


class _Follow(NamedTuple):
    """Everything that all curves of one chunk of examples share.

    Attributes:
        layers, block: the layers for the chunk, and for a block of examples.
        env, constants: values that do not depend on z, for both.
        weights: W_0, W_1, ... W_m.
        bounds: c [class, class].
        fill: [neuron].
        sites: the ablated sites.
    """

    layers: _Layers
    block: _Layers
    env: dict
    constants: dict
    weights: list[jax.Array]
    bounds: jax.Array
    fill: jax.Array
    sites: tuple[int, ...]

    def start(self, z: jax.Array) -> _Curve:
        """Return the state with all neurons kept."""
        keep = jnp.ones(self.layers.network.num_neurons, bool)
        p, last, logits = self.layers.forward(self.env, z, keep, self.fill)
        last = last if self.layers.chain.reads_last else None
        outputs = self._outputs()
        active = (outputs != 0).sum(1, dtype=jnp.int32)
        return _Curve(keep, z, active, jnp.zeros(len(z)), p, last, logits, _radius(logits, self.bounds))

    def _outputs(self) -> jax.Array:
        """Return the intact outputs [example, unit] of the first site."""
        network, graph = self.layers.network, self.layers.graph
        return self.env[graph.values[network.site_specs[self.sites[0]].ordinal]]

    # Conditionals copy large arrays that they pass through, and loops do not. So a conditional returns one number for
    # each example at most, and what happens rarely is the body of a loop that runs once or not at all.
    def ablate(self, curve: _Curve, neuron: jax.Array) -> _Curve:
        """Ablate one more neuron, and evaluate the examples whose class may have changed."""
        network, (site, *_) = self.layers.network, self.sites
        first, last = network.offsets[site : site + 2]
        outputs, fill = self._outputs(), self.fill[first:last]
        keep = curve.keep.at[neuron].set(False)
        # Neurons of later sites do not change z; unit 0 is a placeholder for them.
        unit = jnp.where(neuron < last, neuron - first, 0)
        intact = jax.lax.dynamic_slice_in_dim(outputs, unit, 1, 1)
        change = jnp.where(neuron < last, fill[unit] - intact, 0)
        more = jnp.where(neuron < last, (fill[unit] != 0).astype(jnp.int32) - (intact[:, 0] != 0), 0)
        active = curve.active + more
        z = curve.z + change * self.weights[0][unit]
        # A large change would lose digits of z.
        z, _ = jax.lax.while_loop(
            lambda state: state[1] >= LARGE_OUTPUT,
            lambda _: (self._result(jnp.where(keep[first:last], outputs, fill)), jnp.float32(0)),
            (z, jnp.abs(change).max() * row_size(self.weights[0][unit])),
        )
        # An example that loses its last output other than 0 has z = 0 to the last digit, and keeps it: without biases
        # its logits are tied.
        z, _ = jax.lax.while_loop(
            lambda state: state[1],
            lambda state: (jnp.where((active == 0)[:, None], 0, state[0]), jnp.bool_(False)),
            (z, ((active == 0) & (curve.active != 0)).any()),
        )
        curve = curve._replace(keep=keep, z=z, active=active)
        if not self.layers.chain.reads_last:
            return self._evaluate_changed(curve._replace(distance=self._distance(curve)))
        is_last = neuron >= network.offsets[self.sites[-1]]
        distance = jax.lax.cond(is_last, lambda: curve.distance, lambda: self._distance(curve))
        logits, radius = jax.lax.cond(
            is_last, lambda: self._without_last(curve, neuron), lambda: (curve.logits, curve.radius)
        )
        return self._evaluate_changed(curve._replace(distance=distance, logits=logits, radius=radius))

    def _result(self, outputs: jax.Array) -> jax.Array:
        """Return z for outputs [example, unit] of the first site."""
        product = self.layers.graph.equations[self.layers.graph.producers[self.layers.result]]
        return evaluate([product], {**self.env, product.invars[0]: outputs})[self.layers.result]

    def _distance(self, curve: _Curve) -> jax.Array:
        """Return the squared distance [example] of p from the reference."""
        p = self.layers.probe(self.env, curve.z, curve.keep, self.fill)
        # A product with ones adds up rows faster than XLA's sum over the last axis; the barrier keeps it a product.
        squares = jax.lax.optimization_barrier((p - curve.reference) ** 2)
        return squares @ jnp.ones(p.shape[1])

    def _without_last(self, curve: _Curve, neuron: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits and radius without a neuron of the last site: its row of the last weight goes."""
        assert curve.last is not None
        unit = neuron - self.layers.network.offsets[self.sites[-1]]
        change = self.fill[neuron] - jax.lax.dynamic_slice_in_dim(curve.last, unit, 1, 1)
        logits = curve.logits + change * self.weights[-1][unit]
        # A large change would lose digits of the logits: the radius 0 has them computed again.
        is_small = jnp.abs(change[:, 0]) * row_size(self.weights[-1][unit]) < LARGE_OUTPUT
        return logits, jnp.where(is_small, _radius(logits, self.bounds), 0)

    def _evaluate_changed(self, curve: _Curve) -> _Curve:
        """Evaluate the examples beyond their radius; p becomes their reference."""
        is_beyond = ~(curve.distance < curve.radius)  # True for NaN
        number, num_examples = is_beyond.sum(), len(curve.z)
        # The places of these examples. The rest is padding, whose results are dropped.
        places = jnp.nonzero(is_beyond, size=num_examples + BLOCK, fill_value=num_examples)[0]

        def evaluated(layers, env, z, curve):
            p, last, logits = layers.forward(env, z, curve.keep, self.fill)
            new = {"distance": jnp.zeros(len(z)), "reference": p, "logits": logits}
            new["radius"] = _radius(logits, self.bounds)
            return new if curve.last is None else {**new, "last": last}

        def evaluate_all(state):
            _, curve = state
            return 0, curve._replace(**evaluated(self.layers, self.env, curve.z, curve))

        def evaluate_block(state):
            start, curve = state
            rows = jax.lax.dynamic_slice_in_dim(places, start, BLOCK)
            new = evaluated(self.block, self.constants, curve.z.at[rows].get(mode="clip"), curve)
            put = {name: getattr(curve, name).at[rows].set(values, mode="drop") for name, values in new.items()}
            return start + BLOCK, curve._replace(**put)

        number, curve = jax.lax.while_loop(lambda state: state[0] > DENSE * num_examples, evaluate_all, (number, curve))
        return jax.lax.while_loop(lambda state: state[0] < number, evaluate_block, (0, curve))[1]


def _radius(logits: jax.Array, bounds: jax.Array) -> jax.Array:
    """Return the squared distance [example] within which the class of the largest logit stays, for c [class, class]."""
    largest = logits.max(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    margin = largest - logits - ROUNDING * (1 + jnp.abs(largest))
    # No margin, or a NaN, gives the radius 0: the example is evaluated at every step.
    radius = jnp.where(margin > 0, margin / bounds[predicted], 0)
    is_rival = jnp.arange(logits.shape[1]) != predicted[:, None]
    return (SLACK * jnp.min(radius, axis=1, where=is_rival, initial=jnp.inf)) ** 2


def _bounds(chain: _Chain, weights: list[jax.Array]) -> jax.Array:
    """Return c [class, class], the bound of the change of a difference of two logits for a change of p of length 1."""
    if chain.probe is None:
        return chain.slope * _distances(weights[-1])
    *hidden, before, last = weights[1:]
    norms = chain.slope * math.prod(map(_spectral_bound, hidden), start=jnp.float32(1))
    return norms / 2 * (_distances(before @ last) + _spectral_bound(before) * _distances(last))


def _distances(columns: jax.Array) -> jax.Array:
    """Return upper bounds of the distances of all pairs of columns [class, class]."""
    gram = columns.T @ columns
    squares = jnp.diag(gram)[:, None] + jnp.diag(gram)
    # the second term exceeds the rounding of the difference
    return jnp.sqrt(jnp.maximum(squares - 2 * gram, 0) + 1e-5 * squares)


def _spectral_bound(weight: jax.Array) -> jax.Array:
    """Return an upper bound of the spectral norm, at most 1.4 times as large for 200 neurons: the Schatten 16-norm."""
    gram = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
    # trace(gram^8)^(1/8), with every power divided by its trace, so that nothing overflows
    log_bound = 0.0
    for power in (1, 2, 4, 8):
        trace = jnp.trace(gram)
        log_bound += jnp.log(trace) / power
        gram = gram / trace
        gram = gram @ gram
    return jnp.exp(log_bound / 2)
