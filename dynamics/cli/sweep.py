"""From a configuration to what the ensemble engine runs."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dynamics import exact, simulate, validate
from dynamics.cli import axes, members, nouns, sources
from dynamics.cli.config import ConfigError, SweepConfig
from dynamics.cli.members import MINIBATCHES, Parts
from dynamics.cli.members import START as START
from dynamics.cli.spacing import points
from dynamics.ensemble import Design, Histogram, Moments, Quantiles, Reduction
from dynamics.ensemble.design import Group
from dynamics.problems import LayerPeeled, Problem
from dynamics.rates import Rates
from dynamics.simulate.clock import LogTime
from dynamics.trajectory import Trajectory, check_times


class Sweep(NamedTuple):
    """What `dynamics.ensemble.run` is given.

    - `design`: the members; `one`: (member, key) to a trajectory, or a motion in segments.
    - `key`: of the run; `cost`: (member, key) to an estimate of a member's steps, None where all cost the same.
    - `overstep`: (member, key) to the steps of a descent over the largest stable one; None where no formula knows it.
    - `reduce`: the statistics of each observable; `ts`: the times; `observables`: their names.
    - `sources`: what to cite.
    """

    design: Design
    one: Callable
    key: jax.Array
    cost: Callable | None
    overstep: Callable | None
    reduce: dict[str, list[Reduction]]
    ts: np.ndarray
    observables: tuple[str, ...]
    sources: tuple[str, ...]


def build(config: SweepConfig, by: Literal["simulation", "formula"] | None = None, states: bool = False) -> Sweep:
    """The sweep of a configuration; `by` replaces its own, `states` keeps states instead of observables.

    Members of every compiled group are built here, so that constructors speak before anything runs.

    **Raises:** `ConfigError` with the dotted path, also for the reasons why there is no closed form.
    """
    motion = config.motion
    by = motion.by if by is None else by
    if by == "formula" and motion.clock is not None:
        raise ConfigError("motion.by: formulas go by physical time; leave out the clock, or simulate")
    try:
        validate.floating_dtype("precision", config.precision)
    except ValueError as error:
        raise ConfigError(f"precision: {error}") from None
    swept = axes.factors(config)
    design = Design(*(tuple(one.axis for one in factor) for factor in swept))
    _check_keep(config, design)
    parts = Parts(config, [one for factor in swept for one in factor])
    known = nouns.family(vars(config.problem)).observables
    named = {name: known[name] for name in config.keep.observables if name != nouns.LOG_TIME}
    observe = None if states else named
    cited = members.check(parts, design, by)
    ts = _times(config)
    simulated = motion.verb == "flow" and by == "simulation"
    try:
        one = _moved(parts, ts, observe, by)
        _trace(one, design, design.groups()[0], parts.key)
    except ConfigError:
        raise
    except exact.NoClosedForm as error:
        raise ConfigError(f"motion.by: {error}") from error
    except ValueError as error:
        message = re.sub("^ts", "times", re.sub("^until", "until_log_t", str(error)))
        raise nouns.at("motion", vars(motion), ValueError(message)) from error
    return Sweep(
        design=design,
        one=one,
        key=parts.key,
        cost=(lambda member, key: _cost(*parts(member, key)[:3], ts[-1])) if simulated and motion.clock is None else None,
        overstep=_overstep(parts, design) if motion.verb == "descent" else None,
        reduce=_reductions(config),
        ts=ts,
        observables=tuple(config.keep.observables),
        sources=(*cited, *sources.references(named.values())),
    )


def _times(config: SweepConfig) -> np.ndarray:
    motion = config.motion
    try:
        if motion.verb == "flow":
            ts = points(motion.times)
            return np.asarray(check_times(ts, config.precision))
        steps, every = validate.whole("steps", motion.steps, 0), validate.whole("every", motion.every, 1)
    except ValueError as error:
        message = re.sub("^ts", "times", str(error))
        raise nouns.at("motion", vars(motion), ValueError(message)) from None
    return np.arange(0, steps + 1, every)


def _moved(parts: Parts, ts: np.ndarray, observe, by: str) -> Callable:
    """The motion of (member, key)."""
    motion, steps = parts.config.motion, parts.config.motion.steps or 0
    if motion.verb == "flow" and by == "formula":
        return lambda member, key: exact.flow(*parts(member, key)[:3], ts, observe=observe)
    if motion.verb == "flow":
        options = {name: getattr(motion, name) for name in ("rtol", "atol", "max_steps", "norm_cap")}
        if motion.clock is not None:
            options["clock"] = nouns.built(nouns.CLOCKS, "motion.clock", motion.clock)
            options["until"] = None if motion.until_log_t is None else LogTime(motion.until_log_t)

        def flow(member, key):
            moved = simulate.flow(*parts(member, key)[:3], ts, observe=observe, **options)
            return _with_log_time(moved) if nouns.LOG_TIME in parts.config.keep.observables else moved

        return flow
    names = ("every", "dt", "momentum", "nesterov", "batch_size", "shuffle")

    def one(member, key):
        problem, start, rates, tables = parts(member, key)
        options = {name: tables["motion"].get(name) for name in names}
        if by == "formula":
            return exact.descent(problem, start, rates, steps, observe=observe, **options)  # pyright: ignore[reportArgumentType]
        if options["batch_size"] is not None:
            options["key"] = jax.random.fold_in(key, MINIBATCHES)
        return simulate.descent(problem, start, rates, steps, observe=observe, norm_cap=motion.norm_cap, **options)

    return one


def _with_log_time(moved: Trajectory) -> Trajectory:
    return eqx.tree_at(lambda moved: moved.observed, moved, {**moved.observed, nouns.LOG_TIME: moved.log_t})


def _cost(problem: Problem, start: PyTree, rates: Rates, t_end) -> jax.Array:
    """About how many steps an explicit solver needs: each part's clock at the end times its curvature at the start."""
    if not isinstance(problem, LayerPeeled):
        return problem.stiffness(start) * rates.weights.integral(t_end)
    features, prototypes = (jnp.sum(jnp.square(part)) for part in (start.features, start.prototypes))
    per_sample = 1 / problem.num_samples
    clocks = rates.features.integral(t_end), rates.weights.integral(t_end)
    return clocks[0] * (prototypes * per_sample + problem.decay.features) + clocks[1] * (
        features * per_sample + problem.decay.prototypes
    )


def _overstep(parts: Parts, design: Design) -> Callable | None:
    """Of (member, key): its steps over the largest stable one; None where no formula knows that of every member."""

    def one(member, key):
        problem, _, rates, tables = parts(member, key)
        motion = tables["motion"]
        damping = {"momentum": motion["momentum"], "nesterov": motion["nesterov"]}
        bound = exact.max_step(problem, rates, **damping)  # pyright: ignore[reportArgumentType]
        return jnp.where(bound > 0, motion["dt"] / bound, 0.0)

    try:
        for group in design.groups():
            _trace(one, design, group, parts.key)
    except ValueError:  # NoClosedForm among them; what else is wrong is said when the members run
        return None
    return one


def _reductions(config: SweepConfig) -> dict[str, list[Reduction]]:
    keep = config.keep
    common: list[Reduction] = [Moments()] if keep.moments else []
    try:
        common += [Quantiles(tuple(keep.quantiles))] if keep.quantiles else []
    except ValueError as error:
        raise ConfigError(f"keep.quantiles: {error}") from error
    found = {}
    for name in keep.observables:
        found[name] = list(common)
        if name in keep.histograms:
            try:
                found[name].append(Histogram(tuple(points(keep.histograms[name]).tolist())))
            except ValueError as error:
                raise ConfigError(f"keep.histograms.{name}: {error}") from error
    return {name: reductions for name, reductions in found.items() if reductions}


# ---- before anything runs ----


def _check_keep(config: SweepConfig, design: Design) -> None:
    for place, name in enumerate(config.keep.by):
        if name not in design.names:
            raise ConfigError(f"keep.by.{place}: unknown axis {name!r}; {validate.nearest(name, design.names)}")
    try:
        design.cell_shape(config.keep.by)
    except ValueError as error:
        raise ConfigError(f"keep.by: {error}") from None
    for place, number in enumerate(config.keep.states):
        if not 0 <= number < design.size:
            raise ConfigError(f"keep.states.{place}: must be a member number from 0 to {design.size - 1}, got {number}")
    if len(set(config.keep.states)) < len(config.keep.states):
        raise ConfigError(f"keep.states: must be different, got {config.keep.states}")


def _trace(one: Callable, design: Design, group: Group, key) -> None:
    """Let a motion speak of what it cannot do; nothing is computed."""
    row = {name: value[0] for name, value in design.rows(group.numbers[:1]).items()}
    jax.eval_shape(lambda row, key: one({**group.static, **row}, key), row, key)
