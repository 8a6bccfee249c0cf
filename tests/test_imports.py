"""What an import brings along, and that the rooms keep to their floors."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def fresh(code: str) -> str:
    """What `code` prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_the_library_loads_alone():
    loaded = set(fresh("import sys, dynamics; print(*{name.partition('.')[0] for name in sys.modules})").split())
    outside = {"experiments", "benchmarks", "tests"}
    optional = {"matplotlib", "xarray", "netCDF4", "zarr", "tqdm", "pydantic", "sklearn", "orbax"}
    assert "dynamics" in loaded
    assert not loaded & (outside | optional)


def test_importing_leaves_jax_as_it_was():
    code = """
import jax, diffrax, equinox, optax
before = dict(jax.config.values)
import dynamics
print({name for name, value in jax.config.values.items() if before.get(name) != value})
"""
    assert fresh(code).strip() == "set()"


def test_import_is_quick():
    code = """
import time, jax, diffrax
start = time.perf_counter()
import dynamics
print(time.perf_counter() - start)
"""
    seconds = min(float(fresh(code)) for _ in range(3))  # the least of three: a busy machine only adds
    assert seconds < 1.0


def test_the_rooms_keep_to_their_floors():
    cli = pytest.importorskip("importlinter.cli")
    code = f"import sys; from {cli.__name__} import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
