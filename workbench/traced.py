"""What one pass of a model has shown: its layers, what each was given, and where each dim goes.

A dim of an array may carry a *label*, which says what it counts: ``"dim2"`` counts positions along
dim 2 of the model's inputs, ``"out:features.0"`` the channels that layer ``features.0`` makes. A
label follows its dim through all code that treats every position alike. Arrays whose dims carry
the same label and have the same size are cut in the same places, so they meet without a word.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol, TypeVar

from workbench.windows import Window

Operation = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "exchange"]
Role = Literal["plain", "conv", "channelwise", "flatten", "linear", "embedding", "heads", "opaque"]
Phase = Literal["start", "forward", "backward", "update", "record", "average"]


@dataclass(frozen=True, slots=True)
class Array:
    """Name, shape and size of one item of an array, in bytes."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trainable: bool = True

    @property
    def numel(self) -> int:
        """Number of items."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Flat:
    """Label of a dim that was flattened out of several: their labels ("" for none) and sizes.

    With ``beside`` the dim is made of parts that lie side by side, all with the same label.
    """

    parts: tuple[tuple[str, int], ...]
    beside: bool = False

    def __str__(self) -> str:
        """Return it as ``"flat(64, dim2 4, 4)"``."""
        return f"flat({', '.join(f'{label} {size}'.strip() for label, size in self.parts)})"


Label = str | Flat
"""What a dim counts; ``""`` where nobody has to know."""


SAMPLES = "dim0"
"""Label of the dim that counts the samples of the batch, where a strategy asks for it."""

POSITIONS = "positions"
"""Label of the dim that counts positions, in arrays of which ranks have some between layers."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One array that goes into a layer or comes out of it, whole.

    ``gradient`` says whether a gradient flows back into it.
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    itemsize: int = 4
    gradient: bool = True

    @property
    def numel(self) -> int:
        """Number of items."""
        return prod(self.shape)

    @property
    def counts_samples(self) -> bool:
        """Whether a dim counts the samples of the batch, perhaps with other things."""
        return any(
            SAMPLES in [name for name, _ in label.parts]
            if isinstance(label, Flat)
            else label == SAMPLES
            for label in self.labels
        )

    def dim_of(self, label: Label) -> int | None:
        """Return the dim that carries ``label``, or None."""
        return self.labels.index(label) if label in self.labels else None


Shaped = TypeVar("Shaped", bound="_HasShape")


class _HasShape(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


def lead(inputs: Sequence[Shaped]) -> Shaped:
    """Return the input whose dims give the labels of all: the first of those with most dims."""
    return max(inputs, key=lambda x: len(x.shape))


@dataclass(frozen=True, slots=True)
class Sums:
    """A collective that a layer needs when a dim with one of ``labels`` is cut.

    It goes over the axes that cut those dims, and over the data axis too if the layer's result for
    one sample depends on the others (``over_batch``). ``numel`` is what each rank puts in: for one
    sample if ``per_sample``, else whatever the number of samples. With ``exact`` numbers travel in
    float32 although the layer computes in less.
    """

    name: str
    operation: Operation
    labels: tuple[str, ...]
    numel: int
    phase: Phase
    per_sample: bool = False
    over_batch: bool = False
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a layer cannot be carried out when a dim with one of ``labels`` is cut."""

    labels: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a leaf module, as the profile found it.

    Shapes are those of the whole (serial) batch, batch dim first. ``forward_flops`` counts one
    multiply and one add as two.

    Attributes
    ----------
    arguments, results:
        The tensors given to the call and returned by it; ``input_shape`` and ``output_shape`` are
        those of the first ones.
    windows:
        For a windowed layer: its windows by dim (of the input and of the output alike). Dims
        without one are passed through, or are not the layer's to split.
    sums:
        Collectives that the layer needs when certain dims are cut.
    refusals:
        What the layer cannot do when certain dims are cut.
    role:
        How strategies see it: "plain" works on any share as it is or with its windows and sums;
        "flatten", "linear", "conv", "channelwise" (each channel by itself, with parameters per
        channel), "embedding" and "heads" (attention) are plain with a choice on top; "opaque"
        can be carried out on whole arrays only.
    tied:
        Parameters that another layer owns, which this one uses too.
    by_heads:
        Of attention: its parameters with the dim that heads make, and what that was flattened from,
        in which the label :attr:`heads` counts them.
    turned:
        The weight counts what the layer reads in dim 0 and what it makes in dim 1.
    watched:
        It does not answer for itself: its code has been watched, and what that mixes is known.
    saved:
        Arrays kept for the backward pass, each once in the model, parameters aside; those of code
        around the layers are with the layer before.
    saved_too:
        Those that another layer has saved before, with its number: kept again where another rank
        runs that one.
    batch_statistics:
        The output for one sample depends on the other samples of the batch, as in BatchNorm.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: tuple[Array, ...] = ()
    buffers: tuple[Array, ...] = ()
    forward_flops: int = 0
    itemsize: int = 4
    batch_statistics: bool = False
    arguments: tuple[Traced, ...] = ()
    results: tuple[Traced, ...] = ()
    windows: tuple[tuple[int, Window], ...] = ()
    sums: tuple[Sums, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    role: Role = "plain"
    groups: int = 1
    tied: tuple[Array, ...] = ()
    by_heads: tuple[tuple[str, int, Flat], ...] = ()
    saved: tuple[Traced, ...] = ()
    turned: bool = False
    watched: bool = False
    saved_too: tuple[tuple[int, Traced], ...] = ()

    @property
    def heads(self) -> str:
        """Label of the heads of attention."""
        return f"heads:{self.name}"

    @property
    def head_count(self) -> int:
        """Number of heads of attention; 0 for another layer, or if they cannot be split."""
        return max((dict(flat.parts)[self.heads] for _, _, flat in self.by_heads), default=0)

    @property
    def parametrized(self) -> bool:
        """Whether ``torch.nn.utils.parametrize`` computes parameters of the layer: by its class."""
        return self.kind.startswith("Parametrized")

    def feature_dim(self, array: Traced) -> int:
        """Return the dim of an argument or result that counts channels or features."""
        return 1 if self.role in ("conv", "channelwise") else len(array.shape) - 1

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the layer's own parameters."""
        return sum(p.nbytes for p in self.parameters)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the layer's output for the whole batch."""
        return Array(self.name, self.output_shape, self.itemsize).nbytes

    def window(self, dim: int) -> Window | None:
        """Return the window along ``dim``, or None."""
        return dict(self.windows).get(dim)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A number that a module keeps of features that ranks have shares of, such as that of heads.

    On a rank it is that of the rank's share of ``size`` features or heads with ``label``.
    """

    module: str
    attribute: str
    label: str
    size: int


@dataclass(frozen=True, slots=True)
class Size:
    """A size that code gives as a number, of dims of which ranks have a share.

    It is the one at ``place`` in call ``number`` of a function that takes sizes; ``parts`` are the
    labelled dims that it counts, with their sizes.
    """

    number: int
    function: str
    place: int
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Resized:
    """A module whose code works with sizes of whole arrays, and the modules that it calls.

    On a rank those sizes are those of its shares.
    """

    module: str
    inside: tuple[str, ...]
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the code of a module has arrays meet of which one has its positions cut, one not.

    ``inside`` are the modules that it calls. ``places`` say for each meeting the number of the
    function's call, which of its two arrays is whole, and the dim of positions, counted from the
    last, which is 1.
    """

    module: str
    inside: tuple[str, ...]
    places: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Code that writes to parameter ``name`` while the model computes.

    ``layer`` is the module whose ``forward`` does it ("" for the model itself), of class ``kind``.
    With ``differs`` it writes what is worked out from samples or drawn at random, of which ranks
    have others.
    """

    name: str
    layer: str
    kind: str
    operation: str
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Mix:
    """Code that mixes positions of a labelled dim, where shares cannot do without each other.

    ``layer`` is the module whose ``forward`` does it ("" for the model itself), ``operation`` what
    it calls, ``labels`` the dims it concerns. Code that draws ``random`` numbers of its own gives
    others on every rank, on whole arrays too.
    """

    layer: str
    kind: str
    operation: str
    labels: tuple[Label, ...]
    advice: str = ""
    random: bool = False
