"""Deep linear networks: conserved balance, collapse to rank one, layers that align, and the predictor of the largest margin."""

import functools
from pathlib import Path

import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.networks import (
    DEPTHS,
    FIRM,
    MOST,
    POWERS,
    UNTIL,
    Runs,
    deep_linear,
    followed,
    leftover,
    limit_margin,
    on_grid,
    picked,
    predictor,
    separable,
    smooth,
    worst_of,
)

JI = "Z. Ji, M. Telgarsky (2019, 2020)"
DERIVED = "derived here"
DEEP = DEPTHS[1:]
FAR = (1e6, 1e9)


def _name(depth: int) -> str:
    return f"L = {depth}"


def _balance(members: int) -> Measured:
    """The drift of the balance over the squared norm at the end, of deep linear nets and of squared ReLU unit by unit."""
    off = {}
    runs_of = {_name(depth): deep_linear(depth, members) for depth in DEEP} | {POWERS: smooth(members)[POWERS]}
    for name, runs in runs_of.items():
        kept = runs.seen["balance"]
        off[name] = np.nanmax(np.abs(kept - kept[:, :1]), axis=(1, 2)) / np.nanmax(runs.seen["size"], axis=1) ** 2
    return worst_of(off)


def _rank_one(members: int) -> Measured:
    ratios, numbers = {}, {}
    for depth in DEEP:
        runs = deep_linear(depth, members)
        early, late = (runs.at("rank_one", log_t)[:, :-1] for log_t in (100.0, UNTIL))
        ratios[_name(depth)] = late.max(axis=1) / early.max(axis=1) * 10 ** (2 / depth)
        numbers |= {f"{_name(depth)}, layer {i + 1}, median": float(np.median(late[:, i])) for i in range(depth - 1)}
    return worst_of(ratios, numbers)


def _layers(members: int) -> Measured:
    off = {_name(depth): 1 - deep_linear(depth, members).at("aligned", UNTIL) for depth in DEEP}
    return worst_of(off)


def _errors(runs: Runs) -> np.ndarray:
    """How far the direction of the predictor is from that of the largest margin, (members, times)."""
    product = predictor(runs.states)
    best = separable(MOST).directions[runs.members]
    return np.linalg.norm(product / np.linalg.norm(product, axis=-1, keepdims=True) - best[:, None], axis=-1)


def _spanning(runs: Runs) -> np.ndarray:
    """Whether the support vectors of a member span the inputs."""
    return separable(MOST).spanning()[runs.members]


def _max_margin(members: int) -> Measured:
    off, numbers = {}, {}
    for depth in DEPTHS:
        runs = deep_linear(depth, members)
        late = picked(_errors(runs), runs.first(UNTIL))[_spanning(runs)]
        off[_name(depth)] = 0.5 * late**2
        numbers[f"{_name(depth)}, median"] = float(np.median(0.5 * late**2))
    return worst_of(off, numbers)


def _squares(runs: Runs, log_t: float) -> np.ndarray:
    """The squared norms of the layers, (members, layers)."""
    return np.stack([(leaf**2).reshape(len(leaf), -1).sum(axis=1) for leaf in runs.state(log_t)], axis=1)


def _leftover(members: int) -> Measured:
    """What is left beside the largest singular values at log t = 1000 against what the balance of the start leaves."""
    off, numbers = {}, {}
    for depth in DEEP:
        runs, expected = deep_linear(depth, members), leftover(depth, members)
        found = runs.at("rank_one", UNTIL) * _squares(runs, UNTIL)
        relative = np.abs(found - expected).max(axis=1) / expected.sum(axis=1)
        off[_name(depth)] = relative * runs.at("size", UNTIL) ** 2
        numbers[f"relative, {_name(depth)}, worst"] = float(relative.max())
    return worst_of(off, numbers)


@functools.cache
def _far() -> Runs:
    """Three layers to log t = 1e9, 16 members."""
    data = separable(MOST)
    falls = np.concatenate([[0.0], np.geomspace(10, 1.2e9, 40)])
    net = dyn.nets.deep_linear((4, 4))
    return followed(
        net, data.inputs[:16], data.targets[:16], 75, falls, {"rank_one": dyn.observables.rank_one_residual}, until=FAR[1]
    )


def _far_rank_one(members: int) -> Measured:
    """The largest change of (1 - rank-one part) (log t)^(2/3) between log t = 1e6 and 1e9."""
    runs = _far()
    scaled = []
    for at in FAR:
        scaled.append(runs.at("rank_one", at)[:, 0] * picked(runs.log_t, runs.first(at)) ** (2 / 3))
    numbers = {f"1 - rank one at {at:g}, median": float(np.median(runs.at("rank_one", at).max(axis=1))) for at in FAR}
    return worst_of({"L = 3": np.abs(scaled[1] / scaled[0] - 1)}, numbers)


def _far_direction(members: int, power: float, chosen: tuple[bool, ...]) -> Measured:
    """By how much error times (log t)^power changes between log t = 1e6 and 1e9, of members that span or do not."""
    runs = _far()
    kept = np.isin(_spanning(runs), chosen)
    scaled = [(picked(_errors(runs), runs.first(at)) * picked(runs.log_t, runs.first(at)) ** power)[kept] for at in FAR]
    numbers = {"constant, median": float(np.median(scaled[1])), "members": float(kept.sum())}
    return worst_of({"L = 3": np.abs(scaled[1] / scaled[0] - 1)}, numbers)


def _margin_value(members: int) -> Measured:
    off = np.abs(_far().at("margin", FAR[1]) / limit_margin(3) - 1)
    numbers = {}
    for depth in DEPTHS:
        ratio = deep_linear(depth, members).at("margin", UNTIL) / limit_margin(depth)
        numbers[f"ratio at log t = 1000, {_name(depth)}, median"] = float(np.median(ratio))
    return worst_of({"L = 3 at log t = 1e9": off}, numbers)


GRID = np.geomspace(3, 0.999 * UNTIL, 160)


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 3, title="Deep linear networks collapse to rank one", panel=(4.2, 3.7))
    for ax in axes[0]:
        ax.set_xscale("log")
    first, second, third = axes[0]
    plotting.label(first, r"first layer, $1-\sigma_1^2/\|W_1\|^2$", r"$\log t$", "beside rank one", log=True)
    plotting.label(second, r"layers 1 and 2, $1-|\langle v_2,u_1\rangle|$", r"$\log t$", "misalignment", log=True)
    plotting.label(third, "predictor, L = 3: to the largest margin", r"$\log t$", "distance of directions", log=True)
    for depth, color in zip(DEEP, plotting.COLORS[1:], strict=False):
        runs = deep_linear(depth, MOST)
        plotting.ensemble(GRID, on_grid(GRID, runs, runs.seen["rank_one"][..., 0]), ax=first, color=color, label=f"L = {depth}")
        plotting.ensemble(GRID, on_grid(GRID, runs, 1 - runs.seen["aligned"][..., 0]), ax=second, color=color)
        late = GRID[GRID > 30]
        left = np.median(leftover(depth, MOST)[:, 0])
        plotting.theory(late, depth * left / (late / limit_margin(depth)) ** (2 / depth), ax=first, color=color)
    runs = deep_linear(3, MOST)
    spanning = _spanning(runs)
    errors = on_grid(GRID, runs, _errors(runs))
    late = GRID[GRID > 50]
    for chosen, power, color, text in (
        (spanning, 1.0, plotting.COLORS[0], r"support vectors span: $1/\log t$"),
        (~spanning, 1 / 3, plotting.COLORS[4], r"they do not: $(\log t)^{-1/L}$"),
    ):
        plotting.ensemble(GRID, errors[chosen], ax=third, color=color)
        at_end = np.median(errors[chosen][:, -1])
        plotting.theory(late, at_end * (GRID[-1] / late) ** power, ax=third, color=color, label=text)
    first.set_ylim(1e-5, 1)
    third.legend(loc="lower left", frameon=False, fontsize=8.5)
    plotting.legend(sheet, first, band="90 % of 64 data sets and starts")
    return plotting.save(sheet, folder, "deep-linear")


_NETS = ("exponential loss", "deep linear nets, hidden layers of 4 units, no decay", *FIRM)
_claim = functools.partial(Claim, assumptions=_NETS)

EXPERIMENT = Experiment(
    name="deep-linear",
    family="homogeneous",
    summary="balance, rank one, alignment of layers and the largest margin of deep linear networks",
    claims=(
        _claim(
            name="align-balance",
            id="align.balance",
            statement="W_(l+1)^T W_(l+1) - W_l W_l^T is conserved; with squared ReLU |w_j|^2 - 2 a_j^2 of every unit",
            source="S. Du, W. Hu, J. Lee (2018)",
            tolerance=1e-7,
            check=_balance,
            limited_by="the integrator; relative to the squared norm at log t = 1000",
        ),
        _claim(
            name="align-rank1",
            id="align.rank1",
            statement="every layer tends to rank one, 1 - sigma_1^2/|W|^2 falling about like (log t)^(-2/L) from 100 to 1000",
            source=JI,
            tolerance=2.0,
            check=_rank_one,
            limited_by="the residual is the ratio of the values at 1000 and at 100 over 10^(-2/L)",
        ),
        _claim(
            name="align-layers",
            id="align.layers",
            statement="the largest singular vectors of layers that follow each other align: 1 - |<v, u>| at log t = 1000",
            source=JI,
            tolerance=1e-2,
            check=_layers,
            limited_by="the distance to the limit at log t = 1000, of order (log t)^(-4/L)",
        ),
        _claim(
            name="align-maxmargin",
            id="align.maxmargin",
            statement="the product of the layers tends to the predictor of the largest margin: 1 - cos at log t = 1000",
            source=JI,
            assumptions=(*_NETS, "support vectors span the inputs"),
            tolerance=1e-5,
            check=_max_margin,
            limited_by="the distance to the limit, of order 1/(log t)^2",
        ),
        _claim(
            name="align-imbalance-rate",
            id="align.imbalance_rate",
            statement="the smaller squared singular values tend in sum to minus traces of the start's balance off u_l",
            source=DERIVED,
            tolerance=30.0,
            check=_leftover,
            limited_by="terms of order 1/norm^2: the residual is the relative error times the squared norm at log t = 1000",
        ),
        _claim(
            name="align-imbalance-rate-far",
            id="align.imbalance_rate",
            statement="1 - sigma_1^2/|W_1|^2 is a constant times (log t)^(-2/L) between log t = 1e6 and 1e9, L = 3",
            source=DERIVED,
            tolerance=1e-3,
            check=_far_rank_one,
        ),
        _claim(
            name="align-predictor-rate",
            id="align.imbalance_rate",
            statement="the direction of the product is off by a constant over log t between log t = 1e6 and 1e9, L = 3",
            source=DERIVED,
            tolerance=1e-3,
            check=functools.partial(_far_direction, power=1.0, chosen=(True, False)),
            finding="where the support vectors do not span the inputs the first layer stays as it is off their span, and for "
            "L > 1 the error falls only like (log t)^(-1/L); for spanning support vectors it is of order 1/log t",
        ),
        _claim(
            name="align-predictor-rate-spanning",
            id="align.imbalance_rate",
            statement="the direction of the product is off by a constant over log t between log t = 1e6 and 1e9, L = 3",
            source=DERIVED,
            assumptions=(*_NETS, "support vectors span the inputs"),
            tolerance=1e-3,
            check=functools.partial(_far_direction, power=1.0, chosen=(True,)),
            limited_by="terms of higher order; the residual is the relative change of the constant",
        ),
        _claim(
            name="align-predictor-rate-not-spanning",
            id="align.imbalance_rate",
            statement="the direction of the product is off by a constant times (log t)^(-1/3) from log t = 1e6 to 1e9, L = 3",
            source=DERIVED,
            assumptions=(*_NETS, "support vectors do not span the inputs"),
            tolerance=1e-3,
            check=functools.partial(_far_direction, power=1 / 3, chosen=(False,)),
            limited_by="terms of higher order; the residual is the relative change of the constant",
        ),
        _claim(
            name="align-margin-value",
            id="align.margin_value",
            statement="the normalised margin tends to L^(-L/2) times that of the best linear predictor, L = 3 at log t = 1e9",
            source=DERIVED,
            tolerance=1e-5,
            check=_margin_value,
            limited_by="the distance to the limit, of order (log t)^(-2/L)",
        ),
    ),
    draw=_draw,
)
