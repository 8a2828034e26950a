"""Data by address: fsspec's memory and a web server here stand in for s3, hdfs and https."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from test_sources import X, hdf5, npy, npz, parquet, zarr_group

from workbench.datasets import dataset
from workbench.errors import PlanError

pytestmark = pytest.mark.usefixtures("in_this_thread")


@pytest.mark.parametrize("make", [npy, npz, zarr_group, hdf5, parquet])
def test_an_address_is_read_as_a_path_is(make: Callable[[Path], Any], tmp_path: Path) -> None:
    made = make(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(made), f"/{tmp_path.name}/{made.name}", recursive=True)
    try:
        found = dataset(f"memory://{tmp_path.name}/{made.name}")
        np.testing.assert_array_equal(found["x"].compute(), X)
        np.testing.assert_array_equal(found[7:90]["x"].compute(), X[7:90])
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder by HTTP on loopback, parts of files too."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = folder / Path(self.path).name
            if not path.exists():
                self.send_error(404)
                return
            content = path.read_bytes()
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, stop = (int(part[1]), int(part[2]) + 1) if part else (0, len(content))
            body = content[start:stop]
            self.send_response(206 if part else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            if part:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [npy, npz, hdf5, parquet])
def test_what_a_web_server_has_is_read_as_a_path_is(
    make: Callable[[Path], Any], served: tuple[Path, str]
) -> None:
    folder, url = served
    made = make(folder)
    found = dataset(url + made.name)
    np.testing.assert_array_equal(found["x"].compute(), X)
    np.testing.assert_array_equal(found[7:90]["x"].compute(), X[7:90])
    with pytest.raises(PlanError, match=f"There is no file {url}none.npy"):
        dataset(f"{url}none.npy")
