"""Lambert's W of arguments given by their logarithm, and the clock that cross-entropy spends, in extended precision."""

import jax
import mpmath
import numpy as np

from dynamics.exact.lambert import log_lambert_growth
from dynamics.exact.spent_clock import spent_clock
from tests.helpers import compiled


def test_lambert_growth_to_a_few_eps():
    rng = np.random.default_rng(2)
    log_w = rng.choice([1, 10, 100], 120) * rng.normal(size=120)
    by = 10 ** rng.uniform(-12, 15, 120)
    # from far below zero to just above it
    log_w = np.append(log_w, low := -(10 ** rng.uniform(-1, 4, 80)))
    by = np.append(by, 10 ** rng.uniform(-2, 1.5, 80) - low)
    for dtype, bound in ((np.float64, 3), (np.float32, 6)):
        start, gained = log_w.astype(dtype), by.astype(dtype)
        found = np.asarray(compiled(log_lambert_growth)(start, gained))
        with mpmath.workdps(60):
            for i, growth in enumerate(found):
                a, more = mpmath.mpf(float(start[i])), mpmath.mpf(float(gained[i]))
                root = mpmath.mpf(float(growth))
                if root < 1e3 * float(np.finfo(dtype).tiny):  # underflow: far above the exponential nothing grows
                    assert more * mpmath.exp(-a) < 1e4 * float(np.finfo(dtype).tiny)
                    continue
                left = root + mpmath.exp(a) * mpmath.expm1(root) - more
                wrong = abs(left / (1 + mpmath.exp(a + root))) / root
                assert wrong <= bound * np.finfo(dtype).eps


def test_spent_clock_against_extended_precision():
    grow, fade = np.array([1e-9, 5.0, 0.0, 2.0]), np.array([3.0, 0.1, 1.5, 0.0])
    clocks, log_others = np.array([1e-6, 2.0, 1e12]), float(np.log(3.0))
    wide = np.asarray(compiled(jax.vmap(lambda p, f, t: spent_clock(p, f, t, log_others), (0, 0, None)))(grow, fade, clocks))
    with mpmath.workdps(25):
        for p, f, row in zip(grow, fade, wide, strict=True):
            margin = lambda x, p=p, f=f: (p * mpmath.exp(x)) ** 2 - (f * mpmath.exp(-x)) ** 2
            for clock, x in zip(clocks, row, strict=True):
                if p == 0 and x > 50:  # what fades is gone: the rest of the way has margin zero
                    continue
                spent = x + mpmath.quad(lambda y, m=margin: mpmath.exp(m(y)) / 3, mpmath.linspace(0, x, 9), maxdegree=5)
                wrong = (spent - clock) / (1 + mpmath.exp(margin(x)) / 3) / x
                assert abs(wrong) <= 2e-14


# --- anchored squared error
