"""Two sweeps too large to keep: `python -m benchmarks.million [formula|flow] [MEMBERS]`.

- formula: 1 000 000 members of the unhinged loss, C 3, N 2, p 4, 64 cosine schedules, 20 observables at 50 times by the closed
  form, float64; means, variances and quantiles on the way, nothing stored of a member but how it ended.
- flow: 100 000 simulated gradient flows of cross-entropy with decay, C 4, N 5, p 16, t to 100, tolerance 1e-6, the same
  statistics of 4 observables.

Both under a cap of 2 GiB for the chunks, on as many CPU devices as there are cores.
"""

import os
import resource
import sys
import time

CAP = "2GiB"


def formula(members: int):
    """The sweep by formula: `one`, its design, and the options of its run."""
    import jax.numpy as jnp
    import numpy as np

    import dynamics as dyn

    watch = dyn.observables
    problem = dyn.LayerPeeled.balanced(3, 2)
    observables = {
        name: getattr(watch, name)
        for name in (
            "objective loss accuracy nc1 nc2 nc2_angles nc2_norms nc3 nc4 self_duality feature_norm prototype_norm bias_norm "
            "margin average_margin normalized_margin stable_rank effective_rank gradient_norm"
        ).split()
    } | {"mean_norm": lambda problem, state: jnp.linalg.norm(jnp.mean(state.features, axis=0))}
    ts = np.linspace(0.0, 50.0, 50)

    def one(member, key):
        start = dyn.initial.gaussian(problem, dim=4, key=key, scale=0.3)
        rates = dyn.Rates.equal(dyn.schedules.Cosine(member["peak"], 50.0))
        return dyn.exact.flow(problem, start, rates, ts, observe=observables)

    axes = (dyn.ensemble.Axis("peak", np.geomspace(0.05, 1.0, 64)), dyn.ensemble.Axis("seed", range(members // 64)))
    return one, dyn.ensemble.Design(*axes), {"chunk": 8192}


def flow(members: int):
    """The simulated sweep."""
    import numpy as np

    import dynamics as dyn

    watch = dyn.observables
    problem = dyn.LayerPeeled.balanced(4, 5, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(5e-3, 5e-3))
    observables = {"objective": watch.objective, "nc1": watch.nc1, "margin": watch.margin, "norm": watch.feature_norm}

    def build(member, key):
        start = dyn.initial.gaussian(problem, dim=16, key=key, scale=0.3)
        return problem, start, dyn.Rates.equal(member["rate"])

    def cost(member):
        return member["rate"]

    one = dyn.segmented_flow(build, np.linspace(2.0, 100.0, 50), observe=observables, rtol=1e-6, atol=1e-6)
    axes = (dyn.ensemble.Axis("rate", np.geomspace(0.1, 1.0, 10)), dyn.ensemble.Axis("seed", range(members // 10)))
    return one, dyn.ensemble.Design(*axes), {"chunk": 4096, "cost": cost}


SWEEPS = {"formula": (formula, 1_000_000), "flow": (flow, 100_000)}


def main(words: list[str]) -> int:
    """0 when both sweeps ran to completion below the cap, 1 when memory went over it, 2 for a wrong word."""
    os.environ.setdefault("NPROC", str(2 * (os.cpu_count() or 1)))
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    from dynamics.ensemble import Moments, Quantiles, run

    names = [word for word in words if not word.isdigit()] or list(SWEEPS)
    if set(names) - set(SWEEPS):
        print(f"{__doc__}", file=sys.stderr)
        return 2
    for name in names:
        build, usual = SWEEPS[name]
        one, design, options = build(next((int(word) for word in words if word.isdigit()), usual))
        begin = time.perf_counter()
        result = run(one, design, key=jax.random.key(0), keep=None, reduce=[Moments(), Quantiles()], memory=CAP, **options)
        report = result.report
        seconds = time.perf_counter() - begin - report.compile_seconds
        useful = f", {100 * report.useful:.0f} % useful steps" if report.useful > 0 else ""
        print(
            f"{name}: {report.members} members, {report.failed} failed, {seconds:.0f} s, "
            f"{report.members / seconds:.0f} members/s{useful}; {report.compile_seconds:.0f} s of compilation"
        )
        found = result.reduced["nc1_quantile"]
        print(f"  nc1 at the end, 5, 25, 50, 75, 95 %: {found.values[:, -1]} (to {found.attributes['relative_error']:.1e})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.2f} GiB")
    return 0 if peak <= 2 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
