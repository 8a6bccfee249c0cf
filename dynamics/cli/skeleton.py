"""The tables of a sweep file and their keys; what is None was not given, or has no default.

Each noun in them (a loss, a start, a schedule) is still a plain table of its own keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


class Strict:
    """Tables whose keys are all known."""

    __pydantic_config__: ClassVar[dict] = STRICT


@dataclass(frozen=True)
class Decay(Strict):
    """Weight decay of each part of the state."""

    features: float = 0.0
    prototypes: float = 0.0
    biases: float = 0.0


@dataclass(frozen=True)
class Problem(Strict):
    """A layer-peeled problem; its classes by one of `per_class`, `sizes` and `labels`."""

    num_classes: int
    per_class: int | None = None
    sizes: Any = None
    labels: list[int] | None = None
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "Unhinged"})
    decay: Decay = Decay()
    bias: Any = False
    anchored: bool = False
    normalize: bool = False
    adjusted: float | None = None
    sample_weights: list[float] | None = None


@dataclass(frozen=True)
class Network(Strict):
    """A network on data."""

    net: dict[str, Any]
    data: dict[str, Any]
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "Exponential"})
    decay: float = 0.0


@dataclass(frozen=True)
class Rates(Strict):
    """Learning rates: `features` and `weights`; or `equal`; or `schedule` and `ratio`."""

    features: Any = None
    weights: Any = None
    equal: Any = None
    schedule: Any = None
    ratio: float | None = None
    rescaled: bool = False


@dataclass(frozen=True)
class Motion(Strict):
    """Flow or descent, simulated or by formula. What only simulation needs is not used by formula."""

    verb: Literal["flow", "descent"] = "flow"
    by: Literal["simulation", "formula"] = "simulation"
    times: Any = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    clock: Any = None
    until_log_t: float | None = None
    norm_cap: float | None = None
    steps: int | None = None
    every: int | None = None
    dt: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    batch_size: int | None = None
    shuffle: Literal["step", "epoch"] | None = None


@dataclass(frozen=True)
class Zipped(Strict):
    """One of several axes that move together."""

    axis: str
    values: Any
    name: str | None = None


@dataclass(frozen=True)
class Factor(Strict):
    """An axis by its dotted path, with `values` or a `count` of random starts; or several, zipped."""

    axis: str | None = None
    name: str | None = None
    values: Any = None
    count: int | None = None
    zip: list[Zipped] | None = None


@dataclass(frozen=True)
class Keep(Strict):
    """What stays of the members, and what is said of all of them."""

    observables: list[str] = field(default_factory=lambda: ["objective"])
    final: bool = True
    trajectories: bool = False
    states: list[int] = field(default_factory=list)
    moments: bool = True
    quantiles: list[float] = field(default_factory=lambda: [0.05, 0.25, 0.5, 0.75, 0.95])
    histograms: dict[str, Any] = field(default_factory=dict)
    by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run(Strict):
    """How it is run; no number depends on it beyond rounding."""

    chunk: int | None = None
    lanes: int | None = None
    memory: Any = None
    sort: bool = True
    shard: bool = False
    format: Literal["netcdf", "zarr"] = "netcdf"


@dataclass(frozen=True)
class SweepConfig(Strict):
    """A whole sweep file with every default filled in."""

    name: str
    problem: Problem | Network
    start: dict[str, Any]
    rates: Rates
    motion: Motion
    title: str = ""
    seed: int = 0
    precision: Literal["float64", "float32"] = "float64"
    sweep: list[Factor] = field(default_factory=list)
    keep: Keep = Keep()
    run: Run = Run()


@dataclass(frozen=True)
class PeeledSweep(SweepConfig):
    """A sweep of layer-peeled problems."""

    problem: Problem


@dataclass(frozen=True)
class NetworkSweep(SweepConfig):
    """A sweep of networks."""

    problem: Network


def kind(tables: Mapping[str, Any]) -> type[SweepConfig]:
    """What a file describes: networks where its problem has a net or data."""
    problem = tables.get("problem")
    return NetworkSweep if isinstance(problem, Mapping) and {"net", "data"} & problem.keys() else PeeledSweep


INSIDE = {"problem": Problem, "decay": Decay, "rates": Rates, "motion": Motion, "sweep": Factor, "zip": Zipped}
INSIDE |= {"keep": Keep, "run": Run}
"""The tables of each key that has some."""
