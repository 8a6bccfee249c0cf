"""Independent truth: the layer-peeled problem from its definition in NumPy, and solvers that know no closed form.

Nothing here imports the library. Rows are vectors: features `(samples, dim)`, prototypes `(classes, dim)`, biases `(classes,)`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mpmath
import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm


class Point(NamedTuple):
    """A state."""

    features: np.ndarray
    prototypes: np.ndarray
    biases: np.ndarray

    def flat(self) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in self])

    def like(self, flat: np.ndarray) -> "Point":
        """`flat` in the shape of this state."""
        ends = np.cumsum([part.size for part in self])[:-1]
        return Point(*(x.reshape(part.shape) for x, part in zip(np.split(flat, ends), self, strict=True)))


@dataclasses.dataclass(frozen=True)
class Plain:
    """A layer-peeled problem in plain numbers.

    - `labels`: shape (samples,); `loss`: "linear", "cross_entropy" or "squared_error".
    - `rows`: of a linear loss -<rows_i, z_i>, shape (samples, classes).
    - `weights`: of the samples; `decay`: of features, prototypes, biases.
    """

    labels: np.ndarray
    loss: str = "linear"
    rows: np.ndarray | None = None
    weights: np.ndarray | None = None
    decay: Sequence[float] = (0.0, 0.0, 0.0)
    kernel: np.ndarray | None = None
    feature_kernel: np.ndarray | None = None
    bias: bool = False
    anchored: bool = False
    normalize: bool = False
    rescaled: bool = False

    def loss_of(self, i: int, z: np.ndarray):
        """The loss of sample i at its logits, also for complex logits."""
        y = self.labels[i]
        if self.loss == "linear":
            return -np.sum(self.rows[i] * z)
        if self.loss == "cross_entropy":
            return np.log(np.sum(np.exp(z))) - z[y]
        return 0.5 * np.sum((z - np.eye(z.size)[y]) ** 2)

    def objective(self, x: Point):
        """The objective, sample by sample, also for complex states."""
        samples = len(self.labels)
        total = 0.0
        for i in range(samples):
            h = x.features[i]
            if self.normalize:
                h = h / np.sqrt(np.sum(h**2))
            logits = np.array([np.sum(w * h) + b for w, b in zip(x.prototypes, x.biases, strict=True)])
            total += (1.0 if self.weights is None else self.weights[i]) * self.loss_of(i, logits) / samples
        return total + 0.5 * sum(rate * np.sum(part**2) for rate, part in zip(self.decay, x, strict=True))

    def force(self, x: Point) -> Point:
        """Minus the gradient, the features' data part multiplied by the kernels; zero for what stays."""
        features = x.features
        if self.normalize:
            norms = np.linalg.norm(features, axis=1, keepdims=True)
            features = features / norms
        slope = self._slope(features @ x.prototypes.T + x.biases)
        pull = -slope @ x.prototypes
        if self.normalize:
            pull = (pull - features * np.sum(pull * features, axis=1, keepdims=True)) / norms
        if self.kernel is not None:
            pull = self.kernel @ pull
        if self.feature_kernel is not None:
            pull = pull @ self.feature_kernel
        moves_prototypes, moves_biases = not self.anchored, self.bias and not self.anchored
        return Point(
            pull - self.decay[0] * x.features,
            moves_prototypes * (-slope.T @ features - self.decay[1] * x.prototypes),
            moves_biases * (-slope.sum(axis=0) - self.decay[2] * x.biases),
        )

    def _slope(self, logits: np.ndarray) -> np.ndarray:
        """The gradient of the weighted mean loss in the logits."""
        if self.loss == "linear":
            slope = -self.rows
        else:
            slope = logits
            if self.loss == "cross_entropy":
                slope = np.exp(logits - logits.max(axis=1, keepdims=True))
                slope = slope / slope.sum(axis=1, keepdims=True)
            slope = slope - np.eye(logits.shape[1])[self.labels]
        weights = 1.0 if self.weights is None else self.weights[:, None]
        return weights * slope / len(self.labels)

    def pace(self, motion: Point, x: Point, eta1: float, eta2: float) -> Point:
        """`motion` at the two rates."""
        scale = np.linalg.norm(x.features, axis=1, keepdims=True) if self.rescaled else 1.0
        return Point(eta1 * scale * motion.features, eta2 * motion.prototypes, eta2 * motion.biases)


def generators(plain: Plain, start: Point) -> tuple[np.ndarray, np.ndarray]:
    """The dense affine generators of features and of weights, acting on (flat state, 1), for a linear loss."""
    zero = start.like(np.zeros(start.flat().size))
    size = zero.flat().size
    rest = plain.force(zero).flat()
    dense = np.zeros((size + 1, size + 1))
    dense[:-1, -1] = rest
    for j, unit in enumerate(np.eye(size)):
        dense[:-1, j] = plain.force(zero.like(unit)).flat() - rest
    of_features = np.arange(size + 1) < start.features.size
    return dense * of_features[:, None], dense * ~of_features[:, None]


def dense_flow(plain: Plain, start: Point, clocks: Sequence[tuple[float, float]]) -> list[Point]:
    """The flow at clocks (of features, of weights) in one constant ratio, by the exponential of the dense generator."""
    of_features, of_weights = generators(plain, start)
    begin = np.append(start.flat(), 1.0)
    return [start.like((expm(a * of_features + b * of_weights) @ begin)[:-1]) for a, b in clocks]


def extreme_flow(plain: Plain, start: Point, eta1: float, eta2: float, ts) -> list[tuple[Point, float]]:
    """The flow at constant rates, no kernels, no bias: its direction (biases as they start) and the log of its norm.

    60-digit eigenvectors of the generator of a feature coordinate, symmetric once both sides are over the root of their rate.
    """
    with mpmath.workdps(60):
        samples, classes = plain.rows.shape
        roots = [mpmath.sqrt(mpmath.mpf(float(eta1)))] * samples + [mpmath.sqrt(mpmath.mpf(float(eta2)))] * classes
        decays = [mpmath.mpf(float(plain.decay[0]))] * samples + [mpmath.mpf(float(plain.decay[1]))] * classes
        symmetric = mpmath.matrix(samples + classes)
        for i, root in enumerate(roots):
            symmetric[i, i] = -decays[i] * root**2
        for i in range(samples):
            weight = mpmath.mpf(1 if plain.weights is None else float(plain.weights[i])) / samples
            for c in range(classes):
                coupled = weight * mpmath.mpf(float(plain.rows[i, c])) * roots[i] * roots[samples + c]
                symmetric[i, samples + c] = symmetric[samples + c, i] = coupled
        exponents, vectors = mpmath.eigsy(symmetric)
        begin = mpmath.matrix(np.concatenate([start.features, start.prototypes]).astype(float).tolist())
        for i, root in enumerate(roots):
            begin[i, :] /= root
        of_modes = vectors.T * begin
        results = []
        for t in ts:
            grown = of_modes.copy()
            for i, exponent in enumerate(exponents):
                grown[i, :] *= mpmath.exp(exponent * mpmath.mpf(float(t)))
            moved = vectors * grown
            for i, root in enumerate(roots):
                moved[i, :] *= root
            norm = mpmath.norm(moved, 2) if moved.cols == 1 else mpmath.mnorm(moved, "f")
            flat = np.array((moved / norm).tolist(), float)
            results.append((Point(flat[:samples], flat[samples:], start.biases), float(mpmath.log(norm))))
        return results


def dop853(plain: Plain, start: Point, eta1: Callable, eta2: Callable, ts, cuts=()) -> list[Point]:
    """The flow at `ts` by SciPy's DOP853 at rtol 1e-12, restarted at `cuts`, where the rates or their slopes jump.

    The rates are called with the time and the middle of the stretch it belongs to, which decides the side of a jump.
    """
    x, now, states = start.flat(), 0.0, []
    stops = sorted({float(t) for t in (*ts, *cuts) if 0 < t <= max(ts)})
    wanted = {float(t) for t in ts}
    if 0.0 in wanted:
        states.append(start)
    for stop in stops:
        middle = 0.5 * (now + stop)

        def velocity(t, flat, middle=middle):
            point = start.like(flat)
            return plain.pace(plain.force(point), point, eta1(t, middle), eta2(t, middle)).flat()

        x = solve_ivp(velocity, (now, stop), x, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
        now = stop
        if stop in wanted:
            states.append(start.like(x))
    return states


def loop(
    plain: Plain,
    start: Point,
    eta1: Callable,
    eta2: Callable,
    steps: int,
    every: int,
    dt=1.0,
    momentum=0.0,
    nesterov=False,
) -> list[Point]:
    """Gradient descent as one would write it down; rates are read at k dt."""
    x, states = start, [start]
    velocity = start.like(np.zeros(start.flat().size))
    for k in range(steps):
        force = plain.force(x)
        velocity = Point(*(momentum * v + f for v, f in zip(velocity, force, strict=True)))
        move = Point(*(f + momentum * v for v, f in zip(velocity, force, strict=True))) if nesterov else velocity
        step = plain.pace(move, x, eta1(k * dt, k * dt), eta2(k * dt, k * dt))
        x = Point(*(a + dt * b for a, b in zip(x, step, strict=True)))
        if (k + 1) % every == 0:
            states.append(x)
    return states


def worst(errors) -> float:
    """The largest of some errors; NaN if any is NaN, so that it fails every bound."""
    return float(np.max(np.asarray(list(errors), float)))


def relative(x, truth) -> float:
    """The norm of the difference of two states or arrays over the norm of the second."""
    x, truth = (np.concatenate([np.ravel(part) for part in z]) if isinstance(z, tuple) else z for z in (x, truth))
    return float(np.linalg.norm(np.subtract(x, truth)) / np.linalg.norm(truth))
