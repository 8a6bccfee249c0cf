"""States at t = 0."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dynamics import validate
from dynamics.problems import LayerPeeled, Network, Peeled


def gaussian(problem: LayerPeeled, *, dim: int, key, scale=1.0, dtype=None) -> Peeled:
    """Independent normal features and prototypes, zero biases.

    **Arguments:**

    - `dim`: the dimension of feature space.
    - `key`: a JAX random key.
    - `scale`: the standard deviation of an entry, or a pair (of features, of prototypes).
    - `dtype`: a floating dtype; None is JAX's default.
    """
    dim = validate.whole("dim", dim, 1)
    scales = scale if isinstance(scale, tuple) else (scale, scale)
    if len(scales) != 2:
        raise ValueError(f"scale must be a number or a pair (features, prototypes), got {scale!r}")
    for value in scales:
        validate.nonnegative("scale", value)
    dtype = validate.floating_dtype("dtype", jnp.result_type(float) if dtype is None else dtype)
    for_features, for_prototypes = jax.random.split(key)
    return Peeled(
        scales[0] * jax.random.normal(for_features, (problem.num_samples, dim), dtype),
        scales[1] * jax.random.normal(for_prototypes, (problem.num_classes, dim), dtype),
    )


def balanced(problem: LayerPeeled, *, dim: int, key, scale=1.0, imbalance=0.0, ratio=1.0, dtype=None) -> Peeled:
    r"""A random start with $W^\top W - H^\top H/s = \delta I$ (rows are vectors), zero biases.

    Without imbalance the prototypes are independent normals and the features a random set of rows with s times their Gram
    matrix, its orientation in sample space uniform; imbalance adds $|\delta|$ to the spectrum of the heavier side. Where
    `problem` has slaved biases, the features have mean zero.

    **Arguments:**

    - `dim`: the dimension of feature space; `key`: a JAX random key.
    - `scale`: the standard deviation of an entry of the prototypes (before the imbalance).
    - `imbalance`: $\delta$; positive needs `dim <= classes`, negative `dim` at most the samples (slaved biases: one less).
    - `ratio`: s, the features' rate over the weights'.
    - `dtype`: a floating dtype; None is JAX's default.
    """
    dim, classes, samples = validate.whole("dim", dim, 1), problem.num_classes, problem.num_samples
    validate.nonnegative("scale", scale)
    validate.finite("imbalance", imbalance)
    validate.positive("ratio", ratio)
    slaved = problem.bias == "slaved"
    rows = samples - 1 if slaved else samples  # the largest rank of the features
    if validate.is_concrete(imbalance):
        if imbalance > 0 and dim > classes:
            raise ValueError(
                f"imbalance > 0 needs dim <= classes = {classes}, got dim = {dim}: W^T W is the larger side, its rank is at "
                "most the number of classes"
            )
        if imbalance < 0 and dim > rows:
            raise ValueError(f"imbalance < 0 needs dim <= {rows}, the largest rank of H^T H, got dim = {dim}")
    dtype = validate.floating_dtype("dtype", jnp.result_type(float) if dtype is None else dtype)
    for_prototypes, for_features = jax.random.split(key)
    left, sizes, right = jnp.linalg.svd(jax.random.normal(for_prototypes, (classes, dim), dtype))
    frame = jax.random.normal(for_features, (samples, min(dim, rows)), dtype)
    frame, upper = jnp.linalg.qr(frame - jnp.mean(frame, axis=0) if slaved else frame)
    frame = frame * jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0).astype(dtype)
    spectrum = jnp.zeros(dim, dtype).at[: sizes.shape[0]].set((scale * sizes) ** 2)
    infeasible = ((imbalance > 0) & (dim > classes)) | ((imbalance < 0) & (dim > rows))
    heavy = [jnp.asarray(jnp.where(infeasible, jnp.nan, jnp.maximum(x, 0.0)), dtype) for x in (imbalance, -imbalance)]

    def side(vectors, more):
        kept = min(vectors.shape[1], dim)
        return (vectors[:, :kept] * jnp.sqrt(spectrum[:kept] + more)) @ right[:kept]

    return Peeled(jnp.sqrt(jnp.asarray(ratio, dtype)) * side(frame, heavy[1]), side(left, heavy[0]))


def simplex_etf(num_classes: int, dim: int, *, key=None, scale=1.0, dtype=None) -> Float[Array, "classes dim"]:
    """Prototypes of norm `scale` at the vertices of a simplex: all cosines -1/(classes - 1), sum zero.

    **Arguments:**

    - `num_classes`: >= 2; `dim`: at least `num_classes - 1`.
    - `key`: turns the frame by a random rotation; None leaves it in the first coordinates.
    """
    num_classes, dim = validate.whole("num_classes", num_classes, 2), validate.whole("dim", dim, 1)
    if dim < num_classes - 1:
        raise ValueError(f"dim must be >= num_classes - 1 = {num_classes - 1} for a simplex ETF, got {dim}")
    validate.nonnegative("scale", scale)
    dtype = validate.floating_dtype("dtype", jnp.result_type(float) if dtype is None else dtype)
    # rows of an orthonormal basis of the zero-sum vectors: column j of the Helmert matrix
    j = np.arange(1, num_classes)
    helmert = np.triu(np.ones((num_classes, num_classes - 1)))
    helmert[j, j - 1] = -j
    helmert /= np.sqrt(j * (j + 1.0))
    frame = np.zeros((num_classes, dim))
    frame[:, : num_classes - 1] = np.sqrt(num_classes / (num_classes - 1)) * helmert
    frame = jnp.asarray(frame, dtype)
    if key is not None:
        frame = frame @ jax.random.orthogonal(key, dim, dtype=dtype)
    return scale * frame


def collapsed(problem: LayerPeeled, means: Float[Array, "classes dim"]) -> Float[Array, "samples dim"]:
    """Features collapsed to their class means: each sample's feature is `means[label]`."""
    means = jnp.asarray(means)
    validate.shape("means", means, (problem.num_classes, "dim"), "(classes, dim)")
    validate.finite("means", means)
    return means[jnp.asarray(problem.labels)]


def weights(problem: Network, *, key, scale=1.0, dtype=None) -> PyTree:
    """Random weights of a network, as its `init` draws them.

    **Arguments:**

    - `key`: a JAX random key.
    - `scale`: a factor on all weights.
    - `dtype`: a floating dtype; None is that of the inputs.
    """
    validate.nonnegative("scale", scale)
    dtype = validate.floating_dtype("dtype", problem.inputs.dtype if dtype is None else dtype)
    drawn = problem.net.init(key, problem.inputs.shape[1:])
    return jax.tree.map(lambda leaf: (scale * leaf).astype(dtype), drawn)
