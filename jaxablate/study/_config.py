"""Define the settings of a study; `StudyConfig` checks them when it is created."""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate._checks import (
    InputError,
    describe_value,
    require,
    require_bool,
    require_different,
    require_fraction,
    require_integer,
    require_known,
    require_name,
    require_type,
)
from jaxablate.metrics import METRICS
from jaxablate.models import get_activation
from jaxablate.models._mlp import check_hidden
from jaxablate.orders import DIRECTIONS, NORMALIZATIONS
from jaxablate.protocols import PAPER, Protocol, get_protocol
from jaxablate.quantizers import get_quantizer
from jaxablate.results import RANDOM, Ordering
from jaxablate.results._labels import TRAINING_SETTINGS
from jaxablate.scores import get_score

EXTRA_FILLS = ("median", "class_mean", "resample", "linear")
SEQUENCES = ("networks", "seeds", "scores", "protocols", "extra_fills")
NUMBERS = ("learning_rate", "l2", "dropout", "label_noise")
COUNTS = ("split_seed", "epochs", "batch_size", "num_random_orders", "num_random_subsets")
TRAINING = (*TRAINING_SETTINGS, "seeds")
"""Settings on which trained networks depend, in addition to the data."""
# Seeds are the sample within each condition, and the folder of the data changes no result.
NOT_VARIED = ("seeds", "data_dir", "vary")
MAX_CONDITIONS = 1000


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study; the defaults are the paper's experiment.

    Attributes:
        dataset: name or path, as in `load_dataset`.
        data_dir: folder of the data, as in `load_dataset`.
        split_seed: seed of the split into training and validation examples.
        networks: hidden layers of each network to train; () if you pass your own models to `run_study`.
        activation: activation function of the hidden layers, as in `MLP`.
        quantizer: how activations become codes. "activation" codes whether the neuron fires, as in `default_quantizer`;
            it needs an `MLP`, which knows its activation function. Any other value is a quantizer of `get_quantizer`,
            for example "mean" or "quantile:8"; edges that depend on data come from the validation split. Other values
            than "activation" need the paper's protocol alone.
        seeds: seeds of the networks; each architecture is trained once for each seed.
        epochs: passes over the training split; None keeps the number of optimizer steps near the paper's.
        batch_size: number of examples in one optimizer step.
        learning_rate: learning rate of Adam.
        l2: coefficient of the weights in the gradient.
        dropout: probability in [0, 1) with which a training step sets an output of a hidden layer to 0, as in `train`.
        batch_norm: True puts batch norm before the activation function of each hidden layer, as in `MLP`.
        label_noise: fraction in [0, 1] of the training labels that are permuted at random, as in `train`.
        protocols: names of protocols, as in `get_protocol`. A protocol says how neurons are scored, ranked, balanced
            and ablated at random. Each one has its own results, from the same trained networks.
        scores: names of the scores that rank neurons, as in `ja.scores.get_score`.
        normalization: how scores of different layers become comparable in whole-network orders, as in
            `ja.orders.normalize_per_layer`. "none", the paper's choice, ranks raw scores. Other values need the paper's
            protocol alone.
        num_random_orders: number of random orders for each network, seed and scope.
        num_random_subsets: number of random curves under a protocol that draws a new random subset at every step.
        steps: number of neurons to ablate, one after another; "all" ablates every neuron of each layer, and of the
            network. A percentage, for example "0.5%", also ablates every neuron, and each step ablates this part of the
            layer or network, but at least one neuron.
        by_class: True also keeps the accuracy within each class at every step, which multiplies the size of the results
            by the number of classes.
        extra_fills: fills in addition to zero and the protocol's bias balancing: "median", "class_mean", "resample" or
            "linear", as in `compute_fill`, from the validation split.
        vary: values of each setting to vary: `{"l2": (0, 1e-4), "activation": ("sigmoid", "relu")}`. Every combination
            is a condition; the method `conditions` returns its settings. Every setting can vary, except `seeds` and
            `data_dir`. All conditions use the same seeds.

    Raises:
        InputError: for an unknown name, more steps than the smallest layer has neurons, a setting out of range or of
            the wrong type, settings that do not go together, or values of `vary` that `conditions` refuses.

    Example:
        >>> ja.StudyConfig(dataset="mnist5k", seeds=(0, 1)).steps
        80
    """

    dataset: str | Path = "auto"
    data_dir: str | Path | None = None
    split_seed: int = 2045
    networks: Sequence[Sequence[int]] = ((200, 200), (200, 200, 200))
    activation: str = "sigmoid"
    quantizer: str | float = "activation"
    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    l2: float = 1e-3
    dropout: float = 0.0
    batch_norm: bool = False
    label_noise: float = 0.0
    protocols: Sequence[str] = (PAPER.name,)
    scores: Sequence[str] = tuple(METRICS)
    normalization: str = "none"
    num_random_orders: int = 10
    num_random_subsets: int = 2
    steps: int | str = 80
    by_class: bool = False
    extra_fills: Sequence[str] = ()
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        # Settings become plain Python values: the results store them as JSON, and equal settings must compare equal.
        for name, value in vars(self).copy().items():
            if isinstance(value, np.generic):  # JSON, which the results use, has no NumPy numbers
                object.__setattr__(self, name, value.item())
        # A text is iterable too: ("entropy") without a comma would become seven scores of one letter.
        for name in SEQUENCES:
            value = getattr(self, name)
            is_sequence = isinstance(value, Iterable) and not isinstance(value, str)
            require(is_sequence, f"{name}: expected a sequence, got {'' if is_sequence else describe_value(value)}")
        # 0 and 0.0 are equal in Python, but not in the JSON texts that identify runs and saved networks. So every
        # number becomes a float. Python counts True as a number too.
        for name in NUMBERS:
            value = getattr(self, name)
            require(
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
                f"{name}: expected a number, got {describe_value(value)}",
            )
            object.__setattr__(self, name, float(value))
        for name in COUNTS:
            value = getattr(self, name)
            require(not isinstance(value, bool), f"{name}: expected an integer, got {describe_value(value)}")
            if value is not None or name != "epochs":
                object.__setattr__(self, name, require_integer(name, value))
        require(
            all(isinstance(hidden, Iterable) for hidden in self.networks),
            "networks: expected the hidden layers of each network, such as ((200, 200),), got "
            f"{describe_value(self.networks)}",
        )
        for name in ("dataset", "data_dir"):
            value = getattr(self, name)
            require(
                isinstance(value, str | Path) or (value is None and name == "data_dir"),
                f"{name}: expected a name or a path, got {type(value).__name__}; run_study takes arrays as data=",
            )
        plain = {
            "dataset": str(self.dataset),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "networks": tuple(
                tuple(require_integer("networks", width) for width in hidden) for hidden in self.networks
            ),
            "seeds": tuple(require_integer("seeds", seed) for seed in self.seeds),
            "scores": tuple(self.scores),
            "protocols": tuple(self.protocols),
            "extra_fills": tuple(self.extra_fills),
            "vary": _plain_values(self.vary),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the documented way to set attributes of a frozen dataclass
        self._check()

    def _check(self) -> None:
        """Raise unless every setting is known and in range, and the settings go together."""
        get_activation(self.activation)
        for name in ("scores", "protocols", "extra_fills"):
            for value in getattr(self, name):
                require(isinstance(value, str), f"{name}: expected names, got {describe_value(value)}")
        for score in self.scores:
            get_score(score)
        for protocol in self.protocols:
            get_protocol(protocol)
        for fill in self.extra_fills:
            require_known("extra_fills", fill, EXTRA_FILLS)
        require_type("quantizer", self.quantizer, str | int | float, "a name or a number")
        if self.quantizer != "activation":
            get_quantizer(self.quantizer)
        require_known("normalization", self.normalization, NORMALIZATIONS)
        for name in SEQUENCES:
            values = getattr(self, name)
            # Your own models need no networks, and extra fills are optional. Every other sequence needs an entry.
            if values or name not in ("networks", "extra_fills"):
                require_different(name, values)
        require(
            all(len(hidden) > 0 and min(hidden) >= 1 for hidden in self.networks),
            f"networks: a hidden layer in {self.networks} has no neuron; give every layer 1 or more",
        )
        # JAX keeps 32 bits of a seed, so a larger seed would give the networks of a smaller one.
        require(
            all(0 <= seed < 2**32 for seed in self.seeds), f"seeds: {self.seeds} is out of range; choose 0 to 2^32 - 1"
        )
        for name in COUNTS[1:]:  # any integer is a split seed
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: expected at least 1, got {value}")
        require(self.learning_rate > 0, f"learning_rate: {self.learning_rate} is not positive; choose above 0")
        require(self.l2 >= 0, f"l2: {self.l2} is negative; choose 0 or more")
        require_fraction("dropout", self.dropout, below_one=True)
        require_bool("batch_norm", self.batch_norm)
        require_fraction("label_noise", self.label_noise)
        require(
            _percentage(self.steps) > 0
            or self.steps == "all"
            or (isinstance(self.steps, int) and not isinstance(self.steps, bool)),
            f"steps: expected a number, 'all' or a percentage such as '0.5%', got {describe_value(self.steps)}",
        )
        require_bool("by_class", self.by_class)
        # Settings go together in every condition, which is a config and checks itself. They need not in the config that
        # varies them: `networks=((8,),)` with other `steps` than the default for `vary={"steps": (3, 5)}`.
        if self.vary:
            self.conditions()
        else:
            self._check_together()

    def _check_together(self) -> None:
        """Raise unless the settings go together."""
        require(
            self.quantizer == "activation" or self.protocols == (PAPER.name,),
            f"quantizer: {self.quantizer!r} needs the paper's protocol alone, since the protocols "
            f"{', '.join(self.protocols)} fix the codes; choose protocols=('paper',) or quantizer='activation'",
        )
        require(
            self.normalization == "none" or self.protocols == (PAPER.name,),
            f"normalization: {self.normalization!r} needs the paper's protocol alone, not "
            f"{', '.join(self.protocols)}; choose protocols=('paper',) or normalization='none'",
        )
        # The widths of models that the user passes are not known yet; `ablate_networks` checks them.
        self.check_steps([width for hidden in self.networks for width in hidden])

    def conditions(self) -> dict[str, "StudyConfig"]:
        """Return the settings of every condition by its name.

        Returns:
            One config for each combination of the varied values; its own `vary` is empty. The values of the last
            setting change fastest, as in `itertools.product`. If no setting varies, this config under the name "".

        Raises:
            InputError: for a combination that is not a valid config, two combinations of the same name, or more than
                1,000 combinations.

        Example:
            >>> config = ja.StudyConfig(vary={"l2": (0, 1e-4), "activation": ("sigmoid", "relu")})
            >>> list(config.conditions())[1], config.conditions()["l2=0, activation=relu"].l2
            ('l2=0, activation=relu', 0.0)
        """
        if not self.vary:
            return {"": self}
        # The combinations are counted before they are built: they could fill the memory.
        number = math.prod(map(len, self.vary.values()))
        require(
            number <= MAX_CONDITIONS, f"vary: {number} conditions are more than {MAX_CONDITIONS}; give fewer values"
        )
        conditions, used = {}, set()
        for values in itertools.product(*self.vary.values()):
            settings = dict(zip(self.vary, values, strict=True))
            name = ", ".join(f"{setting}={setting_text(value)}" for setting, value in settings.items())
            require_name("vary: condition", name)
            # names are names of folders too, and some file systems do not tell a from A
            require(name.casefold() not in used, f"vary: two conditions are named {name!r}; give different values")
            used.add(name.casefold())
            try:
                conditions[name] = dataclasses.replace(self, **settings, vary={})
            except InputError as error:
                raise InputError(f"condition {name}: {error}") from None
        return conditions

    def check_steps(self, widths: Sequence[int]) -> None:
        """Raise `InputError` unless every layer of these widths has at least as many neurons as there are steps."""
        if isinstance(self.steps, int):
            require_steps(self.steps, widths or [max(self.steps, 1)])

    def ablated_numbers(self, num_neurons: int) -> np.ndarray:
        """Return the number of ablated neurons at each step, int [step], in a scope of this many neurons.

        The first is 0, the intact network.
        """
        per_step = _percentage(self.steps) * num_neurons / 100
        if per_step <= 1:
            return np.arange((self.steps if isinstance(self.steps, int) else num_neurons) + 1)
        numbers = np.rint(np.arange(math.ceil(num_neurons / per_step) + 1) * per_step).astype(int)
        return np.unique(numbers.clip(max=num_neurons))

    def fill_names(self, protocol: Protocol) -> tuple[str, ...]:
        """Return the names of the fills under a protocol, in the order of the results."""
        return ("zero", protocol.fill_name, *self.extra_fills)

    def orderings(self, protocol: Protocol) -> tuple[Ordering, ...]:
        """Return the orderings of a protocol: each score, low and high values first, then the random orderings."""
        ranked = [Ordering(score, direction) for score in self.scores for direction in DIRECTIONS]
        num_random = self.num_random_subsets if protocol.fresh_subsets else self.num_random_orders
        return (*ranked, *(Ordering(RANDOM, str(i)) for i in range(num_random)))


def _percentage(steps: int | str) -> float:
    """Return the number of a percentage above 0 and up to 100; 0 for everything else."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)%", steps) if isinstance(steps, str) else None
    value = float(match[1]) if match else 0.0
    return value if value <= 100 else 0.0


def require_setting(name: object, known: Sequence[str] | None = None) -> None:
    """Raise `InputError` unless a text is the name of a setting; the message suggests the nearest name."""
    names = known or [setting.name for setting in dataclasses.fields(StudyConfig)]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
    require(name in names, f"settings: unknown {name!r}; {remedy}")


def setting_text(value: Any) -> str:
    """Return the text of a setting's value in the name of a condition: `1e-05`, `relu`, `200x200+100`.

    A path is named by its last part without suffix. The characters /, \\ and : become "-", for names of folders.
    """
    if isinstance(value, tuple):
        # As on the command line: x joins the widths of one network, + the entries of every other sequence.
        separator = "x" if value and isinstance(value[0], int) else "+"
        return separator.join(map(setting_text, value)) or "none"
    if isinstance(value, str | Path):
        return re.sub(r'[/\\:*?"<>|]', "-", Path(value).stem if "/" in str(value) or "\\" in str(value) else str(value))
    # Two numbers that agree in six digits get one name here; `conditions` refuses them.
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_values(vary: Any) -> dict[str, tuple[Any, ...]]:
    """Return the values of each varied setting as plain Python values.

    Raises:
        InputError: unless `vary` maps settings that can vary to sequences of different values.
    """
    require(isinstance(vary, Mapping), f"vary: expected a mapping from settings to values, got {describe_value(vary)}")
    known = [setting.name for setting in dataclasses.fields(StudyConfig) if setting.name not in NOT_VARIED]
    plain = {}
    for name, values in vary.items():
        require(name not in NOT_VARIED, f"vary: {name} cannot vary; set it once for all conditions")
        require_setting(name, known)
        require(
            isinstance(values, Iterable) and not isinstance(values, str | Mapping),
            f"vary: expected a sequence of values for {name}, got {describe_value(values)}",
        )
        plain[name] = tuple(_plain_value(name, value) for value in values)
        require_different(f"vary: {name}", plain[name])
    return plain


def _plain_value(name: str, value: Any) -> Any:
    """Return the value of a setting as `StudyConfig` keeps it, so that equal settings compare equal."""
    value = _plain(value)
    # True is an integer too, but no number of a setting
    return float(value) if name in NUMBERS and isinstance(value, int) and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    """Return tuples for sequences, Python numbers for NumPy's, and texts for paths."""
    if isinstance(value, np.generic):
        return value.item()
    # Lists from JSON or TOML and tuples from Python must be equal settings.
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def require_steps(steps: int, widths: Sequence[int]) -> None:
    """Raise unless `steps` is from 1 to the number of neurons of the smallest layer."""
    smallest = min(widths)
    require(
        1 <= steps <= smallest,
        f"steps: {steps} is out of range; choose 1 to {smallest}, the number of neurons of the smallest layer",
    )


def network_name(hidden: Sequence[int]) -> str:
    """Return the name of a network in the results: `2-layer` for (200, 200), `2-layer-100-50` for (100, 50).

    Args:
        hidden: neurons of each hidden layer.

    Returns:
        The name of the node.

    Example:
        >>> ja.study.network_name((200, 200, 200))
        '3-layer'
    """
    hidden = check_hidden(hidden)
    depth = f"{len(hidden)}-layer"
    return depth if set(hidden) == {200} else "-".join([depth, *map(str, hidden)])
