"""Global minima of squared error with decay, no biases: formula, random starts, a certificate, and where flows end."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.minimiser_figures import draw_survival
from experiments.shared.minimiser_flows import MOST, counted, ends
from experiments.shared.minimiser_oracles import Kind, apart, kind_of, unpacked
from experiments.shared.minimisers import gram_gap, judged, uncertified, value_gap, worst_of

SOURCE = "N. Srebro, J. Rennie, T. Jaakkola 2005; Z. Zhu et al. 2021; explicit form derived here"
KINDS = (kind_of("squared", (2, 2, 2), 4), kind_of("squared", (3, 3), 2), kind_of("squared", (2,) * 5, 5))
UNEQUAL = kind_of("squared", (3, 2, 1), 3)


def _printed(kind: Kind, members: int):
    """c = K sqrt(n wd_w wd_h): |h|^2 = (1-c) sqrt(wd_w/(n wd_h)), |w|^2 = (1-c) sqrt(n wd_h/wd_w), w_k along h_k; else 0."""
    decays, _, states, _ = judged(kind, members)
    features, prototypes, _ = unpacked(kind, states)
    wd_h, wd_w, per_class = decays[:, 0], decays[:, 1], kind.samples // kind.classes
    left = np.maximum(1 - kind.classes * np.sqrt(per_class * wd_w * wd_h), 0)[:, None]
    ratio = np.sqrt(per_class * wd_h / wd_w)[:, None]
    wrong = [
        np.abs(np.sum(features**2, axis=2) - left / ratio) * ratio,
        np.abs(np.sum(prototypes**2, axis=2) - left * ratio) / ratio,
        (np.abs(prototypes[:, list(kind.labels)] - ratio[..., None] * features) / np.sqrt(ratio)[..., None]).max(axis=2),
    ]
    return np.max([one.max(axis=1) for one in wrong], axis=0)


def _flows(members: int):
    """Values and Gram matrices at the end; every fourth start is without the first class, and stays so."""
    found = ends(UNEQUAL, min(members, MOST), planted_class=0)
    pressure, samples = np.sqrt(found.decays[:, 0] * found.decays[:, 1]), UNEQUAL.samples
    sigma = UNEQUAL.sizes[0] ** 0.5
    kept = np.maximum(sigma - samples * pressure, 0)
    # without that class: its part of the minimum is sigma^2/2n instead
    missing = sigma**2 / (2 * samples) - (kept - sigma) ** 2 / (2 * samples) - pressure * kept
    value = found.minimum.value + np.where(found.planted, missing, 0)
    off = np.where(found.planted, 0.0, apart(found.minimum, found.reached))
    residual = np.maximum(np.abs(found.reached.value - value), off)
    return counted(found, residual, found.planted & (kept > 0), "decay at least 10 % off every threshold")


_claim = functools.partial(Claim, id="mse.minimiser", source=SOURCE)
_ASSUMED = ("squared error, balanced classes", "no biases", "both decays positive", "dim >= classes")

EXPERIMENT = Experiment(
    name="square-minimiser",
    family="square-loss",
    summary="global minima of squared error with decay",
    claims=(
        _claim(
            name="square-minimiser-value",
            statement="the minimum has singular values (sqrt(n) - mu/kappa)_+: no random start goes lower",
            assumptions=_ASSUMED,
            tolerance=1.1e-15,
            check=functools.partial(worst_of, value_gap, kinds=KINDS),
        ),
        _claim(
            name="square-minimiser-grams",
            statement="W W^T, H H^T and logits of the minimum = those that random starts descend to",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, gram_gap, kinds=KINDS),
        ),
        _claim(
            name="square-minimiser-certificate",
            statement="it satisfies the conditions of a global minimum of the convex problem in Z = H W^T",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, uncertified, kinds=KINDS),
        ),
        _claim(
            name="square-minimiser-norms",
            statement="c = K sqrt(n wd_w wd_h) < 1: |h|^2 = (1-c) sqrt(wd_w/(n wd_h)), |w|^2 = (1-c) sqrt(n wd_h/wd_w), "
            "w_k = sqrt(n wd_h/wd_w) h_k; zero from c = 1 on",
            assumptions=_ASSUMED,
            tolerance=1e-14,
            check=functools.partial(worst_of, _printed, kinds=KINDS),
        ),
        _claim(
            name="square-minimiser-flows",
            statement="regularised flows end there from random starts; from starts without a class, at the minimum without it",
            assumptions=("squared error, classes of 3, 2 and 1", "no biases", "rates and decays unequal"),
            tolerance=6.7e-7,
            check=_flows,
        ),
    ),
    draw=draw_survival,
)
