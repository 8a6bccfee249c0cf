"""Observables of networks against their definitions: outputs in NumPy, gradients by complex steps, losses by mpmath."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.optimize

import dynamics as dyn
from dynamics import observables as obs
from dynamics.losses import CrossEntropy, Exponential, Logistic
from dynamics.problems.activations import IDENTITY
from tests.helpers import UNSORTED, compiled, draw, refused, start

STEP = 1e-100  # of complex differentiation, which cancels nothing


class Case(NamedTuple):
    net: dyn.nets.Net
    loss: dyn.losses.MarginLoss
    shapes: tuple[tuple[int, ...], ...]
    samples: int = 6
    degree: int = 2


WIDTH = 4
CASES = {
    "linear": Case(dyn.nets.linear(), Exponential(), ((WIDTH,),), degree=1),
    "one sample": Case(dyn.nets.linear(), Logistic(), ((WIDTH,),), samples=1, degree=1),
    "deep linear": Case(dyn.nets.deep_linear((3, 5, 2)), Exponential(), ((3, WIDTH), (5, 3), (2, 5), (2,)), degree=4),
    "ReLU": Case(dyn.nets.two_layer(7), Exponential(), ((7, WIDTH), (7,))),
    "leaky, logistic": Case(dyn.nets.two_layer(7, slope=0.2, at_zero=0.2), Logistic(), ((7, WIDTH), (7,))),
    "deep ReLU": Case(dyn.nets.deep((5, 6)), Exponential(), ((5, WIDTH), (6, 5), (6,)), degree=3),
    "squares": Case(dyn.nets.two_layer(5, power=2), Exponential(), ((5, WIDTH), (5,)), degree=3),
    "deep squares": Case(dyn.nets.deep((4, 3), power=2, slope=0.5), Exponential(), ((4, WIDTH), (3, 4), (3,)), degree=7),
    "two classes": Case(dyn.nets.two_layer(6, outputs=2), CrossEntropy(), ((6, WIDTH), (2, 6))),
    "three classes": Case(dyn.nets.deep_linear((5,), outputs=3), CrossEntropy(), ((5, WIDTH), (3, 5))),
    "softplus": Case(dyn.nets.softplus(6), Exponential(), ((6, WIDTH), (6,))),
    "skip": Case(dyn.nets.Skip(6), Exponential(), ((6, WIDTH), (6,), (6,), (WIDTH,))),
}
HOMOGENEOUS = [name for name in CASES if name not in ("softplus", "skip")]
SCALARS = (
    *("margin", "normalized_margin", "log_loss", "smoothed_margin", "gradient_alignment", "gradient_misalignment"),
    *("gap_factor", "kkt_stationarity", "kkt_slackness", "euler_defect", "weight_norm", "accuracy", "misclassified"),
)


def activation(net, z):
    if isinstance(net.activation, type(IDENTITY)):
        k, s = net.activation.power, net.activation.slope
        return np.where(z.real > 0, z**k, -s * (-z) ** k)
    return np.where(z.real > 0, z, 0) + np.log1p(np.exp(np.where(z.real > 0, -z, z)))


def outputs(case: Case, weights, inputs) -> np.ndarray:
    """The outputs at all samples, shape (samples, outputs), of real or complex weights."""
    rows = []
    for x in inputs:
        if isinstance(case.net, dyn.nets.Skip):
            inner, biases, outer, straight = weights
            rows.append([outer @ activation(case.net, inner @ x + biases) + straight @ x])
            continue
        for matrix in weights[:-1]:
            x = activation(case.net, matrix @ x)
        rows.append(np.atleast_1d(weights[-1] @ x))
    return np.array(rows)


def data(case: Case, seed=0):
    """Inputs and targets, the latter right for the outputs of `weights_of(case, seed)` where they are separated."""
    inputs = draw(case.samples, WIDTH, seed=seed + 5)
    out = outputs(case, weights_of(case, seed), inputs)
    targets = np.argmax(out, axis=1) if case.loss.multiclass else np.where(out[:, 0] > 0, 1, -1)
    return inputs, targets


def weights_of(case: Case, seed=0, scale=1.0) -> list[np.ndarray]:
    return [scale * draw(*shape, seed=seed + 10 * place) for place, shape in enumerate(case.shapes)]


def flat(weights) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in weights])


def slopes(case: Case, weights, inputs) -> np.ndarray:
    """The gradients of the outputs, shape (samples, outputs, weights)."""
    columns = []
    for place, part in enumerate(weights):
        for index in np.ndindex(part.shape):
            moved = [np.array(other, complex) for other in weights]
            moved[place][index] += 1j * STEP
            columns.append(outputs(case, moved, inputs).imag / STEP)
    return np.stack(columns, axis=-1)


def by_definition(case: Case, weights, inputs, targets) -> dict[str, np.ndarray]:
    """Section by section of Lyu and Li (2020), with loops and 50 digits where losses are summed."""
    out, slope, theta = outputs(case, weights, inputs), slopes(case, weights, inputs), flat(weights)
    n, degree, rho = len(targets), case.degree, np.linalg.norm(flat(weights))
    exponential = isinstance(case.loss, Exponential)
    with mpmath.workdps(50):
        pairs, values, owner = [], [], []  # margins of every constraint, their gradients, their sample
        for i in range(n):
            if case.loss.multiclass:
                rest = [j for j in range(out.shape[1]) if j != targets[i]]
                pairs += [out[i, targets[i]] - out[i, j] for j in rest]
                values += [slope[i, targets[i]] - slope[i, j] for j in rest]
                owner += [(i, j) for j in rest]
            else:
                pairs.append(targets[i] * out[i, 0])
                values.append(targets[i] * slope[i, 0])
                owner.append((i, 0))
        if exponential:
            losses = [mpmath.exp(-mpmath.mpf(q)) for q in pairs]
            weighting = losses
        else:
            behind = [mpmath.exp(-mpmath.mpf(q)) for q in pairs]
            parts = {i: mpmath.fsum(e for e, (k, _) in zip(behind, owner, strict=True) if k == i) for i in range(n)}
            losses = [mpmath.log1p(part) for part in parts.values()]
            weighting = [e / (1 + parts[i]) for e, (i, _) in zip(behind, owner, strict=True)]
        total = mpmath.fsum(losses)
        inverse = -mpmath.log(total) if exponential else -mpmath.log(mpmath.expm1(total))
        change = 1 if exponential else total * mpmath.exp(total) / mpmath.expm1(total)
        p = np.array([float(w / total) for w in weighting])
        kappa = float(change * mpmath.fsum(w / total * mpmath.mpf(q) for w, q in zip(weighting, pairs, strict=True)) / inverse)
        log_loss, inverse = float(mpmath.log(total)), float(inverse)
    q, values = np.array(pairs), np.array(values)
    g = p @ values
    least = q.min()
    scaled = theta / least ** (1 / degree) if least > 0 else np.full_like(theta, np.nan)
    at_scaled = values * least ** (1 / degree - 1) if least > 0 else np.nan * values
    multipliers = p * (least ** (1 - 2 / degree) if least > 0 else np.nan) * rho / np.linalg.norm(g)
    shown = np.full(out.shape if case.loss.multiclass else (n, 1), 0.0 if least > 0 else np.nan)
    for value, place in zip(multipliers, owner, strict=True):
        shown[place] = value
    leads = [min(q[k] for k, (j, _) in enumerate(owner) if j == i) for i in range(n)]
    beta = theta @ g / rho / np.linalg.norm(g)
    return {
        "margin": least,
        "normalized_margin": least / rho**degree,
        "log_loss": log_loss,
        "smoothed_margin": inverse / rho**degree,
        "gradient_alignment": beta,
        "gradient_misalignment": 1 - beta,
        "gap_factor": kappa,
        "kkt_multipliers": shown,
        "kkt_stationarity": np.linalg.norm(scaled - multipliers @ at_scaled),
        "kkt_slackness": np.max(multipliers * (q / least - 1)),
        "euler_defect": np.max(np.abs(slope @ theta - degree * out)),
        "weight_norm": rho,
        "accuracy": np.mean(np.array(leads) > 0),
        "misclassified": np.sum(np.array(leads) <= 0),
    }


def problem_of(case: Case, inputs, targets) -> dyn.Network:
    return dyn.Network(case.net, inputs, targets, case.loss)


SLOW = ("deep squares", "ReLU")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in CASES
        if name not in ("linear", "squares")
    ],
)
def test_margins_alignment_and_residuals_follow_their_definitions(name):
    """A separated start, one that is not, and margins of about 1e6; all at once, compiled."""
    case = CASES[name]
    inputs, targets = data(case)
    problem = problem_of(case, inputs, targets)
    far = (1e6 / float(obs.margin(problem, tuple(weights_of(case))))) ** (1 / case.degree)
    starts = [weights_of(case), weights_of(case, seed=3, scale=0.6), weights_of(case, scale=far)]
    stacked = tuple(jnp.stack(parts) for parts in zip(*starts, strict=True))
    watch = {each: getattr(obs, each) for each in (*SCALARS, "kkt_multipliers")}
    got = compiled(jax.vmap(lambda state: {each: f(problem, state) for each, f in watch.items()}))(stacked)
    for member, weights in enumerate(starts):
        expected = by_definition(case, weights, inputs, targets)
        # margins of 1e6 keep 1e-10 of the differences that the loss sees
        rtol = 1e-8 if member == 2 else 1e-11
        for each in watch:
            floor = {"gradient_misalignment": 1e-14, "kkt_slackness": 1e-12, "kkt_multipliers": 1e-12}.get(each, 0.0)
            if each == "euler_defect":
                floor = 1e-12 * max(1.0, np.abs(outputs(case, weights, inputs)).max())
            np.testing.assert_allclose(got[each][member], expected[each], rtol=rtol, atol=floor, err_msg=f"{each} {member}")
    assert np.asarray(got["misclassified"])[0] == 0
    if name in HOMOGENEOUS:
        assert float(got["margin"][2]) == pytest.approx(1e6, rel=1e-9)


@pytest.mark.parametrize("name", ["leaky, logistic", "three classes"])
def test_single_precision_stays(name):
    case = CASES[name]
    inputs, targets = data(case)
    problem = problem_of(case, inputs.astype(np.float32), targets)
    state = tuple(part.astype(np.float32) for part in weights_of(case))
    watch = {each: getattr(obs, each) for each in (*SCALARS, "kkt_multipliers") if each != "euler_defect"}
    got = compiled(lambda state: {each: f(problem, state) for each, f in watch.items()})(state)
    expected = by_definition(case, weights_of(case), inputs, targets)
    for each in watch:
        assert got[each].dtype == (jnp.float32 if each != "misclassified" else got[each].dtype), each
        np.testing.assert_allclose(got[each], expected[each], rtol=2e-4, atol=2e-5, err_msg=each)


@pytest.mark.slow
def test_geometric_margin_is_the_margin_of_layers_of_unit_norm():
    for name in ("linear", "deep linear", "deep squares", "three classes"):
        case = CASES[name]
        problem = problem_of(case, *data(case))
        weights = weights_of(case)
        unit = [part / np.linalg.norm(part) for part in weights]
        expected = by_definition(case, unit, *data(case))["margin"]
        assert float(obs.geometric_margin(problem, tuple(weights))) == pytest.approx(expected, rel=1e-12), name
    net = dyn.nets.Convolutional((2, 3), 4, 3)
    images = draw(5, 8, 8, 1)
    weights = tuple(np.abs(draw(*shape, seed=3)) for shape in ((3, 3, 1, 2), (3, 3, 2, 3), (4, 12), (3, 4)))
    problem = dyn.Network(net, images, np.arange(5) % 3, CrossEntropy())
    unit = tuple(part / np.linalg.norm(part) for part in weights)
    expected, found = compiled(lambda: (jnp.min(problem.margins(unit)), obs.geometric_margin(problem, weights)))()
    assert expected != 0 and float(found) == pytest.approx(float(expected), rel=1e-12)


def test_modified_margin_and_the_defect_of_nearly_homogeneous_nets():
    """The offset solves M phi - rho phi' = the bound; the bound holds at random weights of any size."""
    for name in ("softplus", "skip"):
        case = CASES[name]
        inputs, targets = data(case)
        problem = problem_of(case, inputs, targets)
        bound = case.net.defect(float(problem.radius))
        modified = compiled(lambda state: obs.modified_margin(bound, 2)(problem, state))  # noqa: B023
        for scale in (0.1, 1.0, 30.0):
            weights = weights_of(case, scale=scale)
            rho = np.linalg.norm(flat(weights))
            expected = (-by_definition(case, weights, inputs, targets)["log_loss"] - bound[1] * rho) / rho**2
            assert float(modified(tuple(weights))) == pytest.approx(expected, rel=1e-12)
            assert float(obs.euler_defect(problem, tuple(weights))) <= bound[1] * rho
    c = (0.3, 0.0, 0.7)  # of degree 4
    problem = problem_of(CASES["deep linear"], *data(CASES["deep linear"]))
    state = tuple(weights_of(CASES["deep linear"]))
    rho = float(obs.weight_norm(problem, state))
    expected = (-float(obs.log_loss(problem, state)) - (0.3 / 4 + 0.7 * rho**2 / 2)) / rho**4
    assert float(obs.modified_margin(c, 4)(problem, state)) == pytest.approx(expected, rel=1e-12)
    assert float(obs.modified_margin((), 4)(problem, state)) == pytest.approx(float(obs.smoothed_margin(problem, state)))
    refused(lambda: obs.modified_margin((0.0, 0.0, 1.0), 2), "bound", "below the degree 2")
    refused(lambda: obs.modified_margin((-1.0,), 2), "bound", ">= 0")


def test_layers_balance_and_rank():
    case = CASES["deep linear"]
    problem, weights = problem_of(case, *data(case)), weights_of(case)
    matrices = [np.atleast_2d(part) for part in weights]
    pairs = list(zip(matrices[:-1], matrices[1:], strict=True))
    watch = ("layer_balance", "neuron_balance", "rank_one_residual", "layer_alignment")
    stacked = tuple(jnp.stack([part, 1e3 * part]) for part in weights)
    got = compiled(jax.vmap(lambda state: {name: getattr(obs, name)(problem, state) for name in watch}))(stacked)
    np.testing.assert_allclose(
        got["layer_balance"][0], np.concatenate([(b.T @ b - a @ a.T).ravel() for a, b in pairs]), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        got["neuron_balance"][0],
        [np.sum(a[j] ** 2) - np.sum(b[:, j] ** 2) for a, b in pairs for j in range(a.shape[0])],
        rtol=1e-12,
        atol=1e-12,
    )
    ratios = [1 - np.linalg.norm(matrix, 2) ** 2 / np.sum(matrix**2) for matrix in matrices]
    tops = []
    for lower, upper in pairs:  # by the symmetric eigenvalue problems, another route than one SVD
        left = np.linalg.eigh(lower @ lower.T)[1][:, -1]
        right = np.linalg.eigh(upper.T @ upper)[1][:, -1]
        tops.append(abs(left @ right))
    for member in range(2):
        np.testing.assert_allclose(got["rank_one_residual"][member], ratios, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(got["layer_alignment"][member], tops, rtol=1e-10)
    thin = tuple(np.outer(draw(a), draw(b, seed=1)) if b else draw(a) for a, b in ((3, 4), (5, 3), (2, 5), (2, 0)))
    assert np.all(np.asarray(obs.rank_one_residual(problem, thin)) < 1e-30)

    squares = CASES["deep squares"]
    problem, weights = problem_of(squares, *data(squares)), weights_of(squares)
    matrices = [np.atleast_2d(part) for part in weights]
    pairs = list(zip(matrices[:-1], matrices[1:], strict=True))
    expected = [np.sum(a[j] ** 2) - 2 * np.sum(b[:, j] ** 2) for a, b in pairs for j in range(a.shape[0])]
    np.testing.assert_allclose(obs.neuron_balance(problem, tuple(weights)), expected, rtol=1e-12)
    linear = problem_of(CASES["linear"], *data(CASES["linear"]))
    skip = problem_of(CASES["skip"], *data(CASES["skip"]))
    smooth = problem_of(CASES["softplus"], *data(CASES["softplus"]))
    refused(lambda: obs.layer_balance(linear, (np.ones(WIDTH),)), "net", "at least two layers")
    refused(lambda: obs.rank_one_residual(skip, tuple(weights_of(CASES["skip"]))), "net", "layers", "Skip")
    refused(lambda: obs.geometric_margin(skip, tuple(weights_of(CASES["skip"]))), "net", "layers", "Skip")
    refused(lambda: obs.neuron_balance(smooth, tuple(weights_of(CASES["softplus"]))), "net", "activations of a degree")


@pytest.mark.slow
def test_pre_activations_on_kinks():
    """Inputs moved onto the hyperplanes of chosen units, by Gram and Schmidt."""
    case = CASES["ReLU"]
    inner, outer = weights_of(case)
    inputs, targets = data(case)
    expected = np.zeros((6, 7), bool)
    for i, j in ((0, 2), (3, 6)):
        inputs[i] -= inner[j] * (inner[j] @ inputs[i]) / np.sum(inner[j] ** 2)
        expected[i, j] = True
    # one a little way off
    inputs[5] -= inner[1] * (inner[1] @ inputs[5]) / np.sum(inner[1] ** 2)
    inputs[5] += 1e-3 * np.linalg.norm(inputs[5]) * inner[1] / np.linalg.norm(inner[1])
    ratios = np.abs(inputs @ inner.T) / np.outer(np.linalg.norm(inputs, axis=1), np.linalg.norm(inner, axis=1))
    near = int(np.sum(ratios <= 2e-3))
    problem = dyn.Network(case.net, inputs, targets)
    for scale in (1e-4, 1e4):
        state = (scale * inner, outer)
        np.testing.assert_array_equal(compiled(lambda state: obs.on_kink(1e-6)(problem, state))(state), expected)
        assert int(obs.kink_count(1e-6)(problem, state)) == 2 and int(obs.kink_count(2e-3)(problem, state)) == near > 2

    deep = CASES["deep ReLU"]
    first, second, last = weights_of(deep)
    inputs, targets = data(deep)
    hidden = np.maximum(first @ inputs[2], 0)
    second[4] -= hidden * (second[4] @ hidden) / np.sum(hidden**2)
    found = np.asarray(obs.on_kink(1e-9)(dyn.Network(deep.net, inputs, targets), (first, second, last)))
    assert found.shape == (6, 11) and found[2, 5 + 4] and found.sum() == 1

    skip = CASES["skip"]
    weights = weights_of(skip)
    inputs, targets = data(skip)
    weights[1][3] = -weights[0][3] @ inputs[1]
    found = np.asarray(obs.on_kink(1e-9)(dyn.Network(skip.net, inputs, targets), tuple(weights)))
    assert found.shape == (6, 6) and found[1, 3] and found.sum() == 1
    linear = problem_of(CASES["deep linear"], *data(CASES["deep linear"]))
    refused(lambda: obs.on_kink(1e-3)(linear, tuple(weights_of(CASES["deep linear"]))), "net", "kinked")
    refused(lambda: obs.on_kink(0.0), "tolerance", "> 0")


def on_kinks(slope: float, seed: int):
    """A two-layer net, separated, with five pre-activations on a kink."""
    net = dyn.nets.two_layer(4, slope=slope, at_zero=slope)
    case = Case(net, Exponential(), ((4, 3), (4,)), samples=4)
    inner, outer = (part.copy() for part in weights_of(case, seed))
    inputs = draw(4, 3, seed=seed + 5)
    for i, units in enumerate([(0,), (1, 2), (), (3, 0)]):
        frame = np.linalg.qr(inner[list(units)].T)[0] if units else np.zeros((3, 0))
        inputs[i] -= frame @ (frame.T @ inputs[i])
    out = outputs(case, (inner, outer), inputs)[:, 0]
    return dyn.Network(net, inputs, np.where(out > 0, 1.0, -1.0)), (inner, outer)


@pytest.mark.parametrize("slope", [0.0, 0.3, 2.0])
def test_clarke_residual_is_the_least_over_all_slopes(slope):
    """Against least squares over every combination of slopes at once, and a general solver over multipliers and slopes."""
    for seed in (1, 2):
        problem, (inner, outer) = on_kinks(slope, seed)
        x, y = np.asarray(problem.inputs), np.asarray(problem.targets)
        found = obs.clarke_kkt(problem, (inner, outer), tolerance=1e-9)
        z = x @ inner.T
        free = np.abs(z) < 1e-12
        assert free.sum() == 5
        q = y * (np.where(z > 0, z, slope * z) @ outer)
        w, a = inner / np.sqrt(q.min()), outer / np.sqrt(q.min())
        theta = np.concatenate([w.ravel(), a])

        def gradient(i, slopes, x=x, y=y, w=w, a=a):
            z = w @ x[i]
            units = np.where(z > 0, z, slope * z)
            return y[i] * np.concatenate([np.outer(slopes * a, x[i]).ravel(), units])

        columns = []
        for i in range(4):
            plain = np.where(z[i] > 0, 1.0, slope)
            for choice in itertools.product((slope, 1.0), repeat=int(free[i].sum())):
                plain[free[i]] = choice
                columns.append(gradient(i, plain.copy()))
        _, expected = scipy.optimize.nnls(np.array(columns).T, theta)
        assert found.stationarity == pytest.approx(expected, rel=1e-9)

        def distance(v, z=z, free=free, gradient=gradient, theta=theta):
            slopes = np.where(z > 0, 1.0, slope)
            slopes[free] = v[4:]
            return np.sum((theta - sum(v[i] * gradient(i, slopes[i]) for i in range(4))) ** 2)

        sides = (min(slope, 1.0), max(slope, 1.0))
        solved = scipy.optimize.minimize(
            distance, [0.3] * 4 + [sum(sides) / 2] * 5, bounds=[(0, None)] * 4 + [sides] * 5, method="L-BFGS-B"
        )
        assert found.stationarity <= np.sqrt(solved.fun) * (1 + 1e-9)
        # what is returned gives the residual that is returned
        used = np.nan_to_num(found.slopes)
        residual = theta - sum(found.multipliers[i] * gradient(i, used[i]) for i in range(4))
        assert np.linalg.norm(residual) == pytest.approx(found.stationarity, rel=1e-9)
        assert np.nanmin(found.slopes) >= sides[0] - 1e-12 and np.nanmax(found.slopes) <= sides[1] + 1e-12
        assert np.all(found.multipliers >= 0)
        assert found.slackness == pytest.approx(np.max(found.multipliers * (q / q.min() - 1)), rel=1e-9)
        assert found.stationarity <= float(obs.kkt_stationarity(problem, (inner, outer))) + 1e-12


def test_clarke_residual_of_an_optimum_is_zero():
    """One unit along one input: a KKT point; and a unit on the kink of a second sample, whose slope makes up for it."""
    net = dyn.nets.two_layer(1)
    problem = dyn.Network(net, np.eye(2)[:1], np.ones(1))
    assert obs.clarke_kkt(problem, (np.array([[2.0, 0.0]]), np.array([2.0]))).stationarity < 1e-12
    lone = np.array([[1.0, 0.0]])
    # the second sample sits on the kink of its own unit of weight zero along it
    problem = dyn.Network(net, np.array([[1.0, 1.0], [1.0, -1.0]]), np.ones(2))
    found = obs.clarke_kkt(problem, (lone, np.array([1.0])))
    assert found.stationarity < 1e-12 and np.allclose(found.multipliers, 0.5)


def test_clarke_kkt_says_what_it_takes():
    case = CASES["ReLU"]
    inputs, targets = data(case)
    state = tuple(weights_of(case))
    wrong = np.array(targets)
    wrong[:2] *= -1
    refused(lambda: obs.clarke_kkt(dyn.Network(case.net, inputs, wrong), state), "state", "2 misclassified")
    for name in ("deep ReLU", "squares", "softplus", "skip", "two classes"):
        other = CASES[name]
        refused(lambda other=other: obs.clarke_kkt(problem_of(other, *data(other)), tuple(weights_of(other))), "net must have")
    problem = dyn.Network(case.net, inputs, targets)
    with pytest.raises(ValueError, match="state must be concrete"):
        compiled(lambda state: obs.clarke_kkt(problem, state).stationarity)(state)
    assert np.isnan(float(obs.kkt_stationarity(dyn.Network(case.net, inputs, wrong), state)))


@pytest.mark.slow
def test_the_way_of_the_direction():
    """Against plain loops; a short step along the force has the alignment of force and weights."""
    states = (draw(9, 3, 2), draw(9, 4, seed=1))
    rows = np.concatenate([states[0].reshape(9, -1), states[1]], axis=1)
    sizes = np.linalg.norm(rows, axis=1)
    u = rows / sizes[:, None]
    lengths = np.concatenate([[0], np.cumsum([np.linalg.norm(u[k + 1] - u[k]) for k in range(8)])])
    np.testing.assert_allclose(jax.jit(obs.path_length)(states), lengths, rtol=1e-13)
    for window in (1, 3, 8):
        expected = []
        for k in range(9 - window):
            grown = np.log(sizes[k + window] / sizes[k])
            expected.append(np.sign(grown) / np.sqrt(1 + np.sum((u[k + window] - u[k]) ** 2) / grown**2))
        np.testing.assert_allclose(obs.averaged_alignment(states, window), expected, rtol=1e-12)
    refused(lambda: obs.averaged_alignment(states, 9), "window", "below")
    refused(lambda: obs.averaged_alignment(states, 0), "window", ">= 1")

    # a short way along the force, of a smooth net
    case = CASES["deep linear"]
    problem = problem_of(case, *data(case))
    weights = tuple(weights_of(case, scale=0.5))
    beta = by_definition(case, weights, *data(case))["gradient_alignment"]
    force = compiled(lambda state: problem.scaled_force(state))(weights)
    pair = tuple(np.stack([part, part + 1e-7 * np.asarray(along)]) for part, along in zip(weights, force, strict=True))
    np.testing.assert_allclose(obs.averaged_alignment(pair), [beta], rtol=1e-6)


def test_one_name_on_both_problems():
    """Of networks the loss is a sum; the force of a network with decay is its gradient."""
    case = CASES["three classes"]
    inputs, targets = data(case)
    weights = tuple(weights_of(case, seed=4, scale=0.7))
    problem = dyn.Network(case.net, inputs, targets, case.loss, decay=0.3)
    z = outputs(case, weights, inputs)
    total = sum(np.log(np.sum(np.exp(z[i] - z[i, targets[i]]))) for i in range(6))
    assert float(obs.loss(problem, weights)) == pytest.approx(total, rel=1e-12)
    assert float(obs.objective(problem, weights)) == pytest.approx(total + 0.15 * np.sum(flat(weights) ** 2), rel=1e-12)
    shares = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(3)[targets]
    gradient = np.einsum("ij,ijk->k", shares, slopes(case, weights, inputs)) + 0.3 * flat(weights)
    assert float(obs.gradient_norm(problem, weights)) == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
    wrong = np.sum(np.argmax(z, axis=1) != targets)
    assert wrong > 0 and int(obs.misclassified(problem, weights)) == wrong
    peeled = dyn.LayerPeeled(UNSORTED, num_classes=3)
    state = start(peeled, 4)
    z = np.asarray(peeled.logits(state))
    assert int(obs.misclassified(peeled, state)) == np.sum(np.argmax(z, axis=1) != UNSORTED)
