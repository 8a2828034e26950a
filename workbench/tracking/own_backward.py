"""Code that works out gradients by itself: what it does to shares shows in no forward pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function

from workbench.tracking.operation import tags_of
from workbench.tracking.tags import labels_in
from workbench.tracking.watch import Watch, tensors_in

_OURS = ("workbench.", "torch.")
_patching = threading.RLock()


@contextmanager
def noted(watch: Watch) -> Iterator[None]:
    """Report arrays that are given to an ``autograd.Function`` of the user's as mixed.

    Its backward may add up over any dim, as its forward may not.
    """
    thread = threading.get_ident()

    def noting(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        watched = threading.get_ident() == thread and not watch.blind
        if watched and not cls.__module__.startswith(_OURS):
            hit = labels_in(t for x in tensors_in([args, kwargs]) for t in tags_of(x))
            what = f"{cls.__name__}, an autograd.Function of its own, whose backward is not watched"
            watch.report(watch.names.all(hit), what, "write it with operations of torch")
        return apply.__func__(cls, *args, **kwargs)

    with _patching:
        apply = Function.__dict__["apply"]
        Function.apply = classmethod(noting)  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Function.apply = apply  # type: ignore[method-assign]
