"""What every test runs under: float64, two virtual CPU devices, no accelerator unless `-m gpu` asks for one."""

import os

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config):
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["JAX_PLATFORMS"] = "cpu"  # for processes that tests start
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("NPROC", "4")  # more threads than devices, see ensemble/program.py
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU and -m gpu")


@pytest.fixture
def key():
    return jax.random.key(20240)
