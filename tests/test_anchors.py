"""Exact answers for networks: equal margins, balanced deep linear nets, constants of the rates, the largest margins."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics import exact
from dynamics.losses import Exponential, Logistic
from dynamics.schedules import Cosine
from dynamics.status import BAD_INPUT, OK, OUTSIDE_ASSUMPTIONS
from tests.helpers import compiled, draw, refused

TS = np.array([0.0, 1e-6, 0.3, 2.0, 40.0])
EQUAL = dyn.Rates.equal(1.0)
SLOPES = {Exponential: lambda q: np.exp(-q), Logistic: lambda q: 1 / (1 + np.exp(q))}
HIGH = mpmath.MPContext()
HIGH.dps = 40


def integrated(signed, loss, weights, clocks):
    """Weights of a linear net of any depth (a list of matrices) at the clocks: SciPy on hand-written gradients."""
    shapes = [w.shape for w in weights]
    cuts = np.cumsum([w.size for w in weights])[:-1]
    unflat = lambda flat: [part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    def force(_, flat):
        layers = [np.atleast_2d(w) for w in unflat(flat)]
        before = [np.eye(layers[0].shape[1])]
        for w in layers:
            before.append(w @ before[-1])
        pull = SLOPES[loss](signed @ before[-1][0]) @ signed
        after, parts = np.eye(1), []
        for w, under in zip(layers[::-1], before[-2::-1], strict=True):
            parts.append((after.T @ pull[None] @ under.T).ravel())
            after = after @ w
        return np.concatenate(parts[::-1])

    first = np.concatenate([w.ravel() for w in weights])
    done = solve_ivp(force, (0, clocks[-1]), first, "DOP853", clocks, rtol=1e-13, atol=1e-14)
    return [unflat(column) for column in done.y.T]


def worst(states, expected) -> float:
    """The largest distance over the norm, over times; states with leading times against a list of lists."""
    rows = np.concatenate([np.asarray(w, float).reshape(len(expected), -1) for w in states], axis=1)
    truth = np.stack([np.concatenate([w.ravel() for w in at]) for at in expected])
    return float(np.max(np.linalg.norm(rows - truth, axis=1) / np.linalg.norm(truth, axis=1)))


def moved_by(loss, rates=EQUAL):
    """A compiled flow of (inputs, targets, start)."""
    return compiled(lambda inputs, targets, start: exact.flow(predictor(inputs, targets, loss), (start,), rates, TS))


def predictor(inputs, targets, loss=Exponential):
    return dyn.Network(dyn.nets.linear(), inputs, targets, loss())


@pytest.mark.parametrize("loss", [Exponential, Logistic])
@pytest.mark.parametrize("dim, target", [(1, 1.0), (3, -1.0)])
def test_single_sample_flow(loss, dim, target):
    x, start = 1.7 * draw(1, dim, seed=1), draw(dim, seed=2)
    rates = dyn.Rates.equal(Cosine(1.3, 7.0, 0.2))
    moved = moved_by(loss, rates)(x, np.array([target]), start)
    assert int(moved.status) == OK
    clocks = np.asarray(rates.weights.integral(TS))
    assert worst(moved.states, integrated(target * x, loss, [start], clocks)) <= 3e-12
    # for |x| = 1 the printed form: e^w grows by t, or w + e^w does
    unit = x[0] / np.linalg.norm(x)
    along = np.asarray(moved_by(loss)(unit[None], np.ones(1), start).states[0]) @ unit
    grown = np.exp(along) + (along if loss is Logistic else 0.0)
    np.testing.assert_allclose(grown - grown[0], TS, rtol=1e-12, atol=2e-15)


@pytest.mark.parametrize("loss", [Exponential, Logistic])
def test_single_sample_at_far_times(loss):
    log_t = np.array([-50.0, -1.0, 3.0, 79.9, 80.1, 700.0, 800.0, 1e4, 1e9, 1e12])
    for start, speed in ((0.0, 1.0), (-30.0, 2.0), (-1e4, 500.0), (5.0, 0.3), (900.0, 1e-3)):
        found = np.asarray(exact.single_sample(log_t, start, speed=speed, loss=loss()))
        for log, q in zip(log_t, found, strict=True):
            by = HIGH.mpf(speed) * HIGH.exp(log)
            if loss is Exponential:
                growth = HIGH.log1p(by * HIGH.exp(-HIGH.mpf(start)))
            else:
                due = lambda d, by=by, start=start: d + HIGH.exp(HIGH.mpf(start)) * HIGH.expm1(d) - by
                low, high = HIGH.mpf(0), min(by, HIGH.log1p(by * HIGH.exp(-HIGH.mpf(start))))
                for _ in range(180):
                    middle = (low + high) / 2
                    low, high = (middle, high) if due(middle) < 0 else (low, middle)
                growth = high
            assert abs(HIGH.mpf(float(q)) - start - growth) <= 4e-16 * (abs(start) + growth), (log, start, speed)
    single = exact.single_sample(jnp.asarray(log_t, jnp.float32), jnp.float32(0.3), loss=loss())
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact.single_sample(log_t, 0.3, loss=loss()), rtol=3e-7)


def mirrored(a, b, turn):
    """Two samples (a, b) and (a, -b) after multiplying by the targets +1 and -1, turned into three dimensions."""
    signed = np.array([[a, b, 0.0], [a, -b, 0.0]]) @ turn
    targets = np.array([1.0, -1.0])
    return signed, targets[:, None] * signed, targets


@pytest.mark.parametrize("a, b", [(0.7, 1.3), (2.0, 0.1), (0.9, 0.0)])
def test_two_point_flow(a, b):
    turn = np.linalg.qr(draw(3, 3))[0]
    signed, inputs, targets = mirrored(a, b, turn)
    start = np.array([-0.4, 0.0, 0.8]) @ turn
    moved = moved_by(Exponential)(inputs, targets, start)
    assert int(moved.status) == OK
    first = np.asarray(moved.states[0]) @ turn.T
    np.testing.assert_allclose(first[:, 0], np.log(np.exp(-0.4 * a) + 2 * a**2 * TS) / a, rtol=1e-12)
    np.testing.assert_allclose(first[:, 1:], np.broadcast_to([0.0, 0.8], (5, 2)), atol=1e-14)
    assert worst(moved.states, integrated(signed, Exponential, [start], TS)) <= 1e-11
    far = exact.single_sample(np.log(TS[1:]), -0.4 * a, speed=2 * a**2)
    np.testing.assert_allclose(far, a * first[1:, 0], rtol=1e-12)


def test_two_point_invariant():
    a, b = 0.7, 1.3
    signed = np.array([[a, b], [a, -b]])
    path = np.array([at[0] for at in integrated(signed, Exponential, [np.array([0.1, -0.9])], TS)])
    found = np.asarray(exact.two_point_invariant(path, a, b))
    np.testing.assert_allclose(found, np.log(np.sinh(b * 0.9)) + b**2 / a * 0.1, atol=1e-10)
    assert np.exp(found[0] - found[-1]) == pytest.approx(1, abs=1e-10) and np.ptp(path[:, 1]) > 0.5
    assert float(exact.two_point_invariant(np.array([3.0, 0.0]), a, b)) == -np.inf
    assert float(exact.two_point_invariant(np.array([0.0, 1e4]), a, b)) == pytest.approx(1.3e4 - np.log(2), rel=1e-15)


def test_many_samples_of_equal_margins():
    """Three of one class and one of the other, repeated points among them; orthogonal ones; a mean of zero."""
    point = draw(3, seed=4)
    repeated = np.array([point, point, point, -point]), np.array([1.0, 1.0, 1.0, -1.0]), draw(3)
    orthogonal = 1.5 * np.linalg.qr(draw(4, 4))[0][:3], np.ones(3), np.zeros(4)
    for loss, (inputs, targets, start) in itertools.product((Exponential, Logistic), (repeated, orthogonal)):
        moved = moved_by(loss)(inputs, targets, start)
        assert worst([moved.states[0][1:]], integrated(targets[:, None] * inputs, loss, [start], TS)[1:]) <= 1e-11
    still = moved_by(Exponential)(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, -1.0]), np.array([-2.0, 1.0]))
    np.testing.assert_array_equal(still.states[0], np.broadcast_to([-2.0, 1.0], (5, 2)))


def test_what_linear_predictors_refuse():
    problem = predictor(draw(2, 3), [1.0, -1.0])
    start = (draw(3),)
    with pytest.raises(dyn.NoClosedForm, match="margins of the samples are not equal"):
        exact.flow(problem, start, EQUAL, TS)
    with pytest.raises(dyn.NoClosedForm, match="pulled equally"):
        exact.flow(problem, (np.zeros(3),), EQUAL, TS)
    with pytest.raises(dyn.NoClosedForm, match="without decay"):
        exact.flow(dyn.Network(dyn.nets.linear(), draw(1, 3), [1.0], decay=0.1), start, EQUAL, TS)
    for other, rates, words in (
        (problem, dyn.Rates(1.0, 2.0), "one rate"),
        (dyn.Network(dyn.nets.two_layer(2), draw(1, 3), [1.0]), EQUAL, "not a linear predictor"),
        (dyn.LayerPeeled.balanced(2, 2, loss=dyn.losses.CrossEntropy(), kernel=np.eye(4)), EQUAL, "not a Network"),
    ):
        with pytest.raises(dyn.NoClosedForm, match=words):
            exact.flow(other, start, rates, TS)
    single = predictor(draw(1, 3), [1.0])
    for ask in (
        lambda: exact.descent(single, start, EQUAL, 3),
        lambda: exact.descent(single, start, EQUAL, 3, batch_size=1),
        lambda: exact.max_step(single, EQUAL),
    ):
        with pytest.raises(dyn.NoClosedForm):
            ask()
    refused(lambda: exact.flow(single, (np.full(3, np.nan),), EQUAL, TS), "state", "finite")
    refused(lambda: exact.single_sample(1.0, speed=0.0), "speed", "> 0")
    refused(lambda: exact.single_sample(np.nan), "log_t", "finite")
    refused(lambda: exact.single_sample(1.0, loss=dyn.losses.SquaredError()), "loss", "SquaredError")
    refused(lambda: exact.two_point_invariant(np.zeros(3), 1.0, 1.0), "weights", "(3,)")


def test_a_batch_keeps_its_members_apart():
    inputs, targets = np.array([[1.0, 0.5], [1.0, -0.5]]), np.ones(2)
    starts = np.array([[0.3, 0.0], [0.3, 0.2], [np.inf, 0.0], [-1.0, 0.0]])
    one = lambda start: exact.flow(predictor(inputs, targets), (start,), EQUAL, TS)
    many = compiled(jax.vmap(one))
    moved, alone = many(starts), many(starts[[3, 3, 3, 3]])
    np.testing.assert_array_equal(moved.status, [OK, OUTSIDE_ASSUMPTIONS, BAD_INPUT, OK])
    assert np.all(np.isnan(moved.states[0][1:3])) and np.all(np.isfinite(moved.states[0][::3]))
    np.testing.assert_array_equal(moved.states[0][3], alone.states[0][3])


def test_scaled_and_observed_networks():
    problem, start = predictor(draw(1, 3), [1.0]), (draw(3, seed=7),)
    plain = exact.flow(problem, start, EQUAL, TS)
    scaled = exact.flow(problem, start, EQUAL, TS, scaled=True)
    norms = np.linalg.norm(np.asarray(plain.states[0]), axis=1)
    np.testing.assert_allclose(np.exp(scaled.log_scale), norms, rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(scaled.states[0]), axis=1), 1.0, rtol=1e-14)
    watched = exact.flow(problem, start, EQUAL, TS, observe={"log_loss": lambda p, s: p.log_loss(s)})
    expected = -np.asarray(plain.states[0]) @ np.asarray(problem.inputs[0])
    np.testing.assert_allclose(watched.observed["log_loss"], expected, rtol=1e-13)


def test_limit_of_a_linear_predictor():
    x = draw(1, 3)
    limit = exact.limit(predictor(x, [-1.0]), (draw(3, seed=5),), EQUAL)
    np.testing.assert_allclose(limit.direction[0], -x[0] / np.linalg.norm(x), rtol=1e-14)
    far = np.linalg.norm(np.asarray(exact.flow(predictor(x, [-1.0]), (np.zeros(3),), EQUAL, [1e250, 1e300]).states[0]), axis=1)
    assert (far[1] - far[0]) / np.log(1e50) == pytest.approx(float(limit.constants["norm_per_log_clock"]), rel=1e-10)


def log_integral(start, margin, depth):
    """log of the integral of e^u u^(2/L - 2), to 25 digits."""
    start, margin, a = HIGH.mpf(start), HIGH.mpf(margin), 2 - HIGH.mpf(2) / depth
    inside = (start * 10, start * 100, start * 10**4, HIGH.mpf(1), margin - 100, margin - 40, margin - 10, margin - 2)
    nodes = sorted({start, margin, *(p for p in inside if start < p < margin)})
    return margin + HIGH.log(HIGH.quad(lambda u: HIGH.exp(u - margin) * u**-a, nodes))


PAIRS = [(0.3, 0.3 + 1e-9), (0.5, 1.0), (1e-6, 2.0), (2.0, 15.9), (2.0, 16.1), (1e-6, 40.0), (10.0, 1e2), (30.0, 31.0)]
PAIRS += [(1.0, 1e3), (5.0, 1e6), (1e6, 1e6 + 3), (0.01, 1e12)]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_times_of_a_balanced_net(depth):
    start, margin = np.array(PAIRS).T
    gamma, samples = 0.37, 10
    found = np.asarray(exact.balanced_log_time(margin, start, depth=depth, gamma=gamma, samples=samples))
    for (v0, v), log_t in zip(PAIRS, found, strict=True):
        expected = log_integral(v0, v, depth) - HIGH.log(samples * depth) - 2 * HIGH.log(gamma) / depth
        assert abs(HIGH.mpf(float(log_t)) - expected) <= 1e-15 * max(1, abs(expected)), (v0, v)
        if depth == 2 and v < 1e4:
            printed = HIGH.log((HIGH.ei(v) - HIGH.ei(v0)) / (2 * samples * gamma))
            assert abs(log_t - printed) <= 1e-14 * max(1, abs(printed))
    back = np.asarray(exact.balanced_margin(found, start, depth=depth, gamma=gamma, samples=samples))
    # what a rounding of log t moves the margin by
    slope = np.array([float(HIGH.exp(log_integral(*pair, depth) - pair[1]) * pair[1] ** (2 - 2 / depth)) for pair in PAIRS])
    assert np.all(np.abs(back - margin) <= 1e-15 * (margin + 4 * np.maximum(np.abs(found), 3.0) * slope))
    single = exact.balanced_margin(jnp.float32(found), jnp.float32(start), depth=depth, gamma=gamma, samples=samples)
    assert single.dtype == jnp.float32
    single_slope = np.maximum(np.abs(found), 3.0) * slope
    assert np.all(np.abs(np.asarray(single) - margin) <= 3e-7 * (margin + 8 * single_slope))


def test_derivatives_of_balanced_margins():
    points = np.array([*itertools.product((-3.0, 12.0, 60.0), (0.2, 3.0, 40.0), (0.8,))]).T
    for depth in (1, 2, 3.5):
        at = lambda log_t, start, gamma, depth=depth: exact.balanced_margin(log_t, start, depth=depth, gamma=gamma, samples=3)
        slopes = compiled(jax.vmap(jax.grad(at, (0, 1, 2))))(*points)
        for which, slope in enumerate(slopes):
            step = np.zeros_like(points)
            step[which] = 1e-5 * points[which]
            central = (at(*(points + step)) - at(*(points - step))) / (2 * step[which])
            np.testing.assert_allclose(slope, central, rtol=2e-7, atol=1e-8)


def balanced_start(depth, dim, size, seed=0):
    """Layers of rank one with one singular value, aligned, their first right vector, and the sign of the product."""
    rng = np.random.default_rng([seed, depth])
    unit = lambda n: (lambda x: x / np.linalg.norm(x))(rng.normal(size=n))
    vectors = [unit(dim), *(unit(2 + layer) for layer in range(depth - 1)), np.ones(1)]
    layers = [size * np.outer(out, into) for into, out in itertools.pairwise(vectors)]
    return [*layers[:-1], layers[-1][0]], vectors[0]


def level_samples(ray, gamma, count, seed=0):
    """Samples with <z, ray> = gamma whose mean is along the ray, and both targets."""
    rest = np.random.default_rng([seed, 9]).normal(size=(count, ray.size))
    rest -= rest.mean(axis=0)
    rest -= np.outer(rest @ ray, ray)
    targets = np.where(np.arange(count) < 1, -1.0, 1.0)
    signed = gamma * ray + rest
    return signed, targets[:, None] * signed, targets


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_balanced_flow(depth):
    start, ray = balanced_start(depth, 3, 0.8)
    signed, inputs, targets = level_samples(ray, 0.6, 5)
    problem = dyn.Network(dyn.nets.deep_linear(tuple(range(2, depth + 1))), inputs, targets)
    rates = dyn.Rates.equal(Cosine(1.3, 7.0, 0.2))
    flow = compiled(lambda data, start: exact.flow(dyn.Network(problem.net, *data), start, rates, TS))
    moved = flow((inputs, targets), tuple(start))
    assert int(moved.status) == OK
    clocks = np.asarray(rates.weights.integral(TS))
    assert worst(moved.states, integrated(signed, Exponential, start, clocks)) <= 1e-10
    margins = np.asarray(jax.vmap(problem.margins)(moved.states))
    assert np.ptp(margins, axis=1).max() <= 1e-13 * margins.max()
    rows = exact.balanced_log_time(margins[1:, 0], margins[0, 0], depth=depth, gamma=0.6, samples=5)
    np.testing.assert_allclose(rows[1:], np.log(clocks[2:]), atol=1e-11)
    if depth != 3:
        return
    limit = compiled(lambda: exact.limit(problem, tuple(start), rates))()
    far = compiled(lambda: exact.flow(problem, tuple(start), EQUAL, [1e300], scaled=True))()
    assert worst([w[None] for w in limit.direction], [[np.asarray(w[0]) for w in far.states]]) <= 1e-14
    ratio = np.exp(float(far.log_scale[0])) / np.log(1e300) ** (1 / depth)
    assert ratio == pytest.approx(float(limit.constants["norm_per_root_log_clock"]), rel=0.03)

    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (tuple(start), inputs, targets))
    single = flow(narrow[1:], narrow[0])
    assert single.states[0].dtype == jnp.float32 and int(single.status) == OK
    assert worst(single.states, [[np.asarray(w[i]) for w in moved.states] for i in range(5)]) <= 2e-6


def test_balanced_flow_asks_for_its_assumptions():
    start, ray = balanced_start(3, 3, 0.8)
    _, inputs, targets = level_samples(ray, 0.6, 5)
    net = dyn.nets.deep_linear((2, 3))
    heavier = [start[0], 1.001 * start[1], start[2]]
    away, tilted = inputs.copy(), inputs + 0.1 * targets[:, None] * np.cross(ray, [1.0, 0.0, 0.0])
    away[0] *= 1.1
    for data, weights, words in (
        (inputs, heavier, "not balanced"),
        (away, start, "not equal at the start"),
        (tilted, start, "along the mean"),
        (-inputs, start, "margin at the start must be > 0"),
        (inputs, [0 * w for w in start], "margin at the start must be > 0"),
    ):
        with pytest.raises(dyn.NoClosedForm, match=words):
            exact.flow(dyn.Network(net, data, targets), tuple(weights), EQUAL, TS)

    def one(size):
        weights = (start[0], size * start[1], start[2])
        return exact.flow(dyn.Network(net, inputs, targets), weights, EQUAL, TS)

    many = compiled(jax.vmap(one))
    moved, alone = many(np.array([1.0, 1.1, np.nan])), many(np.ones(3))
    np.testing.assert_array_equal(moved.status, [OK, OUTSIDE_ASSUMPTIONS, BAD_INPUT])
    np.testing.assert_array_equal(moved.states[1][0], alone.states[1][0])
    problem = dyn.Network(dyn.nets.deep((2, 3)), inputs, targets)
    with pytest.raises(dyn.NoClosedForm, match="not a deep linear one"):
        exact.flow(problem, tuple(start), EQUAL, TS)
    refused(lambda: exact.balanced_log_time(1.0, 2.0, depth=2), "margin", "at least start")
    refused(lambda: exact.balanced_log_time(1.0, 0.0, depth=2), "start", "> 0")
    refused(lambda: exact.balanced_margin(1.0, 1.0, depth=0.5), "depth", ">= 1")
    refused(lambda: exact.balanced_margin(1.0, 1.0, depth=2, gamma=0.0), "gamma", "> 0")
    refused(lambda: exact.balanced_margin(1.0, 1.0, depth=2, samples=0), "samples", ">= 1")
    assert float(exact.balanced_log_time(2.0, 2.0, depth=3)) == -np.inf


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_rate_constants(depth):
    """Along balanced nets: n e^-v t (log t)^a and rho/(log t)^(1/L), the least margin over rho^L being gamma L^(-L/2)."""
    gamma, samples = 0.37, 10
    log_t = np.array([1e2, 1e3, 1e6, 1e9])
    v = np.asarray(exact.balanced_margin(log_t, 0.5, depth=depth, gamma=gamma, samples=samples))
    known = exact.rate_constants(gamma * depth ** (-depth / 2), depth)
    loss = np.exp(np.log(samples) - v + log_t) * log_t ** (2 - 2 / depth) / float(known.loss)
    norm = np.sqrt(depth) * (v / gamma) ** (1 / depth) / log_t ** (1 / depth) / float(known.norm)
    off = np.abs(np.stack([loss, norm]) - 1)
    assert np.all(off <= 6 * np.log(log_t) / log_t)
    if depth > 1:
        assert np.all(np.diff(off[:, :3], axis=1) < 0)
    refused(lambda: exact.rate_constants(0.0, 2), "margin", "> 0")
    refused(lambda: exact.rate_constants(1.0, 0), "degree", "> 0")


NORMS = {"l2": (2, 2), "l1": (1, np.inf), "linf": (np.inf, 1)}
"""Orders of the norm and of its dual."""


def separable(count, dim, seed, gap=0.2):
    """Samples at least `gap` on the right side of a random plane, one of them with target -1."""
    rng = np.random.default_rng([seed, count, dim])
    plane = rng.normal(size=dim)
    plane /= np.linalg.norm(plane)
    signed = rng.normal(size=(count, dim))
    along = signed @ plane
    signed += np.outer(np.where(along < gap, gap + np.abs(along) - along, 0.0), plane)
    targets = np.where(np.arange(count) < 1, -1.0, 1.0)
    return targets[:, None] * signed, targets


def check_optimal(best, inputs, targets, norm, within=1e-10):
    """A direction of unit norm with that margin, and weights that prove that there is none larger."""
    signed = targets[:, None] * inputs
    own, dual = NORMS[norm]
    assert np.linalg.norm(best.direction, own) == pytest.approx(1, abs=1e-14)
    assert np.min(signed @ best.direction) == pytest.approx(best.margin, rel=1e-12)
    assert np.all(best.multipliers >= 0) and best.multipliers.sum() == pytest.approx(1, abs=1e-13)
    assert 0 < best.margin <= np.linalg.norm(best.multipliers @ signed, dual) * (1 + 1e-14)
    assert np.linalg.norm(best.multipliers @ signed, dual) <= best.margin * (1 + within)


@pytest.mark.parametrize("norm", NORMS)
def test_largest_margins_are_proved(norm):
    for seed, (count, dim) in itertools.product(range(8), [(1, 1), (1, 4), (5, 1), (12, 4), (40, 3), (8, 30), (200, 10)]):
        inputs, targets = separable(count, dim, seed)
        check_optimal(exact.max_margin(inputs, targets, norm), inputs, targets, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_hard_largest_margins(norm):
    inputs, targets = separable(12, 4, 3)
    plain = exact.max_margin(inputs, targets, norm)
    repeated = exact.max_margin(np.repeat(inputs, 3, axis=0), np.repeat(targets, 3), norm)
    check_optimal(repeated, np.repeat(inputs, 3, axis=0), np.repeat(targets, 3), norm)
    assert repeated.margin == pytest.approx(plain.margin, rel=1e-12)
    for factor in (1e-8, 1e8):
        assert exact.max_margin(factor * inputs, targets, norm).margin == pytest.approx(factor * plain.margin, rel=1e-11)
    for gap in (1e-2, 1e-4, 1e-6):
        # two samples almost opposite: the margin is of the size of the gap
        close = np.array([[1.0, gap, 0.0], [-1.0, gap, 0.0], [0.3, 2.0, 0.1]])
        check_optimal(exact.max_margin(close, np.ones(3), norm), close, np.ones(3), norm, within=1e-9)
    axes = 0.7 * np.eye(5)
    best = exact.max_margin(axes, np.ones(5), norm)
    assert best.margin == pytest.approx(0.7 * {"l2": 5**-0.5, "l1": 0.2, "linf": 1.0}[norm], rel=1e-12)


def enumerated_l2(signed):
    """The largest L2 margin over all sets of support vectors."""
    found = 0.0
    for size in range(1, signed.shape[1] + 2):
        for chosen in itertools.combinations(range(len(signed)), size):
            rows = signed[list(chosen)]
            point = np.linalg.pinv(rows) @ np.ones(size)
            if np.allclose(rows @ point, 1):
                found = max(found, np.min(signed @ point) / np.linalg.norm(point))
    return found


def enumerated_polygon(signed, corners):
    """The largest margin over a polygon: at its corners or where two samples are level on an edge."""
    found = -np.inf
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        at_a, at_b = signed @ a, signed @ b
        shares = [0.0, 1.0]
        for i, j in itertools.combinations(range(len(signed)), 2):
            rise = (at_b - at_a)[i] - (at_b - at_a)[j]
            if rise != 0:
                shares.append(np.clip((at_a[j] - at_a[i]) / rise, 0.0, 1.0))
        found = max(found, *(np.min(at_a + share * (at_b - at_a)) for share in shares))
    return found


def test_largest_margins_by_enumeration():
    square = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    diamond = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for seed in range(6):
        inputs, targets = separable(7, 2, seed)
        signed = targets[:, None] * inputs
        for norm, corners in (("linf", square), ("l1", diamond)):
            found = exact.max_margin(inputs, targets, norm).margin
            assert found == pytest.approx(enumerated_polygon(signed, corners), rel=1e-10)
        inputs, targets = separable(7, 3, seed)
        expected = enumerated_l2(targets[:, None] * inputs)
        assert exact.max_margin(inputs, targets).margin == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_samples_that_nothing_separates(norm):
    inputs, targets = separable(9, 3, 1)
    against = np.vstack([inputs, inputs[:2]]), np.append(targets, -targets[:2])
    with pytest.raises(ValueError, match=r"separable .* misclassifies [2-4] of 11 samples"):
        exact.max_margin(*against, norm)
    with pytest.raises(ValueError, match="misclassifies 1 of 3 samples"):
        exact.max_margin(np.array([[1.0], [2.0], [-1.0]]), np.ones(3), norm)
    with pytest.raises(ValueError, match="misclassifies 2 of 2 samples"):
        exact.max_margin(np.zeros((2, 3)), np.ones(2), norm)
    # zero on an edge of the hull: the margin is zero, not negative
    with pytest.raises(ValueError, match="no direction has a positive margin"):
        exact.max_margin(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.ones(3), norm)


def test_what_largest_margins_refuse():
    refused(lambda: exact.max_margin(np.ones((2, 2)), [1.0, 0.0]), "targets", "+1 or -1")
    refused(lambda: exact.max_margin(np.ones((2, 2)), [1.0]), "targets", "(samples,)")
    refused(lambda: exact.max_margin(np.ones(2), [1.0]), "inputs", "(samples, dim)")
    refused(lambda: exact.max_margin(np.ones((0, 2)), []), "inputs", ">= 1")
    refused(lambda: exact.max_margin([[np.inf]], [1.0]), "inputs", "finite")
    refused(lambda: exact.max_margin(np.ones((1, 2)), [1.0], "l3"), "norm", "l3")
    refused(lambda: exact.two_layer_max_margin(np.ones((1, 2)), [1.0], np.ones((3, 4))), "directions", "(units, dim)")
    refused(lambda: exact.two_layer_max_margin(np.ones((1, 2)), [1.0], np.zeros((1, 2))), "directions", "zero")
    refused(lambda: exact.two_layer_max_margin(np.ones(2), [1.0], np.ones((1, 2))), "inputs", "(samples, dim)")
    refused(lambda: exact.cluster_margin(0, 0), "positive", "negative")
    refused(lambda: exact.cluster_margin(-1, 2), "positive")


def test_two_layer_margins():
    corners = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]) / 2**0.5
    parity = np.array([1.0, 1.0, -1.0, -1.0])
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    grid = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    best = exact.two_layer_max_margin(corners, parity, 3 * grid)
    assert best.margin == pytest.approx(1 / 8, rel=1e-10) and np.abs(best.direction).sum() == pytest.approx(1, abs=1e-13)
    for plus, minus in ((3, 2), (1, 1), (5, 1), (4, 0)):
        inputs = np.linalg.qr(draw(plus + minus + 1, plus + minus + 1))[0][: plus + minus]
        targets = np.repeat([1.0, -1.0], [plus, minus])
        means = np.stack([inputs[targets == side].sum(axis=0) for side in (1, -1) if np.any(targets == side)])
        around = np.vstack([means, draw(200, plus + minus + 1)])
        best = exact.two_layer_max_margin(inputs, targets, around)
        assert best.margin == pytest.approx(exact.cluster_margin(plus, minus), rel=1e-9)
        assert np.sum(np.abs(best.direction[: len(means)])) == pytest.approx(1, abs=1e-9)
        if plus != 3:
            continue
        # a network of these units has that margin over its squared norm
        units = means / np.linalg.norm(means, axis=1, keepdims=True)
        outer = np.sign(best.direction[: len(means)]) * np.sqrt(np.abs(best.direction[: len(means)]))
        weights = (np.abs(outer)[:, None] * units, outer)
        problem = dyn.Network(dyn.nets.two_layer(len(means)), inputs, targets)
        over = np.asarray(problem.margins(weights)) / sum(np.sum(w**2) for w in weights)
        assert np.min(over) == pytest.approx(best.margin, rel=1e-9)
