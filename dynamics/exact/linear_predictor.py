r"""A linear predictor on samples of equal margins, which stay equal: one sample, two mirrored ones, any number in balance.

With $z_i = y_i x_i$ and their mean $\bar z$: where all margins $q = \langle w, z_i\rangle$ are equal and so are all
$\langle z_i, \bar z\rangle$, the weights move along $\bar z$ alone and $q' = -n|\bar z|^2\,\ell'(q)$. Of the exponential loss
$e^q$ grows like time, of the logistic one $q + e^q$ does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm, assume
from dynamics.exact.conditions import assume_small, longest
from dynamics.exact.lambert import log_lambert_growth
from dynamics.exact.limit import Limit
from dynamics.losses import Exponential, Logistic, MarginLoss
from dynamics.problems import Network
from dynamics.problems.nets import Dense
from dynamics.rates import Rates

_FAR = 80.0
"""A clock of this logarithm is finite in float32, and past it q + e^q is e^q to 1e-32."""


def obstacles(problem, rates: Rates) -> list[str]:
    """Why it does not apply."""
    if not isinstance(problem, Network):
        return [f"the problem is a {type(problem).__name__}, not a Network"]
    reasons = network_obstacles(problem, rates, Exponential, Logistic)
    if not isinstance(problem.net, Dense) or problem.net.widths or problem.net.outputs is not None:
        reasons.append(f"the net is {problem.net}, not a linear predictor of one output")
    return reasons


def network_obstacles(problem: Network, rates: Rates, *losses: type[MarginLoss]) -> list[str]:
    """What rules out the solutions of linear networks, but for the net itself."""
    reasons = []
    if not isinstance(problem.loss, losses):
        reasons.append(f"the loss is {type(problem.loss).__name__}, not {' or '.join(loss.__name__ for loss in losses)}")
    if rates.built != "equal" or rates.rescaled:
        reasons.append("the weights do not move at one rate")
    return reasons


def signed_inputs(problem: Network) -> Float[Array, "samples dim"]:
    """Inputs times targets."""
    return problem.targets[:, None] * problem.inputs


def equal_margins(problem: Network, margins: Float[Array, " samples"], size: Float[Array, ""]):
    """The codes of what all motions along the mean input ask: no decay, margins of one value; `size` is that of a term."""
    decay = jnp.asarray(problem.decay)
    spread = jnp.max(margins) - jnp.min(margins)
    return (
        assume(decay == 0, lambda: f"networks have a closed form without decay, got {decay}"),
        assume_small(spread, size, "the margins of the samples are not equal at the start"),
    )


def _parts(problem: Network, state: PyTree):
    """The mean of the signed inputs, its squared norm, the margin, and the code of the assumptions."""
    (weights,) = jax.tree.leaves(state)
    with jax.default_matmul_precision("highest"):
        signed = signed_inputs(problem)
        mean = jnp.mean(signed, axis=0)
        margins, pulls = signed @ weights, signed @ mean
    size = longest(signed)
    codes = (
        *equal_margins(problem, margins, size * tree.norm(state)),
        assume_small(jnp.max(pulls) - jnp.min(pulls), size**2, "the samples are not pulled equally by their mean"),
    )
    return mean, jnp.sum(mean**2), jnp.mean(margins), jnp.max(jnp.stack(codes))


def flow(problem: Network, state: PyTree, rates: Rates, ts) -> Motion:
    r"""$e^q$ grows by $n|\bar z|^2\zeta$ (exponential loss), $q + e^q$ does (logistic); what is orthogonal to $\bar z$ stays.

    Any schedule, targets and start of one sample; of two samples $(a, \pm b)$ of equal norm any start with $w_2 = 0$.

    **Reference:** derived here.
    """
    mean, square, margin, code = _parts(problem, state)
    pulled = square > 0
    safe = jnp.where(pulled, square, 1.0)

    def place(clock):
        by = jnp.where(pulled, problem.num_samples * square * clock, 0.0)
        moved = by > 0
        growth = _growth(problem.loss, margin, jnp.log(jnp.where(moved, by, 1.0)))
        along = jnp.where(moved, growth, 0.0) / safe * mean
        return jax.tree.map(lambda weights: weights + along, state), jnp.zeros_like(clock)

    return Motion(rates.weights.integral(ts), place, code=code)


def _growth(loss: MarginLoss, start, log_by):
    r"""How much q grows when $e^q$, or $q + e^q$, grows by $e^{\mathrm{log\_by}}$."""
    far = jax.nn.softplus(log_by - start)
    if isinstance(loss, Exponential):
        return far
    return jnp.where(log_by > _FAR, far, log_lambert_growth(start, jnp.exp(jnp.minimum(log_by, _FAR))))


def single_sample(log_t, start=0.0, *, speed=1.0, loss: MarginLoss | None = None) -> Float[Array, "..."]:
    r"""The margin of a linear predictor on one sample by the logarithm of time: $\log(e^{q_0} + st)$ for the exponential loss,
    the root of $q + e^q = q_0 + e^{q_0} + st$ for the logistic one.

    The weights move by $(q - q_0)\,y x/|x|^2$. Times may be far past the range of floating-point numbers.

    **Arguments:**

    - `log_t`: the logarithm of time; any shape, as of the others.
    - `start`: $q_0$, the margin at t = 0.
    - `speed`: s > 0: the rate times $|x|^2$; of n samples of equal margins n times that of their mean, so $2a^2$ of
      $(a, \pm b)$.
    - `loss`: `Exponential` (None) or `Logistic`.

    **Raises:** `ValueError` for another loss and for concrete values out of range.

    **Reference:** D. Soudry et al. (2018), the asymptote; the formulas: derived here.
    """
    loss = Exponential() if loss is None else loss
    if not isinstance(loss, Exponential | Logistic):
        raise ValueError(f"loss must be Exponential or Logistic, got {loss!r}")
    validate.finite("log_t", log_t)
    validate.finite("start", start)
    validate.positive("speed", speed)
    dtype = jnp.result_type(log_t, start, speed, float)
    log_t, start, speed = jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in (log_t, start, speed)))
    return start + _growth(loss, start, log_t + jnp.log(speed))


def two_point_invariant(weights: Float[Array, "... 2"], a, b) -> Float[Array, "..."]:
    r"""$\log|\sinh(b w_2)| + (b^2/a) w_1$, conserved by the exponential loss of two samples $(a, \pm b)$ with targets +1.

    The sign of $w_2$ stays too; at $w_2 = 0$, which stays, it is $-\infty$. `a` is not zero.

    **Reference:** derived here.
    """
    weights = jnp.asarray(weights)
    validate.shape("weights", weights, (*weights.shape[:-1], 2), "(..., 2)")
    reach = jnp.abs(b * weights[..., 1])
    moves = reach > 0
    safe = jnp.where(moves, reach, 1.0)
    log_sinh = safe + jnp.log(-0.5 * jnp.expm1(-2 * safe))
    return jnp.where(moves, log_sinh, -jnp.inf) + b**2 / a * weights[..., 0]


def descent(problem, state, rates, steps, every, dt, momentum, nesterov) -> Motion:
    """Iterates have none."""
    raise NoClosedForm("the iterates of gradient descent on a loss of margins have no closed form; use dynamics.descent")


def limit(problem: Network, state: PyTree, rates: Rates) -> Limit:
    r"""The weights grow like $\log(\zeta)/|\bar z|$ along $\bar z$; where that is zero they stay.

    `constants["norm_per_log_clock"]` is $1/|\bar z|$. Out of the assumptions the direction is NaN.
    """
    mean, square, _, code = _parts(problem, state)
    moves = square > 0
    norm = jnp.sqrt(jnp.where(moves, square, 1.0))
    still = tree.norm(state)
    known = jnp.where(code == 0, 1.0, jnp.nan)
    direction = jax.tree.map(lambda weights: known * jnp.where(moves, mean / norm, weights / still), state)
    zero = jnp.zeros_like(norm)
    return Limit(direction, zero, zero, {"norm_per_log_clock": jnp.where(moves, 1 / norm, 0.0)})


def max_step(problem, rates, momentum, nesterov):
    """Unknown: the curvature fades as margins grow."""
    raise NoClosedForm("no largest stable step is known for a loss of margins: its curvature fades as they grow")


LINEAR_PREDICTOR = ClosedForm("linear predictor, samples of equal margins", obstacles, flow, descent, limit, max_step)
