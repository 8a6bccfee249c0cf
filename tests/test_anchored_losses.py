"""Squared error and cross-entropy by formula: anchored, and cross-entropy with both layers from a symmetric start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import dynamics as dyn
from dynamics.losses import CrossEntropy, SquaredError
from dynamics.schedules import Cosine
from dynamics.status import BAD_INPUT, OK, OUTSIDE_ASSUMPTIONS
from tests import oracle_rates, oracles
from tests.helpers import UNSORTED, compiled, draw, refused, relative, spoiled

TS = np.array([0.0, 0.6, 3.0, 9.0])
WEIGHTS = np.array([0.5, 1.5, 1.0, 1.0, 0.2, 1.8, 0.0, 2.0])
WIDE = np.array([3, 0, 1, 2, 0, 1, 0, 3])
RATE = oracle_rates.cosine(0.9, 7.0, 0.2)
still = lambda t, middle: 0.0


def rates(scale=1.0):
    return dyn.Rates(Cosine(0.9 * scale, 7.0, 0.2 * scale), 3.0)


def etf(classes: int, dim: int) -> np.ndarray:
    """Unit vectors of a simplex, turned."""
    corners = (np.eye(classes) - 1 / classes) @ np.eye(classes, dim) if dim >= classes else None
    if corners is None:
        values, vectors = np.linalg.eigh(np.eye(classes) - 1 / classes)
        corners = vectors[:, values > 0.5]
    turn = np.linalg.qr(draw(corners.shape[1] if dim < classes else dim, dim if dim >= classes else classes - 1, seed=5))[0]
    corners = corners @ turn
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


def square_problem(labels, decay=0.3, weights=WEIGHTS):
    classes = int(labels.max()) + 1
    return dyn.LayerPeeled(
        labels, num_classes=classes, loss=SquaredError(), decay=dyn.Decay(decay), anchored=True, sample_weights=weights
    )


def prototypes_of_many_kinds(classes: int, dim: int) -> np.ndarray:
    """Generic, a simplex where there is room, of rank one, zero."""
    generic = draw(4, classes, dim)
    generic[1] = 2 * etf(classes, dim) if dim >= classes - 1 else generic[1]
    generic[2] = np.outer(generic[2, :, 0], generic[2, 0])
    generic[3] = 0.0
    return generic


def affine_flow(plain, start, clocks):
    """Features at the clocks, by the exponential of the affine force on them."""
    force = lambda h: plain.force(start._replace(features=h.reshape(start.features.shape))).features.ravel()
    flat, rest = start.features.ravel(), force(np.zeros(start.features.size))
    generator = np.zeros((flat.size + 1, flat.size + 1))
    generator[:-1] = np.column_stack([*(force(unit) - rest for unit in np.eye(flat.size)), rest])
    return [(expm(clock * generator) @ np.append(flat, 1.0))[:-1].reshape(start.features.shape) for clock in clocks]


@pytest.mark.parametrize("labels, dim", [(UNSORTED, 4), (WIDE, 2)], ids=["room", "narrow"])
def test_square_flow(labels, dim):
    classes = labels.max() + 1
    features, biases, kinds = draw(8, dim), draw(classes), prototypes_of_many_kinds(classes, dim)

    @compiled
    @functools.partial(jax.vmap, in_axes=(0, None))
    def exact(w, decay):
        return dyn.exact.flow(square_problem(labels, decay), dyn.Peeled(features, w, biases), rates(), TS)

    clocks = np.asarray(rates().features.integral(TS))
    for decay in (0.3, 0.0):
        moved = exact(kinds, decay)
        assert np.all(moved.status == OK)
        plain = oracles.Plain(labels, "squared_error", None, WEIGHTS, (decay, 0.0, 0.0), anchored=True)
        for i, w in enumerate(kinds):
            truth = affine_flow(plain, oracles.Point(features, w, biases), clocks)
            for k, expected in enumerate(truth):
                assert relative(moved.states.features[i, k], expected) <= 1e-12
                assert np.array_equal(moved.states.prototypes[i, k], w)


def test_square_for_long_and_in_single_precision():
    kinds, features, biases, ts = prototypes_of_many_kinds(3, 4), draw(8, 4), draw(3), np.array([1.0, 1e3, 1e12])

    @compiled
    @jax.vmap
    def both(w):
        state = dyn.Peeled(features.astype(w.dtype), w, biases.astype(w.dtype))
        instance = square_problem(UNSORTED, 0.0), state, rates()
        return dyn.exact.flow(*instance, ts).states.features, dyn.exact.limit(*instance)

    narrow, (wide, limit) = both(kinds.astype(np.float32))[0], both(kinds)
    assert narrow.dtype == np.float32 and np.all(limit.growth_exponent == 0)
    for i, w in enumerate(kinds):
        assert relative(narrow[i, :2], wide[i, :2]) <= 1e-5
        settled = features + (np.eye(3)[UNSORTED] - biases - features @ w.T) @ np.linalg.pinv(w, 1e-12).T
        settled[6] = features[6]  # of weight zero
        assert relative(wide[i, 2], settled) <= 1e-11
        assert relative(limit.direction.features[i] * np.exp(limit.constants["log_norm"][i]), settled) <= 1e-11


@pytest.mark.parametrize("nesterov", [False, True])
def test_square_descent(nesterov):
    features, biases, kinds = draw(8, 2), draw(4), prototypes_of_many_kinds(4, 2)
    run = {"every": 10, "dt": 0.7, "momentum": 0.6, "nesterov": nesterov}

    @compiled
    @jax.vmap
    def exact(w):
        return dyn.exact.descent(square_problem(WIDE), dyn.Peeled(features, w, biases), rates(), 30, **run)

    moved = exact(kinds)
    plain = oracles.Plain(WIDE, "squared_error", None, WEIGHTS, (0.3, 0.0, 0.0), anchored=True)
    for i, w in enumerate(kinds):
        truth = oracles.loop(plain, oracles.Point(features, w, biases), RATE, still, 30, **run)
        for k, point in enumerate(truth):
            assert relative(moved.states.features[i, k], point.features) <= 1e-13


@compiled
def _approach(state):
    instance = square_problem(WIDE, 0.05, np.ones(8)), state, dyn.Rates.equal(1.0)
    limit = dyn.exact.limit(*instance)
    ts = jnp.array([10.0, 20.0]) / limit.rate
    return limit, dyn.exact.flow(*instance, ts, scaled=True).states.features


def test_square_rate_of_the_limit():
    limit, unit = _approach(dyn.Peeled(draw(8, 2), draw(4, 2), draw(4)))
    gaps = np.linalg.norm(unit - limit.direction.features, axis=(1, 2))
    assert np.log(gaps[0] / gaps[1]) / 10 == pytest.approx(1, rel=0.02)


def slopes(one, points, directions, step=1e-4):
    """Derivatives of `one(x)` along directions at points against fourth-order differences, in one program; the worst gap."""
    stencil = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    batch = np.array([*points, *(x + k * step * d for x in points for d in directions for k, _ in stencil)])
    values, gradients = compiled(jax.vmap(jax.value_and_grad(one)))(batch)
    values, gradients = np.asarray(values), np.asarray(gradients)
    gaps, at = [], len(points)
    for i, _ in enumerate(points):
        for d in directions:
            difference = sum(w * values[at + j] for j, (_, w) in enumerate(stencil)) / step
            at += len(stencil)
            gaps.append(abs(gradients[i] @ d - difference) / max(abs(difference), 0.1))
    return oracles.worst(gaps)


def test_square_derivatives_where_eigenvalues_are_equal_or_zero():
    features, biases, mix = draw(8, 4), draw(3), draw(8, 4, seed=3)
    problem = lambda decay: square_problem(UNSORTED, decay)

    def one(x):
        state = dyn.Peeled(features, x[:12].reshape(3, 4), biases)
        chosen = dyn.Rates(x[12], 1.0)
        flow = dyn.exact.flow(problem(x[13] ** 2), state, chosen, jnp.array([0.0, 1.3, 9.0]))
        descent = dyn.exact.descent(problem(x[13] ** 2), state, chosen, 8, every=4, dt=0.8, momentum=0.5)
        return jnp.sum((flow.states.features + descent.states.features) * mix)

    kinds = prototypes_of_many_kinds(3, 4)
    points = [np.append(w.ravel(), tail) for w in kinds for tail in ((0.7, 0.5), (0.7, 0.0))]
    points.append(np.append(kinds[1].ravel(), (0.01, 0.5)))
    ways = [*draw(4, 14, seed=9), np.eye(14)[12], np.eye(14)[13]]
    assert slopes(one, points, ways) <= 1e-6


def ce_problem(labels, classes, decay=0.0, **fields):
    fields = {"anchored": True, "sample_weights": WEIGHTS} | fields
    return dyn.LayerPeeled(labels, num_classes=classes, loss=CrossEntropy(), decay=dyn.Decay(decay), **fields)


def symmetric_start(labels, corners, own, offset=0.0):
    """Multiples `own` of the own corner, an orthogonal part, prototypes that are not centred."""
    across = draw(len(labels), corners.shape[1], seed=7)
    across = across - across @ np.linalg.pinv(corners) @ corners
    return own[:, None] * corners[labels] + across, 1.3 * corners + offset


FAR = np.array([1e20, 1e30])


def test_cross_entropy_anchored_flow_and_limit():
    corners = etf(3, 4)
    features, prototypes = symmetric_start(UNSORTED, corners, 2 * draw(8), offset=draw(4))
    starts = {
        "simplex": (UNSORTED, 3, features, prototypes, np.full(3, 0.4)),
        "two classes": (UNSORTED % 2, 2, draw(8, 3), draw(2, 3), draw(2)),
    }
    for labels, classes, h, w, b in starts.values():

        @compiled
        def run(*start, labels=labels, classes=classes):
            instance = ce_problem(labels, classes), dyn.Peeled(*start), rates()
            return dyn.exact.flow(*instance, np.append(TS, FAR)), dyn.exact.limit(*instance)

        wide, limit = run(h, w, b)
        assert wide.status == OK
        plain = oracles.Plain(labels, "cross_entropy", None, WEIGHTS, anchored=True)
        truth = oracles.dop853(plain, oracles.Point(h, w, b), RATE, still, TS, [7.0])
        for k, point in enumerate(truth):
            assert relative(wide.states.features[k], point.features) <= 1e-11
        if classes == 3:
            narrow, _ = run(*map(np.float32, (h, w, b)))
            assert narrow.status == OK and narrow.states.features.dtype == np.float32
            assert relative(narrow.states.features, wide.states.features) <= 1e-6

        own = (w - w.mean(axis=0))[labels] * (WEIGHTS > 0)[:, None]
        assert relative(limit.direction.features, own / np.linalg.norm(own)) <= 1e-14
        gained = np.linalg.norm(wide.states.features[-1] - wide.states.features[-2]) / np.log(1e10)
        assert gained == pytest.approx(float(limit.constants["norm_per_log_clock"]), rel=0.03)
        assert limit.growth_exponent == 0 and limit.rate == 0


def test_cross_entropy_anchored_derivatives():
    corners, mix, across = etf(3, 4), draw(8, 4, seed=3), symmetric_start(UNSORTED, etf(3, 4), np.zeros(8))[0]

    def one(x):
        h = x[:8, None] * corners[UNSORTED] + across
        rate = x[8]
        moved = dyn.exact.flow(
            ce_problem(UNSORTED, 3), dyn.Peeled(h, x[9] * corners), dyn.Rates(rate**2, 1.0), jnp.array([0.0, 2.0, 40.0])
        )
        return jnp.sum(moved.states.features * mix)

    own = draw(8)
    points = [
        np.append(own, (0.9, 1.2)),
        np.append(0 * own, (0.9, 1.2)),
        np.append(own, (0.0, 1.2)),
        np.append(own, (0.9, 0.0)),
    ]
    assert slopes(one, points, [*draw(3, 10, seed=4), np.eye(10)[8], np.eye(10)[9]]) <= 1e-6


def joint_start(a, b, classes=3, per_class=2, dim=4):
    corners, labels = etf(classes, dim), np.repeat(np.arange(classes), per_class)
    across = draw(classes * per_class, dim, seed=8)
    across = across - across @ np.linalg.pinv(corners) @ corners
    across = across.reshape(classes, per_class, dim)
    across = across - across.mean(axis=1, keepdims=True) + across[0, 0]
    return a * corners[labels] + across.reshape(-1, dim), b * corners + draw(dim, seed=1)


def joint_problem(**fields):
    return dyn.LayerPeeled.balanced(3, 2, loss=CrossEntropy(), **fields)


def test_cross_entropy_joint_flow_and_limit():
    biases, ratio, eta = np.full(3, 0.7), 2.5, oracle_rates.cosine(0.9, 7.0, 0.2)

    @compiled
    @jax.vmap
    def run(*start):
        problem = joint_problem(bias=True, decay=dyn.Decay(biases=0.1))
        instance = problem, dyn.Peeled(*start), dyn.Rates.proportional(Cosine(0.9, 7.0, 0.2), ratio)
        return dyn.exact.flow(*instance, np.append(TS, FAR)), dyn.exact.limit(*instance)

    pairs = [(1.1, 0.4), (0.0, 0.9), (-0.8, 0.0), (-1.0, 1.3), (2.0, -0.1), (1e-3, 1e-3)]
    starts = [joint_start(a, b) for a, b in pairs]
    batch = *map(np.stack, zip(*starts, strict=True)), np.tile(biases, (len(pairs), 1))
    (wide, limit), (narrow, _) = run(*batch), run(*map(np.float32, batch))
    assert np.all(wide.status == OK) and np.all(narrow.status == OK)
    assert narrow.states.features.dtype == np.float32
    assert np.max(wide.stats["error_estimate"]) <= 1e-10
    plain = oracles.Plain(np.repeat(np.arange(3), 2), "cross_entropy", None, None, (0.0, 0.0, 0.1), bias=True)
    still_there, offset = joint_start(0.0, 0.0)
    for i, (h, w) in enumerate(starts):
        truth = oracles.dop853(plain, oracles.Point(h, w, biases), lambda t, m: ratio * eta(t, m), eta, TS, [7.0])
        for k, point in enumerate(truth):
            for moved, bound in ((wide, 1e-11), (narrow, 1e-5)):
                state = jax.tree.map(lambda x, i=i, k=k: x[i, k], moved.states)
                assert relative((state.features, state.prototypes, state.biases), point) <= bound

        moving = np.concatenate([wide.states.features[i, -2:] - still_there, wide.states.prototypes[i, -2:] - offset], axis=1)
        norms = np.linalg.norm(moving, axis=(1, 2))
        direction = np.concatenate([limit.direction.features[i], limit.direction.prototypes[i]])
        assert relative(moving[1] / norms[1], direction) <= 0.03  # the part that fades goes like 1/log of the clock
        gained = np.diff(norms**2)[0] / np.log(1e10)
        assert gained == pytest.approx(float(limit.constants["norm_per_root_log_clock"][i]) ** 2, rel=0.05)
    assert np.all(limit.growth_exponent == 0) and np.all(limit.rate == 0)


@pytest.mark.slow
def test_cross_entropy_joint_derivatives():
    corners, labels, mix = etf(3, 4), np.repeat(np.arange(3), 2), draw(9, 4, seed=3)

    def one(x):
        state = dyn.Peeled(x[0] * corners[labels], x[1] * corners)
        moved = dyn.exact.flow(
            joint_problem(), state, dyn.Rates.proportional(x[2] ** 2, x[3]), jnp.array([0.0, 1.5, 6.0])
        ).states
        return jnp.sum(moved.features * mix[:6]) + jnp.sum(moved.prototypes * mix[6:])

    root = np.sqrt(1.7 / 2)  # a = +-root b: nothing fades, nothing grows
    points = [
        np.array(x)
        for x in ((0.8, 0.5, 0.9, 1.7), (0.0, 0.0, 0.9, 1.7), (0.0, 0.6, 0.9, 1.7), (0.8, 0.5, 0.0, 1.7), (root, 1.0, 0.9, 1.7))
    ]
    assert slopes(one, points, [*draw(3, 4, seed=4), *np.eye(4)]) <= 1e-6


def test_refused_with_the_reason():
    corners = etf(3, 4)
    h, w = symmetric_start(UNSORTED, corners, draw(8))
    problem, go = ce_problem(UNSORTED, 3), dyn.Rates(1.0, 1.0)
    flow = dyn.exact.flow
    refused(lambda: flow(problem, dyn.Peeled(h, draw(3, 4)), go, TS), "simplex ETF")
    refused(lambda: flow(problem, dyn.Peeled(draw(8, 4), w), go, TS), "wrong logits")
    refused(lambda: flow(problem, dyn.Peeled(h, w, np.array([0.0, 0.1, 0.0])), go, TS), "wrong logits")
    refused(lambda: flow(ce_problem(UNSORTED, 3, 0.1), dyn.Peeled(h, w), go, TS), "without decay")
    refused(lambda: flow(problem, dyn.Peeled(draw(8, 1), draw(3, 1)), go, TS), "simplex ETF")  # no room for one
    refused(lambda: flow(ce_problem(UNSORTED, 3, kernel=np.eye(8)), dyn.Peeled(h, w), go, TS), "kernel")
    refused(lambda: flow(ce_problem(UNSORTED, 3, normalize=True), dyn.Peeled(h, w), go, TS), "normalised")
    refused(lambda: flow(problem, dyn.Peeled(h, w), dyn.Rates(1.0, 1.0, rescaled=True), TS), "rescaled")
    refused(lambda: dyn.exact.descent(problem, dyn.Peeled(h, w), go, 3), "no closed form")
    refused(lambda: dyn.exact.max_step(problem, go), "curvature")
    refused(lambda: dyn.exact.max_step(square_problem(UNSORTED), go), "prototypes")


def test_joint_refused_with_the_reason():
    h, w = joint_start(0.5, 0.8)
    flow, go = dyn.exact.flow, dyn.Rates(1.0, 1.0)
    refused(lambda: flow(joint_problem(), dyn.Peeled(draw(6, 4), w), go, TS), "class means")
    refused(lambda: flow(joint_problem(), dyn.Peeled(h, draw(3, 4)), go, TS), "prototypes are no simplex")
    refused(lambda: flow(joint_problem(), dyn.Peeled(h, w @ np.linalg.qr(draw(4, 4))[0]), go, TS), "aligned")
    shifted = h + np.tile([[1.0], [-1.0]], (3, 1)) * etf(3, 4)[0]
    refused(lambda: flow(joint_problem(), dyn.Peeled(shifted, w), go, TS), "orthogonal")
    refused(lambda: flow(joint_problem(), dyn.Peeled(h, w, np.array([0.0, 0.1, 0.0])), go, TS), "biases")
    refused(lambda: flow(joint_problem(decay=dyn.Decay(prototypes=0.1)), dyn.Peeled(h, w), go, TS), "without decay")
    refused(lambda: flow(joint_problem(), dyn.Peeled(h, w), dyn.Rates(0.0, 1.0), TS), "positive")
    refused(lambda: flow(joint_problem(), dyn.Peeled(h, w), dyn.Rates(Cosine(1.0, 5.0), 1.0), TS), "ratio")
    uneven = dyn.LayerPeeled([0, 0, 1, 2], num_classes=3, loss=CrossEntropy())
    refused(lambda: flow(uneven, dyn.Peeled(h[:4], w), go, TS), "different sizes")
    weighted = joint_problem(sample_weights=[0.5, 1.5, 1, 1, 1, 1])
    refused(lambda: flow(weighted, dyn.Peeled(h, w), go, TS), "different weights")
    refused(lambda: dyn.exact.descent(joint_problem(), dyn.Peeled(h, w), go, 3), "no closed form")


def test_members_outside_the_assumptions_end_by_themselves():
    h, w = joint_start(0.5, 0.8)
    good = {"h": h, "w": w, "decay": 0.0, "bias": np.zeros(3)}
    rows = [good, good | {"h": draw(6, 4)}, good | {"w": draw(3, 4)}, good | {"decay": 0.1}, good | {"h": spoiled(h, np.nan)},
            good | {"bias": np.array([0.0, 1.0, 0.0])}, good | {"decay": -1.0}, good]  # fmt: skip
    ends = [OK, OUTSIDE_ASSUMPTIONS, OUTSIDE_ASSUMPTIONS, OUTSIDE_ASSUMPTIONS, BAD_INPUT, OUTSIDE_ASSUMPTIONS, BAD_INPUT, OK]
    run = compiled(
        jax.vmap(
            lambda x: dyn.exact.flow(
                joint_problem(decay=dyn.Decay(x["decay"])), dyn.Peeled(x["h"], x["w"], x["bias"]), dyn.Rates(1.0, 2.0), TS
            )
        )
    )
    stack = lambda rows: {key: np.stack([row[key] for row in rows]) for key in good}
    moved, alone = run(stack(rows)), run(stack([good] * len(rows)))
    assert list(moved.status) == ends
    assert np.isnan(moved.states.features[1:7]).all()
    for i in (0, 7):
        for leaf, own in zip(jax.tree.leaves(moved), jax.tree.leaves(alone), strict=True):
            assert np.asarray(leaf[i]).tobytes() == np.asarray(own[i]).tobytes()
