"""SCHEDULES: one start, many pairs of learning-rate schedules, by the closed form and by products of 2x2 matrices."""

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.peers import version
from benchmarks.race import Contest, Racer, devices
from dynamics.ensemble import Dealt

CLASSES, EACH, DIM = 4, 5, 16
SAMPLES, GAMMA = CLASSES * EACH, 1 / (CLASSES - 1)


def rate_at(peak, warm, horizon, t, xp=jnp):
    """Linear warm-up to `peak` over `warm` steps, then a cosine to zero over `horizon`: as users write it."""
    later = xp.maximum(t - warm, 0.0)
    annealed = 0.5 * peak * (1 + xp.cos(xp.pi * xp.minimum(later / horizon, 1.0)))
    return xp.where(t < warm, peak * t / warm, annealed)


def build(quick: bool = False, members: int | None = None) -> Contest:
    """Norms of features and prototypes at 500 iterates of 50 000."""
    count = members or (32 if quick else 1024)
    steps, outputs = (2000, 50) if quick else (50_000, 500)
    every = steps // outputs
    rng = np.random.default_rng(2)
    numbers = np.stack(  # (schedules, of features and of weights, numbers)
        [
            10 ** rng.uniform(-3, -1, (count, 2)),
            rng.uniform(0.01, 0.1, (count, 2)) * steps,
            rng.uniform(0.5, 0.9, (count, 2)) * steps,
        ],
        axis=-1,
    )
    problem = dyn.LayerPeeled.balanced(CLASSES, EACH, loss=dyn.losses.Unhinged(), decay=dyn.Decay(of.DECAY, of.DECAY))
    start = dyn.initial.gaussian(problem, dim=DIM, key=jax.random.key(0), scale=0.3)
    given = jnp.asarray(numbers)
    observe = {name: getattr(dyn.observables, name) for name in ("feature_norm", "prototype_norm")}

    def one(numbers):
        pair = [dyn.schedules.Warmup(one[1], dyn.schedules.Cosine(one[0], one[2])) for one in numbers]
        return dyn.exact.descent(problem, start, dyn.Rates(*pair), steps, every=every, observe=observe).observed

    formula, many = jax.jit(jax.vmap(one)), Dealt(one, given)
    peer = _products(start, steps, every)
    rows = of.checked(count)
    truth = _plain(start, numbers[np.asarray(rows)], steps, every)

    def error(found) -> float:
        return reference.relative_over_times(of.picked(found, rows), truth)

    def error_of_product(found) -> float:
        return error({name: value[:, 1:] for name, value in found.items()})

    racers = [
        Racer("lax.scan of 2x2 products", lambda: peer(given), error, version("jax")),
        Racer("dynamics.exact.descent", lambda: formula(given), error_of_product, version("jax")),
        Racer(
            "dynamics.ensemble.Dealt",
            many,
            lambda found: error_of_product(many.gathered(found)),
            version("jax"),
            devices(many),
        ),
    ]
    meaning = "largest error over checked schedules and iterates, relative to the norm's largest size, against a NumPy loop"
    settings = {"schedules": count, "checked": len(rows), "steps": steps, "outputs": outputs}
    return Contest(racers, 1e-10, meaning, settings)


def _split(start) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviations within classes, class means and prototypes; the mean over classes feels no pull of the balanced loss."""
    features = np.asarray(start.features)
    means = features.reshape(CLASSES, EACH, DIM).mean(axis=1)
    return features - np.repeat(means, EACH, axis=0), means, np.asarray(start.prototypes)


def _products(start, steps: int, every: int):
    """Schedules to norms: one 2x2 product a step for the directions that are pulled, two factors for those that are not."""
    apart, means, prototypes = _split(start)
    centred = [np.sqrt(EACH) * (means - means.mean(axis=0)), prototypes - prototypes.mean(axis=0)]
    common = [np.sqrt(SAMPLES) * means.mean(axis=0), np.sqrt(CLASSES) * prototypes.mean(axis=0)]
    gram = jnp.asarray([[np.sum(a * b) for b in centred] for a in centred])
    rest = jnp.asarray([np.sum(apart**2) + np.sum(common[0] ** 2), np.sum(common[1] ** 2)])
    pull = (1 + GAMMA) * np.sqrt(EACH) / SAMPLES

    @jax.jit
    @jax.vmap
    def norms(numbers):
        def step(carry, k):
            product, kept = carry
            first, second = (rate_at(*one, k) for one in numbers)
            matrix = jnp.stack(
                [
                    jnp.stack([1 - first * of.DECAY, first * pull]),
                    jnp.stack([second * pull, 1 - second * of.DECAY]),
                ]
            )
            return (matrix @ product, kept * (1 - of.DECAY * jnp.stack([first, second]))), None

        def snapshot(carry, number):
            carry, _ = jax.lax.scan(step, carry, number * every + jnp.arange(every, dtype=float))
            return carry, carry

        begin = (jnp.eye(2), jnp.ones(2))
        product, kept = jax.lax.scan(snapshot, begin, jnp.arange(steps // every, dtype=float))[1]
        squares = jnp.einsum("tia,ab,tib->ti", product, gram, product) + kept**2 * rest
        return {"feature_norm": jnp.sqrt(squares[:, 0]), "prototype_norm": jnp.sqrt(squares[:, 1])}

    return norms


def _plain(start, numbers: np.ndarray, steps: int, every: int) -> dict[str, np.ndarray]:
    """The norms of the iterates themselves: every schedule moves all class means and prototypes, in NumPy."""
    apart, means, prototypes = _split(start)
    count, centre = len(numbers), np.eye(CLASSES) * (1 + GAMMA) - GAMMA
    means, prototypes = (np.broadcast_to(part, (count, *part.shape)) for part in (means, prototypes))
    kept = np.ones(count)
    found = {"feature_norm": [], "prototype_norm": []}
    for step in range(steps):
        first, second = rate_at(numbers[..., 0], numbers[..., 1], numbers[..., 2], float(step), np).T[..., None, None]
        up, down = centre @ prototypes / SAMPLES, centre @ means * (EACH / SAMPLES)
        means, prototypes = (
            (1 - first * of.DECAY) * means + first * up,
            (1 - second * of.DECAY) * prototypes + second * down,
        )
        kept = kept * (1 - first[:, 0, 0] * of.DECAY)
        if (step + 1) % every == 0:
            squares = EACH * np.sum(means**2, axis=(1, 2)) + kept**2 * np.sum(apart**2)
            found["feature_norm"].append(np.sqrt(squares))
            found["prototype_norm"].append(np.sqrt(np.sum(prototypes**2, axis=(1, 2))))
    return {name: np.stack(values, axis=1) for name, values in found.items()}
