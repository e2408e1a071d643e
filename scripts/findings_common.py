"""What the parts of docs/findings.md share: the measurements, and how numbers are written."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from findings_settings import unpacked, unpacked_results

import jaxablate as ja
from jaxablate.claims import FEWEST_NETWORKS, NATS, Effect
from jaxablate.protocols import SETS
from jaxablate.results import protocols_of, select_protocol

PAPER, PUBLISHED = SETS["both"]
BASELINE = "contribution_sd"
UNITS = {"accuracy points": "points", "nat": "nats", "correlation": "", "log ratio": ""}


class Measurements:
    """The files that `scripts/measure.py` wrote."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = unpacked_results(self._read("results.nc.xz"))
        if not set(SETS["departures"]) | set(SETS["controls"]) <= set(protocols_of(self.results)):
            raise ja.InputError(f"{folder}: results lack protocols; `python scripts/measure.py RUN` writes all")
        self.names = list(select_protocol(self.results, PAPER).children)
        num_seeds = len(json.loads(self.results.attrs["config"])["seeds"])
        if num_seeds < FEWEST_NETWORKS:
            raise ja.InputError(f"{folder}: expected five networks or more of each kind, got {num_seeds}")

    def network(self, name: str, protocol: str = PAPER) -> xr.Dataset:
        """Return the results of one kind of network under a protocol."""
        return select_protocol(self.results, protocol)[name].to_dataset()

    def table(self, name: str) -> xr.Dataset:
        """Return another dataset of the folder, in memory."""
        return unpacked(self._read(f"{name}.xz")).to_dataset()

    def _read(self, name: str) -> bytes:
        file = self.folder / name
        if not file.is_file():
            raise ja.InputError(f"{file}: no such file; `python scripts/measure.py RUN` writes it")
        return file.read_bytes()


class Section(NamedTuple):
    """A section of the page, and the sentence of the abstract about it."""

    summary: str
    text: str


def digits_of(unit: str) -> int:
    """Return the number of digits after the decimal point that shows an effect of the size of the margin."""
    return 3 if unit == NATS else 2


def number(effect: Effect) -> str:
    unit, digits = UNITS.get(effect.unit, effect.unit), digits_of(effect.unit)
    ratio = f", {np.exp(effect.mean):.1f} times" if effect.unit == "log ratio" else ""
    return f"{effect.mean:+.{digits}f}{unit and ' '}{unit} [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]{ratio}"


def words(score: str) -> str:
    return score.replace("_", " ")


def p_text(p: float) -> str:
    return "p undefined" if np.isnan(p) else "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def lost_predictions(network: xr.Dataset) -> xr.DataArray:
    """Return the number of correct predictions lost if only one neuron is ablated (seed, neuron)."""
    # step 0 ablates nothing, so every scope, ordering and fill has the same count there
    return network["correct"].isel(step=0, ordering=0, fill=0, scope=0) - network["single_correct"]
