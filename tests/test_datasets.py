"""Datasets: lazy in the client, right on the workers, and refused when a file is damaged."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import datasets
from workbench.datasets import cifar, idx
from workbench.datasets.dataset import split_indices
from workbench.datasets.digits import bilinear
from workbench.datasets.download import fetch
from workbench.datasets.files import find, read_range
from workbench.errors import PlanError

LARGEST_GRAPH_PIECE = 8_000  # bytes; what a chunk needs is numbers and file names

SILENT = """
import pickle, sys
from workbench import datasets
for made in (datasets.digits(), datasets.photos(), datasets.text()):
    for array in (made.x, made.y, made.test_x, made.test_y):
        for task in dict(array.__dask_graph__()).values():
            assert len(pickle.dumps(task)) < {limit}, (made.name, len(pickle.dumps(task)))
assert not {{"sklearn", "PIL", "pooch", "torch"}} & set(sys.modules), "loaded too much"
"""


pytestmark = pytest.mark.usefixtures("in_this_thread")


def values(*arrays: da.Array) -> list[np.ndarray]:
    return list(dask.compute(*arrays))


@pytest.mark.timeout(60)
def test_making_a_dataset_loads_no_data():
    code = SILENT.format(limit=LARGEST_GRAPH_PIECE)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


@pytest.mark.parametrize("make", [datasets.digits, datasets.photos, datasets.text])
def test_chunks_are_what_the_graph_says(make):
    made = make()
    for array in (made.x, made.y, made.test_x, made.test_y):
        assert array.npartitions <= 8
        block = array.blocks[(array.numblocks[0] - 1, *(0,) * (array.ndim - 1))].compute()
        assert block.shape == tuple(sizes[-1] for sizes in array.chunks)
        assert block.dtype == array.dtype


def test_the_graph_is_the_same_every_time_and_follows_the_seed():
    names = {datasets.digits(seed=seed).x.name for seed in (0, 0, 1)}
    assert len(names) == 2


def test_digits_are_those_of_scikit_learn_each_once():
    from sklearn.datasets import load_digits

    made = datasets.digits(seed=3)
    x, y, test_x, test_y = values(made.x, made.y, made.test_x, made.test_y)
    originals = load_digits()
    assert (len(x), len(test_x)) == (1438, 359)
    assert x.dtype == np.float32
    assert x.shape[1:] == (1, 32, 32)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([y, test_y])), np.sort(originals.target.astype(np.int64))
    )
    # The split is a permutation, so the sums of all images are the same, in another order.
    grow = bilinear(8, 32)
    wanted = np.sort((grow @ originals.images @ grow.T).sum((1, 2)) / 16)
    got = np.sort(np.concatenate([x, test_x]).sum((1, 2, 3), dtype=np.float64))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_resizing_agrees_with_torch():
    import torch

    images = np.random.default_rng(0).random((2, 8, 8))
    grow = bilinear(8, 32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(images)[:, None], size=(32, 32), mode="bilinear"
    )
    np.testing.assert_allclose(grow @ images @ grow.T, wanted[:, 0], atol=1e-12)


@given(st.integers(2, 60), st.integers(0, 5), st.data())
def test_every_sample_is_for_training_or_for_testing(samples, seed, data):
    train = data.draw(st.integers(1, samples - 1))
    parts = [
        split_indices(samples, seed, 0, train, 0),
        split_indices(samples, seed, 0, samples - train, train),
    ]
    assert sorted(np.concatenate(parts)) == list(range(samples))


@pytest.mark.parametrize("share", [0, 1, -0.5, 1e-9, float("nan")])
def test_a_test_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(PlanError, match="test share"):
        datasets.digits(test_share=share)


def test_photographs_have_fresh_noise_and_stay_the_same():
    made = datasets.photos(versions=2, noise=0.2)
    noisy, clean, other = values(made.x, made.y, made.test_x)
    assert noisy.shape == clean.shape == (4, 3, 427, 640)
    np.testing.assert_array_equal(clean[0], clean[2])
    noise = noisy - clean
    assert noise.std() == pytest.approx(0.2, rel=0.01)
    assert abs(np.corrcoef(noise[0].ravel(), noise[2].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[0].ravel(), (other[0] - clean[0]).ravel())[0, 1]) < 0.01
    np.testing.assert_array_equal(made.x[1].compute(), noisy[1])


@pytest.mark.parametrize(("versions", "noise"), [(0, 0.1), (2, 0), (2, float("inf"))])
def test_photographs_without_versions_or_noise_are_refused(versions, noise):
    with pytest.raises(PlanError, match="at least 1 version"):
        datasets.photos(versions, noise)


def test_text_is_the_library_and_targets_are_the_next_bytes():
    made = datasets.text(length=64, samples=100)
    x, y, test_x, test_y = values(made.x, made.y, made.test_x, made.test_y)
    assert x.shape == (90, 64)
    assert test_x.shape == (10, 64)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    np.testing.assert_array_equal(test_x[:, 1:], test_y[:, :-1])
    library = b"".join(Path(s.path).read_bytes() for s in made_from(made.x))
    pieces = {library[i * 64 : (i + 1) * 64] for i in range(100)}
    assert pieces == {bytes(row.astype(np.uint8)) for row in (*x, *test_x)}


def made_from(array: da.Array) -> tuple:
    from workbench.datasets.text import enough, library_files

    return enough(library_files(), 100 * 64 + 1, 0)


@pytest.mark.parametrize(
    "asked", [{"length": 0}, {"samples": 1}, {"samples": 10**9}, {"test_share": 2}]
)
def test_text_that_cannot_be_had_is_refused(asked):
    with pytest.raises(PlanError):
        datasets.text(**asked)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_of_files_laid_end_to_end(tmp_path_factory, contents, data):
    folder = tmp_path_factory.mktemp("files")
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
    sources = [find(folder / str(number)) for number in range(len(contents))]
    whole = b"".join(contents)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert read_range(sources, start, stop) == whole[start:stop]


def test_a_file_that_has_changed_since_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    source = find(path)
    path.write_bytes(b"123456")
    with pytest.raises(PlanError, match="6 bytes here but 5"):
        read_range([source], 0, 5)


# ---------------------------------------------------------------------------- MNIST


def as_idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, samples: int = 20, compressed: bool = False) -> dict[str, np.ndarray]:
    source = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", samples), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = source.integers(0, 256, (count, 4, 5), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = source.integers(0, 10, count, np.uint8)
    for name, array in arrays.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(as_idx(array)))
        else:
            (folder / name).write_bytes(as_idx(array))
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_from_a_folder(tmp_path, compressed):
    wanted = write_mnist(tmp_path, compressed=compressed)
    made = datasets.mnist(tmp_path)
    x, y, test_x, test_y = values(made.x, made.y, made.test_x, made.test_y)
    assert (x.dtype, y.dtype, made.classes) == (np.float32, np.int64, 10)
    np.testing.assert_array_equal(np.rint(x[:, 0] * 255), wanted["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(y, wanted["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(np.rint(test_x[:, 0] * 255), wanted["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(test_y, wanted["t10k-labels-idx1-ubyte"])


def damage_cases() -> list:
    images = "train-images-idx3-ubyte"
    good = as_idx(np.zeros((20, 4, 5), np.uint8))
    return [
        pytest.param(images, b"", "not an IDX file", id="empty"),
        pytest.param(images, b"\x89PNG\r\n" + good, "not an IDX file", id="foreign"),
        pytest.param(images, good[:-1], "is damaged", id="cut short"),
        pytest.param(images, good + b"x", "is damaged", id="too long"),
        pytest.param(images, as_idx(np.zeros(20, np.uint8)) + b"0" * 9, "1 dims", id="labels"),
        pytest.param(images, b"\0\0\x0d" + good[3:], "type 0x0d", id="floats"),
        pytest.param(
            images, as_idx(np.zeros((19, 4, 5), np.uint8)), "19 images.*20 labels", id="fewer"
        ),
        pytest.param(
            f"{images}.gz", gzip.compress(good)[:-3], "train-images-idx3-ubyte.gz", id="cut gz"
        ),
        pytest.param(f"{images}.gz", good, "cannot be read", id="not gz"),
    ]


@pytest.mark.parametrize(("name", "content", "reason"), damage_cases())
def test_damaged_mnist_is_refused_before_any_chunk_is_read(tmp_path, name, content, reason):
    write_mnist(tmp_path)
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PlanError, match=reason) as refusal:
        datasets.mnist(tmp_path)
    assert name in str(refusal.value)


def test_damage_inside_a_compressed_file_is_found_by_the_worker(tmp_path):
    arrays = write_mnist(tmp_path, samples=2000, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed = bytearray(gzip.compress(as_idx(arrays["train-images-idx3-ubyte"])))
    packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    path.write_bytes(packed)
    made = datasets.mnist(tmp_path)
    with pytest.raises(PlanError, match=r"train-images-idx3-ubyte\.gz"):
        made.x.compute()


def test_mnist_without_files_says_how_to_get_them(tmp_path):
    with pytest.raises(PlanError, match="download=True"):
        datasets.mnist()
    with pytest.raises(PlanError, match=r"train-images-idx3-ubyte or .*\.gz"):
        datasets.mnist(tmp_path)


# ---------------------------------------------------------------------------- CIFAR-10


def write_cifar(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    source = np.random.default_rng(1)
    records = {}
    for number, name in enumerate((*cifar.TRAIN, *cifar.TEST)):
        rows = source.integers(0, 256, (3 + number, cifar.RECORD), np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())
        records[name] = rows
    return records


@pytest.mark.parametrize("inner", ["", cifar.FOLDER])
def test_cifar_from_a_folder(tmp_path, inner):
    records = write_cifar(tmp_path / inner)
    made = datasets.cifar10(tmp_path)
    x, y, test_x, test_y = values(made.x, made.y, made.test_x, made.test_y)
    train = np.concatenate([records[name] for name in cifar.TRAIN])
    np.testing.assert_array_equal(y, train[:, 0])
    np.testing.assert_array_equal(np.rint(x * 255).reshape(len(train), -1), train[:, 1:])
    np.testing.assert_array_equal(test_y, records["test_batch.bin"][:, 0])
    assert test_x.shape == (8, 3, 32, 32)


def test_damaged_cifar_is_refused(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanError, match=r"data_batch_3\.bin is not a CIFAR-10 file"):
        datasets.cifar10(tmp_path)
    path.unlink()
    with pytest.raises(PlanError, match=r"no file .*data_batch_3\.bin"):
        datasets.cifar10(tmp_path)
    with pytest.raises(PlanError, match="download=True"):
        datasets.cifar10()


# ---------------------------------------------------------------------------- downloads


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """Serve a folder on loopback and keep the cache away from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(10)


@pytest.mark.timeout(30)
def test_mnist_is_downloaded_once_and_checked(served, monkeypatch):
    folder, url = served
    arrays = write_mnist(folder, compressed=True)
    sums = {n: hashlib.sha256((folder / f"{n}.gz").read_bytes()).hexdigest() for n in arrays}
    monkeypatch.setattr(idx, "MIRROR", url)
    monkeypatch.setattr(idx, "SHA256", sums)
    first = datasets.mnist(download=True)
    for name in arrays:
        (folder / f"{name}.gz").unlink()
    again = datasets.mnist(download=True)
    np.testing.assert_array_equal(first.y.compute(), arrays["train-labels-idx1-ubyte"])
    assert first.x.name == again.x.name


@pytest.mark.timeout(30)
def test_cifar_is_downloaded_and_unpacked(served, monkeypatch, tmp_path):
    folder, url = served
    records = write_cifar(tmp_path / cifar.FOLDER)
    archive = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / cifar.FOLDER, cifar.FOLDER)
    monkeypatch.setattr(cifar, "URL", url + archive.name)
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    made = datasets.cifar10(download=True)
    np.testing.assert_array_equal(made.test_y.compute(), records["test_batch.bin"][:, 0])


@pytest.mark.timeout(30)
def test_a_download_of_something_else_is_refused(served):
    folder, url = served
    (folder / "file.gz").write_bytes(b"not what was promised")
    with pytest.raises(PlanError, match=r"file\.gz could not be downloaded.*folder='data'"):
        fetch(f"{url}file.gz", "0" * 64)
    with pytest.raises(PlanError, match="404"):
        fetch(f"{url}absent.gz", "0" * 64)


def test_refusals_survive_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(PlanError("a sentence")))
    assert str(error) == "a sentence"
