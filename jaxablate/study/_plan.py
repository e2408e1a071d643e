"""What a study will take, told before it runs: work counted on paper, times from rates that this machine measures."""

import itertools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxablate._checks import require, require_batch_size, require_count
from jaxablate._mesh import layout_for
from jaxablate._parallel import num_cores
from jaxablate.ablation import MEMORY_LIMIT
from jaxablate.datasets import Dataset
from jaxablate.protocols import get_protocol
from jaxablate.results import NETWORK_SCOPE
from jaxablate.scores import is_own
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._rates import Rates, measure_rates
from jaxablate.training import default_epochs

ADAM = 7 * 4  # bytes of a weight that a step reads and writes: weight, gradient, two moments
STATE = 5 * 4  # bytes of a weight in training: those, and what it was before the epoch
COSTLY = ("taylor", "damage_alone", "shapley")  # scores that take more than a pass over the validation split
CONTAINER = Path("/sys/fs/cgroup/memory.max")
PYTHON = 500 * 2**20  # bytes of Python and JAX, where they are in the device's memory
PROGRAMS = 200 * 2**20  # bytes of what is compiled for a kind of network under a protocol


class Sizes(NamedTuple):
    """Of data: examples of each split, numbers of an example, and classes."""

    train: int
    validation: int
    test: int
    features: int
    classes: int

    @classmethod
    def of(cls, data: Dataset) -> "Sizes":
        """Those of a dataset."""
        features = int(np.prod(data.test.images.shape[1:]))
        return cls(len(data.train), len(data.validation), len(data.test), features, data.num_classes)


@dataclass(frozen=True)
class Stage:
    """A part of a study, for all networks of a kind.

    Attributes:
        name: training, scores, the curves of a scope, or neurons alone.
        network: the kind of network.
        work: what there is to do, in words.
        flops: floating-point operations of the products, two for each weight and example, on all devices together.
        bytes: what products and optimiser read and write, each activation, weight and moment once for each use.
        memory: bytes on each device; on a CPU those of the process, with the data on the host, Python and programs.
        seconds: expected, without compilation.
    """

    name: str
    network: str
    work: str
    flops: float
    bytes: float
    memory: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a study will take.

    Attributes:
        stages: its parts, in order.
        layout: devices along "data" and along "study", as the run lays them out.
        rates: what the times are computed from.
        available: bytes of memory of a device, None if that is not known.
        left_out: scores whose time is not counted.
    """

    stages: tuple[Stage, ...]
    layout: tuple[int, int]
    rates: Rates
    available: int | None
    left_out: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes(self) -> float:
        """Of all stages."""
        return sum(stage.bytes for stage in self.stages)

    @property
    def memory(self) -> int:
        """Of the stage that takes the most."""
        return max(stage.memory for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)


def plan_study(
    config: StudyConfig,
    data: Dataset | Sequence[int],
    *,
    devices: int = 1,
    num_processes: int = 1,
    rates: Rates | None = None,
) -> Plan:
    """Tell what `run_study` will take: operations, bytes, memory of each device, and time.

    The work is counted from the settings alone. Orders that agree are computed once, which is not known before: curves
    take at most so long. An order of the whole network is taken to lose neurons of all layers alike. Reading, compiling
    and drawing are left out.

    Args:
        config: what is to run; its networks are trained, not given.
        data: the dataset, or its sizes if it is not at hand: examples for training, validation and test, numbers of
            an example, and classes.
        devices: of each process. Those of a CPU share its cores.
        num_processes: how many processes share the work, each on a machine like this one.
        rates: how fast a device is; None measures it here, which takes some seconds.

    Returns:
        A `Plan`.

    Raises:
        InputError: for a config without networks, sizes that are none, or a batch larger than the training split.

    Example:
        >>> plan = ja.study.plan_study(ja.StudyConfig(networks=((8,),), steps=4), (3500, 500, 1000, 784, 10))
        >>> [stage.name for stage in plan.stages]
        ['training', 'scores', 'curves of layer1', 'curves of network', 'neurons alone']
    """
    require(len(config.networks) > 0, "networks: expected at least one to train, got none")
    names = Sizes._fields
    found = Sizes.of(data) if isinstance(data, Dataset) else data
    require(len(found) == len(names), f"sizes: expected {len(names)}, of {', '.join(names)}, got {len(found)}")
    sizes = Sizes(*(require_count(f"sizes, {name}", of) for name, of in zip(names, found, strict=True)))
    require_batch_size(config.batch_size, sizes.train)
    work = _Work(config, sizes, require_count("devices", devices), require_count("num_processes", num_processes))
    if rates is None:
        rates = measure_rates(
            sizes.features, sizes.classes, config.networks, activation=config.activation,
            batch_size=config.batch_size, together=work.together,
        )  # fmt: skip
    stages = [stage for hidden in config.networks for stage in work.stages(hidden, rates)]
    left_out = tuple(metric for metric in config.metrics if metric in COSTLY or is_own(metric))
    return Plan(tuple(stages), work.layout, rates, _memory_of_device(), left_out)


@dataclass(frozen=True)
class _Work:
    """The work of a study, shared out among devices."""

    config: StudyConfig
    sizes: Sizes
    devices: int
    num_processes: int

    @property
    def on_cpu(self) -> bool:
        """Whether the devices of a process share its cores and its memory."""
        return jax.default_backend() == "cpu"

    @property
    def layout(self) -> tuple[int, int]:
        """Devices along data and along study."""
        return layout_for(self.devices * self.num_processes, self.sizes.test)

    @property
    def kinds(self) -> int:
        """Kinds of networks that are trained side by side."""
        return min(len(self.config.networks), num_cores()) if self.on_cpu and self.num_processes == 1 else 1

    @property
    def seeds(self) -> int:
        """Networks of a kind that one process trains, or one device other than a CPU."""
        return -(-len(self.config.seeds) // (self.num_processes * (1 if self.on_cpu else self.devices)))

    @property
    def together(self) -> int:
        """Networks that are trained side by side, on the cores of a CPU or in one program."""
        return min(num_cores(), self.seeds * self.kinds) if self.on_cpu else self.seeds

    def stages(self, hidden: Sequence[int], rates: Rates) -> list[Stage]:
        """All of one kind of network."""
        network, name = _Network((self.sizes.features, *hidden, self.sizes.classes), rates), network_name(hidden)
        found = [self._training(name, hidden, network), self._scores(name, network)]
        scopes = {f"layer{i + 1}": {i: 1.0} for i in range(len(hidden))}
        scopes[NETWORK_SCOPE] = {i: width / sum(hidden) for i, width in enumerate(hidden)}
        curves, subsets, calls = self._curves()
        for scope, layers in scopes.items():
            first = min(layers)
            passes = defaultdict(float, {-1: calls, first: curves + subsets * (self.config.steps + 1)})
            for layer, share in layers.items():
                passes[self._from(layer, first)] += curves * self.config.steps * share
            work = f"{curves} curves" + (f", {subsets} of subsets" if subsets else "")
            found.append(self._sweep(f"curves of {scope}", name, work, network, passes, len(layers), curves))
        groups = len({get_protocol(of).balance for of in self.config.protocols})
        passes = defaultdict(float, {-1: groups})
        for layer, width in enumerate(hidden):
            passes[self._from(layer, layer)] += groups * width
        number = groups * sum(hidden)
        work = f"{number} neurons"
        return [*found, self._sweep("neurons alone", name, work, network, passes, 1, number)]

    def _from(self, layer: int, first: int) -> int:
        """Where the pass of a step begins that loses a neuron of a layer: on a CPU its product is only updated,
        elsewhere all is computed from the first layer of the scope on."""
        return layer + 1 if self.on_cpu else first

    def _training(self, name: str, hidden: Sequence[int], network: "_Network") -> Stage:
        config, sizes, seeds = self.config, self.sizes, len(self.config.seeds)
        epochs = default_epochs(sizes.train, config.batch_size) if config.epochs is None else config.epochs
        steps = epochs * (sizes.train // config.batch_size)
        tested = epochs * sizes.validation
        trained = 3 * steps * config.batch_size  # forward, and back to weights and to activations
        to_images = steps * config.batch_size * 2 * network.widths[0] * network.widths[1]  # which nobody asks for
        flops = (trained + tested) * network.flops(-1) - to_images
        moved = (trained + tested) * network.bytes(-1) + steps * ADAM * network.weights
        in_turn = -(-self.seeds * self.kinds // self.together) * self.together / self.kinds
        seconds = in_turn * (steps * network.rates.steps[tuple(hidden)] + tested * network.seconds(-1))
        each = STATE * network.weights + 8 * sizes.validation * max(network.widths[1:])
        memory = self.kinds * 4 * sizes.features * (sizes.train + sizes.validation) + self.together * each
        work = f"{seeds} x {steps} steps of {config.batch_size} examples"
        return Stage("training", name, work, seeds * flops, seeds * moved, self._beside_data(memory), seconds)

    def _scores(self, name: str, network: "_Network") -> Stage:
        neurons, examples = sum(network.widths[1:-1]), self.sizes.validation
        passes = 2 * len(self.config.seeds) * examples  # one records, one takes means
        memory = examples * (4 * self.sizes.features + 8 * neurons)
        work = f"{neurons} neurons"
        return Stage(
            "scores",
            name,
            work,
            passes * network.flops(-1),
            passes * network.bytes(-1),
            self._beside_data(memory),
            passes * network.seconds(-1),
        )

    def _sweep(
        self,
        stage: str,
        name: str,
        work: str,
        network: "_Network",
        passes: Mapping[int, float | int],
        layers: int,
        masks: int,
    ) -> Stage:
        """So many passes of every test example by where they begin, for curves or neurons that devices share."""
        number, (data, study) = len(self.config.seeds) * self.sizes.test, self.layout
        flops, moved, seconds = (
            number * sum(times * of(start) for start, times in passes.items())
            for of in (network.flops, network.bytes, network.seconds)
        )
        own = -(-self.sizes.test // data)
        share = own / self.sizes.test * -(-masks // study) / masks
        in_flight = min(MEMORY_LIMIT, own * (layers + 4) * 4 * max(network.widths[1:]))
        memory = own * 4 * self.sizes.features + 4 * network.weights + in_flight
        if self.on_cpu:
            share, memory = share * self.devices, memory * self.devices
        return Stage(stage, name, work, flops, moved, self._beside_data(memory), seconds * share)

    def _beside_data(self, memory: int) -> int:
        """With what is there in any case, where it is in the same memory: the data, Python, programs."""
        examples = self.sizes.train + self.sizes.validation + self.sizes.test
        programs = PROGRAMS * len(self.config.networks) * len(self.config.protocols)
        host = PYTHON + programs + 4 * self.sizes.features * examples
        return memory + host if self.on_cpu else memory

    def _curves(self) -> tuple[int, int, int]:
        """For a scope the curves of orders, those of fresh subsets, and the calls that compute them, for all fills and
        protocols; what protocols share counts once."""
        protocols = [get_protocol(name) for name in self.config.protocols]
        groups = [protocols] * (1 + len(self.config.more_fills))  # zero and further fills are the same in all
        groups += [
            [of for of in protocols if of.balance is way] for way in dict.fromkeys(of.balance for of in protocols)
        ]
        curves = subsets = calls = 0
        for group in groups:
            fresh = sum(of.fresh_subsets is not None for of in group)
            curves += 2 * len(self.config.metrics) * len(group) + self.config.random_orders * (fresh < len(group))
            subsets += self.config.random_subsets * (fresh > 0)
            calls += 1 + (fresh > 0)
        return curves, subsets, calls


class _Network(NamedTuple):
    """A chain of products by its widths: what passes from behind a layer to the logits take, for one example.

    `start` -1 is the whole network; otherwise a pass begins with what the product before site `start` puts out, and
    the last one only looks which logit is the largest.
    """

    widths: tuple[int, ...]
    rates: Rates

    def links(self, start: int) -> list[tuple[int, int]]:
        """Widths before and behind each product of the pass."""
        return list(itertools.pairwise(self.widths))[start + 1 :]

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(before * behind for before, behind in self.links(-1)) + sum(self.widths[1:])

    def flops(self, start: int) -> float:
        """Two for each weight."""
        return float(sum(2 * before * behind for before, behind in self.links(start)))

    def bytes(self, start: int) -> float:
        """Activations read and written; logits are read in the end."""
        return float(4 * (sum(before + behind for before, behind in self.links(start)) + self.widths[-1]))

    def seconds(self, start: int) -> float:
        """At the measured rates."""
        return sum(self.rates.links[link] for link in self.links(start)) + self.rates.readout


def _memory_of_device() -> int | None:
    """Bytes of memory of a device, if it says; on a CPU of the machine, or what a container may have of it."""
    if jax.default_backend() == "cpu":
        known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
        if CONTAINER.is_file() and (limit := CONTAINER.read_text().strip()).isdecimal():
            known.append(int(limit))
        return min(known, default=None)
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
