"""The digits data set, a small convolutional net: a learning rate over the loss against a constant one."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.extras import need
from dynamics.plotting import ensembles
from dynamics.simulate.step_rules import ConstantRate, LossBasedEpochs
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment

SOURCE = "K. Lyu, J. Li (2020), section 5 and appendix L, on MNIST with a larger net"
IMAGES, BATCH = 200, 10
EPOCHS, EVERY = 800, 2
NET = dyn.nets.Convolutional(channels=(8, 16), units=128, outputs=10)
CONSTANT = 0.01
"""The constant rate of the paper, of the mean over samples."""
LOSS_BASED, FIXED = "rate over the loss", "constant rate"


class Curve(NamedTuple):
    """Every second epoch: the log of the summed loss, the normalised margin."""

    epochs: np.ndarray
    log_loss: np.ndarray
    margin: np.ndarray


@functools.cache
def curves() -> dict[str, Curve]:
    """Both rates from the same weights, in float32, which logarithms of the loss allow."""
    data = need("sklearn.datasets", "data").load_digits()
    inputs = (data.images[:IMAGES, :, :, None] / 16).astype(np.float32)
    targets = data.target[:IMAGES].astype(np.int32)
    problem = dyn.Network(NET, inputs, targets, dyn.losses.CrossEntropy())
    start = dyn.initial.weights(problem, key=jax.random.key(76))
    observe = {"log_loss": dyn.observables.log_loss, "margin": dyn.norms.L2().margin}
    per_epoch = IMAGES // BATCH

    def moved(rule, steps, every):
        run = functools.partial(dyn.steepest_descent, rule=rule, steps=steps, every=every, observe=observe, batch_size=BATCH)
        seen = jax.jit(lambda *given, key: run(*given, key=key).observed)(problem, start, key=jax.random.key(77))
        return Curve(EVERY * np.arange(steps // every + 1), *(np.asarray(seen[name]) for name in ("log_loss", "margin")))

    return {
        LOSS_BASED: moved(LossBasedEpochs(), EPOCHS, EVERY),
        FIXED: moved(ConstantRate(CONSTANT / IMAGES), EPOCHS * per_epoch, EVERY * per_epoch),
    }


def _margins(members: int) -> Measured:
    """Three times the margin at the constant rate over that at the loss-based one."""
    last = {name: curve.margin[-1] for name, curve in curves().items()}
    numbers = {f"margin, {name}": float(margin) for name, margin in last.items()}
    numbers |= {"ratio": float(last[LOSS_BASED] / last[FIXED])}
    ratio = 3 * last[FIXED] / last[LOSS_BASED]
    return Measured(float(ratio), 1, f"ratio {last[LOSS_BASED] / last[FIXED]:.3g}", numbers)


def _losses(members: int) -> Measured:
    """-20 over the logarithm to base 10 of the loss at the loss-based rate."""
    last = {name: float(curve.log_loss[-1] / np.log(10)) for name, curve in curves().items()}
    return Measured(-20 / last[LOSS_BASED], 1, "", {f"log10 of the loss, {name}": value for name, value in last.items()})


def _prepare() -> None:
    curves()


def _draw(folder: Path) -> list[Path]:
    page, axes = plotting.page(1, 2, title=f"Digits: a convolutional net of degree 4, {IMAGES} images", panel=(4.9, 3.3))
    losses, margins = axes[0]
    plotting.label(losses, "the loss", "epoch", r"$\log_{10}\mathcal{L}$")
    plotting.label(margins, "the margin", "epoch", r"$\min_i q_i/\|\theta\|^4$", log=True)
    for (name, curve), color in zip(curves().items(), plotting.COLORS, strict=False):
        plotting.simulated(curve.epochs, curve.log_loss / np.log(10), ax=losses, color=color, label=name)
        plotting.simulated(curve.epochs, curve.margin, ax=margins, color=color)
    for axis in (losses, margins):
        axis.set_xlim(0, EPOCHS)
    margins.set_ylim(3e-6, 3e-4)
    ensembles.key(page, losses)
    return plotting.save(page, folder, "digits")


_claim = functools.partial(Claim, id="margin.loss_based_lr", source=SOURCE)
_SETTING = (
    "two convolutions, 128 dense units, no biases; degree 4",
    "200 digits of 8 by 8, batches of 10",
    "800 epochs, one start",
)

AVAILABLE = importlib.util.find_spec("sklearn") is not None

EXPERIMENT = Experiment(
    name="digits",
    family="homogeneous",
    summary="a convolutional net on digits: a learning rate over the loss against a constant one"
    + ("" if AVAILABLE else " (skipped: needs scikit-learn, the extra 'data')"),
    claims=(),
    long_claims=(
        _claim(
            name="digits-margin",
            statement="the margin at a rate over the loss is three times that at a constant rate (residual: 3 over the ratio)",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_margins,
        ),
        _claim(
            name="digits-loss",
            statement="the rate over the loss takes the loss below 1e-20 (residual: -20 over its logarithm)",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_losses,
        ),
    )
    if AVAILABLE
    else (),
    draw=_draw if AVAILABLE else None,
    prepare=_prepare if AVAILABLE else None,
)
