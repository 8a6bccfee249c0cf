"""What an observable declares about itself."""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def observable(
    *, scale_invariant: bool = False, rotation_invariant: bool = True, from_summary: Callable | None = None
) -> Callable[[F], F]:
    """Mark a function of (problem, state).

    **Arguments:**

    - `scale_invariant`: its value is the same for `(c features, c prototypes)`, any c > 0; only such functions may observe
      scaled states.
    - `rotation_invariant`: its value is the same when feature space is rotated.
    - `from_summary`: the same number from (problem, summary), see `Summary`, or None where it does not follow from one.
    """

    def mark(function: F) -> F:
        function.scale_invariant = scale_invariant  # pyright: ignore[reportFunctionMemberAccess]
        function.rotation_invariant = rotation_invariant  # pyright: ignore[reportFunctionMemberAccess]
        function.from_summary = from_summary  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark
