"""Which reduction a run takes by itself, decided from what is static."""

from dynamics.losses import SymmetricCoupling
from dynamics.problems import LayerPeeled, Peeled
from dynamics.reduce.base import Reduction, stays
from dynamics.reduce.classes import class_means, no_class_means
from dynamics.reduce.spans import no_span, span, spanned


def choose(
    problem: LayerPeeled, state: Peeled, *, observe: dict | None, alike: bool = False, forces: int = 100, saves: int = 50
) -> Reduction | None:
    """The reduction that saves work, None where none does.

    Looks at types, shapes and static fields only, never at values: a start that happens to be collapsed is not noticed. Class
    means always save; the span of the start does where the smaller forces outweigh the basis and, unless everything observed
    is rotation-invariant, the lifting of every saved state.

    **Arguments:**

    - `observe`: what is asked for; None asks for states.
    - `alike`: whether the run treats the samples of a class alike: rates not rescaled, every sample in every step, no cap
      given on the norm of the full state. Class means need it.
    - `forces`, `saves`: about how many forces are evaluated and how many states are saved or observed.
    """
    if type(problem) is not LayerPeeled:  # a subclass may move otherwise
        return None
    dim = state.features.shape[-1]
    lifted = 0 if stays(observe) else saves
    if alike and problem.num_samples > problem.num_classes and no_class_means(problem) is None:
        means = class_means(problem, state)
        rows = 2 * problem.num_classes if lifted else problem.num_samples + problem.num_classes
        return spanned(means) if _span_pays(means.problem, dim, rows, forces, lifted) else means
    rows = problem.num_samples + problem.num_classes
    return span(problem, state) if _span_pays(problem, dim, rows, forces, lifted) else None


def _span_pays(problem: LayerPeeled, dim: int, rows: int, forces: int, lifted: int) -> bool:
    """Whether the span of a start costs at most two thirds of the operations, all told; `rows` are made orthonormal.

    Closer to one, measured times are lost as often as won. Lifting counts twice: its products run at half the speed.
    """
    if no_span(problem, dim) is not None:
        return False
    rank = problem.num_samples + problem.num_classes
    forced = forces * _per_coordinate(problem)
    extra = 8 * rows * min(rows, dim) * dim + lifted * 4 * rank * rank * dim
    return 3 * (forced * rank + extra) <= 2 * forced * dim


def _per_coordinate(problem: LayerPeeled) -> int:
    """Operations of one force and step in each coordinate of feature space, counting 20 for every number that is moved."""
    samples, classes, coupling = problem.num_samples, problem.num_classes, problem.label_coupling
    moved = 20 * (samples + classes) + (0 if problem.kernel is None else 2 * samples**2)
    if coupling is None:
        return moved + 6 * samples * classes
    if isinstance(coupling.coupling, SymmetricCoupling):
        return moved
    return moved + 4 * classes * (samples if coupling.by_sample else classes)
