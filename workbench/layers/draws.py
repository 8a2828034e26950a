"""Random numbers that a stage of a pipeline would draw anew, which an earlier one has drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.layers.ghosts import Uncarried
from workbench.layers.stages import Stages


class Draws(TorchDispatchMode):
    """Refuses a stage that needs what code has drawn at random before the stage begins.

    Every stage runs that code, and each draws other numbers: a mask for all layers would be several
    ones. For the plan only; what it has not refused needs no watching.
    """

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages
        self.drawn: dict[int, UntypedStorage] = {}  # kept, so that no other has its number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        draws = torch.Tag.nondeterministic_seeded in func.tags
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = next((x for x in given if x.untyped_storage()._cdata in self.drawn), None)
        if self.stages.real:
            if known is not None:
                raise Uncarried(
                    f"a value of shape {tuple(known.shape)} that stage {self.stages.stage} needs "
                    "is drawn at random before it begins"
                )
        elif draws or known is not None:
            self.stages.drawn += draws
            for x in pytree.tree_leaves(result):
                if isinstance(x, Tensor):
                    memory = x.untyped_storage()
                    self.drawn[memory._cdata] = memory
        return result
