"""Folders of images, and images and arrays in tar files as WebDataset writes them."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.address import Address
from workbench.sources.source import Source

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
NUMBERS = (".cls", ".id", ".index")

Size = tuple[int, int] | None


@dataclass(frozen=True)
class Known(Source):
    """Few numbers that the client knows, such as the labels of images."""

    values: tuple[int, ...]

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return numbers ``start`` to ``stop``."""
        return np.array(self.values[start:stop], self.dtype)


@dataclass(frozen=True)
class Files(Source):
    """One item per file: of a folder, or of a tar file, where each has an offset and a length.

    ``size`` is that to which images are scaled, or None for images of one size.
    """

    root: Address
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...] | None
    size: Size

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return items ``start`` to ``stop``, of the other dims the ``rest``."""
        result = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if self.places is not None:
            with self.root.open() as file:
                for place, number in enumerate(range(start, stop)):
                    offset, length = self.places[number]
                    file.seek(offset)
                    result[place] = self._item(number, file.read(length))
        else:
            for place, number in enumerate(range(start, stop)):
                with self.root.join(self.names[number]).open() as file:
                    result[place] = self._item(number, file.read())
        return result[(slice(None), *rest)]

    def _item(self, number: int, content: bytes) -> NDArray[Any]:
        name = self.names[number]
        channels = self.shape[1] if len(self.shape) == 4 else 0
        item = decode(name, content, self.root, self.size, channels)
        if item.shape != self.shape[1:]:
            hint = "; give size=(height, width) to scale all" if len(self.shape) == 4 else ""
            raise PlanError(
                f"{name} of {self.root.text} has the shape {item.shape} and the first one "
                f"{self.shape[1:]}; all must be alike{hint}."
            )
        return item


def decode(name: str, content: bytes, root: Address, size: Size, channels: int = 3) -> NDArray[Any]:
    """Return an item: (channels, height, width) of an image, an array, or a number."""
    ending = f".{name.rpartition('.')[2].lower()}"
    try:
        if ending in NUMBERS:
            return np.asarray(int(content))
        if ending == ".npy":
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
        from PIL import Image

        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, np.uint8)
    except (OSError, ValueError) as error:
        raise PlanError(f"{name} of {root.text} cannot be decoded: {error}.") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def find_images(
    address: Address, size: Size, channels: int
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Return the images below a folder as ``"x"``, and the classes.

    Where they lie in one folder per class, ``"y"`` has the classes' numbers, in the order of their
    names.

    Raises
    ------
    PlanError
        If there is no image.
    """
    names = [n for n in address.names() if f".{n.rpartition('.')[2].lower()}" in IMAGES]
    if not names:
        raise PlanError(f"There is no image in {address.text}; known are {', '.join(IMAGES)}.")
    with address.join(names[0]).open() as file:
        first = decode(names[0], file.read(), address, size, channels)
    shape = (len(names), *first.shape)
    found: dict[str, Source] = {
        "x": Files(shape, first.dtype.str, 1, address, tuple(names), None, size)
    }
    classes = sorted({n.partition("/")[0] for n in names if "/" in n})
    if classes and all("/" in n for n in names):
        number = {name: n for n, name in enumerate(classes)}
        labels = tuple(number[n.partition("/")[0]] for n in names)
        found["y"] = Known((len(names),), "<i8", 1, labels)
        return found, tuple(classes)
    return found, ()


def find_tar(address: Address, size: Size, channels: int) -> dict[str, Source]:
    """Return what a tar file holds by ending: files of one name but for it are one sample.

    Only the headers are read, and one item of each ending. Images are (channels, height, width),
    ``.npy`` arrays, ``.cls`` numbers; other endings are left out. Nothing is ever unpickled.

    Raises
    ------
    PlanError
        If it is no tar file, or compressed, or samples lack an ending that others have.
    """
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    with address.open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    key, dot, ending = name.partition(".")
                    ending = ending.lower()
                    last = f".{ending.rpartition('.')[2]}"
                    if member.isfile() and dot and last in (*IMAGES, *NUMBERS, ".npy"):
                        place = (member.name, member.offset_data, member.size)
                        samples.setdefault(f"{folder}/{key}", {})[ending] = place
        except tarfile.TarError as error:
            raise PlanError(
                f"{address.text} is no tar file that can be read in pieces: {error}; one that is "
                f"compressed must be unpacked first."
            ) from error
        if not samples:
            raise PlanError(f"{address.text} holds no image, .npy or .cls file.")
        endings = sorted({ending for sample in samples.values() for ending in sample})
        found: dict[str, Source] = {}
        for ending in endings:
            without = next((key for key, sample in samples.items() if ending not in sample), None)
            if without is not None:
                raise PlanError(
                    f"Sample {without.lstrip('/')!r} of {address.text} has no .{ending}, which "
                    f"others have."
                )
            places = [sample[ending] for sample in samples.values()]
            found[ending] = _column(file, address, places, size, channels)
    return found


def _column(
    file: IO[bytes], address: Address, places: list[tuple[str, int, int]], size: Size, channels: int
) -> Source:
    name, offset, length = places[0]
    file.seek(offset)
    first = decode(name, file.read(length), address, size, channels)
    names = tuple(name for name, _, _ in places)
    at = tuple((offset, length) for _, offset, length in places)
    shape = (len(places), *first.shape)
    return Files(shape, first.dtype.str, 1, address, names, at, size)
