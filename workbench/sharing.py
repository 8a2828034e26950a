"""Share codes: all controls of an experiment as one line of text, which may come from anybody.

Pure: imports neither torch, dask nor widgets. A code is ``wb1:`` and the base64url of deflated
JSON. Nothing in it is executed, and every field is checked like a value that was typed in.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from workbench.controls import checked
from workbench.errors import PlanError

VERSION = "wb1"
LONGEST_CODE = 8_192
"""Characters of a code; all that can be chosen takes some hundred."""

MOST_BYTES = 32_768
"""Bytes of JSON in a code: deflated zeros grow a thousandfold when they are opened."""


def encode(controls: Mapping[str, Any]) -> str:
    """Return the share code of ``controls``, see :func:`workbench.controls.checked`.

    Raises
    ------
    PlanError
        For a control that there is not or a value that cannot be.
    """
    text = json.dumps(checked(controls), separators=(",", ":"), ensure_ascii=False)
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()
    code = f"{VERSION}:{packed.rstrip('=')}"
    if len(text.encode()) > MOST_BYTES or len(code) > LONGEST_CODE:
        raise PlanError(
            f"The controls need a share code of {len(code):,} characters, and {LONGEST_CODE:,} are "
            "the most; compare fewer strategies."
        )
    return code


def decode(code: str) -> dict[str, Any]:
    """Return the controls of a share code, each of them checked.

    Raises
    ------
    PlanError
        If it is no share code, is damaged or of a newer version, or asks for what cannot be: says
        which control, and what is allowed.
    """
    if not isinstance(code, str) or not code.strip().startswith("wb"):
        raise PlanError(f"A share code is a text that begins with {VERSION}: and this does not.")
    version, colon, packed = code.strip().partition(":")
    if version != VERSION and colon and version[2:].isdigit():
        raise PlanError(
            f"The share code is of version {version[:10]}, and this workbench reads {VERSION}; "
            "use a newer one."
        )
    if len(packed) > LONGEST_CODE:
        raise PlanError(
            f"The share code has {len(packed):,} characters, and {LONGEST_CODE:,} are the most."
        )
    try:
        found = json.loads(
            _inflated(base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_", validate=True)),
            object_pairs_hook=_once,
            parse_constant=_no_number,
        )
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise PlanError(
            "The share code is damaged, or was cut off when it was copied; copy all of it again "
            f"({type(error).__name__})."
        ) from None
    if not isinstance(found, dict):
        raise PlanError("The share code holds no controls; make a new one.")
    try:
        return checked(found)
    except PlanError as error:
        raise PlanError(f"The share code is refused: {error}") from None


def _inflated(packed: bytes) -> bytes:
    """Return what was deflated; ValueError if that is too much, or does not end."""
    opener = zlib.decompressobj()
    found = opener.decompress(packed, MOST_BYTES + 1)
    if len(found) > MOST_BYTES or not opener.eof or opener.unused_data:
        raise ValueError("too large, or not whole")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
