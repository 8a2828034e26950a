"""The languages that people are spoken to in: one catalogue of texts for all of ``ui``.

A text is asked for by its key, :func:`text`, and given in the language of the thread that asks, see
:func:`speaking`; so two panels may speak two languages. What rooms below say (errors, findings)
they say in English; :func:`translate` knows the sentences by their templates, and leaves those
that it does not know as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from workbench.errors import PlanError

LANGUAGES = {"en": "EN", "zh": "中文"}
"""Languages by their codes, each named as its speakers name it."""

Say = Callable[[], str]
"""Says something in the language of the thread that calls it, so that it can be said again."""

FOLDER = Path(__file__).parent / "catalogue"

_spoken: ContextVar[str | None] = ContextVar("language", default=None)


def preferred(asked: str | None = None) -> str:
    """Return the code of the language to speak: ``asked``, ``WORKBENCH_LANG``, or the locale's.

    Raises
    ------
    PlanError
        If ``asked`` is no language of the catalogue.
    """
    if asked is not None:
        if asked not in LANGUAGES:
            raise PlanError(f"There is no language {asked!r}; there are: {', '.join(LANGUAGES)}.")
        return asked
    for name in ("WORKBENCH_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        code = os.environ.get(name, "")[:2].lower()
        if code:
            return code if code in LANGUAGES else "en"
    return "en"


def current() -> str:
    """Return the code of the language that this thread speaks."""
    return _spoken.get() or preferred()


def speak(language: str) -> None:
    """Speak ``language`` in this thread from now on."""
    _spoken.set(language)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak ``language`` in this thread within a block."""
    token = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(token)


def text(key: str, **values: Any) -> str:
    """Return the text of ``key`` in this thread's language, with ``values`` filled in."""
    return texts_of(current())[key].format(**values)


def known(key: str) -> bool:
    """Return whether there is a text of ``key``."""
    return key in texts_of("en")


def translate(sentence: str) -> str:
    """Return an English sentence of a room below in this thread's language, as far as known."""
    language = current()
    return sentence if language == "en" or not sentence else _translated(sentence, language)


@cache
def texts_of(language: str) -> dict[str, str]:
    """Return all texts of a language by key."""
    found: dict[str, str] = {}
    for path in FOLDER.glob(f"*{language}.json"):
        found |= json.loads(path.read_text("utf-8"))
    return found


@cache
def _templates(language: str) -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of English sentences, each with its template in ``language``."""
    sentences: dict[str, str] = {}
    for path in FOLDER.glob(f"{language}.*.json"):
        sentences |= json.loads(path.read_text("utf-8"))
    return [(_pattern(english), other) for english, other in sentences.items()]


_HOLE = re.compile(r"\{(\w+)\}")


def _pattern(template: str) -> re.Pattern[str]:
    pieces = _HOLE.split(template)
    found = ""
    for number, piece in enumerate(pieces):
        again = number % 2 and piece in pieces[1:number:2]
        if again:
            found += f"(?P={piece})"
        else:
            found += f"(?P<{piece}>.*?)" if number % 2 else re.escape(piece)
    return re.compile(found, re.DOTALL)


@lru_cache(maxsize=4096)
def _translated(sentence: str, language: str) -> str:
    """Return a sentence by that of all templates that fit it which leaves least of its English.

    Values that are sentences themselves, such as a remedy, are translated too.
    """
    ways = [sentence]
    for pattern, template in _templates(language):
        if match := pattern.fullmatch(sentence):
            found = match.groupdict()
            values = {name: _translated(each, language) for name, each in found.items()}
            ways.append(template.format(**values))
    return min(ways, key=lambda way: len(_ENGLISH.findall(way)))


_ENGLISH = re.compile("[A-Za-z]")
