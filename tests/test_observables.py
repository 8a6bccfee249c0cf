"""Observables against their definitions in dense NumPy, and far into collapse against 60 digits."""

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import dynamics as dyn
from dynamics import observables as obs
from dynamics.losses import CrossEntropy
from tests.helpers import UNSORTED, draw, start

LONG = np.repeat(np.arange(5), [6, 3, 2, 1, 4])
SHAPES = {  # labels, dimension, distance of features from their class means
    "unsorted": (UNSORTED, 4, 0.3),
    "two classes": (np.array([0, 0, 1]), 3, 0.3),
    "fewer dimensions than a simplex": (LONG, 2, 0.3),
    "one sample a class": (np.arange(4), 6, 0.3),
}
SIGNED = ("margin", "average_margin", "normalized_margin")
NAMES = (
    *("nc1", "nc2", "nc2_norms", "nc2_angles", "nc3", "nc4", "self_duality", "accuracy"),
    *("stable_rank", "effective_rank", "gradient_norm", *SIGNED),
)


def near_collapse(labels, dim, spread, seed=0) -> tuple[dyn.LayerPeeled, dyn.Peeled]:
    """Random class means, prototypes near them, and features at distance `spread` of the means."""
    classes = labels.max() + 1
    problem = dyn.LayerPeeled(labels, num_classes=classes, loss=CrossEntropy())
    means = draw(classes, dim, seed=seed) + 2.0
    features = means[labels] + spread * draw(labels.size, dim, seed=seed + 1)
    return problem, dyn.Peeled(features, means + 0.5 * draw(classes, dim, seed=seed + 2), draw(classes, seed=seed))


def by_definition(labels, state: dyn.Peeled) -> dict[str, float]:
    """Papyan, Han and Donoho (2020) as written, with loops and a pseudo-inverse."""
    h, w, b = (np.asarray(part) for part in (state.features, state.prototypes, state.biases))
    n, classes = len(labels), w.shape[0]
    means = np.array([h[labels == c].mean(axis=0) for c in range(classes)])
    m = means - h.mean(axis=0)
    within = sum(np.outer(h[i] - means[labels[i]], h[i] - means[labels[i]]) for i in range(n)) / n
    between = sum(np.outer(m[c], m[c]) for c in range(classes)) / classes
    gram = m @ m.T
    simplex = (np.eye(classes) - np.ones((classes, classes)) / classes) / np.sqrt(classes - 1)
    cosines = [
        m[c] @ m[d] / np.linalg.norm(m[c]) / np.linalg.norm(m[d]) for c in range(classes) for d in range(classes) if c != d
    ]
    lengths = np.linalg.norm(m, axis=1)
    centred = w - w.mean(axis=0)
    logits = h @ w.T + b
    leads = [[logits[i, labels[i]] - logits[i, j] for j in range(classes) if j != labels[i]] for i in range(n)]
    off = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(classes)[labels]) / n
    spectrum = np.sqrt(np.maximum(np.linalg.eigvalsh(h.T @ h if h.shape[1] < n else h @ h.T), 0.0))
    shares = spectrum / spectrum.sum()
    nearest = [np.argmin(np.linalg.norm(h[i] - means, axis=1)) for i in range(n)]
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / classes,
        "nc2": np.linalg.norm(gram / np.linalg.norm(gram) - simplex),
        "nc2_norms": lengths.std() / lengths.mean(),
        "nc2_angles": np.mean(np.abs(np.array(cosines) + 1 / (classes - 1))),
        "nc3": np.linalg.norm(centred / np.linalg.norm(centred) - m / np.linalg.norm(m)),
        "nc4": np.mean([np.argmax(w @ h[i]) != nearest[i] for i in range(n)]),
        "self_duality": np.linalg.norm(h / np.linalg.norm(h) - w[labels] / np.linalg.norm(w[labels])),
        "margin": np.min(leads),
        "average_margin": np.mean(leads),
        "normalized_margin": np.min(leads) / (np.sum(h**2) + np.sum(w**2)),
        "gradient_norm": np.sqrt(np.sum((off @ w) ** 2) + np.sum((off.T @ h) ** 2)),  # of cross-entropy, biases stay
        "stable_rank": np.sum(h**2) / spectrum[-1] ** 2,
        "effective_rank": np.prod(shares**-shares),
        "accuracy": np.mean([np.argmax(w @ h[i] + b) == labels[i] for i in range(n)]),
    }


@pytest.fixture(scope="module")
def watched():
    """Every observable in every shape: as it is, scaled by 7 and rotated; one compiled program."""

    def all_of(problem, state):
        dim = state.features.shape[1]
        rotation = np.linalg.qr(draw(dim, dim, seed=9))[0]
        scaled = jax.tree.map(lambda x: 7.0 * x, state)
        rotated = dyn.Peeled(state.features @ rotation, state.prototypes @ rotation, state.biases)
        three = jax.tree.map(lambda *x: jnp.stack(x), state, scaled, rotated)
        return jax.vmap(lambda x: {name: getattr(obs, name)(problem, x) for name in NAMES})(three)

    cases = {name: near_collapse(*shape) for name, shape in SHAPES.items()}
    return jax.jit(lambda cases: {name: all_of(*case) for name, case in cases.items()})(cases)


@pytest.mark.parametrize("shape", SHAPES)
def test_definitions_and_invariance(watched, shape):
    labels, dim, spread = SHAPES[shape]
    expected = by_definition(labels, near_collapse(labels, dim, spread)[1])
    assert not {"nc4", "accuracy"} & {name for name in NAMES if np.isnan(expected[name])}
    for name in NAMES:
        own, scaled, rotated = map(float, watched[shape][name])
        assert own == pytest.approx(expected[name], rel=1e-11, abs=1e-14), name
        assert own >= 0 or name in SIGNED
        assert rotated == pytest.approx(own, rel=1e-11, abs=1e-14), name
        assert scaled == pytest.approx(own, rel=1e-12, abs=1e-14) or not getattr(obs, name).scale_invariant, name
    assert shape != "one sample a class" or watched[shape]["nc1"][0] == 0.0


def test_what_observables_declare():
    invariant = {"nc1", "nc2", "nc2_norms", "nc2_angles", "nc3", "nc4", "self_duality", "stable_rank", "effective_rank"}
    sized = {"feature_norm", "prototype_norm", "bias_norm", "loss", "objective", "accuracy", "gradient_norm", *SIGNED}
    assert all(getattr(obs, name).scale_invariant and getattr(obs, name).rotation_invariant for name in invariant)
    assert not any(getattr(obs, name).scale_invariant for name in sized)
    problem, state = near_collapse(*SHAPES["unsorted"])
    towards = obs.distance_to(dyn.Peeled(2.0 * state.features, 2.0 * state.prototypes))
    assert towards.scale_invariant and not towards.rotation_invariant
    assert not obs.balance(2.0).scale_invariant and not obs.balance(2.0).rotation_invariant


def exact_nc1(labels, features) -> mpmath.mpf:
    """NC1 of the numbers as they are stored, in 80 digits, by the pseudo-inverse on the span of the means."""
    with mpmath.workdps(80):
        h = mpmath.matrix(np.asarray(features, float).tolist())
        n, classes, dim = len(labels), int(max(labels)) + 1, h.cols
        sizes = np.bincount(labels)
        means = mpmath.zeros(classes, dim)
        for i in range(n):
            for j in range(dim):
                means[int(labels[i]), j] += h[i, j] / int(sizes[labels[i]])
        m = mpmath.matrix([[means[c, j] - sum(h[:, j]) / n for j in range(dim)] for c in range(classes)])
        d = mpmath.matrix([[h[i, j] - means[int(labels[i]), j] for j in range(dim)] for i in range(n)])
        _, sizes, directions = mpmath.svd_r(m / mpmath.sqrt(classes), full_matrices=False)
        kept = [k for k in range(len(sizes)) if sizes[k] > mpmath.mpf(10) ** -30]
        assert len(kept) == min(classes - 1, dim)
        along = d * directions.T
        return sum(sum(along[i, k] ** 2 for i in range(n)) / n / sizes[k] ** 2 for k in kept) / classes


DEPTHS = (1e-2, 1e-6, 1e-10, 1e-20)


@pytest.mark.parametrize("shape", ["unsorted", "two classes", "fewer dimensions than a simplex"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nc1_far_into_collapse(shape, dtype):
    labels, dim, _ = SHAPES[shape]
    problem, unit = near_collapse(labels, dim, 1.0)
    means = np.asarray(near_collapse(labels, dim, 0.0)[1].features)
    noise = np.asarray(unit.features) - means
    depths = DEPTHS if dtype == np.float64 else (1e-2, 1e-6)
    features = np.stack([means + np.sqrt(depth) * noise for depth in depths]).astype(dtype)
    prototypes = np.asarray(unit.prototypes, dtype)
    got = jax.jit(jax.vmap(lambda h: obs.nc1(problem, dyn.Peeled(h, prototypes))))(features)
    assert got.dtype == dtype
    exact = [float(exact_nc1(labels, h)) for h in features]
    assert 1e-5 < exact[0] < 1.0 and exact[1] == pytest.approx(1e-4 * exact[0], rel=0.5)
    np.testing.assert_allclose(got, exact, rtol=1e-3)
    if dtype == np.float64:
        np.testing.assert_allclose(got[:3], exact[:3], rtol=1e-9)


def test_nc1_at_the_ends():
    """Nothing within the classes: zero. Nothing between them: infinite. Never negative, also where rounding is all there is."""
    means = draw(3, 4)
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    rounding = means[UNSORTED] * (1 + 1e-16 * draw(8, 4)) + 1e-17
    nc1 = jax.jit(jax.vmap(lambda h: obs.nc1(problem, dyn.Peeled(h, means))))
    got = nc1(np.stack([means[UNSORTED], np.ones((8, 4)), rounding, np.zeros((8, 4))]))
    assert got[0] == 0.0 and got[1] == np.inf and 0.0 <= got[2] < 1e-28 and got[3] == np.inf


def test_norms_loss_and_objective():
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, decay=dyn.Decay(0.2, 0.4, 0.6))
    state = start(problem, 2)
    parts = [np.linalg.norm(part) for part in (state.features, state.prototypes, state.biases)]
    got = [float(f(problem, state)) for f in (obs.feature_norm, obs.prototype_norm, obs.bias_norm)]
    assert got == pytest.approx(parts, rel=1e-14)
    z = np.asarray(state.features) @ np.asarray(state.prototypes).T + np.asarray(state.biases)
    own = z[np.arange(8), UNSORTED]
    loss = np.mean(-own + (z.sum(axis=1) - own) / 2)
    assert float(obs.loss(problem, state)) == pytest.approx(loss, rel=1e-13)
    decayed = loss + 0.5 * np.dot([0.2, 0.4, 0.6], np.square(parts))
    assert float(obs.objective(problem, state)) == pytest.approx(decayed, rel=1e-13)


def test_distance_of_directions():
    problem, state = near_collapse(*SHAPES["unsorted"])
    features, prototypes = np.asarray(state.features), np.asarray(state.prototypes)
    other = dyn.Peeled(draw(8, 4, seed=5), draw(3, 4, seed=5))

    def gap(x, y):
        return np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y))

    both = [np.concatenate([a, b]) for a, b in ((features, prototypes), (other.features, other.prototypes))]
    assert float(obs.distance_to(other)(problem, state)) == pytest.approx(gap(*both), rel=1e-13)
    for part, own, reference in (("features", features, other.features), ("prototypes", prototypes, other.prototypes)):
        distance = float(obs.distance_to(other, part)(problem, state))
        assert distance == pytest.approx(gap(own, np.asarray(reference)), rel=1e-13)
    assert float(obs.distance_to(dyn.Peeled(3 * features, 3 * prototypes))(problem, state)) < 1e-15
    assert np.isnan(obs.direction_gap(jnp.zeros(3), jnp.ones(3)))
    with pytest.raises(ValueError, match="part must be 'both', 'features' or 'prototypes', got 'bias'"):
        obs.distance_to(other, "bias")


def test_margins_follow_the_logits_of_the_problem():
    """Normalised features and slaved biases count as they do in the loss; with neither, the normalised margin has no scale."""
    state = near_collapse(*SHAPES["unsorted"])[1]
    h, w, b = (np.asarray(part) for part in (state.features, state.prototypes, state.biases))
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    for normalize, features in ((False, h), (True, unit)):
        problem = dyn.LayerPeeled(UNSORTED, num_classes=3, normalize=normalize)
        z = features @ w.T + b
        leads = np.array([z[i, y] - np.delete(z[i], y) for i, y in enumerate(UNSORTED)])
        assert float(obs.margin(problem, state)) == pytest.approx(leads.min(), rel=1e-13)
        assert float(obs.average_margin(problem, state)) == pytest.approx(leads.mean(), rel=1e-13)
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=dyn.losses.SquaredError(), bias="slaved")
    best = (np.eye(3)[UNSORTED] - h @ w.T).mean(axis=0)
    z = h @ w.T + best
    leads = np.array([z[i, y] - np.delete(z[i], y) for i, y in enumerate(UNSORTED)])
    shown = problem.complete(state)  # what verbs hand to observables
    assert float(obs.margin(problem, shown)) == pytest.approx(leads.min(), rel=1e-12)
    off = (z - np.eye(3)[UNSORTED]) / 8
    assert float(obs.gradient_norm(problem, shown)) == pytest.approx(
        np.hypot(np.linalg.norm(off @ w), np.linalg.norm(off.T @ h)), rel=1e-12
    )
    plain = dyn.LayerPeeled(UNSORTED, num_classes=3)
    here, far = (float(obs.normalized_margin(plain, dyn.Peeled(c * h, c * w))) for c in (1.0, 1e150))
    assert far == pytest.approx(here, rel=1e-13)


def test_gradient_norm_counts_the_parts_that_are_trained():
    state = near_collapse(*SHAPES["unsorted"])[1]
    h, w, b = (np.asarray(part) for part in (state.features, state.prototypes, state.biases))
    decay = dyn.Decay(0.2, 0.4, 0.6)
    off = (h @ w.T + b - np.eye(3)[UNSORTED]) / 8
    parts = {"features": off @ w + 0.2 * h, "prototypes": off.T @ h + 0.4 * w, "biases": off.sum(axis=0) + 0.6 * b}
    for fields, trained in (
        ({"bias": True}, ("features", "prototypes", "biases")),
        ({"bias": False}, ("features", "prototypes")),
        ({"bias": True, "anchored": True}, ("features",)),
    ):
        problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=dyn.losses.SquaredError(), decay=decay, **fields)
        expected = np.linalg.norm(np.concatenate([parts[name].ravel() for name in trained]))
        assert float(obs.gradient_norm(problem, state)) == pytest.approx(expected, rel=1e-13)


def test_ranks_at_the_ends():
    """One direction: 1. k equal directions: k. Whatever the size of the numbers; and no number for no features."""
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    line = np.outer(draw(8), draw(5))
    frame = np.linalg.qr(draw(8, 8))[0][:, :5]
    features = np.stack([line, frame, 1e-200 * frame, 1e200 * frame, np.zeros((8, 5))])
    for rank in (obs.stable_rank, obs.effective_rank):
        got = jax.jit(jax.vmap(lambda h, rank=rank: rank(problem, dyn.Peeled(h, np.zeros((3, 5))))))(features)
        np.testing.assert_allclose(got, [1.0, 5.0, 5.0, 5.0, np.nan], rtol=1e-12)
    nothing = dyn.Peeled(np.zeros((8, 5)), np.zeros((3, 5)), np.ones(3))
    assert np.isnan(obs.normalized_margin(problem, nothing)) and float(obs.margin(problem, nothing)) == 0.0


def test_single_precision_stays():
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=CrossEntropy(), bias=True)
    watch = jax.jit(lambda state: {name: getattr(obs, name)(problem, state) for name in NAMES})
    wide, narrow = (watch(start(problem, 4, dtype=dtype)) for dtype in (np.float64, np.float32))
    for name in NAMES:
        assert narrow[name].dtype == jnp.float32 and narrow[name].shape == ()
        assert float(narrow[name]) == pytest.approx(float(wide[name]), rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_balance_is_conserved_by_every_loss():
    """Under cross-entropy, with s lambda1 = lambda2: the balance decays as exp(-2 lambda2 zeta2), and stays without decay."""
    ratio, ts = 2.0, jnp.array([0.0, 1.0, 4.0])
    schedule = dyn.schedules.Cosine(0.5, 6.0)

    def moved(decay):
        problem = dyn.LayerPeeled(
            UNSORTED, num_classes=3, loss=CrossEntropy(), decay=dyn.Decay(decay, ratio * decay), bias=True
        )
        run = dyn.flow(
            problem,
            start(problem, 2),
            dyn.Rates.proportional(schedule, ratio),
            ts,
            rtol=1e-10,
            atol=1e-10,
            solver=diffrax.Tsit5(),
            observe={"balance": obs.balance(ratio), "loss": obs.loss},
        )
        return run.observed, run.status

    decays = np.array([0.0, 0.1])
    observed, codes = jax.jit(jax.vmap(moved))(decays)
    state = start(dyn.LayerPeeled(UNSORTED, num_classes=3), 2)
    h, w = np.asarray(state.features), np.asarray(state.prototypes)
    first = h.T @ h / ratio - w.T @ w
    clock = 0.25 * (np.asarray(ts) + 6 / np.pi * np.sin(np.pi * np.asarray(ts) / 6))
    assert np.all(np.asarray(codes) == 0)
    assert np.all(observed["loss"][:, -1] < 0.8 * observed["loss"][:, 0])
    for member, decay in enumerate(decays):
        kept = np.exp(-2 * ratio * decay * clock)[:, None, None] * first
        np.testing.assert_allclose(observed["balance"][member], kept, atol=1e-9 * np.linalg.norm(first))
