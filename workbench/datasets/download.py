"""Files from the internet, each checked against its SHA-256."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import PlanError


def fetch(url: str, sha256: str, *, unpack: str | None = None) -> Path:
    """Return the file at ``url`` as it lies in the user's cache, downloaded if it is not there yet.

    If the file is a tar archive, ``unpack`` names the folder beside it that it is unpacked into;
    that folder is returned.

    Raises
    ------
    PlanError
        if the download fails, or what arrives is not the expected file.
    """
    import pooch  # type: ignore[import-untyped]

    folder = Path(pooch.os_cache("dask-workbench"))
    try:
        file = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=url.rsplit("/", 1)[-1],
            path=folder,
            processor=pooch.Untar(extract_dir=unpack) if unpack else None,
        )
    except Exception as error:
        raise PlanError(
            f"{url} could not be downloaded ({error}); download it by hand and give its folder, "
            f"as in folder='data'."
        ) from error
    return folder / unpack if unpack else Path(file)
