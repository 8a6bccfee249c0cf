"""Labels of unbalanced data: the profiles of class sizes that the literature trains on."""

import math

import numpy as np

from dynamics import validate


def labels_of(sizes) -> np.ndarray:
    """Labels sorted by class, shape (samples,), for class sizes of shape (classes,), whole numbers >= 1."""
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or np.any(sizes < 1):
        raise ValueError(f"sizes must be positive integers of shape (classes,), got {sizes}")
    return np.repeat(np.arange(sizes.size), sizes)


def long_tailed(num_classes: int, largest: int, imbalance) -> np.ndarray:
    r"""Labels of a long-tailed problem: class sizes fall exponentially from the first class to the last.

    Class c has $n_1 r^{-c/(C-1)}$ samples, rounded to the nearest whole number, c = 0, ..., C-1.

    **Arguments:**

    - `num_classes`: C >= 2.
    - `largest`: $n_1$, samples of the first class.
    - `imbalance`: r, the largest size over the smallest (before rounding); in [1, `largest`], so that no class is empty.

    **Returns:** labels sorted by class, shape (samples,), ready for `LayerPeeled(labels, num_classes=C)`.

    **Reference:** Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number of
    Samples" (2019), Section 5.1.
    """
    num_classes, largest, imbalance = _checked(num_classes, largest, imbalance)
    return _labels(largest * imbalance ** -(np.arange(num_classes) / (num_classes - 1)))


def step(num_classes: int, largest: int, imbalance, minority: int | None = None) -> np.ndarray:
    """Labels of a step-imbalanced problem: the first classes are large, the last `minority` ones small, nothing between.

    **Arguments:**

    - `num_classes`: C >= 2.
    - `largest`: samples of each large class.
    - `imbalance`: a large class's size over a small one's (rounded to a whole number of samples); in [1, `largest`].
    - `minority`: how many classes are small, in 1..C-1; None is half of them, rounded down.

    **Returns:** labels sorted by class, shape (samples,), ready for `LayerPeeled(labels, num_classes=C)`.

    **Reference:** M. Buda, A. Maki, M. A. Mazurowski, "A systematic study of the class imbalance problem in convolutional
    neural networks" (2018), Section 3.1.
    """
    num_classes, largest, imbalance = _checked(num_classes, largest, imbalance)
    minority = num_classes // 2 if minority is None else validate.whole("minority", minority, 1)
    if minority >= num_classes:
        raise ValueError(f"minority must leave a large class, be at most {num_classes - 1}, got {minority}")
    return _labels(np.where(np.arange(num_classes) < num_classes - minority, largest, largest / imbalance))


def _checked(num_classes: int, largest: int, imbalance) -> tuple[int, int, float]:
    num_classes, largest = validate.whole("num_classes", num_classes, 2), validate.whole("largest", largest, 1)
    if isinstance(imbalance, bool) or not isinstance(imbalance, int | float | np.integer | np.floating):
        raise ValueError(f"imbalance must be a Python number (class sizes are static), got {imbalance!r}")
    if not (math.isfinite(imbalance) and 1 <= imbalance <= largest):
        raise ValueError(f"imbalance must lie in [1, largest] = [1, {largest}], or a class is empty, got {imbalance}")
    return num_classes, largest, float(imbalance)


def _labels(sizes: np.ndarray) -> np.ndarray:
    """Labels for sizes >= 1 to rounding; halves go up."""
    return labels_of(np.maximum(np.floor(sizes * (1 + 4 * np.finfo(float).eps) + 0.5).astype(int), 1))
