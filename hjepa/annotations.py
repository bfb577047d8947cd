"""How the options of components are annotated: components within components, and ranges of numbers. `hjepa.contracts` gives them on."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from annotated_types import Ge, Gt, Le

T = TypeVar("T")


class Build(Generic[T]):
    """A component that is not made yet: call it with its neighbours. Its parameters are drawn from `(seed, path)` alone."""

    name: str
    path: str
    shared: bool = False
    """Whether it is another's, and not made anew."""

    def __call__(self, *neighbours: Any) -> T:
        raise NotImplementedError


def by_name(name: str) -> Any:
    """The default of an option that is a component: the one of that name, as a study would say it."""
    return name


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
