"""Heavy ball and Nesterov: one 4x4 companion matrix a step and mode, which a constant ratio splits into 2x2 ones."""

import functools

import numpy as np

from dynamics.verify import Claim, measured_order
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, spectrum, stacked
from experiments.shared.descents import EIGHTHS, HALVINGS, STEPS, Method, descended, halved, random_rates
from experiments.shared.instances import SIZES, Draw, Size, class_sides, common_part, draws, sigmas, spread, worst_of
from experiments.shared.oracles import balanced_pull, column, descend, mode_exponents, stack, worst_gap

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorems 2 and 4, in discrete time"
SIZE = SIZES[0]
END = 0.5


def _momentum(draw: Draw):
    return 0.9 * draw.spare[:, 0]


@functools.cache
def _stepped(size: Size, members: int, method: Method):
    """The draws, rates that change from step to step, the library's two answers, and the plain loop's."""
    draw = draws(size, members)
    rates, mu = random_rates(draw), _momentum(draw)
    pull = balanced_pull(draw, size)
    looped = descend(pull, draw, rates, draw.decay, mu, nesterov=method == "nesterov")
    return draw, rates, *descended(draw, size, rates, mu, method), looped


def _formula(size: Size, members: int, method: Method):
    *_, formula, looped = _stepped(size, members, method)
    return worst_gap(formula, looped)


def _simulated(size: Size, members: int, method: Method):
    *_, simulated, _, looped = _stepped(size, members, method)
    return worst_gap(simulated, looped)


def _companion(generator, rates, mu, method: Method):
    """(x, v) after a step, v the running gradient: [I + c D A, -m D; -A, mu I] with D the rates."""
    n = generator.shape[-1]
    mu, own = column(mu), np.eye(n)
    rates = rates[:, :, None] * own
    gain, carried = (1 + mu, mu**2) if method == "nesterov" else (1.0, mu)
    top = np.concatenate([own + gain * (rates @ generator), -carried * rates], axis=-1)
    return np.concatenate([top, np.concatenate([-generator, mu * own], axis=-1)], axis=-2)


def _mode(sigma, draw: Draw):
    """[-lambda1, sigma; sigma, -lambda2] of each member."""
    return np.stack([-draw.decay[:, 0], sigma, sigma, -draw.decay[:, 1]], axis=-1).reshape(-1, 2, 2)


def _companions(size: Size, members: int, method: Method):
    """4x4 products for sigma1 and sigma2, 2x2 ones of the scalars -lambda1 for deviations and -lambda_b for biases."""
    draw, rates, simulated, _, _ = _stepped(size, members, method)
    mu, g, w = _momentum(draw), class_sides(draw.features, size), draw.prototypes
    product = lambda generator, parts: functools.reduce(
        lambda phi, k: _companion(generator, rates[:, parts, k], mu, method) @ phi, range(STEPS), np.eye(2 * len(parts))
    )
    left = product(-draw.decay[:, :1, None], [0])[:, 0, 0]
    features, prototypes = column(left) * (draw.features - spread(g, size)), 0.0
    for sigma, part in zip(sigmas(draw, size), (lambda x: x - common_part(x), common_part), strict=False):
        phi = product(_mode(sigma, draw), [0, 1])[:, :2, :2]
        sides = np.einsum("mij,mjcp->micp", phi, np.stack([part(g), part(w)], axis=1))
        features, prototypes = features + spread(sides[:, 0], size), prototypes + sides[:, 1]
    return deviation(stack(simulated)[:, -1], stacked(features, prototypes))


def _biases(size: Size, members: int, method: Method):
    """The scalar recursion of -lambda_b, applied to b - kappa/lambda_b."""
    draw, rates, simulated, _, _ = _stepped(size, members, method)
    rest = (sigmas(draw, size)[2] / draw.decay[:, 2])[:, None]
    phi = np.eye(2)
    for k in range(STEPS):
        phi = _companion(-draw.decay[:, 2:, None], rates[:, 1:, k], _momentum(draw), method) @ phi
    # the gradient decay_b (b - rest) vanishes at rest: the velocity starts at zero there too
    expected = phi[:, 0, :1] * (draw.biases - rest) + rest
    unit = size_of(draw.biases, 1) + size_of(rest + 0 * draw.biases, 1)
    return size_of(simulated.biases[:, -1] - expected, 1) / unit


def _quadratic(omega, eta, mu, method: Method):
    """Coefficients (1, b, c) of r^2 - (1 + mu + eta omega) r + mu, or of Nesterov's r^2 - (1 + mu)(1 + eta omega) r + ..."""
    if method == "nesterov":
        b, c = -(1 + mu) * (1 + eta * omega), mu * (1 + eta * omega)
    else:
        b, c = -(1 + mu + eta * omega), mu
    return np.stack(np.broadcast_arrays(1.0, b, c), axis=-1)


def _splits(size: Size, members: int, method: Method):
    """Characteristic polynomials: of the 4x4 companion, and the product of the two quadratics."""
    draw = draws(size, members)
    mu, eta = _momentum(draw), draw.rate
    worst = np.zeros(members)
    for sigma in sigmas(draw, size)[:2]:
        rates = np.stack([draw.ratio * eta, eta], axis=1)
        matrices = _companion(_mode(sigma, draw), rates, mu, method)
        exponents = mode_exponents(sigma, draw.ratio, (draw.decay[:, 0], draw.decay[:, 1]))
        pairs = zip(*(_quadratic(omega, eta, mu, method) for omega in exponents), strict=True)
        for k, (matrix, pair) in enumerate(zip(matrices, pairs, strict=True)):
            expected = np.polymul(*pair)
            worst[k] = max(worst[k], np.abs(np.poly(matrix) - expected).max() / np.abs(expected).max())
    return worst


def _recursion(size: Size, members: int, method: Method):
    """Simulated iterates at a constant rate, in the eigenvectors of the dense generator: three terms each."""
    draw, eta = draws(size, members), draws(size, members).rate
    mu = _momentum(draw)
    rates = np.broadcast_to(np.stack([draw.ratio * eta, eta], axis=1)[..., None], (members, 2, STEPS))
    modes = spectrum(draw, size)
    x = modes.covectors[:, None] @ stack(descended(draw, size, rates, mu, method).simulated)
    _, b, c = np.moveaxis(_quadratic(modes.exponents, eta[:, None], mu[:, None], method), -1, 0)
    left = x[:, 2:] + b[:, None, :, None] * x[:, 1:-1] + c[:, None, :, None] * x[:, :-2]
    return (size_of(left) / size_of(x[:, 2:])).max(axis=1)


def _root(size: Size, members: int, method: Method):
    """The leading root at eta omega = +-1e-6: its log against eta omega/(1 - mu), relative."""
    mu = _momentum(draws(size, members))
    worst = np.zeros(members)
    for x in (1e-6, -1e-6):
        a = 2 + _quadratic(x, 1.0, mu, method)[:, 1]
        rise = 2 * x / (a + np.sqrt(a**2 + 4 * x))  # r - 1, a root of (r - 1)^2 + (2 + b)(r - 1) - x
        worst = np.maximum(worst, np.abs(np.log1p(rise) * (1 - mu) / x - 1))
    return worst


def _flow_limit(size: Size, members: int):
    """The order at which heavy ball tends to the flow with the clock over 1 - mu, its worst over the eighths of the time."""
    draw = draws(size, members)
    mu = 0.1 + 0.4 * draw.spare[:, 0]
    steps, states = 0.5 ** np.arange(HALVINGS), halved(draw, size, END, mu)
    modes = spectrum(draw, size)
    start = modes.covectors @ stacked(draw.features, draw.prototypes)
    clocks = clock(draw, END * np.arange(1, EIGHTHS + 1) / EIGHTHS) / (1 - mu)[:, None]
    flow = modes.vectors[:, None] @ (np.exp(clocks[..., None] * modes.exponents[:, None])[..., None] * start[:, None])
    errors = deviation(states, flow[:, None]).max(axis=2)
    return np.abs(np.array([measured_order(steps, row) for row in errors]) - 1)


_claim = functools.partial(Claim, id="beyond.gd", source=SOURCE)
_ANY = ("balanced classes", "any rates, step by step", "velocity zero before the first step")
_CONSTANT = ("balanced classes", "constant rates")
_STATEMENTS: dict[Method, tuple[str, str]] = {
    "heavy ball": ("[I + D A, -mu D; -A, mu I]", "r^2 - (1 + mu + eta omega) r + mu"),
    "nesterov": ("[I + (1 + mu) D A, -mu^2 D; -A, mu I]", "r^2 - (1 + mu)(1 + eta omega) r + mu (1 + eta omega)"),
}


def _claims(method: Method) -> tuple[Claim, ...]:
    matrix, quadratic = _STATEMENTS[method]
    check = lambda residuals: functools.partial(worst_of, functools.partial(residuals, method=method), sizes=(SIZE,))
    name = f"momentum-{method.replace(' ', '-')}"
    rows = (
        ("formula", "descent by formula = a plain loop, iterate by iterate", _ANY, 3e-14, _formula),
        ("simulated", "simulated descent = a plain loop, iterate by iterate", _ANY, 5e-14, _simulated),
        ("companion", f"each mode moves by {matrix}, deviations by that of -lambda1", _ANY, 5e-14, _companions),
        ("biases", "b - kappa/lambda moves by the companion of the scalar -lambda", _ANY, 5e-14, _biases),
        ("split", f"at a constant ratio the companion splits into {quadratic}", _CONSTANT, 5e-14, _splits),
        ("root", "its leading root tends to exp(eta omega/(1 - mu)) as eta does to 0", _CONSTANT, 5e-4, _root),
        ("recursion", f"every eigenvector's iterates obey {quadratic}", _CONSTANT, 5e-14, _recursion),
    )
    return tuple(
        _claim(
            name=f"{name}-{suffix}",
            statement=f"{method}: {statement}",
            assumptions=assumptions,
            tolerance=tolerance,
            check=check(residuals),
        )
        for suffix, statement, assumptions, tolerance, residuals in rows
    )


EXPERIMENT = Experiment(
    name="momentum",
    family="beyond",
    summary="gradient descent with momentum by formula",
    claims=(
        *_claims("heavy ball"),
        *_claims("nesterov"),
        _claim(
            name="momentum-flow-limit",
            statement="heavy ball tends, at order 1 in the step, to the flow with exponents omega/(1 - mu)",
            assumptions=("balanced classes", "constant ratio of rates", "momentum in (0.1, 0.5)"),
            tolerance=0.05,
            check=functools.partial(worst_of, _flow_limit, sizes=(SIZE,)),
        ),
    ),
)
