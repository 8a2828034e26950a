"""Data in files of every kind: read in pieces, by whoever needs it, or refused in a sentence."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workbench.datasets import dataset
from workbench.datasets.adopt import cast
from workbench.datasets.opening import as_array, source_of
from workbench.errors import PlanError
from workbench.sources.npy import RawFile
from workbench.sources.source import Region, Rows

pytestmark = pytest.mark.usefixtures("in_this_thread")

X = np.arange(200 * 6, dtype="f4").reshape(200, 6)
Y = np.arange(200) % 7


def npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def fortran(folder: Path) -> Path:
    np.save(folder / "f.npy", np.asfortranarray(X))
    return folder / "f.npy"


def npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", y=Y, x=X)
    return folder / "a.npz"


def compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "c.npz", x=X)
    return folder / "c.npz"


def zarr_array(folder: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    made = zarr.create_array(folder / "x.zarr", shape=X.shape, chunks=(30, 6), dtype="f4")
    made[:] = X
    return folder / "x.zarr"


def zarr_group(folder: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(folder / "group", mode="w")
    made = group.create_array("x", shape=X.shape, shards=(60, 6), chunks=(30, 3), dtype="f4")
    made[:] = X
    return folder / "group"


def hdf5(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(30, 3), compression="gzip")
    return folder / "x.h5"


def plain_hdf5(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "plain.hdf5", "w") as file:
        file["x"] = X
    return folder / "plain.hdf5"


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.ravel()), 6)
    table = pyarrow.table({"x": rows, "a": X[:, 0], "b": Y, "name": ["text"] * 200})
    files.write_table(table, folder / "t.parquet", row_group_size=37)
    return folder / "t.parquet"


def parquet_folder(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    (folder / "table").mkdir()
    for number, part in enumerate(np.split(X, [70])):
        rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), 6)
        files.write_table(pyarrow.table({"x": rows}), folder / f"table/{number}.parquet")
    return folder / "table"


class Squares:
    """Has what a torch ``Dataset`` has; pickled by reference here, as test modules are."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return X[number], int(Y[number])


def items(folder: Path) -> Squares:
    return Squares()


KINDS = [
    *(npy, fortran, npz, compressed, zarr_array, zarr_group, hdf5, plain_hdf5),
    *(parquet, parquet_folder, items),
]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_gives_the_same_rows(make: Callable[[Path], Any], tmp_path: Path) -> None:
    found = dataset(make(tmp_path))
    x = found["x"]
    assert (x.shape, x.dtype) == (X.shape, X.dtype)
    np.testing.assert_array_equal(x.compute(), X)
    np.testing.assert_array_equal(x.blocks[x.numblocks[0] - 1].compute(), X[-x.chunks[0][-1] :])
    np.testing.assert_array_equal(found[50:130]["x"].compute(), X[50:130])
    source = source_of(cast(x, "float64"))
    assert source is not None
    region = Region(pickle.loads(pickle.dumps(source)), ((33, 180), (1, 5)), "float64", 1, 2_000)
    opened = region.open()
    index = np.random.default_rng(0).permutation(147)
    np.testing.assert_array_equal(opened.take(index, axis=0), X[33:180, 1:5][index])
    np.testing.assert_array_equal(opened[:20], X[33:53, 1:5])
    whole = np.empty(region.shape, region.dtype)
    region.read_into(whole)
    np.testing.assert_array_equal(whole, X[33:180, 1:5])


def test_columns_stand_side_by_side(tmp_path: Path) -> None:
    found = dataset(parquet(tmp_path))
    assert list(found) == ["x", "a", "b"]  # texts are left out
    table = found[["a", "b"]]
    assert table.dtype == np.float64  # holds float32 and int64
    np.testing.assert_array_equal(table.compute(), np.stack([X[:, 0], Y], axis=1))
    np.testing.assert_array_equal(found[40:99][["b"]].compute(), Y[40:99, None])
    with pytest.raises(PlanError, match="Only columns of a Parquet table"):
        _ = found[["a", "x"]]


def test_a_file_in_the_order_of_memory_is_mapped_and_not_copied(tmp_path: Path) -> None:
    for make in (npy, npz, plain_hdf5):
        source = source_of(dataset(make(tmp_path))["x"])
        assert isinstance(source, RawFile)
        opened = Region(source, ((10, 60), (0, 6)), "float32", 1, 0).open()
        assert isinstance(opened, np.memmap)
    assert source_of(dataset(npy(tmp_path))["x"] + 1) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 400), st.data())
def test_rows_are_read_in_blocks_and_as_many_kept_as_fit(
    together: int, block: int, cache: int, data: st.DataObject
) -> None:
    from workbench.sources.images import Known

    source = Known((50,), "<i8", together, tuple(range(50)))
    start, stop = sorted(data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=2)))
    rows = Region(source, ((start, stop),), "int64", block, cache).open()
    assert isinstance(rows, Rows)
    for _ in range(4):
        index = np.array(data.draw(st.lists(st.integers(0, max(0, stop - start - 1)), max_size=8)))
        if stop > start:
            taken = rows.take(index.astype(int))
            np.testing.assert_array_equal(taken, np.arange(start, stop)[index.astype(int)])
        kept = list(rows._kept.values())
        assert sum(v.nbytes for v in kept) == rows._kept_bytes
        assert len(kept) <= 1 or rows._kept_bytes <= cache


def picture(number: int, size: tuple[int, int] = (9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), (number, 2 * number, 3)).save(out, "png")
    return out.getvalue()


def test_folders_of_images_have_their_classes(tmp_path: Path) -> None:
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(picture(10 * label + number))
        (tmp_path / name / "notes.txt").write_text("no image")
    found = dataset(tmp_path)
    assert found.classes == ("ant", "bee")
    assert found["x"].shape == (6, 3, 9, 7)
    x, y = dask.compute(found["x"], found["y"])
    np.testing.assert_array_equal(y, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(x[:, 1, 0, 0], [0, 2, 4, 20, 22, 24])
    assert dataset(tmp_path, size=(4, 5), channels=1)["x"].compute().shape == (6, 1, 4, 5)
    (tmp_path / "bee" / "9.png").write_bytes(picture(1, (8, 8)))
    with pytest.raises(PlanError, match=r"bee/9.png of .* has the shape .*; give size=\(height"):
        dataset(tmp_path)["x"].compute()
    (tmp_path / "ant" / "0.png").write_bytes(b"broken")
    with pytest.raises(PlanError, match=r"ant/0.png of .* cannot be decoded"):
        dataset(tmp_path)


def webdataset(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_tar_file_is_read_by_its_endings(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3.0))
    files: dict[str, bytes] = {}
    for number in range(4):
        files |= {f"d/{number}.png": picture(number), f"d/{number}.cls": str(number % 2).encode()}
        files |= {f"d/{number}.wave.npy": array.getvalue(), f"d/{number}.json": b"{}"}
    found = dataset(webdataset(tmp_path / "a.tar", files))
    assert {name: found[name].shape for name in found} == {
        "cls": (4,),
        "png": (4, 3, 9, 7),
        "wave.npy": (4, 3),
    }
    np.testing.assert_array_equal(found["cls"].compute(), [0, 1, 0, 1])
    np.testing.assert_array_equal(found["png"][:, 0, 0, 0].compute(), [0, 1, 2, 3])
    del files["d/2.cls"]
    with pytest.raises(PlanError, match=r"Sample 'd/2' of .* has no .cls, which others have"):
        dataset(webdataset(tmp_path / "b.tar", files))


def test_the_graph_holds_no_data(tmp_path: Path) -> None:
    for make in (npy, zarr_array, hdf5, parquet):
        x = dataset(make(tmp_path))["x"]
        assert len(pickle.dumps(dict(x.dask))) < 20_000
    assert as_array(source_of(x)).name == x.name  # the same data has the same name


class Objects:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number: int) -> Any:
        return self.values[number]


def save(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "bad.npy", array)
    return folder / "bad.npy"


def wrote(folder: Path, name: str, content: bytes = b"nothing of the kind") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda f: f / "no" / "x.npy", "There is no .*no/x.npy; the last part of it that exists"),
        (lambda f: save(f, np.array([{}])), "holds items of object, which are no plain numbers"),
        (lambda f: save(f, np.zeros(2, "i4,f4")), "which are no plain numbers"),
        (lambda f: save(f, np.zeros(3, "c8")), "'x' of .* has items of <c8; only bools"),
        (lambda f: save(f, np.zeros((0, 3))), r"has shape \(0, 3\) and so holds no sample"),
        (lambda f: wrote(f, "a.npy"), "is no array in numpy's format"),
        (lambda f: wrote(f, "a.npz"), "is no .npz file"),
        (lambda f: wrote(f, "a.h5"), "is no HDF5 file that can be read"),
        (lambda f: wrote(f, "a.parquet"), "is no Parquet file that can be read"),
        (lambda f: wrote(f, "a.zarr"), "is no Zarr store that can be read"),
        (lambda f: wrote(f, "a.tar"), "is no tar file that can be read in pieces"),
        (lambda f: wrote(f, "a.csv"), "is of no known kind; known are .npy"),
        (lambda f: f, "There is no image in"),
        (lambda f: "nowhere://x.npy", "nowhere://x.npy cannot be read: Protocol not known"),
        (lambda f: "memory://none.npy", "There is no file memory://none.npy"),
        (lambda f: 7, "A int is no data; give a path"),
        (lambda f: Objects(), "The Objects has no items"),
        (lambda f: Objects("text", "more"), "Item 0 of the Objects has x of"),
        (lambda f: Objects(np.zeros(2**22)), "The Objects carries 32 MiB of data"),
    ],
)
def test_refusals_say_what_works(
    make: Callable[[Path], Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=sentence):
        dataset(make(tmp_path))


def test_what_changes_after_it_was_described_is_refused(tmp_path: Path) -> None:
    x = dataset(npy(tmp_path))["x"]
    np.save(tmp_path / "x.npy", X[:100])
    with pytest.raises(PlanError, match=r"x.npy has 2,528 bytes here but 4,928 where"):
        x.compute()
    (tmp_path / "x.npy").unlink()
    with pytest.raises(PlanError, match="every worker needs the same file"):
        x.compute()


def test_ragged_items_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"Item 1 of the Objects has the shape \(2,\) and item 0"):
        dataset(Objects(np.zeros(3), np.zeros(2)))["x"].compute()
    found = dataset(npz(tmp_path))
    with pytest.raises(PlanError, match="has no 'z'; it has y, x"):
        _ = found["z"]
    with pytest.raises(PlanError, match="has 200 rows, and none from 200 to None"):
        _ = found[200:]
    with pytest.raises(PlanError, match="a step of 2 is not"):
        _ = found[::2]
    with pytest.raises(PlanError, match=r"size=\(3,\) must be \(height, width\)"):
        dataset(tmp_path, size=(3,))
    with pytest.raises(PlanError, match="channels=2 of images"):
        dataset(tmp_path, channels=2)


@pytest.mark.parametrize(
    ("package", "name"), [("zarr", "a.zarr"), ("h5py", "a.h5"), ("pyarrow", "a.parquet")]
)
def test_a_missing_package_is_named_with_its_command(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        PlanError, match=rf"pip install 'dask-workbench\[formats\]', or pip install {package}"
    ):
        dataset(wrote(tmp_path, name))
