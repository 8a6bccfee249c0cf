"""What a motion tends to, and the largest stable step, against dense eigenvectors and bisection."""

import jax
import numpy as np
import pytest
import scipy.linalg

import dynamics as dyn
from dynamics.exact.dispatch import CLOSED_FORMS
from tests import cases, oracles
from tests.cases import Shape, balanced

SHAPES = {
    "balanced": Shape(balanced(4, 2), 2),
    "groups": Shape((1, 0, 2, 0, 3, 1), 2),
    "kernels": Shape((1, 2, 0, 0, 2), 2, loss="by_sample", weighted=True, kernel=True, feature_kernel=True),
}


def instances(shape: Shape) -> cases.Numbers:
    """Five members without and five with decay; of a balanced problem the first and the last but one have a tie."""
    batches = [cases.numbers(shape, 5, 6, decay=decay) for decay in (False, True)]
    x = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    top = 2 / (shape.classes - 2) if shape.classes > 2 else 2.0
    x["gamma"] = np.tile([0.0, 1 / (shape.classes - 1), 0.4 * top, top, 1.4 * top], 2)
    x["rates"][x["rates"] == 0] = 0.3
    for kernel in {"kernel", "feature_kernel"} & set(x):
        # rank 1 without decay: a mode that is pushed at a constant pace, a Jordan block that no eigenvalue solver resolves
        x[kernel][1::5] = x[kernel][0::5]
    return x


def dense_limit(plain: oracles.Plain, start: oracles.Point, ratio: float):
    """The part of the start in the top eigenspace, the top exponent, and the distance to the next one.

    Per unit of the weights' clock, by eigenvectors of the dense generator of features and prototypes.
    """
    of_features, of_weights = oracles.generators(plain, start)
    size = start.features.size + start.prototypes.size
    dense = (ratio * of_features + of_weights)[:size, :size]
    exponents, left, right = scipy.linalg.eig(dense, left=True)
    exponents = exponents.real
    top = exponents > exponents.max() - 1e-9
    left, right = left[:, top], right[:, top]
    begin = start.flat()[:size]
    winning = (right @ np.linalg.solve(left.conj().T @ right, left.conj().T @ begin)).real
    return winning, exponents.max(), exponents.max() - exponents[~top].max()


@pytest.mark.parametrize("name", SHAPES)
def test_limit_against_dense_eigenvectors(name):
    shape = SHAPES[name]
    x = instances(shape)

    @jax.jit
    @jax.vmap
    def limit(x):
        rates = dyn.Rates(x["rates"][0], x["rates"][1])
        return dyn.exact.limit(cases.problem(shape, x), cases.start(x), rates)

    limits = limit(x)
    for i in range(10):
        one = cases.member(x, i)
        plain, start = cases.plain(shape, one), cases.point(one)
        winning, exponent, gap = dense_limit(plain, start, one["rates"][0] / one["rates"][1])
        found = cases.at(limits.direction, i)
        assert oracles.relative(found.flat()[: winning.size], winning / np.linalg.norm(winning)) <= 1e-12
        assert abs(limits.growth_exponent[i] - exponent) <= 1e-13
        assert abs(limits.rate[i] - gap) <= 1e-12
        assert abs(limits.constants["log_norm"][i] - np.log(np.linalg.norm(winning))) <= 1e-12
        if not shape.kernel:
            sides = np.linalg.norm(found.features) / np.linalg.norm(found.prototypes)
            assert abs(limits.constants["self_duality"][i] / sides - 1) <= 1e-12
        drift = plain.force(start.like(np.zeros(start.flat().size))).biases
        drift = np.where(np.abs(drift) < 1e-15, 0.0, drift)
        forever = np.where(drift == 0, start.biases, np.copysign(np.inf, drift))
        np.testing.assert_allclose(found.biases, drift / plain.decay[2] if i >= 5 else forever, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_limit_of_anchored_prototypes(decay):
    shape = Shape((2, 0, 1, 0, 1), 2, anchored=True, weighted=True, kernel=True, feature_kernel=True)
    x = cases.member(cases.numbers(shape, 1, 7, decay=True), 0) | {"decay": np.array([decay, 0.1, 0.2])}
    limit = dyn.exact.limit(cases.problem(shape, x), cases.start(x), dyn.Rates(0.7, 0.3))
    plain, start = cases.plain(shape, x), cases.point(x)
    pull = plain.force(start._replace(features=np.zeros_like(start.features))).features
    # with decay the place where the pull and the decay balance; without it the pull alone, the prototypes left behind
    truth = oracles.Point(pull / decay, start.prototypes, start.biases) if decay else start._replace(features=pull)
    moving = np.append(truth.features, truth.prototypes if decay else 0 * truth.prototypes)
    found = oracles.Point(*(np.asarray(part) for part in jax.tree.leaves(limit.direction)))
    assert oracles.relative(found.flat()[: moving.size], moving / np.linalg.norm(moving)) <= 1e-14
    assert np.array_equal(found.biases, start.biases)
    assert float(limit.growth_exponent) == 0.0 and float(limit.rate) == decay


def largest_step(plain: oracles.Plain, start: oracles.Point, eta1: float, eta2: float, momentum, nesterov) -> float:
    """Bisection on dt: whether 2^20 steps from anywhere in the decaying modes stay small."""
    of_features, of_weights = (part[:-1, :-1] for part in oracles.generators(plain, start))
    dense = eta1 * of_features + eta2 * of_weights
    exponents, vectors = np.linalg.eig(dense)
    decaying = vectors[:, exponents.real < -1e-12]
    dense = np.linalg.pinv(decaying) @ dense @ decaying
    one = np.eye(len(dense))

    def stays(dt):
        # the state and the velocity, both in the rates' units: v <- mu v + f, then x <- x + dt (v or f + mu v)
        ahead = (1 + momentum) * dt * dense if nesterov else dt * dense
        carried = momentum**2 * dt * one if nesterov else momentum * dt * one
        step = np.block([[one + ahead, carried], [dense, momentum * one]])
        with np.errstate(over="ignore", invalid="ignore"):
            return np.linalg.norm(np.linalg.matrix_power(step, 2**20)) < 1e3

    low, high = 1e-3, 1e3
    while high / low > 1 + 1e-7:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if stays(middle) else (low, middle)
    return low


@pytest.mark.parametrize("name", ["groups", "kernels", "anchored"])
def test_largest_stable_step_against_bisection(name):
    shape = SHAPES["balanced"]._replace(anchored=True) if name == "anchored" else SHAPES[name]
    x = cases.member(cases.numbers(shape, 1, 8, decay=True), 0)
    eta1, eta2 = 0.7, 0.4
    rates = dyn.Rates.proportional(dyn.schedules.Cosine(eta2, 10.0), eta1 / eta2)
    for nesterov in (False, True):
        found = jax.jit(
            lambda decay, momentum, nesterov=nesterov: dyn.exact.max_step(
                cases.problem(shape, x | {"decay": decay}), rates, momentum=momentum, nesterov=nesterov
            )
        )
        for decay in (np.zeros(3), np.array([0.2, 0.7, 0.1]), np.array([0.1, 0.1, 3.0])):
            for momentum in (0.0, 0.8):
                step = float(found(decay, momentum))
                if shape.anchored and not decay.any():
                    assert step == np.inf
                    continue
                plain = cases.plain(shape, x | {"decay": decay})
                truth = largest_step(plain, cases.point(x), eta1, eta2, momentum, nesterov)
                assert abs(step / truth - 1) <= 1e-5


def test_every_closed_form_says_why_it_does_not_apply():
    start = dyn.Peeled(np.ones((4, 2)), np.ones((2, 2)))
    equal, free = dyn.Rates.equal(0.1), dyn.Rates(dyn.schedules.Cosine(0.1, 3.0), 0.1)
    curved = dyn.LayerPeeled.balanced(2, 2, loss=dyn.losses.CrossEntropy(), kernel=np.eye(4))
    modes, anchored = "independent modes of a loss linear in the logits", "anchored prototypes under a loss linear"
    for problem, rates, words in (
        (curved, equal, [modes, anchored, "CrossEntropy is not linear in the logits", "the prototypes are free"]),
        (dyn.LayerPeeled.balanced(2, 2, normalize=True), equal, [modes, anchored, "normalised features"]),
        (dyn.LayerPeeled.balanced(2, 2), dyn.Rates.equal(0.1, rescaled=True), [modes, anchored, "feature norms"]),
    ):
        for ask in (
            lambda p, r: dyn.exact.flow(p, start, r, np.array([1.0])),
            lambda p, r: dyn.exact.descent(p, start, r, 3),
            lambda p, r: dyn.exact.limit(p, start, r),
            lambda p, r: dyn.exact.max_step(p, r),
        ):
            with pytest.raises(dyn.NoClosedForm) as caught:
                ask(problem, rates)
            assert all(word in str(caught.value) for word in words), caught.value
            assert len(str(caught.value).splitlines()) == 1 + len(CLOSED_FORMS)
    for ask in (lambda p: dyn.exact.limit(p, start, free), lambda p: dyn.exact.max_step(p, free)):
        with pytest.raises(dyn.NoClosedForm, match="no constant ratio"):
            ask(dyn.LayerPeeled.balanced(2, 2))
