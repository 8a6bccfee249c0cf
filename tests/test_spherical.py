"""The spherical case by formula, against NumPy loops over vectors, DOP853 and 60 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate

import dynamics as dyn
from tests.helpers import UNSORTED, draw, refused, relative

EPS = 0.3
COUPLING = draw(3, 3, seed=5)
WEIGHTS = np.array([0.5, 1.5, 1.0, 1.0, 0.25, 1.75, 1.0, 1.0])
SCHEDULE = dyn.schedules.Cosine(2.0, 4.0, 0.5)
TS = np.array([0.0, 0.5, 1.5, 4.0, 6.0])


def problem(decay=0.0, adjusted=None, loss=None, **fields) -> dyn.LayerPeeled:
    """Unsorted labels of unequal class sizes, sample weights, a coupling without structure."""
    loss = dyn.losses.Linear(COUPLING) if loss is None else loss
    fields = {"sample_weights": WEIGHTS} | fields
    return dyn.LayerPeeled(
        UNSORTED,
        num_classes=3,
        loss=loss,
        decay=dyn.Decay(decay),
        normalize=True,
        anchored=True,
        adjusted=adjusted,
        **fields,
    )


def pull(prototypes) -> np.ndarray:
    """B W, row by row from the definition of the loss."""
    return WEIGHTS[:, None] / UNSORTED.size * COUPLING[UNSORTED] @ np.asarray(prototypes, float)


def begin(dtype=float) -> dyn.Peeled:
    """A random start; sample 1 almost faces away from its pull, sample 2 almost along it, sample 3 is in the adjusted zone."""
    features, prototypes, v = 0.4 * draw(8, 4), draw(3, 4), pull(draw(3, 4))
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    for sample, (sign, apart) in {1: (-1, 1e-2), 2: (1, 1e-4), 3: (-1, 0.5)}.items():
        features[sample] = sign * 0.5 * unit[sample] + apart * 0.5 * draw(4, seed=sample)
    return dyn.Peeled(features.astype(dtype), prototypes.astype(dtype), draw(3).astype(dtype))


def velocity(h, v, decay, rescaled, eps=None) -> np.ndarray:
    """The force on each row, times its norm where rescaled; scalar loops."""
    out = np.empty_like(h)
    for i in range(len(h)):
        size = np.sqrt(h[i] @ h[i])
        hat = h[i] / size
        across, beta = v[i] - hat * (hat @ v[i]), hat @ v[i] / np.sqrt(v[i] @ v[i])
        if eps is not None and beta < -1 + eps:
            across = across * abs(beta) * np.tan(np.arccos(1 - eps)) / np.sqrt(1 - beta**2)
        out[i] = across / size - decay * h[i]
    return out


def pace(h, rescaled):
    return np.linalg.norm(h, axis=1, keepdims=True) if rescaled else 1.0


def rate(t):
    return 0.5 + 1.5 * (0.5 + 0.5 * np.cos(np.pi * min(t / 4.0, 1.0)))


VARIANTS = [(decay, rescaled, eps) for decay in (0.0, 0.2) for rescaled in (False, True) for eps in (None, EPS)]


@pytest.fixture(scope="module")
def flows():
    """All eight variants: the library's, one program for each static choice, and DOP853 on the vectors."""
    state, found = begin(), {}
    v = pull(state.prototypes)

    for rescaled in (False, True):
        for eps in (None, EPS):
            rates = dyn.Rates(SCHEDULE, 0.1, rescaled)
            run = jax.jit(lambda decay, rates=rates, eps=eps: dyn.exact.flow(problem(decay, eps), state, rates, TS))
            for decay in (0.0, 0.2):

                def slope(t, y, decay=decay, rescaled=rescaled, eps=eps):
                    h = y.reshape(8, 4)
                    return (rate(t) * pace(h, rescaled) * velocity(h, v, decay, rescaled, eps)).ravel()

                start = np.ravel(state.features)
                solved = scipy.integrate.solve_ivp(slope, (0, TS[-1]), start, "DOP853", TS, rtol=1e-11, atol=1e-13)
                found[decay, rescaled, eps] = run(decay), solved.y.T.reshape(-1, 8, 4)
    return found


@pytest.mark.parametrize(("decay", "rescaled", "eps"), VARIANTS)
def test_flow_is_that_of_the_vectors(flows, decay, rescaled, eps):
    moved, expected = flows[decay, rescaled, eps]
    # the adjusted force has a kink at the edge of its zone: the oracle's own accuracy there
    assert relative(moved.states.features, expected) < (1e-9 if eps is None else 1e-7)
    assert int(moved.status) == dyn.status.OK
    np.testing.assert_array_equal(moved.states.prototypes, np.broadcast_to(begin().prototypes, (5, 3, 4)))
    np.testing.assert_array_equal(moved.states.biases, np.broadcast_to(begin().biases, (5, 3)))


def loop(state, steps, dt, decay, rescaled, eps, momentum, nesterov) -> np.ndarray:
    h, v = np.asarray(state.features, float), pull(state.prototypes)
    path, speed = [h], np.zeros_like(h)
    for k in range(steps):
        force = velocity(h, v, decay, rescaled, eps)
        speed = momentum * speed + force
        h = h + dt * rate(k * dt) * pace(h, rescaled) * (momentum * speed + force if nesterov else speed)
        path.append(h)
    return np.array(path)


@pytest.mark.parametrize(
    ("decay", "rescaled", "eps", "momentum", "nesterov"),
    [(0.2, False, None, 0.5, False), (0.0, True, EPS, 0.0, False), (0.2, True, None, 0.5, True)],
)
def test_descent_is_that_of_the_vectors(decay, rescaled, eps, momentum, nesterov):
    state, rates = begin(), dyn.Rates(SCHEDULE, 0.1, rescaled)
    run = {"every": 5, "dt": 0.1, "momentum": momentum, "nesterov": nesterov}
    moved = jax.jit(lambda: dyn.exact.descent(problem(decay, eps), state, rates, 40, **run))()
    expected = loop(state, 40, 0.1, decay, rescaled, eps, momentum, nesterov)[::5]
    assert relative(moved.states.features, expected) < 1e-11
    assert moved.ts.tolist() == list(range(0, 41, 5))


def test_descent_keeps_the_angle_relative_to_itself():
    """20 000 steps down to an angle near 1e-150: its ratio to the product of 1 - alpha, with the norm that has settled."""
    two = dyn.LayerPeeled.balanced(2, 1, loss=dyn.losses.Unhinged(0.0), normalize=True, anchored=True)
    state = dyn.Peeled(np.array([[1.0, 1e-8], [1.0, 1e-3]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    run = jax.jit(lambda: dyn.exact.descent(two, state, dyn.Rates.equal(0.035), 20_000, every=20_000))
    angle = np.arctan2(*np.moveaxis(np.asarray(run().states.features), -1, 0)[::-1])
    theta, alpha, log = np.array([1e-8, np.arctan(1e-3)]), 0.035 / 2 / np.array([1 + 1e-16, 1 + 1e-6]), np.zeros(2)
    for _ in range(20_000):
        turned = np.arctan(alpha * np.sin(theta))
        log += np.log1p(-turned / theta) if theta.min() > 1e-300 else 0.0
        theta, alpha = theta - turned, alpha / (1 + np.tan(turned) ** 2)
    assert np.abs(np.log(angle[-1] / angle[0]) / log - 1).max() < 1e-12


def test_float32(flows):
    """Single precision within 3e-6 of the vectors in double precision, in the adjusted zone and out of it."""
    state, rates = begin(np.float32), dyn.Rates(SCHEDULE, 0.1)

    @jax.jit
    def run():
        setting = problem(0.2, EPS, loss=dyn.losses.Linear(COUPLING.astype(np.float32)))
        flow = dyn.exact.flow(setting, state, rates, TS.astype(np.float32))
        return flow.states.features, dyn.exact.descent(setting, state, rates, 40, every=5, dt=0.1).states.features

    flow, descent = run()
    assert flow.dtype == descent.dtype == jnp.float32
    expected = flows[0.2, False, EPS][1], loop(begin(), 40, 0.1, 0.2, False, EPS, 0.0, False)[::5]
    # sample 1 starts a hundredth from the opposite: its coordinates carry a hundredth of the digits
    rest = np.array([0, 2, 3, 4, 5, 6, 7])
    for found, wanted in zip((flow, descent), expected, strict=True):
        assert relative(found[:, rest], wanted[:, rest]) < 3e-6
        assert relative(found, wanted) < 1e-4


def simple(features, pull, decay, eps=None):
    """Two samples with pulls of their own: gamma = 0, one sample a class."""
    setting = dyn.LayerPeeled.balanced(
        2, 1, loss=dyn.losses.Linear(2 * jnp.eye(2)), decay=dyn.Decay(decay), normalize=True, anchored=True, adjusted=eps
    )
    return setting, dyn.Peeled(features, pull)


CORNERS = {
    "generic": ([[1.0, 0.5, 0.2], [0.3, -0.4, 0.8]], [[0.2, 1.0, 0.3], [0.5, 0.1, -0.6]], 0.1),
    "aligned": ([[1.0, 2.0, 2.0], [0.0, 0.6, 0.8]], [[0.5, 1.0, 1.0], [0.0, 0.3, 0.4]], 0.1),
    "no pull": ([[1.0, 0.5, 0.2], [0.3, -0.4, 0.8]], [[0.0, 0.0, 0.0], [0.5, 0.1, -0.6]], 0.1),
    "no decay": ([[1.0, 0.5, 0.2], [0.3, -0.4, 0.8]], [[0.2, 1.0, 0.3], [0.5, 0.1, -0.6]], 0.0),
    "almost opposite": ([[1.0, 2.0, 2.0], [0.0, 0.6, 0.8]], [[-0.5, -1.0, -1.001], [0.001, -0.3, -0.4]], 0.1),
}


@pytest.fixture(scope="module")
def derivatives():
    """Jacobians of the last state in features, pulls and decay, by formula and through simulated flow and descent."""
    rates = dyn.Rates.equal(0.3)

    def ends(verb, eps, steps):
        def end(features, pull, decay):
            state = simple(features, pull, decay, eps)
            if steps:
                return verb(*state, rates, steps, every=steps).states.features[-1]
            return verb(*state, rates, jnp.array([3.0])).states.features[-1]

        return jax.jit(jax.jacfwd(end, argnums=(0, 1, 2)))

    def rk4(features, pull, decay):
        setting, state = simple(features, pull, decay)

        def slope(h):
            return 0.3 * setting.force(dyn.Peeled(h, state.prototypes)).features

        def step(_, h):
            k1 = slope(h)
            k2 = slope(h + 0.005 * k1)
            k3 = slope(h + 0.005 * k2)
            return h + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + slope(h + 0.01 * k3))

        return jax.lax.fori_loop(0, 300, step, features)

    return {
        "flow": (ends(dyn.exact.flow, None, 0), jax.jit(jax.jacfwd(rk4, argnums=(0, 1, 2)))),
        "descent": (ends(dyn.exact.descent, None, 10), ends(dyn.descent, None, 10)),
        "adjusted": (ends(dyn.exact.descent, 0.3, 10), ends(dyn.descent, 0.3, 10)),
    }


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("kind", ["flow", "descent", "adjusted"])
def test_derivatives_are_those_of_the_simulation(derivatives, kind, corner):
    point = tuple(jnp.asarray(x) for x in CORNERS[corner])
    by_formula, simulated = (jacobian(*point) for jacobian in derivatives[kind])
    for what, found, expected in zip(("features", "pull", "decay"), by_formula, simulated, strict=True):
        assert np.all(np.isfinite(found))
        if (kind, corner, what) == ("adjusted", "no pull", "pull"):
            continue  # there is none: whether h lies in the zone depends on the direction in which v leaves zero
        scale = max(1.0, float(np.abs(expected).max()))
        assert float(np.abs(found - expected).max()) < 1e-7 * scale


def test_extreme_times_against_60_digits():
    """Far out, and with decay past the range of exponentials: features along their pulls, finite derivatives."""
    setting, state = simple(*(np.array(x) for x in CORNERS["generic"][:2]), 0.0)
    ts = np.array([1e-300, 1e-8, 40.0, 1e4, 1e9, 1e300])

    def run(decay, rescaled=False):
        return dyn.exact.flow(simple(state.features, state.prototypes, decay)[0], state, dyn.Rates.equal(1.0, rescaled), ts)

    moved = jax.jit(run)(0.0)
    with mpmath.workdps(60):
        for k, t in enumerate(ts):
            for i in range(2):
                h, v = (mpmath.matrix([float(x) for x in row]) for row in (state.features[i], state.prototypes[i]))
                n, s = mpmath.norm(h), mpmath.norm(v)
                turn = s * mpmath.mpf(float(t)) / n**2
                beta = (h.T * v)[0] / (n * s)
                now = mpmath.tanh(mpmath.atanh(beta) + turn)
                across = h / n - beta * v / s
                exact = n * (now * v / s + mpmath.sqrt(1 - now**2) * across / mpmath.norm(across))
                np.testing.assert_allclose(np.asarray(moved.states.features)[k, i], [float(x) for x in exact], atol=1e-15)

    aims = state.prototypes / np.linalg.norm(state.prototypes, axis=1, keepdims=True)
    for rescaled in (False, True):

        def end(decay, rescaled=rescaled):
            features = run(decay, rescaled).states.features
            return features, features

        slopes, values = jax.jit(jax.jacfwd(end, has_aux=True))(0.5)
        assert np.all(np.isfinite(values)) and np.all(np.isfinite(slopes))
        late = np.asarray(values)[2 if not rescaled else 3]
        np.testing.assert_allclose(late / np.linalg.norm(late, axis=1, keepdims=True), aims, atol=1e-15)


def test_facing_away():
    """Constant, with a status; a start a tiny angle away moves; with adjusted prototypes it leaves as in the simulation."""
    features, v = np.array([[-1.0, -2.0, -2.0], [0.3, -0.4, 0.8]]), np.array([[0.5, 1.0, 1.0], [0.5, 0.1, -0.6]])
    rates = dyn.Rates.equal(0.3)
    for verb in (lambda *a: dyn.exact.flow(*a, np.array([50.0])), lambda *a: dyn.exact.descent(*a, 200, every=200)):
        moved = jax.jit(lambda verb=verb: verb(*simple(features, v, 0.0), rates))()
        assert dyn.status.name(moved.status) == "fixed_point"
        np.testing.assert_allclose(moved.states.features[-1, 0], features[0], rtol=1e-15)
        assert np.linalg.norm(moved.states.features[-1, 1] - features[1]) > 0.1
    setting, state = simple(features, v, 0.0, EPS)
    both = jax.jit(lambda: [verb(setting, state, rates, 200, every=50) for verb in (dyn.exact.descent, dyn.descent)])()
    assert all(dyn.status.name(x.status) == "ok" for x in both)
    assert relative(both[0].states.features, both[1].states.features) < 1e-12
    assert both[0].states.features[-1, 0] @ v[0] > 0


def test_members_of_a_batch_do_not_touch_each_other():
    setting, state = simple(*(np.array(x) for x in CORNERS["generic"][:2]), 0.1)
    many = jnp.stack([state.features, jnp.full((2, 3), jnp.nan), 1e-9 * state.features, jnp.zeros((2, 3)), state.features])

    def run(features):
        return dyn.exact.flow(setting, dyn.Peeled(features, state.prototypes), dyn.Rates.equal(0.3), jnp.array([0.0, 2.0]))

    moved = jax.jit(jax.vmap(run))(many)
    codes = [dyn.status.name(code) for code in moved.status]
    assert codes == ["ok", "bad_input", "ok", "bad_input", "ok"]
    alone = jax.jit(jax.vmap(run))(jnp.stack([state.features] * 5))
    np.testing.assert_array_equal(moved.states.features[jnp.array([0, 4])], alone.states.features[:2])


@pytest.mark.parametrize(("decay", "rescaled"), [(0.0, False), (0.0, True), (0.3, False)])
def test_limit(decay, rescaled):
    state, setting = begin(), problem(decay)
    v = pull(state.prototypes)
    norms, strength = np.linalg.norm(state.features, axis=1), np.linalg.norm(v, axis=1)
    limit = jax.jit(lambda: dyn.exact.limit(setting, state, dyn.Rates.equal(0.1, rescaled)))()
    features = np.zeros((8, 4)) if decay else norms[:, None] * v / strength[:, None]
    whole = np.sqrt(np.sum(features**2) + np.sum(np.square(state.prototypes)))
    np.testing.assert_allclose(limit.direction.features, features / whole, atol=1e-15)
    np.testing.assert_allclose(limit.direction.prototypes, np.asarray(state.prototypes) / whole, rtol=1e-14)
    np.testing.assert_allclose(limit.rate, decay or (strength / norms ** (1 if rescaled else 2)).min(), rtol=1e-14)
    assert float(limit.growth_exponent) == 0


def test_refusals():
    state, rates = begin(), dyn.Rates.equal(0.1)
    for fields, words in (
        ({"loss": dyn.losses.CrossEntropy(), "sample_weights": None}, "not linear in the logits"),
        ({"kernel": np.eye(8)}, "kernel"),
    ):
        refused(lambda fields=fields: dyn.exact.flow(problem(**fields), state, rates, TS), "normalised features", words)
    free = dyn.LayerPeeled(UNSORTED, num_classes=3, normalize=True)
    refused(lambda: dyn.exact.flow(free, state, rates, TS), "prototypes are free")
    refused(lambda: dyn.exact.max_step(problem(), rates), "depends on the start", "<= 2")


@pytest.mark.slow
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0, 5.0, 10.0])
def test_full_iterates_at_the_size_of_the_paper(eta, rescaled):
    """p = 512, C = 100, N = 10, 50 000 steps of every feature, against the formula."""
    rng = np.random.default_rng([2023, 0])
    state = dyn.Peeled(rng.normal(size=(1000, 512)), rng.normal(size=(100, 512)))
    setting = dyn.LayerPeeled.balanced(100, 10, normalize=True, anchored=True)
    rates = dyn.Rates.equal(eta, rescaled)
    verbs = dyn.descent, dyn.exact.descent
    runs = [jax.jit(lambda state, verb=verb: verb(setting, state, rates, 50_000, every=10_000))(state) for verb in verbs]
    moved, exact = (run.states for run in runs)
    assert relative(moved.features, exact.features) < 1e-11
    assert np.all(np.diff(np.linalg.norm(moved.features, axis=(1, 2))) > -1e-10)
