"""Cross-entropy under step imbalance: from which ratio on the minority classes share one prototype."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.minimiser_figures import draw_minority
from experiments.shared.minimiser_oracles import cross_entropy, descended, kind_of, unpacked
from experiments.shared.minority_entropy import Step, bounded_threshold, minority, ridge_threshold, with_bounds, with_decay

RIDGE = "C. Fang, H. He, Q. Long, W. Su 2021 (minority collapse); sharp threshold: W. Hong, S. Ling; derived here"
BOUNDS = "C. Fang, H. He, Q. Long, W. Su 2021 (minority collapse); the multiplier form derived here"
STEPS = (Step(2, 2), Step(1, 3), Step(3, 2))
WHOLE = kind_of("entropy", (6, 6, 1, 1), 4)
TABLE = {
    (2, 2, 1, 5): (47.685, 5e-4),
    (3, 7, 1, 5): (245.50, 5e-3),
    (5, 5, 1, 5): (12.192, 5e-4),
    (7, 3, 1, 5): (4.0005, 5e-5),
    (5, 5, 1, 10): (81.10, 5e-3),
    (5, 5, 1, 1): (1.735, 5e-4),
}
"""R0 of (K_a, K_b, E_w, E_h), and half a unit of its last digit."""


class _Ridge:
    """Random step imbalances of one kind, a ratio 3 % above (odd members) or below the threshold."""

    def __init__(self, step: Step, members: int):
        rng = np.random.default_rng([97, *step])
        self.smallest, self.threshold = rng.uniform(1, 5, members), 10 ** rng.uniform(np.log10(1.3), 1.2, members)
        pressure = 1 / (np.sqrt(self.smallest) * (step.many * self.threshold + step.few))
        assert np.allclose(ridge_threshold(step, pressure, self.smallest), self.threshold, rtol=1e-12)
        tilt = 10 ** rng.uniform(-1, 1, members)
        self.decays = np.stack([pressure * tilt, pressure / tilt, np.zeros(members)], axis=1)
        self.past = np.arange(members) % 2 == 1
        self.counts = step.counts(self.threshold * np.where(self.past, 1.03, 0.97), self.smallest)


@functools.cache
def _descended(step: Step, members: int):
    drawn = _Ridge(step, members)
    return drawn, *with_decay(step, drawn.decays, drawn.counts)


def _over_steps(residual, members: int) -> Measured:
    share = -(-members // len(STEPS))
    found = np.array([residual(step, share) for step in STEPS])
    worst = int(np.where(np.isfinite(found), found, np.inf).max(axis=1).argmax())
    where = f"K_a = {STEPS[worst].many}, K_b = {STEPS[worst].few}, member {int(found[worst].argmax())}"
    return Measured(float(found[worst].max()), share * len(STEPS), where)


def _merged(step: Step, members: int):
    """Relative distance of minority prototypes above the threshold; below it they must be 1e-2 apart."""
    drawn, _, prototypes = _descended(step, members)
    distance, _ = minority(step, prototypes)
    return np.where(drawn.past, distance, np.where(distance > 1e-2, 0.0, np.inf))


def _slope(step: Step, members: int):
    """<slope, I - J> over the minority block at the merged minima, against -(K_b - 1) n_b/N."""
    drawn, _, _ = _descended(step, members)
    # the slope depends on minority logits being alike and on nothing else: any point with equal minority rows will do
    logits = np.random.default_rng(101).normal(size=(members, step.classes, step.classes))
    logits[:, step.many :, step.many :] = logits[:, step.many :, step.many : step.many + 1]
    share = drawn.counts / drawn.counts.sum(axis=1, keepdims=True)
    slope = share[..., None] * cross_entropy(logits, np.eye(step.classes))[1]
    block = slope[:, step.many :, step.many :]
    found = np.sum(block * (np.eye(step.few) - 1 / step.few), axis=(1, 2))
    return np.abs(found + (step.few - 1) * share[:, -1])


def _whole(members: int) -> Measured:
    """All samples free, sizes (6, 6, 1, 1), pressure 3 % on either side of 1/N."""
    members = max(members // 4, 1)
    rng = np.random.default_rng(103)
    past, tilt = np.arange(members) % 2 == 1, 10 ** rng.uniform(-0.5, 0.5, members)
    pressure = np.where(past, 1.03, 0.97) / WHOLE.samples
    decays = np.stack([pressure * tilt, pressure / tilt, np.zeros(members)], axis=1)
    _, x, _ = descended(WHOLE, decays)
    prototypes = unpacked(WHOLE, x)[1]
    distance, _ = minority(Step(2, 2), prototypes)
    kept = np.linalg.norm(prototypes[:, 2:], axis=2).min(axis=1) > 1e-2  # merged, not lost
    residual = np.where(past, distance, np.where(distance > 1e-2, 0, np.inf))
    return Measured(float(np.where(kept, residual, np.inf).max()), members, "sizes (6, 6, 1, 1), p = 4")


def _table(members: int) -> Measured:
    """In halves of a unit of the last digit."""
    wrong, numbers = {}, {}
    for (many, few, e_w, e_h), (value, half) in TABLE.items():
        found = bounded_threshold(Step(many, few), np.sqrt(e_w * e_h))
        numbers[f"R0 {many},{few},{e_w},{e_h}"] = found
        wrong[many, few, e_w, e_h] = abs(found - value) / half
    worst = max(wrong, key=lambda key: wrong[key])
    return Measured(wrong[worst], len(TABLE), f"(K_a, K_b, E_w, E_h) = {worst}", numbers)


def _brackets(members: int) -> Measured:
    """Merged distance 3 % above; .11 apart 3 % below."""
    worst, closest = 0.0, np.inf
    for (many, few, e_w, e_h), (value, _) in TABLE.items():
        step, norms = Step(many, few), np.tile(np.sqrt([e_w, e_h]), (2, 1))
        _, prototypes = with_bounds(step, norms, step.counts(value * np.array([1.03, 0.97])))
        merged, apart = minority(step, prototypes)[0]
        worst, closest = max(worst, merged), min(closest, apart)
    residual = worst if closest >= 0.11 else np.inf
    return Measured(residual, 2 * len(TABLE), "six settings, either side", {"least distance below": closest})


_ASSUMED = ("cross-entropy", "K_a classes of size R n_b, K_b of n_b", "no biases")

EXPERIMENT = Experiment(
    name="minority-collapse",
    family="cross-entropy",
    summary="minority collapse of cross-entropy: thresholds with decay and with bounded norms",
    claims=(
        Claim(
            name="minority-ridge-merged",
            id="ce.minority_ridge",
            statement="minority prototypes agree iff n_b <= N^2 wd_w wd_h, R >= (1/sqrt(n_b wd_w wd_h) - K_b)/K_a: "
            "descents 3 % on either side",
            source=RIDGE,
            assumptions=(*_ASSUMED, "decay"),
            tolerance=8.6e-7,
            check=functools.partial(_over_steps, _merged),
        ),
        Claim(
            name="minority-ridge-slope",
            id="ce.minority_ridge",
            statement="slope of the mean loss along I - J of the minority block where it is merged: -(K_b - 1) n_b/N",
            source=RIDGE,
            assumptions=_ASSUMED,
            tolerance=1e-15,
            check=functools.partial(_over_steps, _slope),
        ),
        Claim(
            name="minority-ridge-samples",
            id="ce.minority_ridge",
            statement="the same with every sample free; merged minority prototypes are not zero",
            source=RIDGE,
            assumptions=(*_ASSUMED, "decay", "a quarter of the members"),
            tolerance=8.6e-7,
            check=_whole,
        ),
        Claim(
            name="minority-bounded-table",
            id="ce.minority_constrained",
            statement="thresholds R0(K_a, K_b, E_w, E_h) by 1/(K_a R + K_b) = nu(R) (residual: halves of the last digit)",
            source=BOUNDS,
            assumptions=(*_ASSUMED, "mean |w|^2 <= E_w, mean |h|^2 <= E_h over classes"),
            tolerance=1.0,
            check=_table,
        ),
        Claim(
            name="minority-bounded-brackets",
            id="ce.minority_constrained",
            statement="merged 3 % above R0, .11 apart 3 % below, by descent from random starts",
            source=BOUNDS,
            assumptions=(*_ASSUMED, "mean |w|^2 <= E_w, mean |h|^2 <= E_h over classes"),
            tolerance=6e-7,
            check=_brackets,
        ),
    ),
    draw=draw_minority,
)
