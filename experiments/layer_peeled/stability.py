"""The largest stable step of gradient descent, heavy ball and Nesterov where every mode decays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.state import norm
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.descents import problem_of
from experiments.shared.instances import SIZES, Draw, Size, draws, sigmas, worst_of
from experiments.shared.oracles import balanced_pull, generator, mode_exponents

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, in discrete time"
SIZE = SIZES[0]
STEPS = 400
EDGES = (0.99, 1.01)


def _drawn(size: Size, members: int) -> Draw:
    """Decays of which the root of the product is 1.2 to 2 times the largest singular value: nothing grows."""
    draw = draws(size, members)
    level = (1.2 + 0.8 * draw.spare[:, 4]) * np.abs(sigmas(draw, size)[:2]).max(axis=0)
    skew = 2 ** (2 * draw.spare[:, 5] - 1)
    decay = np.stack([level * skew, level / skew, level * 4 * draw.spare[:, 6]], axis=1)
    return draw._replace(decay=decay)


def _momentum(draw: Draw, method: str):
    return 0.0 * draw.rate if method == "plain" else 0.05 + 0.85 * draw.spare[:, 7]


@functools.cache
def _program(size: Size, nesterov: bool):
    """The largest step, and sizes before and after STEPS steps of it times each edge."""

    def one(draw, momentum):
        problem = problem_of(draw, size, bias=True)
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        rates = dyn.Rates(draw.ratio * draw.rate, draw.rate)
        step = dyn.exact.max_step(problem, rates, momentum=momentum, nesterov=nesterov)
        rest = (1 + draw.gamma - draw.gamma * size.classes) / size.classes / draw.decay[2]
        observe = {"size": lambda _, x: norm((x.features, x.prototypes, x.biases - rest))}
        options = {"every": STEPS, "momentum": momentum, "nesterov": nesterov, "observe": observe}
        run = lambda edge: dyn.descent(problem, state, rates, STEPS, dt=edge * step, **options).observed["size"]
        return step, jax.vmap(run)(jnp.asarray(EDGES))

    return jax.jit(jax.vmap(one))


@functools.cache
def _stepped(size: Size, members: int, method: str):
    draw = _drawn(size, members)
    step, sizes = _program(size, method == "nesterov")(draw, _momentum(draw, method))
    return draw, np.asarray(step), np.asarray(sizes)


def _edges(size: Size, members: int, method: str):
    """The part of the size that is left just below the limit; just above it, the inverse."""
    _, _, sizes = _stepped(size, members, method)
    return np.maximum(sizes[:, 0, 1] / sizes[:, 0, 0], sizes[:, 1, 0] / sizes[:, 1, 1])


def _radius(size: Size, members: int, method: str):
    """The spectral radius of one step at the limit: the dense companion matrix of features, prototypes and biases."""
    draw, step, _ = _stepped(size, members, method)
    pull = balanced_pull(draw, size)
    rates = step * draw.rate * draw.ratio, step * draw.rate
    dense = generator(pull, rates, (draw.decay[:, 0], draw.decay[:, 1]))
    n = dense.shape[-1] + 1
    generators = np.zeros((members, n, n))
    generators[:, :-1, :-1], generators[:, -1, -1] = dense, -rates[1] * draw.decay[:, 2]
    mu, own = _momentum(draw, method)[:, None, None], np.eye(n)
    carried = mu**2 if method == "nesterov" else mu
    gain = 1 + mu if method == "nesterov" else 1.0
    # velocities in units of the rates, v <- mu v + A x; x <- x + v, or x <- x + A x + mu v
    companion = np.block([[own + gain * generators, carried * own], [generators, mu * own]])
    return np.abs(np.abs(np.linalg.eigvals(companion)).max(axis=-1) - 1)


def _limits(size: Size, members: int, method: str):
    """2 over the largest |omega_1|, times 1 + mu or (1 + mu)/(1 + 2 mu)."""
    draw, step, _ = _stepped(size, members, method)
    mu, decays = _momentum(draw, method), (draw.decay[:, 0], draw.decay[:, 1])
    lower = [-mode_exponents(sigma, draw.ratio, decays)[0] for sigma in sigmas(draw, size)[:2]]
    fastest = np.max([*lower, draw.ratio * decays[0], draw.decay[:, 2]], axis=0) * draw.rate
    gain = (1 + mu) / (1 + 2 * mu) if method == "nesterov" else 1 + mu
    return np.abs(step * fastest / (2 * gain) - 1)


_BOUNDS = {
    "plain": "eta |omega_1| < 2",
    "heavy ball": "eta |omega_1| < 2(1 + mu)",
    "nesterov": "eta |omega_1| < 2(1 + mu)/(1 + 2 mu)",
}


def _claims(method: str) -> tuple[Claim, ...]:
    claim = functools.partial(
        Claim,
        id="beyond.gd",
        source=SOURCE,
        assumptions=("balanced classes", "decay above the threshold", "constant ratio of rates"),
    )
    check = lambda residuals: functools.partial(worst_of, functools.partial(residuals, method=method), sizes=(SIZE,))
    name = f"stability-{method.replace(' ', '-')}"
    bound = _BOUNDS[method]
    return (
        claim(
            name=name,
            statement=f"{method}: 0.99 of the largest step decays, 1.01 of it diverges (residual: what is left)",
            tolerance=0.5,
            check=check(_edges),
        ),
        claim(
            name=f"{name}-radius",
            statement=f"{method}: at the largest step the dense one-step matrix has spectral radius one",
            tolerance=1e-13,
            check=check(_radius),
        ),
        claim(
            name=f"{name}-bound",
            statement=f"{method}: {bound}, |omega_1| the largest of omega_1(sigma1), omega_1(sigma2), s lambda1, lambda_b",
            tolerance=1e-14,
            check=check(_limits),
        ),
    )


EXPERIMENT = Experiment(
    name="stability",
    family="beyond",
    summary="the largest stable step, with and without momentum",
    claims=(*_claims("plain"), *_claims("heavy ball"), *_claims("nesterov")),
)
