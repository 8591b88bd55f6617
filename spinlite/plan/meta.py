"""Runs operations on meta tensors, which have a form but no data, and remembers what came out.

torch finds the form of a result in Python, slowly. A network asks the same many times: its blocks are alike. So here an
operation on the same forms is asked once, and later gets empty tensors of the form that it had.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # of a tensor: shape, strides, type
FIRST = "first"  # an operation in place: it returns the tensor that it got first
FORMS: dict[Any, Form | list[Form | None] | str | None] = {}  # of an operation's results, by what it gets


def run_on_meta(func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
    """The result of an operation. `inputs` are the meta tensors that it gets."""
    try:
        asked = (func, _name(args), _name(kwargs.values()), *kwargs)
        if asked in FORMS:
            return _make(FORMS[asked], args)
    except TypeError:  # what nothing names is run each time
        asked = None
    before = _places(inputs)
    result = func(*args, **kwargs)
    if not asked or _places(inputs) != before:  # it gave a tensor another form
        return result
    if args and result is args[0]:
        FORMS[asked] = FIRST
    elif _are_new(result if isinstance(result, tuple) else (result,), {storage for _, storage in before}):
        FORMS[asked] = [_form(each) for each in result] if isinstance(result, tuple) else _form(result)
    return result


def meta_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The meta tensors among values and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            if value.is_meta:
                yield value
        elif isinstance(value, list | tuple):
            yield from meta_tensors(value)


def _name(values: Iterable[Any]) -> tuple[Any, ...]:
    """What tells calls apart: forms for tensors, and types for numbers. Raises TypeError for a tensor of a single number.

    Whether such a tensor decides the type of a result depends on where it comes from.
    """
    names: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_meta or not value.ndim:
                raise TypeError
            names.append(_form(value))
        elif isinstance(value, list | tuple):
            names.append(_name(value))
        else:
            names.append((type(value), value))
    return tuple(names)


def _form(tensor: Tensor | None) -> Form | None:
    return None if tensor is None else (tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _places(tensors: list[Tensor]) -> list[tuple[Form | None, int]]:
    """The form of each tensor, and which storage it is in."""
    return [(_form(tensor), tensor.untyped_storage()._cdata) for tensor in tensors]


def _make(known: Form | list[Form | None] | str | None, args: Any) -> Any:
    if isinstance(known, str):
        return args[0]
    return tuple(map(_empty, known)) if isinstance(known, list) else _empty(known)


def _empty(form: Form | None) -> Tensor | None:
    return None if form is None else torch.empty_strided(form[0], form[1], dtype=form[2], device=META)


def _are_new(results: tuple[Any, ...], seen: set[int]) -> bool:
    """Whether each result is none, or a meta tensor that has a storage to itself and takes all of it; no storage was `seen`."""
    for result in results:
        if result is None:
            continue
        if not isinstance(result, Tensor) or not result.is_meta:
            return False
        storage = result.untyped_storage()
        alike = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=META)
        if storage._cdata in seen or storage.nbytes() != alike.untyped_storage().nbytes():
            return False
        seen.add(storage._cdata)
    return True
