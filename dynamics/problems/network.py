"""Networks of a declared degree on data: the second family of problems."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.losses import Exponential, MarginLoss
from dynamics.problems.base import Problem
from dynamics.problems.nets import Net
from dynamics.rates import Rates

CHECKED_AT = (0.5, 2.0)
"""Norms of the random weights at which Euler's identity is checked, times the square root of their number."""


class Network(Problem):
    r"""A network on data with a loss of its margins; the state is the pytree of its weights.

    The objective is the SUM of the loss over samples plus `decay/2 |weights|^2`; all weights move at one rate
    (`Rates.equal`). Beside it stands the scaled form that survives underflow: the logarithm of the sum of losses and the
    gradient of its minus, $g = -\nabla\mathcal{L}/\mathcal{L}$.

    Euler's identity $\langle\nabla f, \theta\rangle = L f$ (for a nearly homogeneous net, its bound) is checked with random
    weights: here if the net knows the shapes of its weights, else with the first state that is used.

    **Arguments:**

    - `net`: of `dynamics.nets`; one output a sample, or logits, as the loss asks for.
    - `inputs`: shape (samples, ...).
    - `targets`: shape (samples,): +-1, or class labels.
    - `loss`: a `dynamics.losses.MarginLoss`.
    - `decay`: weight decay.
    """

    net: Net = eqx.field(static=True)
    inputs: Float[Array, "samples ..."]
    targets: Array
    loss: MarginLoss
    decay: float | Float[Array, ""]

    def __init__(self, net: Net, inputs, targets, loss: MarginLoss | None = None, decay=0.0):
        if not isinstance(net, Net):
            raise ValueError(f"net must be one of dynamics.nets, got {net!r}; a function becomes one by dynamics.nets.Function")
        loss = Exponential() if loss is None else loss
        if not isinstance(loss, MarginLoss):
            raise ValueError(f"loss must be a dynamics.losses.MarginLoss, got {loss!r}")
        inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
        if inputs.ndim < 2 or inputs.size == 0:
            raise ValueError(f"inputs must have shape (samples, ...) with samples and entries >= 1, got {inputs.shape}")
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(jnp.result_type(float))
        validate.finite("inputs", inputs)
        validate.shape("targets", targets, (inputs.shape[0],), "(samples,)")
        loss.check_targets(targets)
        validate.nonnegative("decay", decay)
        self.net = net
        self.inputs = inputs
        self.targets = targets if loss.multiclass else targets.astype(inputs.dtype)
        self.loss = loss
        self.decay = decay
        if type(net).init is not Net.init:
            shape = inputs.shape[1:]
            try:
                weights = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
            except ValueError as error:
                raise ValueError(f"inputs of shape {inputs.shape} do not fit {net}: {error}") from None
            self._check_net(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, inputs.dtype), weights))

    @property
    def degree(self) -> float:
        """L."""
        return self.net.degree

    @property
    def num_samples(self) -> int:
        """The number of samples."""
        return self.inputs.shape[0]

    @property
    def radius(self) -> Float[Array, ""]:
        """The largest norm of an input."""
        return jnp.max(jnp.linalg.norm(self.inputs.reshape(self.num_samples, -1), axis=1))

    def outputs(self, state: PyTree) -> Float[Array, "samples ..."]:
        """The output at every sample."""
        return jax.vmap(self.net, (None, 0))(state, self.inputs)

    def margins(self, state: PyTree) -> Float[Array, " samples"]:
        """The margin of every sample, positive where it is classified correctly."""
        return jax.vmap(self.loss.margin)(self.outputs(state), self.targets)

    def seen_margins(self, state: PyTree) -> Float[Array, " samples"]:
        """The margins that the loss is a function of: `margins` unless there are more than two classes."""
        return jax.vmap(self.loss.seen_margin)(self.outputs(state), self.targets)

    def log_loss(self, state: PyTree) -> Float[Array, ""]:
        """The logarithm of the sum of losses, without decay."""
        return jax.nn.logsumexp(self.loss.log_value(self.seen_margins(state)))

    def loss_weights(self, state: PyTree) -> Float[Array, " samples"]:
        r"""$p_i = -\ell'(q_i)/\mathcal{L}$; of the exponential loss they sum to one."""
        seen = self.seen_margins(state)
        return jnp.exp(self.loss.log_slope(seen) - jax.nn.logsumexp(self.loss.log_value(seen)))

    def scaled_force(self, state: PyTree) -> PyTree:
        r"""$g = \nabla\log(1/\mathcal{L}) = \sum_i p_i \nabla q_i$, which never underflows; without decay."""
        seen, back = jax.vjp(self.seen_margins, state)
        (force,) = back(jnp.exp(self.loss.log_slope(seen) - jax.nn.logsumexp(self.loss.log_value(seen))))
        return force

    def objective(self, state: PyTree) -> Float[Array, ""]:
        """The sum of the loss over samples plus half the decay times the squared norm of the weights."""
        return jnp.exp(self.log_loss(state)) + 0.5 * self.decay * tree.norm(state) ** 2

    def force(self, state: PyTree, counted: Float[Array, " samples"] | None = None) -> PyTree:
        """Minus the gradient of the objective; `counted` multiplies each sample's loss."""
        seen, back = jax.vjp(self.seen_margins, state)
        slopes = jnp.exp(self.loss.log_slope(seen))
        (pull,) = back(slopes if counted is None else counted * slopes)
        return jax.tree.map(lambda part, leaf: part - self.decay * leaf, pull, state)

    def pace(self, motion: PyTree, state: PyTree, rates: Rates, t) -> PyTree:
        """`motion` times the one rate at time `t`."""
        if rates.built != "equal" or rates.rescaled:
            raise ValueError("all weights of a Network move at one rate: give Rates.equal(...), not rescaled")
        rate = rates.weights(t)
        return jax.tree.map(lambda part: rate * part, motion)

    def check(self, state: PyTree) -> PyTree:
        """The state with arrays of one floating dtype; refuses what the net cannot take, or where Euler's identity fails."""
        leaves = jax.tree.leaves(state)
        if not leaves or not all(validate.is_numeric(leaf) for leaf in leaves):
            raise ValueError("state must be a pytree of arrays, the weights of the net")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            validate.finite(f"state{jax.tree_util.keystr(path)}", leaf)
        dtype = jnp.result_type(*leaves)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state)
        self._check_net(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state))
        return state

    def _check_net(self, weights: PyTree) -> None:
        """Refuse a net that cannot take such weights and inputs, gives the wrong outputs, or is not of its degree."""
        leaves, structure = jax.tree.flatten(weights)
        shapes = tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)
        with jax.ensure_compile_time_eval():  # also where other arrays are traced
            radius = float(self.radius) if validate.is_concrete(self.inputs) else None
            labels = int(jnp.max(self.targets)) + 1 if self.loss.multiclass and validate.is_concrete(self.targets) else 0
        problem = _net_problem(self.net, structure, shapes, self.inputs.shape[1:], self.loss.multiclass, labels, radius)
        if problem:
            raise ValueError(problem)

    def valid(self) -> Bool[Array, ""]:
        """Whether data and hyper-parameters are finite and in range, traced or not."""
        ok = self.loss.valid() & jnp.all(jnp.isfinite(self.inputs)) & (jnp.asarray(self.decay) >= 0)
        ok = ok & jnp.isfinite(jnp.asarray(self.decay))
        return ok & (jnp.all(self.targets >= 0) if self.loss.multiclass else jnp.all(jnp.abs(self.targets) == 1))


@functools.lru_cache(maxsize=256)
def _net_problem(net: Net, structure: Any, shapes: tuple, width: tuple, multiclass: bool, labels: int, radius) -> str:
    """What is wrong with a net for weights of such shapes, or nothing."""
    with jax.ensure_compile_time_eval():
        random = np.random.default_rng(0)
        leaves = [random.standard_normal(shape).astype(dtype) for shape, dtype in shapes]
        weights = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
        dtype = leaves[0].dtype
        x = random.standard_normal(width)
        x = jnp.asarray(x * (1.0 if radius is None else radius / max(np.linalg.norm(x), 1e-300)), dtype)
        try:
            out = net(weights, x)
        except (TypeError, ValueError) as error:
            sizes = ", ".join(str(shape) for shape, _ in shapes)
            return f"{net} does not take weights of shapes {sizes} with an input of shape {width}: {error}"
        if jnp.ndim(out) != int(multiclass):
            wanted = "logits, shape (classes,)" if multiclass else "one number, shape ()"
            return f"the loss needs {wanted}, and {net} gives an output of shape {jnp.shape(out)}"
        if multiclass and out.shape[0] < labels:
            return f"targets must be class labels below {out.shape[0]}, the logits of {net}, got {labels - 1}"
        return _euler_problem(net, weights, x)


def _euler_problem(net: Net, weights: PyTree, x: Array) -> str:
    """How Euler's identity fails at an input, or nothing."""
    bound, eps = net.defect(float(jnp.linalg.norm(x))), float(jnp.finfo(x.dtype).eps)
    for scale in CHECKED_AT:
        scaled = jax.tree.map(functools.partial(jnp.multiply, scale), weights)
        out, back = jax.vjp(lambda weights: net(weights, x), scaled)
        _, along = jax.jvp(lambda weights: net(weights, x), (scaled,), (scaled,))
        (slope,) = back(jnp.ones_like(out))
        # the terms of the inner product, whose rounding the sum carries
        terms = jax.tree.map(lambda a, b: jnp.sum(jnp.abs(a * b)), slope, scaled)
        residual = float(jnp.max(jnp.abs(along - net.degree * out)))
        allowed = sum(c * float(tree.norm(scaled)) ** power for power, c in enumerate(bound))
        if not residual <= allowed + 1e4 * eps * float(sum(jax.tree.leaves(terms))):
            relative = residual / float(jnp.max(jnp.abs(along)) + jnp.max(jnp.abs(net.degree * out)))
            found = f"|<grad f, weights> - {net.degree:g} f| = {residual:.3g}, relative {relative:.3g}"
            if bound:
                return f"{net} does not keep its bound {allowed:.3g} on Euler's identity: {found}"
            return f"{net} is not of the declared degree {net.degree:g}: Euler's identity is off by {found}"
    return ""
