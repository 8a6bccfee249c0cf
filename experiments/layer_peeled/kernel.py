"""Frozen tangent kernels that precondition the features' gradient, simulated and by formula."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import EXPM, clock, deviation, product, size_of, stacked, under_kernel
from experiments.shared.instances import TIMES, Kernels, Size, class_sides, draws, instance, kernels, spread, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 8, corrected and extended"
LAST = len(TIMES) - 1


def _identities(both: Kernels, samples: bool, features: bool) -> Kernels:
    """The kernels, those not asked for replaced by identities."""
    kept = zip(both, (samples, features), strict=True)
    return Kernels(*(k if asked else np.broadcast_to(np.eye(k.shape[1]), k.shape) for k, asked in kept))


@functools.cache
def _judge(size: Size, members: int, samples: bool = True, features: bool = True):
    """States at the last time by the exponential of the general system, with the kernels asked for."""
    draw, chosen = draws(size, members), _identities(kernels(size, members), samples, features)
    return under_kernel(draw, size, product(chosen), clock(draw, TIMES)[:, LAST])


@functools.cache
def _simulated(size: Size, members: int):
    def one(member):
        draw, both = member
        fields = {"kernel": both.across_samples, "feature_kernel": both.across_features}
        return dyn.flow(*instance(draw, size, decay=True, **fields), TIMES, rtol=1e-10, atol=1e-10).states

    states = dyn.ensemble.run(one, (draws(size, members), kernels(size, members)), progress=False).values
    return stacked(states.features, states.prototypes)


@functools.cache
def _by_formula(size: Size, members: int, samples: bool, features: bool):
    def one(member):
        draw, both = member
        fields = {
            "kernel": both.across_samples if samples else None,
            "feature_kernel": both.across_features if features else None,
        }
        return dyn.exact.flow(*instance(draw, size, decay=True, **fields), TIMES).states

    states = dyn.ensemble.run(one, (draws(size, members), kernels(size, members)), progress=False).values
    return stacked(states.features, states.prototypes)


def _flow(size: Size, members: int):
    return deviation(_simulated(size, members)[:, LAST], _judge(size, members))


def _formula(size: Size, members: int, samples: bool, features: bool):
    return deviation(_by_formula(size, members, samples, features)[:, LAST], _judge(size, members, samples, features))


def _null_space(size: Size, members: int):
    """What a singular kernel across samples or features annihilates only decays; in the simulation, relative to the start."""
    draw, both = draws(size, members), kernels(size, members)
    samples = both.across_samples.shape[1]
    features = _simulated(size, members)[..., :samples, :]
    kept = np.exp(-draw.decay[:, :1] * draw.ratio[:, None] * clock(draw, TIMES))[..., None, None]
    worst = np.zeros(members)
    for kernel, left in zip(both, (True, False), strict=True):
        _, vectors = np.linalg.eigh(kernel)
        null = vectors[:, :, :1] @ vectors[:, :, :1].swapaxes(1, 2)
        part = null[:, None] @ features if left else features @ null[:, None]
        start = null @ draw.features if left else draw.features @ null
        gap = np.max(size_of(part - kept * start[:, None]), axis=1) / size_of(draw.features)
        worst = np.maximum(worst, np.where(np.arange(members) < members // 2, gap, 0.0))
    return worst


def _outside(size: Size, members: int):
    """With a kernel across features alone, deviations from class means, outside the row space of M, only decay."""
    draw = draws(size, members)
    features = _by_formula(size, members, False, True)[..., : size.classes * size.per_class, :]
    rest = features - spread(class_sides(features, size), size)
    start = draw.features - spread(class_sides(draw.features, size), size)
    kept = np.exp(-draw.decay[:, :1] * draw.ratio[:, None] * clock(draw, TIMES))[..., None, None]
    return np.max(size_of(rest - kept * start[:, None]) / size_of(features), axis=1)


def _squared_error(size: Size, members: int):
    """The library's force under squared error: -W R K, -R^T H, -R^T 1 with R = (logits - one-hot)/n."""
    draw, kernel = draws(size, members), kernels(size, members).across_features

    def one(member):
        draw, kernel = member
        problem, state, _ = instance(draw, size, loss=dyn.losses.SquaredError(), bias=True, feature_kernel=kernel)
        return problem.force(state)

    force = dyn.ensemble.run(one, (draw, kernel), progress=False).values
    one_hot = np.repeat(np.eye(size.classes), size.per_class, axis=0)
    logits = draw.features @ draw.prototypes.swapaxes(1, 2) + draw.biases[:, None]
    residual = (logits - one_hot) / len(one_hot)
    formula = stacked(-residual @ draw.prototypes @ kernel, -residual.swapaxes(1, 2) @ draw.features)
    biases = deviation(force.biases, -residual.sum(axis=1), axes=1)
    return np.maximum(deviation(stacked(force.features, force.prototypes), formula), biases)


_claim = functools.partial(Claim, id="unhinged.ntk", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=(Size(3, 2, 3),))
_KERNEL = ("balanced classes", "a kernel constant in time", "constant ratio of rates")
_JUDGE = "the exponential of the general system"

EXPERIMENT = Experiment(
    name="kernel",
    family="unhinged",
    summary="flow under frozen tangent kernels",
    claims=(
        _claim(
            name="kernel-flow",
            statement=f"simulated flow under a product kernel, decays and all, = {_JUDGE}",
            assumptions=_KERNEL,
            tolerance=1e-7,
            check=_check(_flow),
        ),
        *(
            _claim(
                name=f"kernel-{name}",
                statement=f"formula with {text} = {_JUDGE}",
                assumptions=_KERNEL,
                tolerance=1e-11,
                limited_by=EXPM,
                check=_check(functools.partial(_formula, samples=samples, features=features)),
            )
            for name, text, samples, features in (
                ("across-samples", "a kernel across samples", True, False),
                ("across-features", "a kernel across feature coordinates", False, True),
                ("product", "their product", True, True),
            )
        ),
        _claim(
            name="kernel-null-space",
            statement="a singular kernel freezes its null space up to decay",
            assumptions=_KERNEL,
            tolerance=2e-8,
            check=_check(_null_space),
        ),
        _claim(
            name="kernel-outside",
            statement="features outside the row space of M are frozen up to decay",
            assumptions=(*_KERNEL, "no kernel across samples"),
            tolerance=1e-14,
            check=_check(_outside),
        ),
        _claim(
            name="kernel-squared-error",
            statement="squared error: H' = -K W R, W' = -H R^T, b' = -R 1, R = (logits - one-hot)/n",
            assumptions=("a kernel across feature coordinates",),
            tolerance=1e-14,
            check=_check(_squared_error),
        ),
    ),
)
