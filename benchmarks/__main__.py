"""`python -m benchmarks [NAME...]`: ratios to the first racer of each workload, medians of alternating runs."""

import difflib
import platform
import sys


def main(names: list[str]) -> int:
    """0 after the races; 2 for an unknown workload."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.race import race, table
    from benchmarks.workloads import WORKLOADS

    if names and names[0] in ("-h", "--help"):
        print(f"{__doc__}\nworkloads: {', '.join(WORKLOADS)}")
        return 0
    for name in names:
        if name not in WORKLOADS:
            close = difflib.get_close_matches(name, WORKLOADS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(WORKLOADS)}"
            print(f"python -m benchmarks: unknown workload {name!r}; {hint}", file=sys.stderr)
            return 2
    print(f"jax {jax.__version__}, python {platform.python_version()}, {jax.devices()[0].device_kind}, float64")
    for name in names or WORKLOADS:
        build = WORKLOADS[name]
        print(table(f"{name}: {build.__doc__}", race(build())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
