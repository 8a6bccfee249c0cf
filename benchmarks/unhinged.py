"""Unhinged descent at the size of a paper: UNHINGED-PAPER and UNHINGED-OBS."""

import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.peers import missing, version
from benchmarks.race import Contest, Racer, Skipped

CLASSES, EACH, DIM, RATE = 100, 10, 512, 0.05
SAMPLES, GAMMA = CLASSES * EACH, 1 / (CLASSES - 1)
TIMED, TIMED_MEANS = 20, 2000
"""Steps that loops are timed over: dense ones, and those of class means."""


class Made(NamedTuple):
    """The problem, its start, and the class means and prototypes of a NumPy loop at the saved iterates."""

    problem: dyn.LayerPeeled
    start: dyn.Peeled
    steps: int
    every: int
    means: np.ndarray
    prototypes: np.ndarray


@functools.lru_cache(maxsize=1)
def made(quick: bool) -> Made:
    """The workload, once in a process."""
    steps, every = (400, 20) if quick else (50_000, 100)
    decay = dyn.Decay(of.DECAY, of.DECAY)
    problem = dyn.LayerPeeled.balanced(CLASSES, EACH, loss=dyn.losses.Unhinged(), decay=decay)
    start = dyn.initial.gaussian(problem, dim=DIM, key=jax.random.key(0), scale=(1.0, (2 / DIM) ** 0.5))
    means = np.asarray(start.features).reshape(CLASSES, EACH, DIM).mean(axis=1)
    prototypes, keep, pull = np.asarray(start.prototypes), 1 - RATE * of.DECAY, RATE / SAMPLES
    found = np.empty((2, steps // every, CLASSES, DIM))
    for step in range(1, steps + 1):
        up = (1 + GAMMA) * prototypes - GAMMA * prototypes.sum(axis=0)
        down = EACH * ((1 + GAMMA) * means - GAMMA * means.sum(axis=0))
        means, prototypes = keep * means + pull * up, keep * prototypes + pull * down
        if step % every == 0:
            found[:, step // every - 1] = means, prototypes
    return Made(problem, start, steps, every, *found)


def states(quick: bool = False, members: int | None = None) -> Contest:
    """UNHINGED-PAPER: class means and prototypes at the saved iterates."""
    this = made(quick)
    small = dyn.reduce.class_means(this.problem, this.start)
    truth = (EACH**0.5 * this.means, this.prototypes)

    def error(saved) -> float:
        return reference.relative_difference(saved, truth, 1)

    @jax.jit
    def formula(problem, state):
        moved = dyn.exact.descent(problem, state, dyn.Rates.equal(RATE), this.steps, every=this.every).states
        return moved.features, moved.prototypes

    # a result that nobody needs any more gives its memory to the next: a fresh one must be found page by page
    again = jax.jit(lambda old, problem, state: formula(problem, state), donate_argnums=0, keep_unused=True)
    last = []

    def donated():
        last[:] = [again(last.pop() if last else formula(small.problem, small.state), small.problem, small.state)]
        return last[0]

    warm = [np.empty_like(part) for part in truth]
    coupling = (1 + GAMMA) * jnp.eye(CLASSES) - GAMMA

    @jax.jit
    def means_loop(means, prototypes):
        def step(carry, _):
            g, w = carry
            keep, pull = 1 - RATE * of.DECAY, RATE * EACH**0.5 / SAMPLES
            return (keep * g + pull * coupling @ w, keep * w + pull * coupling @ g), None

        return jax.lax.scan(step, (means, prototypes), None, length=min(TIMED_MEANS, this.steps))[0]

    def fill():
        for place in warm:
            place.fill(1.0)

    after = min(TIMED_MEANS, this.steps) // this.every - 1
    racers, skipped = _loops(this)
    racers += [
        Racer(
            "lax.scan, class means",
            lambda: means_loop(small.state.features, small.state.prototypes),
            lambda found: reference.relative_difference(found, tuple(part[after] for part in truth), 0),
            version("jax"),
            times=this.steps / min(TIMED_MEANS, this.steps),
            note=f"timed over {min(TIMED_MEANS, this.steps)} of {this.steps} steps",
        ),
        Racer(
            "writing those bytes once", fill, lambda _: 0.0, version("numpy"), "1 thread", note="into warm memory", floor=True
        ),
        Racer(
            "dynamics.exact.descent",
            lambda: formula(small.problem, small.state),
            lambda saved: error(tuple(part[1:] for part in saved)),
            version("jax"),
            note="of class means",
        ),
        Racer(
            "dynamics.exact.descent, donated",
            donated,
            lambda saved: error(tuple(part[1:] for part in saved)),
            version("jax"),
            note="of class means, into the memory of the result before",
        ),
    ]
    meaning = "largest error over iterates and entries, relative to the iterate's largest entry, against a NumPy loop"
    return Contest(racers, 1e-10, meaning, _facts(this), skipped)


def observables(quick: bool = False, members: int | None = None) -> Contest:
    """UNHINGED-OBS: eight observables of the full states."""
    this = made(quick)
    labels, start = this.problem.labels, np.asarray(this.start.features)
    apart = start - start.reshape(CLASSES, EACH, DIM).mean(axis=1)[labels]
    truth = {name: np.empty(this.steps // this.every) for name in reference.OBSERVABLES}
    for number, (means, prototypes) in enumerate(zip(this.means, this.prototypes, strict=True)):
        kept = (1 - RATE * of.DECAY) ** (this.every * (number + 1))
        seen = reference.observed(means[labels] + kept * apart, prototypes, labels, of.DECAY, "unhinged")
        for name, value in seen.items():
            truth[name][number] = value

    @jax.jit
    def formula(problem, state):
        functions = reference.library_observables()
        rates = dyn.Rates.equal(RATE)
        return dyn.exact.descent(problem, state, rates, this.steps, every=this.every, observe=functions).observed

    racers, skipped = _loops(this)
    racers.append(
        Racer(
            "dynamics.exact.descent",
            lambda: formula(this.problem, this.start),
            lambda found: reference.relative_over_times({name: value[1:] for name, value in found.items()}, truth),
            version("jax"),
            note="observables of full states",
        )
    )
    meaning = "largest error over iterates and observables, relative to the observable's largest size, against a NumPy loop"
    return Contest(racers, 1e-10, meaning, _facts(this) | {"observables": list(truth)}, skipped)


def _facts(this: Made) -> dict:
    return {"steps": this.steps, "saved": this.steps // this.every, "rate": RATE}


def _loops(this: Made) -> tuple[list[Racer], list[Skipped]]:
    """The loops over full states, the base first: PyTorch's, and a scan with the dense coupling."""
    kept = (1 - RATE * of.DECAY) ** TIMED
    labels = this.problem.labels
    means, prototypes = _stepped(this, TIMED)
    start = np.asarray(this.start.features)
    apart = start - start.reshape(CLASSES, EACH, DIM).mean(axis=1)[labels]
    after = (means[labels] + kept * apart, prototypes)
    note = f"timed and judged over {TIMED} of {this.steps} steps, nothing saved"

    def racer(name: str, run: Callable, library: str, threads: str) -> Racer:
        return Racer(
            name,
            run,
            lambda found: reference.relative_difference(found, after, 0),
            library,
            threads,
            times=this.steps / TIMED,
            note=note,
        )

    racers, skipped = [], []
    reason = missing("torch")
    if reason is None:
        # two threads that wait for each other lose on a busy machine, and win on an idle one
        seconds = {threads: _second_run(_torch_loop(this, threads)) for threads in sorted({1, os.cpu_count() or 1})}
        best = min(seconds, key=lambda threads: seconds[threads])
        threads = f"{best} thread{'s' if best > 1 else ''}, the fastest of {', '.join(map(str, seconds))}"
        racers.append(racer("PyTorch SGD, a loop", _torch_loop(this, best), version("torch"), threads))
    else:
        skipped.append(Skipped("PyTorch SGD, a loop", reason))
    dense = jnp.asarray(((1 + GAMMA) * np.eye(CLASSES)[labels] - GAMMA) / SAMPLES)

    @jax.jit
    def scan(features, prototypes):
        def step(carry, _):
            h, w = carry
            keep = 1 - RATE * of.DECAY
            return (keep * h + RATE * dense @ w, keep * w + RATE * dense.T @ h), None

        return jax.lax.scan(step, (features, prototypes), None, length=TIMED)[0]

    run = functools.partial(scan, this.start.features, this.start.prototypes)
    racers.append(racer("lax.scan, dense matrix", run, version("jax"), "1 device"))
    return racers, skipped


def _stepped(this: Made, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Class means and prototypes after a few steps."""
    means = np.asarray(this.start.features).reshape(CLASSES, EACH, DIM).mean(axis=1)
    prototypes, keep, pull = np.asarray(this.start.prototypes), 1 - RATE * of.DECAY, RATE / SAMPLES
    for _ in range(steps):
        up = (1 + GAMMA) * prototypes - GAMMA * prototypes.sum(axis=0)
        down = EACH * ((1 + GAMMA) * means - GAMMA * means.sum(axis=0))
        means, prototypes = keep * means + pull * up, keep * prototypes + pull * down
    return means, prototypes


def _second_run(run: Callable) -> float:
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _torch_loop(this: Made, threads: int) -> Callable:
    """Descent as PyTorch's users write it: parameters, a loss, backward, step."""
    import torch

    labels = torch.from_numpy(this.problem.labels.astype(np.int64))[:, None]
    begin = [torch.from_numpy(np.array(part)) for part in (this.start.features, this.start.prototypes)]

    def run():
        torch.set_num_threads(threads)
        features, prototypes = (torch.nn.Parameter(part.clone()) for part in begin)
        optimiser = torch.optim.SGD([features, prototypes], lr=RATE, weight_decay=of.DECAY)
        for _ in range(TIMED):
            optimiser.zero_grad()
            logits = features @ prototypes.T
            own = logits.gather(1, labels)[:, 0]
            loss = (-own + GAMMA * (logits.sum(dim=1) - own)).mean()
            loss.backward()
            optimiser.step()
        return features.detach().numpy(), prototypes.detach().numpy()

    return run
