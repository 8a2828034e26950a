"""Tensors in what a model takes or gives: in tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a tensor, or in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif _is_record(value):
        value = [getattr(value, field.name, None) for field in fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def over_tensors(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Return ``value`` with every tensor changed that :func:`tensors_in` finds in it.

    Or what stands for one, of another ``kind``.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        changed = {key: over_tensors(item, change, kind) for key, item in value.items()}
        if type(value) is dict:
            return changed
        result = copy.copy(value)  # not every dict may be updated: those of transformers refuse
        for key, item in changed.items():
            result[key] = item
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(over_tensors(item, change, kind) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(over_tensors(item, change, kind) for item in value)
    if _is_record(value):
        result = copy.copy(value)
        for field in fields(value):
            if hasattr(value, field.name):
                changed = over_tensors(getattr(value, field.name), change, kind)
                object.__setattr__(result, field.name, changed)  # frozen ones too
        return result
    return value


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
