"""Iterates of networks against loops in NumPy and mpmath, and their margins against linear and quadratic programs."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from scipy.optimize import linprog, nnls

import dynamics as dyn
from dynamics.norms import L1, L2, Linf, Spectral
from dynamics.simulate.step_rules import ConstantRate, LossBased, LossBasedEpochs, Normalized

NORMS = {"L2": L2(), "Linf": Linf(), "L1": L1(), "Spectral": Spectral()}
EACH_NORM = pytest.mark.parametrize("name", NORMS)
SAMPLES, DIM = 12, 4


def separable(seed, samples=SAMPLES, dim=DIM, gap=0.3):
    """Normal inputs, labelled by a random direction and moved away from its plane by the gap."""
    random = np.random.default_rng(seed)
    x, way = random.standard_normal((samples, dim)), random.standard_normal(dim)
    way /= np.linalg.norm(way)
    y = np.sign(x @ way)
    return x + gap * y[:, None] * way, y


def largest_margin(signed, name):
    """The largest of min(signed @ w) over the unit ball of a norm of w."""
    samples, dim = signed.shape
    if name == "L2":  # the nearest point to zero of the convex hull of the rows
        weights, _ = nnls(np.vstack([signed.T, np.ones(samples)]), np.append(np.zeros(dim), 1.0))
        return np.linalg.norm(signed.T @ weights) / weights.sum()
    ones, zeros = np.ones((samples, 1)), np.zeros(samples)
    if name == "Linf":
        bounds = [(-1, 1)] * dim + [(None, None)]
        found = linprog(np.append(np.zeros(dim), -1), A_ub=np.hstack([-signed, ones]), b_ub=zeros, bounds=bounds)
    else:
        rows = np.vstack([np.hstack([-signed, signed, ones]), np.append(np.ones(2 * dim), 0)])
        bounds = [(0, None)] * (2 * dim) + [(None, None)]
        found = linprog(np.append(np.zeros(2 * dim), -1), A_ub=rows, b_ub=np.append(zeros, 1), bounds=bounds)
    return -found.fun


def many(function, *axes):
    """A function of (problem, ...) for a batch of its other arguments, compiled."""
    return eqx.filter_jit(jax.vmap(function, (None, *axes)))


def flat(weights):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def clusters(width=20):
    """Orthonormal inputs, three positive and two negative; its largest margin is 1/(2(sqrt 3 + sqrt 2))."""
    return dyn.Network(dyn.nets.two_layer(width), np.eye(5), np.array([1.0, 1, 1, -1, -1]))


BEST_OF_CLUSTERS = 1 / (2 * (3**0.5 + 2**0.5))


def clusters_force(weights, seen, targets):
    """The scaled force of `clusters` on some samples and the log of the sum of their losses, as the definition says it."""
    inner, outer = weights
    hidden = np.maximum(inner[:, seen], 0)  # (units, samples)
    y = targets[seen]
    q = y * (outer @ hidden)
    log_loss = np.log(np.sum(np.exp(-(q - q.min())))) - q.min()
    p = np.exp(-q - log_loss)
    force = np.zeros_like(inner)
    force[:, seen] = outer[:, None] * (hidden > 0) * (p * y)
    return log_loss, (force, hidden @ (p * y))


# norms


@EACH_NORM
def test_a_norm_its_dual_and_its_direction(name):
    """By NumPy; the direction has norm one and attains the dual norm, which no other weights of norm one exceed."""
    norm, random = NORMS[name], np.random.default_rng(3)
    force = (random.standard_normal((3, 2)), random.standard_normal(3))
    norms = {"L2": np.linalg.norm, "Linf": lambda w: np.max(np.abs(w)), "L1": lambda w: np.sum(np.abs(w))}
    duals = {"L2": np.linalg.norm, "Linf": norms["L1"], "L1": norms["Linf"]}
    norms["Spectral"] = lambda w: max(np.linalg.norm(w[:6].reshape(3, 2), 2), np.linalg.norm(w[6:]))
    duals["Spectral"] = lambda w: np.linalg.norm(w[:6].reshape(3, 2), "nuc") + np.linalg.norm(w[6:])
    way, dual = norm.direction(force), duals[name](flat(force))
    np.testing.assert_allclose(norm.dual(force), dual, rtol=1e-14)
    np.testing.assert_allclose(norm(way), 1, rtol=1e-14)
    np.testing.assert_allclose(flat(way) @ flat(force), dual, rtol=1e-14)
    np.testing.assert_allclose(flat(norm.steepest(force)), dual * flat(way), rtol=1e-14)
    for _ in range(10):
        other = random.standard_normal(9)
        np.testing.assert_allclose(norm((other[:6].reshape(3, 2), other[6:])), norms[name](other), rtol=1e-14)
    others = random.standard_normal((10_000, 9))
    assert max(other @ flat(force) / norms[name](other) for other in others) < dual


def test_the_spectral_norm_of_other_shapes():
    random = np.random.default_rng(4)
    force = (random.standard_normal((4, 3)), random.standard_normal(4), random.standard_normal((2, 2, 3, 5)))
    sizes = [np.linalg.svd(part, compute_uv=False) for part in (force[0], force[1][None], force[2].reshape(12, 5))]
    np.testing.assert_allclose(Spectral().dual(force), np.sum(np.concatenate(sizes)), rtol=1e-14)
    assert jax.tree.map(np.shape, Spectral().direction(force)) == jax.tree.map(np.shape, force)


def test_directions_of_degenerate_forces():
    """Rank one, ties and zero."""
    rank_one = np.outer([1.0, 2, 2], [3.0, 4])
    np.testing.assert_allclose(Spectral().direction(rank_one), rank_one / 15, atol=1e-15)
    np.testing.assert_array_equal(flat(L1().direction((np.array([1.0, -2]), np.array([2.0])))), [0, -1, 0])
    for norm in NORMS.values():
        np.testing.assert_array_equal(norm.direction(np.zeros((2, 2))), np.zeros((2, 2)))


@EACH_NORM
def test_margins_and_the_bregman_gap(name):
    """By the definitions; the gap of a deep linear net is zero at its optimum and positive elsewhere."""
    norm = NORMS[name]
    x, y = separable(0)
    problem = dyn.Network(dyn.nets.linear(), x, y, loss=dyn.losses.Logistic())
    weights = (np.array([1.0, -2, 0.5, 0.3]),)
    size = {"L2": np.linalg.norm(weights[0]), "Linf": 2.0, "L1": 3.8, "Spectral": np.linalg.norm(weights[0])}[name]
    q = y * (x @ weights[0])
    np.testing.assert_allclose(norm.margin(problem, weights), q.min() / size, rtol=1e-14)
    loss = np.sum(np.log1p(np.exp(-q)))
    np.testing.assert_allclose(norm.soft_margin(problem, weights), -np.log(np.expm1(loss)) / size, rtol=1e-12)
    force = x.T @ (y / (1 + np.exp(q)))
    dual = {"L2": np.linalg.norm(force), "Linf": np.abs(force).sum(), "L1": np.abs(force).max()}
    dual["Spectral"] = dual["L2"]
    gap = size**2 * (1 - force @ weights[0] / dual[name] / size)
    np.testing.assert_allclose(norm.bregman_gap(problem, weights), gap, rtol=1e-12)
    one = dyn.Network(dyn.nets.linear(), x[:1], y[:1])
    np.testing.assert_allclose(norm.bregman_gap(one, norm.direction((x[0] * y[0],))), 0, atol=1e-14)
    assert np.isnan(norm.margin(problem, (np.zeros(4),)))


# rules, step by step


def test_steps_are_those_of_a_plain_loop():
    """Loss-based with a binding and a free cap, normalised, constant: 300 steps of a ReLU net in NumPy, with the time."""
    problem, targets = clusters(), np.array([1.0, 1, 1, -1, -1])
    start = dyn.initial.weights(problem, key=jax.random.key(1))
    rules = (
        (LossBased(0.5, 0.7), lambda k, size, log_loss, force: min(0.5, 0.7 / size**2)),
        (Normalized(lambda k: 0.05 / jnp.sqrt(k + 1)), lambda k, size, log_loss, force: 0.05 / np.sqrt(k + 1) / force),
        (ConstantRate(0.1), lambda k, size, log_loss, force: 0.1 * np.exp(log_loss)),
    )
    for rule, size in rules:
        moved = dyn.steepest_descent(problem, start, rule, 300, every=100)
        weights, log_times, time = tuple(np.array(leaf) for leaf in start), [-np.inf], -np.inf
        for k in range(300):
            log_loss, force = clusters_force(weights, np.arange(5), targets)
            h = size(k, np.linalg.norm(flat(weights)), log_loss, np.linalg.norm(flat(force)))
            weights = tuple(x + h * g for x, g in zip(weights, force, strict=True))
            time = np.logaddexp(time, np.log(h) - log_loss)
            log_times += [time] * ((k + 1) % 100 == 0)
        np.testing.assert_allclose(flat([leaf[-1] for leaf in moved.states]), flat(weights), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(moved.log_t, log_times, rtol=1e-12)
        np.testing.assert_array_equal(moved.ts, [0, 100, 200, 300])
        assert moved.status == dyn.status.OK and moved.stats["steps"] == 300


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_constant_rate_is_descent(batch_size):
    """The same iterates as gradient descent of the plain loss, with the same minibatches."""
    problem, key = clusters(), None if batch_size is None else jax.random.key(5)
    start = dyn.initial.weights(problem, key=jax.random.key(1))
    moved = dyn.steepest_descent(problem, start, ConstantRate(0.1), 200, every=20, batch_size=batch_size, key=key)
    plain = dyn.descent(problem, start, dyn.Rates.equal(0.1), 200, every=20, batch_size=batch_size, key=key)
    for a, b in zip(moved.states, plain.states, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moved.log_t[1:], np.log(0.1 * moved.ts[1:]), rtol=1e-12)


def test_a_constant_rate_past_the_range_of_floats():
    """A loss near e^-2000 at a rate of e^2000: stochastic descent in 60 digits."""
    x, y = separable(1)
    problem = dyn.Network(dyn.nets.linear(), x, y)
    signed = x * y[:, None]
    start = (signed.T @ np.full(SAMPLES, 60.0),)
    start = (start[0] * (2000 / np.min(signed @ start[0])),)
    key = jax.random.key(2)
    for batch_size in (None, 3):
        given = {} if batch_size is None else {"batch_size": batch_size, "key": key}
        moved = dyn.steepest_descent(problem, start, ConstantRate(log_rate=2000.0), 40, **given)
        with mpmath.workdps(60):
            rate, weights = mpmath.exp(2000), [mpmath.mpf(float(w)) for w in start[0]]
            for k in range(40):
                seen = range(SAMPLES)
                if batch_size is not None:
                    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, k), SAMPLES))
                    seen = np.flatnonzero(order // batch_size == 0)
                pulls = {i: mpmath.exp(-mpmath.fdot(weights, map(float, signed[i]))) for i in seen}
                share = mpmath.mpf(SAMPLES) / len(seen)
                weights = [
                    w + rate * share * sum(p * float(signed[i, j]) for i, p in pulls.items()) for j, w in enumerate(weights)
                ]
            wanted = np.array([float(w) for w in weights])
        assert np.linalg.norm(wanted - start[0]) > 0.1
        np.testing.assert_allclose(moved.states[0][-1] - start[0], wanted - start[0], rtol=1e-8)


@pytest.mark.slow
def test_epochs_grow_and_shrink_as_a_plain_loop_does():
    """Accepted and rejected epochs of minibatches of two, in NumPy."""
    x, y = separable(2, samples=8)
    signed, key = x * y[:, None], jax.random.key(3)
    problem = dyn.Network(dyn.nets.linear(), x, y)
    moved = dyn.steepest_descent(problem, (np.zeros(DIM),), LossBasedEpochs(3.0), 60, batch_size=2, key=key)

    def log_loss(w):
        return np.logaddexp.reduce(-signed @ w)

    weights, rate, before, time, rejected = np.zeros(DIM), 3.0, np.log(8), -np.inf, 0
    for epoch in range(60):
        order, trial = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), 8)), weights
        for place in range(4):
            seen = signed[order // 2 == place]
            trial = trial + rate * 4 * np.exp(-seen @ trial - before) @ seen
        if log_loss(trial) <= before:
            time = np.logaddexp(time, np.log(4 * rate) - before)
            weights, before, rate = trial, log_loss(trial), rate * 2**0.2
        else:
            rate, rejected = rate / 2**0.1, rejected + 1
        np.testing.assert_allclose(moved.states[0][epoch + 1], weights, rtol=1e-8)
        np.testing.assert_allclose(moved.log_t[epoch + 1], time, rtol=1e-8)
    assert 0 < rejected < 60


def test_an_optimizer_is_fed_with_the_scaled_force():
    """Adam by a plain loop; late, its steps are nearly those of sign descent."""
    x, y = separable(3)
    problem, signed = dyn.Network(dyn.nets.linear(), x, y), x * y[:, None]
    adam = optax.adam(1.0)
    moved = dyn.steepest_descent(problem, (np.zeros(DIM),), Normalized(0.01), 4000, every=1000, optimizer=adam)
    weights, memory = np.zeros(DIM), (np.zeros(DIM), np.zeros(DIM))
    for k in range(4000):
        q = signed @ weights
        p = np.exp(-(q - q.min()))
        force = signed.T @ (p / p.sum())
        memory = 0.9 * memory[0] + 0.1 * force, 0.999 * memory[1] + 0.001 * force**2
        first, second = memory[0] / (1 - 0.9 ** (k + 1)), memory[1] / (1 - 0.999 ** (k + 1))
        weights = weights + 0.01 * first / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(moved.states[0][-1], weights, rtol=1e-8)
    reached = {
        name: float(norm.margin(problem, (weights,))) / largest_margin(signed, name)
        for name, norm in NORMS.items()
        if name != "Spectral"
    }
    assert reached["Linf"] == max(reached.values())


# what the iterates tend to


def test_linear_predictors_reach_the_largest_margin_of_their_own_norm():
    """64 data sets in one call: margins over those of linear and quadratic programs after 1e5 steps of length 0.5/sqrt(k)."""
    inputs, targets = (np.stack(parts) for parts in zip(*map(separable, range(64)), strict=True))
    signed = inputs * targets[:, :, None]
    plain = {name: norm for name, norm in NORMS.items() if name != "Spectral"}  # of a vector it is the Euclidean one
    best = {name: np.array([largest_margin(rows, name) for rows in signed]) for name in plain}
    observe = {name: norm.margin for name, norm in plain.items()}
    rule = Normalized(lambda k: 0.5 / jnp.sqrt(k + 1))
    for name, norm in plain.items():

        @jax.jit
        @jax.vmap
        def one(x, y, norm=norm):
            problem = dyn.Network(dyn.nets.linear(), x, y)
            return dyn.steepest_descent(problem, (jnp.zeros(DIM),), rule, 100_000, every=100_000, norm=norm, observe=observe)

        moved = one(inputs, targets)
        assert np.all(moved.status == dyn.status.OK)
        ratio = {other: moved.observed[other][:, -1] / best[other] for other in plain}
        if name == "L1":
            assert np.median(ratio[name]) > 0.995 and np.min(ratio[name]) > 0.99
        else:
            assert np.min(ratio[name]) > 0.995
        others = np.max([np.asarray(ratio[other]) for other in plain if other != name], axis=0)
        # where another norm's ratio is above 0.99, the optima of the two nearly coincide
        assert np.all((others < ratio[name]) | (others > 0.99))
        assert np.sum(others < 0.99) > 30 and np.max(others) < 1


@pytest.mark.slow
@EACH_NORM
def test_the_soft_margin_never_falls(name):
    """Two-layer linear net, steps of 1e-3, once the loss is below one; its bound is that of a linear program.

    Sign descent crosses back and forth where an entry of the force is zero: its single steps may lower the margin by a multiple
    of the square of their length, and ten of them never do.
    """
    norm = NORMS[name]
    x, y = separable(0, samples=10, dim=3)
    problem = dyn.Network(dyn.nets.deep_linear((4,)), x, y)
    start = jax.vmap(lambda key: dyn.initial.weights(problem, key=key, scale=0.5))(jax.random.split(jax.random.key(1), 4))
    observe = {
        "soft": norm.soft_margin,
        "gap": lambda problem, weights: norm.bregman_gap(problem, weights) / norm(weights) ** 2,
        "log loss": lambda problem, weights: problem.log_loss(weights),
    }
    given = {"norm": norm, "observe": observe}
    moved = many(lambda p, s: dyn.steepest_descent(p, s, Normalized(1e-3), 20_000, **given), 0)(problem, start)
    soft, separated = np.asarray(moved.observed["soft"]), np.asarray(moved.observed["log loss"]) < 0
    assert np.all(np.diff(soft)[separated[:, :-1]] >= (-10 * 1e-3**2 if name == "Linf" else 0))
    assert np.all(np.diff(soft[:, ::10])[separated[:, :-1:10]] >= 0)
    # over layers: |a||W| at |a|^2 + |W|^2 = 1, four units alike, |a|_1 |W|_1 at a sum of one, |a||W|_op with both one
    share = {"L2": 1 / 2, "Linf": 4, "L1": 1 / 4, "Spectral": 1}[name]
    best = share * largest_margin(x * y[:, None], "L2" if name == "Spectral" else name)
    assert np.all(soft[:, -1] < best) and np.all(
        soft[:, -1] > {"L2": 0.95, "Linf": 0.9, "L1": 0.7, "Spectral": 0.95}[name] * best
    )
    gap = np.asarray(moved.observed["gap"])[:, 1:].reshape(4, 10, -1).mean(axis=2)
    assert np.all(gap > 0) and np.all(gap[:, -1] < 0.35 * gap[:, 0])


def ends_of_clusters(rule, steps):
    """Margins over the largest and the logarithm to base 10 of the loss after steps from 64 starts of a ReLU net."""
    problem, norm = clusters(), L2()
    start = jax.vmap(lambda key: dyn.initial.weights(problem, key=key))(jax.random.split(jax.random.key(0), 64))
    observe = {"margin": norm.margin, "log loss": lambda problem, weights: problem.log_loss(weights)}

    def one(problem, start):
        return dyn.steepest_descent(problem, start, rule, steps, every=steps, observe=observe)

    moved = many(one, 0)(problem, start)
    return np.asarray(moved.observed["margin"])[:, -1] / BEST_OF_CLUSTERS, moved.observed["log loss"][:, -1] / np.log(10)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [1.0, 10.0])
def test_the_cap_keeps_the_margin(cap):
    """To a loss of 1e-800, with the same distribution of margins for every cap; some starts never separate."""
    margin, log_loss = ends_of_clusters(LossBased(0.5, cap), int(40_000 / cap))
    separated = margin > 0
    assert np.sum(separated) >= 60 and np.median(margin) > 0.92 and np.max(margin) < 1
    assert np.min(margin[separated]) > 0.7
    assert np.sum(log_loss < -800) >= 60


def test_without_the_cap_the_margin_is_lost():
    """In 100 steps to a loss far below 1e-800."""
    with pytest.warns(UserWarning, match="cap"):
        margin, log_loss = ends_of_clusters(LossBased(10.0, None), 100)
    assert np.sum(log_loss < -800) >= 60 and np.median(margin) < 0.1


@pytest.mark.parametrize("batch_size", [None, 1])
def test_late_stochastic_descent_is_an_euler_scheme_of_the_direction(batch_size):
    """The defect of the Euler step of the direction over the square of its length, steps like 1/(k log k), a growing margin."""
    problem, rate, begin = clusters(), 0.1, 2000
    start = jax.vmap(lambda key: dyn.initial.weights(problem, key=key, scale=0.3))(jax.random.split(jax.random.key(0), 4))

    def one(problem, start, key):
        given = {} if batch_size is None else {"batch_size": batch_size, "key": key}
        return dyn.steepest_descent(problem, start, ConstantRate(rate), 12_000, **given)

    moved = many(one, 0, 0)(problem, start, jax.random.split(jax.random.key(7), 4))
    inner, outer = (np.asarray(leaf)[:, begin:] for leaf in moved.states)
    weights = np.concatenate([inner.reshape(*outer.shape[:2], -1), outer], axis=2)
    size = np.linalg.norm(weights, axis=2, keepdims=True)
    u, step = weights / size, np.diff(weights, axis=1) / size[:, :-1]
    tangent = step - np.sum(step * u[:, :-1], axis=2, keepdims=True) * u[:, :-1]
    defect, length = np.linalg.norm(np.diff(u, axis=1) - tangent, axis=2), np.linalg.norm(step, axis=2)
    assert np.all(defect <= length**2 + 1e-15) and np.median(length) > 1e-6
    hidden = np.einsum("stu,stux->stx", outer, np.maximum(inner, 0)) * [1, 1, 1, -1, -1]  # of unit inputs: the margins
    loss, k = np.sum(np.exp(-hidden), axis=2), np.arange(begin, 12_001)
    slow = rate * loss * k * np.log(k)  # the step of the direction is the rate times the loss
    assert np.all((slow > 1.4) & (slow < 2.2)) and np.all(np.abs(slow[:, -1] / slow[:, 4000] - 1) < 0.05)
    if batch_size is None:
        assert np.all(np.diff(slow) < 0) and np.all(defect < 0.5 * (rate * loss[:, :-1]) ** 2)
    margin = np.min(hidden, axis=2) / size[:, :, 0] ** 2 / BEST_OF_CLUSTERS
    assert np.all(margin[:, -1] > margin[:, 0] + 0.003) and np.all(margin[:, -1] > 0.7)


# how runs end, and what is refused


@pytest.mark.slow
def test_float32():
    """Near the iterates of the same start in float64."""
    x, y = separable(0)
    problem, key = dyn.Network(dyn.nets.deep_linear((4,)), x.astype(np.float32), y), jax.random.key(1)
    start = dyn.initial.weights(problem, key=jax.random.key(0))

    @eqx.filter_jit
    def runs(problem, start):
        return (
            dyn.steepest_descent(problem, start, LossBased(0.1, 1.0), 50, every=50),
            dyn.steepest_descent(problem, start, Normalized(dyn.schedules.Cosine(0.1, 50.0)), 50, every=50, norm=Spectral()),
            dyn.steepest_descent(problem, start, LossBasedEpochs(0.1), 50, every=50, batch_size=3, key=key),
        )

    wide = dyn.Network(dyn.nets.deep_linear((4,)), x, y), tuple(leaf.astype(float) for leaf in start)
    for single, double in zip(runs(problem, start), runs(*wide), strict=True):
        assert single.status == dyn.status.OK
        assert {leaf.dtype for leaf in jax.tree.leaves((single.states, single.log_t))} == {np.dtype(np.float32)}
        np.testing.assert_allclose(
            flat([leaf[-1] for leaf in single.states]), flat([leaf[-1] for leaf in double.states]), rtol=2e-4
        )


def test_a_bad_member_ends_alone():
    """NaN, a dead net, and one past the norm cap, beside a good member whose numbers stay the same to the bit."""
    problem = clusters(4)
    good = dyn.initial.weights(problem, key=jax.random.key(1))
    dead = (-jnp.ones((4, 5)), jnp.ones(4))
    run = many(lambda p, s, rate: dyn.steepest_descent(p, s, LossBased(rate, 1e300), 40, every=10), 0, 0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), good, dead, good, good)
    bad = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), stacked)
    rates = jnp.array([0.1, 0.1, 0.1, 1e100])
    moved = run(problem, bad, rates)
    clean = run(problem, jax.tree.map(lambda leaf: leaf.at[1:].set(leaf[0]), stacked), rates * 0 + 0.1)
    np.testing.assert_array_equal(
        moved.status, [dyn.status.OK, dyn.status.FIXED_POINT, dyn.status.BAD_INPUT, dyn.status.NORM_CAP]
    )
    for a, b in zip(moved.states, clean.states, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(flat([leaf[1, -1] for leaf in moved.states]), flat(dead))
    assert np.all(np.isnan(moved.states[0][2:, 1:])) and np.all(np.isnan(moved.log_t[2:, 1:]))
    np.testing.assert_array_equal(moved.stats["steps"], [40, 40, 0, 1])  # one step of 1e100 is below the cap


def test_derivatives_in_the_rate():
    """Of the last norm, against central differences."""
    x, y = separable(0)
    problem = dyn.Network(dyn.nets.linear(), x, y)

    def last(rate):
        moved = dyn.steepest_descent(problem, (np.full(DIM, 0.1),), LossBased(rate, 10.0), 20, every=10)
        return jnp.linalg.norm(moved.states[0][-1])

    apart = (last(0.2 + 1e-5) - last(0.2 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(last)(0.2), apart, rtol=1e-7)


def test_what_is_refused():
    x, y = separable(0)
    problem, start = dyn.Network(dyn.nets.linear(), x, y), (np.zeros(DIM),)
    key = jax.random.key(0)

    def refused(match, problem=problem, rule=None, steps=4, **given):
        with pytest.raises(ValueError, match=match):
            dyn.steepest_descent(problem, start, LossBased(0.1, 1.0) if rule is None else rule, steps, **given)

    refused("dynamics.Network", problem=dyn.LayerPeeled([0, 1], num_classes=2))
    refused("decay 0", problem=dyn.Network(dyn.nets.linear(), x, y, decay=0.1))
    refused("step_rules", rule=0.1)
    refused("norms", norm="L2")
    refused("every must divide", every=3)
    refused("batch_size must be None with LossBased", batch_size=2, key=key)
    refused("batch_size must be None with Normalized", rule=Normalized(0.1), batch_size=2, key=key)
    refused("key must be given", rule=ConstantRate(0.1), batch_size=2)
    refused("batch_size must divide", rule=LossBasedEpochs(), batch_size=5, key=key)
    refused("batch_size must be at most", rule=ConstantRate(0.1), batch_size=13, key=key)
    refused("optimizer must be an optax", rule=Normalized(0.1), optimizer=3)
    refused("optimizer needs the rule Normalized", optimizer=optax.adam(1.0))
    refused("optimizer needs the rule Normalized and no norm", rule=Normalized(0.1), optimizer=optax.adam(1.0), norm=L1())
    for made in (
        lambda: LossBased(0.0, 1.0),
        lambda: LossBased(0.1, -1.0),
        lambda: ConstantRate(),
        lambda: ConstantRate(0.1, log_rate=0.0),
        lambda: ConstantRate(-0.1),
        lambda: ConstantRate(log_rate=np.inf),
        lambda: LossBasedEpochs(0.0),
        lambda: Normalized("fast"),
        lambda: Normalized(lambda k: jnp.ones(2)),
    ):
        with pytest.raises(ValueError):
            made()


@pytest.mark.slow
def test_what_is_warned_of():
    """Once, where nothing keeps the steps of all samples small."""
    problem, start = clusters(), dyn.initial.weights(clusters(), key=jax.random.key(0))
    for rule in (LossBased(0.1, None), LossBasedEpochs()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dyn.steepest_descent(problem, start, rule, 2)
        assert [str(warning.category.__name__) for warning in caught] == ["UserWarning"] and "margin" in str(caught[0].message)
    dyn.steepest_descent(problem, start, LossBasedEpochs(), 2, batch_size=1, key=jax.random.key(0))
