"""A workload: what is computed, on which data, in which batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from workbench.errors import PlanError
from workbench.given import listed, parted, titles

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
        samples. Labels may be of any dtype that holds whole numbers. For a model that takes several
        inputs, ``x`` is a tuple of arrays in the order of its arguments, or a dict of arrays by
        their names: ``((ids, mask), y)``, ``({"input_ids": ids, "attention_mask": mask}, y)``.
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
        ``(x, y)`` to measure the result on; ``x`` of as many arrays as that of ``data``.
    seed:
        Rules all that is drawn: a factory's parameters, the order of the samples, dropout.
    dtype:
        ``"float32"`` or ``"float64"``, for the parameters and for data of real numbers. Of several
        inputs each keeps its kind: whole numbers become int64, and bools stay bools. Whole numbers
        in an ``x`` that is alone stay whole (int64) when the model's first layer with parameters is
        an embedding, otherwise they become ``dtype``, without scaling; in ``y`` they stay whole.
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
    inputs, test_inputs:
        What the model is given, as dask arrays in ``input_dtypes``, in order, one or several; for
        the test data none if there is none. Each ``input_dtypes`` is ``dtype``, int64 or bool.
    input_names:
        The names of the arguments that get them; empty if that goes by their order.
    y, test_y:
        The targets as dask arrays in ``target_dtype``; None where there is none.

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
    inputs: tuple[da.Array, ...] = field(init=False)
    y: da.Array = field(init=False)
    test_inputs: tuple[da.Array, ...] = field(init=False)
    test_y: da.Array | None = field(init=False)
    input_names: tuple[str, ...] = field(init=False)
    input_dtypes: tuple[str, ...] = field(init=False)
    target_dtype: str = field(init=False)

    def __post_init__(self) -> None:
        from workbench.datasets.adopt import cast
        from workbench.recipe import own_loss, own_model, own_optimizer

        names, inputs, y = _taken(self.data, "")
        dtype = _dtype(self.dtype)
        keep: dict[str, Any] = {
            "dtype": dtype,
            "optimizer": own_optimizer(self.optimizer, self.model),
            "model": own_model(self.model),
            "loss": own_loss(self.loss, dtype),
        }
        keep["input_names"] = names
        keep["input_dtypes"] = to_x = _input_dtypes(inputs, dtype, keep["model"])
        keep["target_dtype"] = to_y = dtype if y.dtype.kind == "f" else "int64"
        keep["inputs"], keep["y"] = tuple(map(cast, inputs, to_x)), cast(y, to_y)
        keep["test_inputs"], keep["test_y"] = (), None
        if self.test_data is not None:
            tested, test_y = _test_taken(self.test_data, names, len(inputs))
            keep["test_inputs"] = tuple(map(cast, tested, to_x))
            keep["test_y"] = cast(test_y, to_y)
        for name, value in keep.items():
            object.__setattr__(self, name, value)

    @property
    def x(self) -> da.Array:
        """The first of ``inputs``."""
        return self.inputs[0]

    @property
    def test_x(self) -> da.Array | None:
        """The first of ``test_inputs``; None if there is none."""
        return next(iter(self.test_inputs), None)

    @property
    def input_dtype(self) -> str:
        """The dtype of ``x``."""
        return self.input_dtypes[0]

    @property
    def samples(self) -> int:
        """Number of samples to learn from."""
        return len(self.x)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample of ``x``."""
        return self.sample_shapes[0]

    @property
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample of each of ``inputs``."""
        return tuple(tuple(x.shape[1:]) for x in self.inputs)

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
            f"{listed(self.sample_shapes)}, batch {self.batch_size}, {self.dtype}>"
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


def _taken(data: Any, which: str) -> tuple[tuple[str, ...], list[da.Array], da.Array]:
    """Return the names of the inputs, the inputs and the targets that a user has given."""
    from workbench.datasets.adopt import adopt

    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f" of {len(data)}" if isinstance(data, tuple | list) else ""
        raise PlanError(
            f"The {which}data must be a pair (x, y), where x is an array or a tuple of several; "
            f"got a {type(data).__name__}{got}."
        )
    values, names = parted(data[0], f"{which}x")
    said = titles(len(values), names, f"{which}x")
    inputs = [adopt(value, title) for value, title in zip(values, said, strict=True)]
    y = adopt(data[1], f"{which}y")
    first, arrays = inputs[0], [*inputs, y]
    for title, array in zip((*titles(len(values), names), "y"), arrays, strict=True):
        if len(array) != len(first):
            raise PlanError(
                f"The {which}data has {len(first):,} samples in {titles(len(values), names)[0]} "
                f"and {len(array):,} in {title}; dim 0 must be the same everywhere, so cut all to "
                f"{min(map(len, arrays)):,}."
            )
    return names, inputs, y


def _test_taken(data: Any, names: tuple[str, ...], count: int) -> tuple[list[da.Array], da.Array]:
    """Return inputs, in the order of those to learn from, and targets of test data."""
    found, inputs, y = _taken(data, "test ")
    if sorted(found) != sorted(names) or len(inputs) != count:
        raise PlanError(
            f"The test data has {listed(titles(len(inputs), found))}, and the data to learn from "
            f"{listed(titles(count, names))}; give as many arrays in both, by the same names."
        )
    return [inputs[found.index(name)] for name in names] if names else inputs, y


def _input_dtypes(
    inputs: list[da.Array], dtype: str, model: nn.Module | Callable[[], nn.Module]
) -> tuple[str, ...]:
    """Return in which dtype the model is given each of its inputs."""
    kinds = [x.dtype.kind for x in inputs]
    if len(inputs) > 1:
        return tuple({"f": dtype, "b": "bool"}.get(kind, "int64") for kind in kinds)
    return ("int64" if kinds[0] in "biu" and _begins_with_embedding(model) else dtype,)


def _begins_with_embedding(model: nn.Module | Callable[[], nn.Module]) -> bool:
    from torch.nn import Embedding, EmbeddingBag

    from workbench.recipe import make_model

    for layer in make_model(model).modules():
        leaf = next(layer.children(), None) is None
        if leaf and next(layer.parameters(recurse=False), None) is not None:
            return isinstance(layer, Embedding | EmbeddingBag)
    return False
