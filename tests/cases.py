"""Random instances of linear-loss problems, the same numbers for the library and for the oracles.

A `Shape` is what is static, one compiled program each; `numbers` draws what varies from member to member of a batch.
"""

from typing import NamedTuple

import numpy as np

import dynamics as dyn
from tests import oracles

Numbers = dict[str, np.ndarray]


class Shape(NamedTuple):
    """The static part of an instance.

    - `loss`: "unhinged", "optimum" (the unhinged loss without a given gamma), "by_label" or "by_sample".
    - `weighted`: sample weights; `kernel`, `feature_kernel`: given, singular for half of the members.
    """

    labels: tuple[int, ...]
    dim: int
    loss: str = "unhinged"
    bias: bool = True
    anchored: bool = False
    weighted: bool = False
    kernel: bool = False
    feature_kernel: bool = False

    @property
    def classes(self) -> int:
        return max(self.labels) + 1

    @property
    def samples(self) -> int:
        return len(self.labels)

    @property
    def weights(self) -> np.ndarray | None:
        if not self.weighted:
            return None
        weights = np.random.default_rng(self.samples).uniform(0.3, 2.0, self.samples)
        return weights / weights.mean()

    @property
    def gammas(self) -> tuple[float, ...]:
        """None, the optimum, one in the range of the limit theorems, one past it."""
        top = 2 / (self.classes - 2) if self.classes > 2 else 2.0
        return 0.0, 1 / (self.classes - 1), 0.37 * top, 1.5 * top


def balanced(classes: int, per_class: int) -> tuple[int, ...]:
    """Labels sorted by class."""
    return tuple(np.repeat(np.arange(classes), per_class).tolist())


def numbers(shape: Shape, members: int, seed: int, *, decay: bool) -> Numbers:
    """Starts, rates and hyper-parameters of a batch; the last member's features (with decay: weights) have rate zero."""
    rng = np.random.default_rng([seed, *shape.labels])
    classes, samples, dim = shape.classes, shape.samples, shape.dim
    rates = 10 ** rng.uniform(-0.7, 0.3, (members, 2))
    rates[-1, int(decay)] = 0.0
    x = {
        "gamma": np.resize(shape.gammas, members),
        "decay": rng.uniform(0, 0.4, (members, 3)) if decay else np.zeros((members, 3)),
        "rates": rates,
        "features": rng.normal(size=(members, samples, dim)),
        "prototypes": rng.normal(size=(members, classes, dim)),
        "biases": rng.normal(size=(members, classes)),
    }
    if shape.loss in ("by_label", "by_sample"):
        x["coupling"] = rng.normal(size=(members, classes if shape.loss == "by_label" else samples, classes))
    if shape.kernel:
        x["kernel"] = _kernels(rng, members, samples)
    if shape.feature_kernel:
        x["feature_kernel"] = _kernels(rng, members, dim)
    return x


def _kernels(rng: np.random.Generator, members: int, size: int) -> np.ndarray:
    """Positive semi-definite matrices, of four one of rank size - 1 and one of rank 1."""
    factors = rng.normal(size=(members, size, size))
    factors[::4, :, -1] = 0.0
    factors[1::4, :, 1:] = 0.0
    return factors @ factors.transpose(0, 2, 1) / size


def problem(shape: Shape, x: Numbers) -> dyn.LayerPeeled:
    """The library's problem of one member."""
    loss = {"unhinged": dyn.losses.Unhinged, "optimum": dyn.losses.Unhinged}.get(shape.loss, dyn.losses.Linear)
    argument = {"unhinged": "gamma", "optimum": None}.get(shape.loss, "coupling")
    return dyn.LayerPeeled(
        shape.labels,
        num_classes=shape.classes,
        loss=loss() if argument is None else loss(x[argument]),
        decay=dyn.Decay(*x["decay"]),
        bias=shape.bias,
        anchored=shape.anchored,
        sample_weights=shape.weights,
        kernel=x.get("kernel"),
        feature_kernel=x.get("feature_kernel"),
    )


def start(x: Numbers) -> dyn.Peeled:
    """The library's start of one member."""
    return dyn.Peeled(x["features"], x["prototypes"], x["biases"])


def member(x: Numbers, i: int) -> Numbers:
    """The numbers of one member."""
    return {name: values[i] for name, values in x.items()}


def plain(shape: Shape, x: Numbers) -> oracles.Plain:
    """The oracles' problem of one member."""
    labels = np.asarray(shape.labels)
    if "coupling" in x:
        rows = x["coupling"] if shape.loss == "by_sample" else x["coupling"][labels]
    else:
        gamma = x["gamma"] if shape.loss == "unhinged" else 1 / (shape.classes - 1)
        rows = np.full((shape.samples, shape.classes), -gamma)
        rows[np.arange(shape.samples), labels] = 1.0
    return oracles.Plain(
        labels,
        rows=rows,
        weights=shape.weights,
        decay=x["decay"],
        kernel=x.get("kernel"),
        feature_kernel=x.get("feature_kernel"),
        bias=shape.bias,
        anchored=shape.anchored,
    )


def point(x: Numbers) -> oracles.Point:
    """The oracles' start of one member."""
    return oracles.Point(x["features"], x["prototypes"], x["biases"])


def at(states: dyn.Peeled, *index) -> oracles.Point:
    """One state of a batch of library states."""
    return oracles.Point(*(np.asarray(part)[index] for part in (states.features, states.prototypes, states.biases)))
