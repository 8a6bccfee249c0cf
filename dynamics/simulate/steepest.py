"""Steepest descent of a network in a norm, by step rules that go on where the loss underflows."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.norms import L2, Norm
from dynamics.problems import Network, check_minibatches
from dynamics.simulate.general_descent import judge
from dynamics.simulate.step_rules import Normalized, Setting, StepRule
from dynamics.trajectory import Trajectory, blank, check_norm_cap, check_observe, check_steps, ended, observe_state


def steepest_descent(
    problem: Network,
    state: PyTree,
    rule: StepRule,
    steps: int,
    *,
    every: int = 1,
    norm: Norm = L2(),
    batch_size: int | None = None,
    key=None,
    optimizer: Any = None,
    observe: dict | None = None,
) -> Trajectory:
    r"""Steepest descent of the loss of a network from `state`: $\theta_{k+1} = \theta_k + h_k\Delta(g)$ with
    $g = -\nabla\mathcal{L}/\mathcal{L}$; gradient, sign, coordinate or spectral descent, as the norm has it.

    Takes one member; composes with `jax.jit`, `jax.vmap` and `jax.grad`. Only logarithms of the loss are ever formed.

    **Arguments:**

    - `problem`: a `dynamics.Network` without decay; `state`: its weights.
    - `rule`: how far to step, of `dynamics.step_rules`.
    - `steps`: how many, >= 0; `every` divides it: iterates 0, every, 2 every, ..., steps are kept.
    - `norm`: of `dynamics.norms`.
    - `batch_size`: None uses every sample in every step; a number, that many drawn without replacement, with `key`, whose loss
      times samples over batch size stands for that of all. Only for rules that may see minibatches.
    - `optimizer`: only with `Normalized` and without a norm: an optax optimiser of unit rate, fed with minus the scaled force,
      whose update takes the place of the direction.
    - `observe`: as in `dynamics.flow`.

    **Returns:** a `Trajectory` whose `ts` count iterations (epochs of `LossBasedEpochs`), and whose `log_t` is the logarithm of
    the sum of the learning rates, -inf at the start. After a stop, past a norm of the square root of the dtype's largest number
    or where a weight is NaN, its entries are NaN. A member whose force is zero stays where it is, with status `fixed_point`.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.

    **Warns:** of a rule under which the loss falls at the price of the margin.

    **References:** N. Tsilivis, G. Vardi, J. Kempe, Flavors of margin: implicit bias of steepest descent in homogeneous neural
    networks (2025); S. Schechtman, N. Schreuder, The late-stage training dynamics of (stochastic) subgradient descent on
    homogeneous neural networks (2025).
    """
    if not isinstance(problem, Network):
        raise ValueError(f"problem must be a dynamics.Network, got {type(problem).__name__}")
    if validate.is_concrete(problem.decay) and float(problem.decay) != 0:
        raise ValueError(f"problem must have decay 0, for which the scaled force is defined, got {problem.decay}")
    if not isinstance(rule, StepRule):
        raise ValueError(f"rule must be one of dynamics.step_rules, got {rule!r}")
    if not isinstance(norm, Norm):
        raise ValueError(f"norm must be one of dynamics.norms, got {norm!r}")
    state = problem.check(state)
    dtype = jnp.result_type(*jax.tree.leaves(state))
    steps, every = check_steps(steps, every, 1.0, 0.0, False)
    check_observe(observe)
    check_minibatches(problem.num_samples, batch_size, "step")
    if (batch_size is None) != (key is None):
        raise ValueError("key must be given together with batch_size: the minibatches are drawn with it")
    if batch_size is not None:
        if not rule.minibatches:
            raise ValueError(f"batch_size must be None with {type(rule).__name__}, which divides by the loss of its step")
        if rule.minibatches == "epoch" and problem.num_samples % batch_size:
            raise ValueError(f"batch_size must divide the number of samples, got {batch_size} of {problem.num_samples}")
    elif rule.permissive:
        warnings.warn(rule.permissive, stacklevel=2)
    if optimizer is not None:
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise ValueError(f"optimizer must be an optax optimiser, got {optimizer!r}")
        if not isinstance(rule, Normalized) or not isinstance(norm, L2):
            raise ValueError(
                f"optimizer needs the rule Normalized and no norm, got {type(rule).__name__} and {type(norm).__name__}"
            )
    problem, rule = tree.cast((problem, rule), dtype)
    size = problem.num_samples if batch_size is None else batch_size
    whole = size == problem.num_samples
    setting = Setting(
        problem=problem,
        norm=norm,
        seen=(lambda batch: problem) if whole else _minibatch(problem, size, key, rule.minibatches),
        per_epoch=problem.num_samples // size,
        log_share=math.log(problem.num_samples / size),
        optimizer=optimizer,
    )

    begins = problem.start_code(state)
    valid = tree.all_finite(state) & problem.valid() & rule.valid() & (jnp.asarray(problem.decay) == 0)
    cap = check_norm_cap(None, dtype)

    def step(k, carry):
        weights, memory, log_t, code, count, stuck = carry
        after = rule.step(setting, k, weights, memory)
        code = jnp.where(code == status.OK, judge(tree.norm(after.weights), cap), code)
        going = code == status.OK
        log_t = jnp.where(going, jnp.logaddexp(log_t, after.log_rate), log_t)
        return tree.select(going, after.weights, weights), after.memory, log_t, code, count + going, stuck | after.stuck

    def snapshot(carry, index):
        begin = (index - 1) * every
        carry = jax.lax.fori_loop(0, every, lambda j, carry: step(begin + jnp.asarray(j, jnp.int32), carry), carry)
        return carry, look(carry)

    def look(carry):
        return (observe_state(observe, problem, carry[0]), carry[2]), carry[3] == status.OK

    with jax.default_matmul_precision("highest"):
        code = jnp.where(valid, judge(tree.norm(state), cap), status.BAD_INPUT).astype(jnp.int32)
        start = jnp.asarray(-jnp.inf, dtype), code, jnp.zeros((), jnp.int32), jnp.asarray(False)
        carry = (state, rule.init(setting, state), *start)
        first = look(carry)
        carry, rest = jax.lax.scan(snapshot, carry, jnp.arange(1, steps // every + 1, dtype=jnp.int32))
    saved, going = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    values, log_t = blank(~going, saved)
    *_, code, count, stuck = carry
    code = jnp.where((code == status.OK) & stuck, status.FIXED_POINT, code)
    return Trajectory(
        ts=every * jnp.arange(steps // every + 1),
        states=values if observe is None else None,
        observed={} if observe is None else values,
        status=ended(code, begins),
        stats={"steps": count, "t_end": count},
        log_t=log_t,
    )


def _minibatch(problem: Network, batch_size: int, key, shuffle: str) -> Callable:
    """A function of the number of a minibatch: the problem on its samples alone, those that `dynamics.descent` would draw."""
    samples = problem.num_samples

    def seen(batch):
        draw, place = (batch, 0) if shuffle == "step" else jnp.divmod(batch, samples // batch_size)
        # a permutation says the place of every sample
        order = jnp.argsort(jax.random.permutation(jax.random.fold_in(key, draw), samples))
        chosen = jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)
        picked = problem.inputs[chosen], problem.targets[chosen]
        return eqx.tree_at(lambda problem: (problem.inputs, problem.targets), problem, picked)

    return seen
