"""What every test runs under: float64, two virtual CPU devices, no accelerator unless `-m gpu` asks for one."""

import os
import tempfile

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config):
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["JAX_PLATFORMS"] = "cpu"  # for processes that tests start
        jax.config.update("jax_platforms", "cpu")
    if not hasattr(config, "workerinput"):  # the processes of pytest-xdist inherit it, and so do those that tests start
        config.compiled = tempfile.TemporaryDirectory(prefix="dynamics-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])  # a program is compiled once
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.environ.setdefault("NPROC", "4")  # more threads than devices, see ensemble/program.py
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)


def pytest_unconfigure(config):
    if hasattr(config, "compiled"):
        config.compiled.cleanup()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU and -m gpu")


@pytest.fixture
def key():
    return jax.random.key(20240)
