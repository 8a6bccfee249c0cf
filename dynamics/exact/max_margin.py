r"""The largest margin that a predictor of bounded norm can have: of linear ones, and of two-layer networks.

These are programs solved on the host by SciPy, one data set at a time, to a relative gap between the margin of the direction
and the bound of its multipliers of 1e-9. With $z_i = y_i x_i$ and the dual norm $\|\cdot\|_*$,

$$\max_{\|w\| \le 1}\min_i \langle w, z_i\rangle = \min_{p \in \Delta}\Big\|\sum_i p_i z_i\Big\|_*.$$
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dynamics import validate

GAP = 1e-9
"""The largest relative distance of the margin from the bound that its multipliers prove."""
SEPARATED = 1e-11
"""Margins below this part of the longest input are rounding."""

_DUALS = {"l2": 2, "l1": np.inf, "linf": 1}
_TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class MaxMargin(NamedTuple):
    """A predictor of the largest margin.

    - `margin`: the least of targets times predictions.
    - `direction`: shape (dim,), of unit norm; in L1 and Linf it may be one of several.
    - `multipliers`: shape (samples,), >= 0 with sum one: the dual norm of their sum of targets times inputs is the margin.
    """

    margin: float
    direction: Float[np.ndarray, " dim"]
    multipliers: Float[np.ndarray, " samples"]


def max_margin(inputs, targets, norm: Literal["l2", "l1", "linf"] = "l2") -> MaxMargin:
    """The linear predictor, without bias, of unit norm and the largest margin.

    **Arguments:**

    - `inputs`: shape (samples, dim). On the host, in float64, one data set.
    - `targets`: shape (samples,), +-1.
    - `norm`: of the predictor: L2 by a dual quadratic program, L1 and Linf by linear ones.

    **Raises:** `ValueError` for anything out of range, and for samples that no direction separates, with the number that a
    predictor of the least total slack misclassifies.
    """
    validate.choice("norm", norm, _DUALS)
    inputs, targets = np.asarray(inputs, float), np.asarray(targets, float)
    if inputs.ndim != 2 or inputs.size == 0:
        raise ValueError(f"inputs must have shape (samples, dim) with samples and dim >= 1, got {inputs.shape}")
    validate.finite("inputs", inputs)
    validate.shape("targets", targets, (len(inputs),), "(samples,)")
    if not np.all(np.abs(targets) == 1):
        raise ValueError(f"targets must be +1 or -1, got {validate.shown(targets)}")
    signed = targets[:, None] * inputs
    size = float(np.max(np.abs(signed)))
    if size == 0:
        raise ValueError(_not_separated(signed))
    multipliers, direction = (_nearest_point if norm == "l2" else _program(norm))(signed / size)
    length = np.linalg.norm(direction, {2: 2, np.inf: 1, 1: np.inf}[_DUALS[norm]])
    margin = float(np.min(signed @ direction) / length) if length > 0 else 0.0
    bound = float(np.linalg.norm(multipliers @ signed, _DUALS[norm]))
    if margin <= SEPARATED * size:
        raise ValueError(_not_separated(signed / size))
    if bound - margin > GAP * bound:
        raise ValueError(
            f"inputs are too badly conditioned: the best margin found is {margin:.17g}, and only {bound:.17g} is known to be "
            "out of reach"
        )
    return MaxMargin(margin, direction / length, multipliers)


def two_layer_max_margin(inputs, targets, directions, activation: Callable = lambda z: np.maximum(z, 0.0)) -> MaxMargin:
    r"""The largest margin over squared norm of a two-layer network whose hidden units have given directions.

    $\gamma_1 = \frac12\max_{\|c\|_1\le 1}\min_i y_i\sum_k c_k\sigma(\langle v_k, x_i\rangle)$: a unit $a\,\sigma(\langle w, x
    \rangle)$ with $|a| = |w|$ has the squared norm $2a^2$. The result's `direction` is c, shape (units,), and its
    `multipliers` are those of the maximum over c, twice the margin.

    **Arguments:**

    - `inputs`, `targets`: as in `max_margin`.
    - `directions`: shape (units, dim), rows not zero; they are normalised.
    - `activation`: of degree 1, on NumPy arrays; the ReLU.

    **Raises:** `ValueError` as `max_margin` does, and for directions of the wrong shape or zero.

    **Reference:** L. Chizat, F. Bach (2020), the F1-max-margin problem.
    """
    inputs, directions = np.asarray(inputs, float), np.asarray(directions, float)
    if inputs.ndim != 2:
        raise ValueError(f"inputs must have shape (samples, dim), got {inputs.shape}")
    validate.shape("directions", directions, ("units", inputs.shape[1]), "(units, dim)")
    validate.finite("directions", directions)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if directions.size == 0 or np.any(lengths == 0):
        raise ValueError("directions must be at least one row, and no row zero")
    best = max_margin(activation(inputs @ (directions / lengths).T), targets, "l1")
    return best._replace(margin=0.5 * best.margin)


def cluster_margin(positive: int, negative: int) -> float:
    r"""The same over all directions, ReLU units and orthonormal inputs: $1/(2(\sqrt{K_+} + \sqrt{K_-}))$.

    The optimum is one unit a class, along the mean of its inputs.

    **Arguments:**

    - `positive`, `negative`: the numbers of inputs with targets +1 and -1, not both zero.

    **Reference:** derived here.
    """
    positive, negative = validate.whole("positive", positive, 0), validate.whole("negative", negative, 0)
    if positive + negative == 0:
        raise ValueError("positive and negative must not both be 0")
    return 0.5 / (positive**0.5 + negative**0.5)


def _nearest_point(signed):
    """The point of the convex hull nearest to zero: its multipliers, and itself.

    Non-negative least squares of |sum a_i z_i|^2 + k^2 (sum a_i - 1)^2 has its solution on the same ray for any k > 0; k of
    the size of the margin is the best conditioned. What is exact then is the set of support vectors.
    """
    from scipy.optimize import nnls  # loaded when asked for: importing the library must stay quick

    weight = 1.0
    for _ in range(4):
        system = np.vstack([signed.T, np.full(len(signed), weight)])
        multipliers = nnls(system, np.append(np.zeros(signed.shape[1]), weight), maxiter=30 * max(system.shape))[0]
        if multipliers.sum() == 0:
            break
        multipliers = multipliers / multipliers.sum()
        weight = np.linalg.norm(multipliers @ signed)
        if weight <= SEPARATED:
            break
    return _sharpened(signed, multipliers)


def _sharpened(signed, multipliers):
    """Multipliers and point once more from the support vectors: the nearest point of their affine hull."""
    support = np.flatnonzero(multipliers)
    point = multipliers @ signed
    if support.size < 2:
        return multipliers, point
    first, rest = support[0], support[1:]
    differences = (signed[rest] - signed[first]).T
    shares = np.linalg.lstsq(differences, -signed[first], rcond=None)[0]
    sharper = np.zeros_like(multipliers)
    sharper[rest], sharper[first] = shares, 1 - shares.sum()
    nearer = sharper @ signed
    better = np.min(sharper) >= 0 and np.min(signed @ nearer) * np.linalg.norm(point) > np.min(signed @ point) * np.linalg.norm(
        nearer
    )
    return (sharper, nearer) if better else (multipliers, point)


def _program(norm: str) -> Callable:
    """The solver of the linear program of a norm."""

    def solve(signed):
        from scipy.optimize import linprog  # loaded when asked for: importing the library must stay quick

        samples, dim = signed.shape
        # maximise m with <z_i, w> >= m: w = u - v in L1, which bounds their sum; entries in [-1, 1] in Linf
        if norm == "l1":
            rows = np.hstack([-signed, signed, np.ones((samples, 1))])
            rows = np.vstack([rows, np.append(np.ones(2 * dim), 0.0)])
            limits, bounds = np.append(np.zeros(samples), 1.0), [(0, None)] * (2 * dim) + [(None, None)]
        else:
            rows, limits = np.hstack([-signed, np.ones((samples, 1))]), np.zeros(samples)
            bounds = [(-1, 1)] * dim + [(None, None)]
        cost = np.append(np.zeros(rows.shape[1] - 1), -1.0)
        found = linprog(cost, rows, limits, bounds=bounds, method="highs-ds", options=_TIGHT)
        if not found.success:
            raise ValueError(f"inputs: the linear program of the largest margin was not solved: {found.message}")
        multipliers = np.maximum(-found.ineqlin.marginals[:samples], 0.0)
        direction = found.x[:dim] - found.x[dim : 2 * dim] if norm == "l1" else found.x[:dim]
        return multipliers / multipliers.sum(), direction

    return solve


def _not_separated(signed) -> str:
    """What to say of samples without a separating direction: how many the least total slack leaves wrong."""
    from scipy.optimize import linprog  # loaded when asked for: importing the library must stay quick

    samples, dim = signed.shape
    rows = np.hstack([-signed, -np.eye(samples)])
    cost = np.append(np.zeros(dim), np.ones(samples))
    bounds = [(None, None)] * dim + [(0, None)] * samples
    found = linprog(cost, rows, -np.ones(samples), bounds=bounds, method="highs-ds")
    wrong = int(np.sum(signed @ found.x[:dim] <= 1e-6))
    return (
        f"inputs and targets must be linearly separable without a bias, and no direction has a positive margin: the predictor "
        f"of the least total slack misclassifies {wrong} of {samples} samples"
    )
