"""How a check of a plugin says what is wrong: `Breach`, and the rules that several checks share, which raise it."""

from __future__ import annotations

import functools
import inspect
from typing import Any, get_args, get_origin, get_type_hints

import pydantic

from anaus_bench.errors import shown


class Breach(Exception):
    """What was found where something else was expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected


def require(holds: bool, found: str, expected: str) -> None:
    """Raises `Breach` unless it holds."""
    if not holds:
        raise Breach(found, expected)


def require_fields(value: Any, declared: type) -> None:
    """Each field of a dataclass has its declared type."""
    require(isinstance(value, declared), kind_of(value), f"{declared.__name__}(...)")
    for name, hint in get_type_hints(declared).items():
        require_type(getattr(value, name), hint, name)


def require_type(value: Any, declared: Any, what: str) -> None:
    """The value has this type, without any conversion."""
    try:
        _adapter(declared).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part!r}]" for part in first["loc"] if not isinstance(part, str) or part.isidentifier())
        wanted = first["msg"].lower().removeprefix("input should be ")
        raise Breach(f"{what}{place} = {shown(first['input'])}", wanted) from None


@functools.cache
def _adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    if get_origin(declared) is type:  # pydantic wants type[Task] for type[Task[Any]]
        (cls,) = get_args(declared)
        declared = type[get_origin(cls) or cls]
    return pydantic.TypeAdapter(declared)


def require_image(array: Any, what: str) -> None:
    """The array is (H, W) uint8, with at least one pixel."""
    fits = is_uint8(array) and array.ndim == 2 and array.size > 0
    require(fits, f"{what} {kind_of(array)}", "an array (H, W) of uint8")


def is_uint8(array: Any) -> bool:
    """Whether it is a numpy array of uint8."""
    import numpy as np

    return isinstance(array, np.ndarray) and array.dtype == np.uint8


def kind_of(value: Any) -> str:
    """What a value is, in words: its type, and the type and shape of an array."""
    name = value.__name__ if inspect.isclass(value) else type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        name += f" of {value.dtype} and shape {tuple(shape)}"
    return f"the class {name}" if inspect.isclass(value) else name
