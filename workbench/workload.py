"""A workload: what is computed, on which data, in which batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from workbench.errors import PlanError

if TYPE_CHECKING:
    import dask.array as da
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workbench.recipe import Recipe

DTYPES = ("float32", "float64")


@dataclass(frozen=True, eq=False, repr=False)
class Workload:
    """A model, its data, and how it learns.

    Parameters
    ----------
    model:
        A ``torch.nn.Module``, which is copied and never changed, or a function that makes a new
        one each time.
    data:
        ``(x, y)``: dask arrays, numpy arrays or tensors of the same length; dim 0 counts the
        samples. Labels may be of any dtype that holds whole numbers.
    loss:
        Takes the model's output and the targets, gives one number: the mean or the sum over the
        samples, or a mean that leaves out or weighs samples by their targets.
        ``torch.nn.CrossEntropyLoss()`` if left out.
    optimizer:
        A class of ``torch.optim``, a function of the parameters that makes an optimizer, or an
        optimizer made over ``model.parameters()``. SGD with a learning rate of 0.05 and momentum
        0.9 if left out.
    batch_size:
        Samples per step, of all ranks together.
    test_data:
        ``(x, y)`` to measure the result on.
    seed:
        Rules all that is drawn: a factory's parameters, the order of the samples, dropout.
    dtype:
        ``"float32"`` or ``"float64"``, for the parameters and for data of real numbers. Whole
        numbers in ``x`` stay whole (int64) when the model's first layer with parameters is an
        embedding, otherwise they become ``dtype``, without scaling; in ``y`` they stay whole.
    steps:
        How many steps make a good demonstration.
    clip_norm:
        The largest norm that the gradients of all parameters together may have; larger ones are
        scaled down to it, as ``torch.nn.utils.clip_grad_norm_`` does.
    shuffle_block:
        How many neighbours in the data are visited together, so that they can be read together,
        see :mod:`workbench.order`. 1 shuffles best; more is for files that ranks read as they go.

    Attributes
    ----------
    x, y, test_x, test_y:
        The data as dask arrays in ``input_dtype`` and ``target_dtype``; None where there is none.

    Raises
    ------
    PlanError
        if model, loss, optimizer or data are of no use, in one sentence.
    """

    _: KW_ONLY
    model: nn.Module | Callable[[], nn.Module]
    data: tuple[Any, Any]
    batch_size: int
    loss: Callable[[Tensor, Tensor], Tensor] = None  # type: ignore[assignment]
    optimizer: Any = None
    test_data: tuple[Any, Any] | None = None
    seed: int = 0
    name: str = "custom"
    dtype: str = "float32"
    steps: int = 30
    clip_norm: float | None = None
    shuffle_block: int = 1
    x: da.Array = field(init=False)
    y: da.Array = field(init=False)
    test_x: da.Array | None = field(init=False)
    test_y: da.Array | None = field(init=False)
    input_dtype: str = field(init=False)
    target_dtype: str = field(init=False)

    def __post_init__(self) -> None:
        from workbench.datasets.adopt import cast
        from workbench.recipe import own_loss, own_model, own_optimizer

        x, y = _pair(self.data, "")
        test = (None, None) if self.test_data is None else _pair(self.test_data, "test ")
        dtype = _dtype(self.dtype)
        keep: dict[str, Any] = {
            "dtype": dtype,
            "optimizer": own_optimizer(self.optimizer, self.model),
            "model": own_model(self.model),
            "loss": own_loss(self.loss, dtype),
        }
        whole = x.dtype.kind in "biu" and _begins_with_embedding(keep["model"])
        keep["input_dtype"] = to_x = "int64" if whole else dtype
        keep["target_dtype"] = to_y = dtype if y.dtype.kind == "f" else "int64"
        keep["x"], keep["y"] = cast(x, to_x), cast(y, to_y)
        keep["test_x"], keep["test_y"] = (
            None if array is None else cast(array, to)
            for array, to in zip(test, (to_x, to_y), strict=True)
        )
        for name, value in keep.items():
            object.__setattr__(self, name, value)

    @property
    def samples(self) -> int:
        """Number of samples to learn from."""
        return len(self.x)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample of ``x``."""
        return tuple(self.x.shape[1:])

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one sample of ``y``; empty for labels."""
        return tuple(self.y.shape[1:])

    @property
    def recipe(self) -> Recipe:
        """All of the workload but its data: what a rank is sent."""
        from workbench.recipe import Recipe

        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

    def make_model(self) -> nn.Module:
        """Return a new model on the CPU in training mode; see :meth:`.Recipe.make_model`."""
        return self.recipe.make_model()

    def make_optimizer(self, parameters: Any) -> Optimizer:
        """Return a new optimizer; see :meth:`.Recipe.make_optimizer`."""
        return self.recipe.make_optimizer(parameters)

    def payload(self) -> bytes:
        """Return the recipe as bytes for :func:`workbench.recipe.load_payload`.

        Raises
        ------
        PlanError
            if a part cannot be pickled, naming it.
        """
        return self.recipe.to_bytes()

    def with_(self, **changes: Any) -> Workload:
        """Return this workload with other arguments, such as ``work.with_(batch_size=64)``.

        Raises
        ------
        PlanError
            if there is no such argument, or as on making a workload.
        """
        known = [f.name for f in fields(self) if f.init]
        for name in changes:
            if name not in known:
                raise PlanError(f"A workload has no {name!r}; {_nearest(name, known)}.")
        return replace(self, **changes)

    def __repr__(self) -> str:
        """Name it with its sizes, in one line."""
        model = getattr(self.model, "__name__", type(self.model).__name__)
        return (
            f"<Workload {self.name}: {model}, {self.samples:,} samples of shape "
            f"{self.sample_shape}, batch {self.batch_size}, {self.dtype}>"
        )


def workload(name: str, **changes: Any) -> Workload:
    """Return a workload of the catalogue, with changes as in :meth:`Workload.with_`.

    Raises
    ------
    PlanError
        if there is none of this name, listing those that there are.
    """
    from workbench.catalogue import CATALOGUE

    if name not in CATALOGUE:
        raise PlanError(f"There is no workload {name!r}; {_nearest(str(name), list(CATALOGUE))}.")
    made = Workload(name=name, **CATALOGUE[name].arguments())
    return made.with_(**changes) if changes else made


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? There are" if close else "there are"
    return f"{hint} {', '.join(known)}"


def _dtype(given: Any) -> str:
    name = getattr(given, "__name__", str(given)).removeprefix("torch.")
    if name not in DTYPES:
        raise PlanError(f"A workload computes in {' or '.join(DTYPES)}; got dtype={given!r}.")
    return name


def _pair(data: Any, which: str) -> tuple[da.Array, da.Array]:
    from workbench.datasets.adopt import adopt

    if not isinstance(data, tuple | list) or len(data) != 2:
        raise PlanError(f"The {which}data must be a pair (x, y); got a {type(data).__name__}.")
    x, y = adopt(data[0], f"{which}x"), adopt(data[1], f"{which}y")
    if len(x) != len(y):
        raise PlanError(
            f"The {which}data has {len(x):,} samples in x and {len(y):,} in y; dim 0 of both must "
            f"be the same, so cut both to {min(len(x), len(y)):,}."
        )
    return x, y


def _begins_with_embedding(model: nn.Module | Callable[[], nn.Module]) -> bool:
    from torch.nn import Embedding, EmbeddingBag

    from workbench.recipe import make_model

    for layer in make_model(model).modules():
        leaf = next(layer.children(), None) is None
        if leaf and next(layer.parameters(recurse=False), None) is not None:
            return isinstance(layer, Embedding | EmbeddingBag)
    return False
