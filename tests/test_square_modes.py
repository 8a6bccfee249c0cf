"""Modes of the square loss against extended precision, at every special point, at extreme times, in float32."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from dynamics.exact import deep_modes, square_modes
from tests.helpers import refused

mp.mp.dps = 60
KAPPA, RATES = 0.7, (0.4, 2.5)
SPEED = 1.0  # sqrt(0.4 * 2.5)


def saxe(start, target, t, decay):
    """Bernoulli's equation: 1/v is linear, v = |u|."""
    if start == 0:
        return mp.mpf(0)
    sign = mp.sign(start)
    start, target, t, decay = map(mp.mpf, (float(start), float(target), float(t), float(decay)))
    pull, drag = 2 * SPEED * (mp.mpf(KAPPA) * sign * target - decay), 2 * SPEED * mp.mpf(KAPPA)
    fade = mp.exp(-pull * t)
    grown = t if pull == 0 else (1 - fade) / pull
    return sign / (fade / abs(start) + drag * grown)


def hyperbolic(start, target, imbalance, t):
    """As printed: x = tanh(theta/2), u = A sinh(theta)."""
    start, sigma, t = map(mp.mpf, (float(start), float(target), float(t)))
    half, clock = abs(mp.mpf(float(imbalance))) / 2, mp.mpf(KAPPA) * SPEED * t
    x0 = mp.tanh(mp.asinh(start / half) / 2)
    if sigma == 0:
        x = x0 * mp.exp(-2 * clock * half)
    else:
        q = half / sigma
        root = mp.sqrt(1 + q * q)
        up, down = -q + root, -q - root
        if sigma < 0:
            up, down = down, up
        ratio = (x0 - up) / (x0 - down) * mp.exp(-2 * clock * abs(sigma) * root)
        x = (up - ratio * down) / (1 - ratio)
    return 2 * half * x / (1 - x * x)


SAXE = [  # start, target, time, decay
    (1e-3, 1.3, 2.0, 0.0),
    (1e-3, 1.3, 2.0, 0.3),
    (2.0, 1.3, 0.5, 0.0),
    (1.3, 1.3, 5.0, 0.0),  # at the end
    (0.4, 0.0, 1e6, 0.0),  # a mode left over
    (0.4, 0.5, 1e6, 0.35),  # growth zero up to rounding of 0.7 * 0.5
    (0.4, 0.5, 3.0, 0.35 + 1e-9),
    (0.4, 0.5, 3.0, 0.35 - 1e-9),
    (0.4, 0.5, 3.0, 2.0),  # dies
    (-0.4, 0.5, 3.0, 0.1),
    (-0.4, -0.5, 3.0, 0.1),
    (0.4, -0.5, 3.0, 0.0),
    (0.0, 1.0, 1e9, 0.0),
    (1e-300, 1.0, 400.0, 0.0),
    (1e-300, 1.0, 600.0, 0.0),
    (1e-3, 1.0, 1e300, 0.0),
    (1e-3, 1.0, 0.0, 0.0),
    (0.5, 1e-12, 1e12, 0.0),
]
HYPERBOLIC = [  # start, target, imbalance, time
    (1e-3, 1.3, 0.4, 2.0),
    (1e-3, 1.3, -0.4, 2.0),
    (-0.8, 1.3, 1e-8, 9.0),  # creeps to zero, then through it
    (-0.8, 1.3, 1e-8, 25.0),
    (-0.8, 1.3, 3.0, 1.0),
    (1.3, 1.3, 0.7, 4.0),
    (0.8, 0.0, 0.3, 4.0),
    (-0.8, 0.0, 0.3, 4.0),
    (0.0, 1.0, 0.5, 0.3),
    (0.3, 1.0, 1e6, 1e-6),  # lazy
    (0.3, -1.0, 0.2, 2.0),
    (0.3, 1e-9, 1e-9, 1e3),
    (5.0, 1e-6, 2e-6, 1e4),
    (1e-200, 1.0, 1e-150, 350.0),
    (1e-3, 1.0, 0.5, 0.0),
    (1e-3, 1.0, 0.5, 1e250),
]


def test_balanced_modes_in_extended_precision():
    found = jax.jit(lambda u, s, t, d: square_modes.saxe_mode(u, s, t, decay=d, kappa=KAPPA, rates=RATES))(*np.transpose(SAXE))
    expected = np.array([float(saxe(*case)) for case in SAXE])
    # relative to the mode itself, however small, but for exponents of 1e3, whose rounding is exponentiated
    np.testing.assert_allclose(found, expected, rtol=2e-13)


def test_unbalanced_modes_in_extended_precision():
    mode = jax.jit(lambda *numbers: square_modes.hyperbolic_mode(*numbers, kappa=KAPPA, rates=RATES))
    found = mode(*np.transpose(HYPERBOLIC))
    with mp.workdps(700):
        expected = np.array([float(hyperbolic(*case)) for case in HYPERBOLIC])
    scale = np.abs(np.transpose(HYPERBOLIC)[:2]).max(axis=0)
    assert np.max(np.abs(found - expected) / scale) < 2e-13
    mirrored = mode(*(np.transpose(HYPERBOLIC) * np.array([-1, -1, 1, 1])[:, None]))
    assert np.array_equal(mirrored, -found)


def test_no_imbalance_is_the_balanced_mode():
    cases = np.array([case for case in SAXE if case[3] == 0])
    found = square_modes.hyperbolic_mode(*cases.T[:2], 0.0, cases.T[2], kappa=KAPPA, rates=RATES)
    expected = np.array([float(saxe(*case)) for case in cases])
    np.testing.assert_allclose(found, expected, rtol=2e-13, atol=1e-15)


def test_half_time():
    half = float(square_modes.saxe_half_time(0.01, 2.0, decay=0.35, kappa=KAPPA, rates=RATES))
    assert abs(saxe(0.01, 2.0, half, 0.35) - mp.mpf(0.75)) < 1e-15


def test_deep_modes_in_extended_precision():
    """Quadrature of the law, below and above the target and up to it."""
    spans = [(1e-3, 0.3), (0.3, 0.9999), (0.9999999, 0.99999999), (4.0, 1.5), (1.5, 1.0001)]
    rows = []
    with mp.workdps(20):
        for depth in (2.0, 3.0, 10.0, np.inf):
            power = mp.mpf(2) - (0 if depth == np.inf else 2 / mp.mpf(depth))
            for start, stop in spans:
                at = [mp.log(start) + k * (mp.log(stop) - mp.log(start)) / 4 for k in range(5)]
                clock = mp.quad(lambda x, power=power: mp.exp((1 - power) * x) / (1 - mp.exp(x)), at)
                rows.append((2 * start, 2 * stop, depth, float(clock / (KAPPA * 2**power))))
    start, stop, depth, clock = np.transpose(rows)
    found = jax.jit(lambda *numbers: deep_modes.deep_clock(*numbers, kappa=KAPPA))(start, stop, 2.0, depth)
    # near the target the clock is a logarithm of the distance, which the rounding of 0.99999999 moves by 1e-8 of itself
    blurred = np.abs(stop / 2 - 1) < 1e-6
    assert np.max(np.abs(found / clock - 1)[~blurred]) < 1e-12
    assert np.max(np.abs(found / clock - 1)[blurred]) < 1e-8
    reached = jax.jit(lambda *numbers: deep_modes.deep_mode(*numbers, kappa=KAPPA))(start, 2.0, clock, depth)
    np.testing.assert_allclose(reached, stop, rtol=1e-13)  # clocks reach 1e3, rounding of which is multiplied


def test_central_ratios_solve_their_equation():
    per_class, classes = 6, 4
    cases = [(1e-100, 1.0), (1e-100, 1e5), (0.03, 600.0), (3.0, 1e-3), (7.0, 1e30), (1e8, 1.0), (2.0, 0.0), (1e-3, 1e8)]
    found = square_modes.central_omega(*np.transpose(cases), per_class, classes)
    law = lambda z: classes**2 * z + classes * mp.exp(2 * z) + mp.exp(4 * z) / 4  # z = log omega
    for (start, t), omega in zip(cases, np.asarray(found), strict=True):
        end = law(mp.log(mp.mpf(start))) + mp.mpf(t) / per_class
        root = mp.findroot(lambda z, end=end: law(z) - end, mp.log(mp.mpf(float(omega))))
        assert abs(omega / float(mp.exp(root)) - 1) < 1e-13, (start, t)
    assert square_modes.central_omega(0.0, 1e9, per_class, classes) == 0


def test_central_loss_counts_missing_ratios():
    full = square_modes.central_loss(jnp.array([0.5, 0.0, 0.0]), 4)
    assert full == square_modes.central_loss(jnp.array([0.5]), 4) == 0.5 / 4.25 + 0.25


def test_trained_bias():
    """The linearised motion against the exponential of its generator after the bias has come to rest."""
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 3, 2))
    found = square_modes.mpp_linear(w, g, 0.4, 5, bias=1 / 3, kappa=KAPPA, rates=RATES)
    centred = np.eye(3) - 1 / 3
    pull = KAPPA * 5**0.5
    generator = np.block([[np.zeros((3, 3)), RATES[1] * pull * centred], [RATES[0] * pull * centred, np.zeros((3, 3))]])
    values, vectors = np.linalg.eig(generator)
    expected = (vectors * np.exp(0.4 * values)) @ np.linalg.solve(vectors, np.concatenate([w, g]))
    np.testing.assert_allclose(np.concatenate(found), expected.real, rtol=1e-12)
    single = square_modes.mpp_linear(w.astype(np.float32), g.astype(np.float32), 0.4, 5, bias=1 / 3, kappa=KAPPA, rates=RATES)
    assert single[0].dtype == single[1].dtype == jnp.float32
    np.testing.assert_allclose(np.concatenate(single), expected.real, atol=1e-5)
    assert abs(square_modes.mpp_bias(-2.0, 1e9, 3, 15) - 1 / 3) < 1e-16
    assert square_modes.mpp_subspace(0.0, 5.0, 4) == 0
    assert abs(square_modes.mpp_subspace(1e-9, 1e9, 4, rates=RATES) - (4 * 2.5 / 0.4) ** 0.5) < 1e-14


def test_spectrum_of_the_kernel():
    rng = np.random.default_rng(1)
    h, w = rng.normal(size=(6, 2)), rng.normal(size=(3, 2))
    theta = RATES[1] * np.kron(h @ h.T, np.eye(3)) + RATES[0] * np.kron(np.eye(6), w @ w.T)
    found = np.sort(np.ravel(square_modes.kernel_spectrum(h, w, rates=RATES)))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(theta), atol=1e-14)


def _differences(function, at, direction, step):
    """Fourth-order central differences."""
    value = lambda k: float(function(*(x + k * step * d for x, d in zip(at, direction, strict=True))))
    return (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * step)


FUNCTIONS = {
    "saxe": (lambda u, s, d, t: square_modes.saxe_mode(u, s, t, decay=d, kappa=KAPPA, rates=RATES), 4),
    "hyperbolic": (lambda u, s, d, t: square_modes.hyperbolic_mode(u, s, d, t, kappa=KAPPA, rates=RATES), 4),
    "deep": (lambda u, s, depth, t: deep_modes.deep_mode(u, s, t, depth, kappa=KAPPA), 4),
    "omega": (lambda u, t: square_modes.central_omega(u, t, 3, 4), 2),
}
SMOOTH = {  # points at which a printed formula is 0/0, or generic; the function is smooth there
    "saxe": [(0.3, 1.0, 0.2, 1.5), (0.3, 0.0, 0.0, 1.5), (1.0, 1.0, 0.0, 1.5), (0.3, 0.5, 0.35, 2.0), (-0.3, 0.4, 0.1, 0.7)],
    "hyperbolic": [
        (0.3, 1.0, 0.4, 1.5),
        (1.0, 1.0, 0.0, 1.5),
        (0.3, 0.0, 0.0, 1.5),
        (0.0, 0.0, 0.5, 1.0),
        (-0.7, 1.0, 0.3, 2.0),
    ],
    "deep": [(0.1, 1.0, 3.0, 2.0), (1.0, 1.0, 2.5, 2.0), (3.0, 1.0, 4.0, 0.5), (0.9, 0.9, 3.0, 1.0)],
    "omega": [(0.3, 40.0), (2.0, 1e4)],
}
FINITE = {  # at the edges, and where a derivative leaves the range of numbers
    "saxe": [
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 1e9),
        (1e-3, 1.0, 0.0, 1e300),
        (1e-300, 1.0, 0.0, 10.0),
        (-1.0, 1.0, 0.0, 1e9),
    ],
    "hyperbolic": [
        (0.0, 0.0, 0.0, 1.0),
        (0.0, 1.0, 0.0, 1e9),
        (-1.0, 1.0, 0.0, 1e9),
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 1.0, 1e300),
    ],
    "deep": [(1.0, 1.0, 2.0, 0.0), (0.1, 1.0, 3.0, 0.0), (0.1, 1.0, 5.0, 1e30), (1e-100, 1.0, 4.0, 1.0)],
    "omega": [(0.0, 1.0), (0.0, 1e9), (1e-8, 1e30), (1e8, 0.0), (0.5, 0.0)],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name):
    function, arity = FUNCTIONS[name]
    gradient = jax.jit(jax.vmap(jax.grad(function, argnums=tuple(range(arity)))))
    found = np.transpose(gradient(*np.transpose(SMOOTH[name] + FINITE[name])))
    assert np.all(np.isfinite(found))
    program = jax.jit(function)
    for at, slopes in zip(SMOOTH[name], found, strict=False):
        for k, slope in enumerate(slopes):
            expected = _differences(program, at, np.eye(arity)[k], 1e-3)
            assert abs(slope - expected) < 1e-8 * max(1, abs(expected)), (at, k, slope, expected)


@pytest.mark.parametrize(("name", "bound"), [("saxe", 2e-6), ("hyperbolic", 2e-6), ("deep", 5e-6), ("omega", 5e-6)])
def test_single_precision(name, bound):
    """Error over the larger of start and target (omega: over itself); times to 1e30."""
    function, arity = FUNCTIONS[name]
    rng = np.random.default_rng(3)
    start, target, other = 10 ** rng.uniform(-3, 1, 400), rng.uniform(0.2, 2, 400), rng.normal(size=400)
    t = 10 ** rng.uniform(-2, 30, 400)
    t[:200] = 10 ** rng.uniform(-2, 1, 200)
    third = {"saxe": np.abs(other), "deep": 2 + 3 * np.abs(other)}.get(name, other)
    numbers = (start, t) if arity == 2 else (start, target, third, t)
    single = [x.astype(np.float32) for x in numbers]
    found = jax.jit(function)(*single)
    assert found.dtype == jnp.float32
    exact = np.asarray(jax.jit(function)(*(x.astype(float) for x in single)))
    scale = exact if name == "omega" else np.maximum(start, target)
    assert np.max(np.abs(np.asarray(found, float) - exact) / scale) < bound


def test_a_bad_member_stays_alone():
    good = square_modes.hyperbolic_mode(np.full(3, 0.2), 1.0, np.array([0.1, 0.2, 0.3]), 2.0)
    with_nan = square_modes.hyperbolic_mode(np.array([0.2, np.nan, 0.2]), 1.0, np.array([0.1, 0.2, 0.3]), 2.0)
    assert np.array_equal(np.isnan(with_nan), [False, True, False])
    assert np.array_equal(np.asarray(good)[::2], np.asarray(with_nan)[::2])


def test_refusals_name_the_argument():
    refused(lambda: square_modes.saxe_mode(0.1, 1.0, -1.0), "t must be >= 0", "-1.0")
    refused(lambda: square_modes.hyperbolic_mode(0.1, 1.0, 0.0, 1.0, kappa=0.0), "kappa must be > 0")
    refused(lambda: square_modes.mpp_subspace(0.1, 1.0, 4, rates=(0.0, 1.0)), "the rate of features must be > 0")
    refused(lambda: square_modes.central_omega(-0.1, 1.0, 4, 3), "start must be >= 0")
    refused(lambda: deep_modes.deep_mode(0.0, 1.0, 1.0, 3), "start must be > 0")
    refused(lambda: deep_modes.deep_clock(0.1, 0.2, -1.0, 3), "target must be > 0")
