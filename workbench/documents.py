"""What is read back of comparisons and runs, checked field by field before anybody shows it.

A document may come from anywhere, and of another version. What is wrong with it is said with the
name of the field. Fields that nobody knows are left out. Pure: imports nothing of torch, dask or
the UI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

from workbench.errors import PlanError
from workbench.spans import KINDS
from workbench.strategies.notation import parse

STATUSES = (
    *("starting", "running", "paused", "stopping"),
    *("done", "stopped", "failed", "interrupted"),
)
MOST = 1e300
"""Above that, what is reckoned with a number may be no number any more."""

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclass(frozen=True)
class Kind:
    """What a field may be: in words, and as a test."""

    what: str
    fits: Callable[[Any], bool]

    @property
    def or_null(self) -> Kind:
        """The same, or nothing."""
        return Kind(f"{self.what}, or null", lambda value: value is None or self.fits(value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and _number(value) and value >= least


def _strategy(value: Any) -> bool:
    if value == "serial":
        return True
    try:
        return isinstance(value, str) and bool(parse(value).axes)
    except PlanError:
        return False


NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
COUNT = Kind("a whole number, 1 or more", lambda value: _whole(value, 1))
WHOLE = Kind("a whole number, 0 or more", lambda value: _whole(value, 0))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
STRATEGY = Kind("a strategy that is known here, such as 'serial' or 'data=2'", _strategy)
STATUS = Kind(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES)
MAPPING = Kind("an object", lambda value: isinstance(value, Mapping))
OBJECTS = Kind(
    "a list of objects",
    lambda value: isinstance(value, list) and all(isinstance(each, Mapping) for each in value),
)
NAMES = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
)
SIZES = Kind(
    "a list of whole numbers",
    lambda value: isinstance(value, list) and all(_whole(each, 0) for each in value),
)
TEXTS = Kind(
    "an object of texts",
    lambda value: isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()),
)

Fields = Mapping[str, Kind]

ROW: Fields = {
    "strategy": STRATEGY,
    "ranks": COUNT,
    "threads": COUNT,
    "device": TEXT,
    **dict.fromkeys(("step_s", "step_s_min", "step_s_max"), POSITIVE),
    **dict.fromkeys(("speedup", "speedup_min", "speedup_max"), POSITIVE.or_null),
    "bytes_per_step": WHOLE.or_null,
    "same_result": FLAG.or_null,
    "max_difference": NUMBER.or_null,
    "repeats": WHOLE,
    "complete": FLAG,
}
"""What a row of the table must have; a serial row is the baseline of all others."""

MORE_OF_ROW: Fields = {
    "speedup_all_threads": POSITIVE.or_null,
    **dict.fromkeys(("baseline", "proof"), TEXT),
    "backend": TEXT.or_null,
    **{f"{kind}_share": NUMBER.or_null for kind in KINDS},
    **dict.fromkeys(("loss", "test_accuracy", "predicted_step_s"), NUMBER.or_null),
    **dict.fromkeys(("epoch_s", "core_s_per_epoch", "price_per_epoch"), NUMBER.or_null),
    "part": WHOLE,
}
"""What it may have: versions differ."""

WORKLOAD: Fields = {"name": TEXT, "batch_size": COUNT}
MORE_OF_WORKLOAD: Fields = {"samples": WHOLE.or_null, "seed": WHOLE, "dtype": TEXT}

COMPARISON: Fields = {
    "machine": MAPPING,
    "workload": MAPPING,
    "status": STATUS,
    "error": TEXT.or_null,
    "rows": OBJECTS,
}
MORE_OF_COMPARISON: Fields = {
    **dict.fromkeys(("steps", "repeats"), WHOLE),
    "refused": TEXTS,
    "unproved": TEXT.or_null,
    "price_per_worker_hour": NUMBER.or_null,
    "progress": MAPPING,
    "lines": OBJECTS,
    "timelines": TEXTS,
    **dict.fromkeys(("bubbles", "driver"), MAPPING),
}

LINE: Fields = {
    "strategy": STRATEGY,
    **dict.fromkeys(("ranks", "threads"), COUNT),
    "device": TEXT,
    "bytes_per_step": WHOLE,
    "runs": NAMES,
}
MORE_OF_LINE: Fields = {
    "backend": TEXT,
    "same_result": FLAG.or_null,
    "proof": TEXT,
    "max_difference": NUMBER.or_null,
    "complete": FLAG,
}
"""Of a line of the table, in a folder: which runs it rests on."""

RUN: Fields = {
    "workload": TEXT,
    "strategy": STRATEGY,
    **dict.fromkeys(("ranks", "threads", "batch_size"), COUNT),
    **dict.fromkeys(("device", "backend"), TEXT),
    "status": STATUS,
    "error": TEXT.or_null,
    "bytes_per_step": WHOLE,
    "accuracy": NUMBER.or_null,
}
MORE_OF_RUN: Fields = {
    **dict.fromkeys(("samples",), WHOLE.or_null),
    **dict.fromkeys(("seed", "first_step", "steps", "steps_done"), WHOLE),
    "dtype": TEXT,
    **dict.fromkeys(("step_s", "test_loss", "moved_bytes"), NUMBER.or_null),
    **dict.fromkeys(("peak_memory_bytes", "predicted_memory_bytes"), SIZES),
    **dict.fromkeys(("bubble", "driver"), MAPPING),
    "checkpoints": NAMES,
    "checkpoint_error": TEXT,
}


def read_document(text: str, file: object) -> dict[str, Any]:
    """Return what a file tells of a comparison, as far as it is known.

    What JSON has not, NaN and the infinities, is nothing.

    Raises
    ------
    PlanError
        For a field that is missing or cannot be; names it.
    ValueError, RecursionError
        If it is no JSON, or that of something else.
    """
    told = json.loads(text, parse_constant=lambda _name: None)
    if not (MAPPING.fits(told) and {"machine", "workload"} & told.keys()):
        raise ValueError("no comparison")
    found = _checked(told, COMPARISON, MORE_OF_COMPARISON, file)
    found["workload"] = _checked(found["workload"], WORKLOAD, MORE_OF_WORKLOAD, file, "workload.")
    _check(found["machine"], {}, {"cores": COUNT.or_null}, file, "machine.")
    counts = dict.fromkeys(("done_steps", "total_steps"), WHOLE)
    _check(found.get("progress", {}), {}, counts, file, "progress.")
    for name, fields in (("rows", (ROW, MORE_OF_ROW)), ("lines", (LINE, MORE_OF_LINE))):
        if name in found:
            lines = enumerate(found[name])
            found[name] = [_checked(line, *fields, file, f"{name}[{n}].") for n, line in lines]
    rows = found["rows"]
    for n, row in enumerate(rows):
        if row.get("epoch_s") is not None:
            costs = {"core_s_per_epoch": NUMBER, "price_per_epoch": NUMBER.or_null}
            _check(row, costs, {}, file, f"rows[{n}].")
    compared = any(row["strategy"] != "serial" and row["speedup"] is not None for row in rows)
    if compared and all(row["strategy"] != "serial" for row in rows):
        raise PlanError(
            f"{file} cannot be shown: rows has speedups, and no row of 'serial' that they are over."
        )
    return found


def check_run(told: Any, rows: Iterable[Any], file: object) -> None:
    """Check the summary of a run, and its steps.

    Raises
    ------
    PlanError
        For a field that is missing or cannot be; names it.
    """
    if not MAPPING.fits(told):
        raise PlanError(f"{file} cannot be shown: it is {_SHORT.repr(told)}, and no object.")
    _check(told, RUN, MORE_OF_RUN, file)
    check_steps(rows, file)


def check_steps(rows: Iterable[Any], file: object) -> None:
    """Check records of steps, of which the losses of a run that has diverged are no numbers.

    Raises
    ------
    PlanError
        For a field that is missing or cannot be; names it.
    """
    for row in rows:
        if not isinstance(row, dict) or "step" not in row or not {*map(type, row.values())} <= _ANY:
            raise PlanError(
                f"{file} cannot be shown: a step is {_SHORT.repr(row)}, and should be an object of "
                "numbers, step among them."
            )
        if "loss" in row and not row.keys() >= _STEP:
            missing = ", ".join(sorted(_STEP - row.keys()))
            raise PlanError(f"{file} cannot be shown: step {row['step']} has no {missing}.")


_ANY = {int, float}
_STEP = {"step", "time_s", "step_s", "loss", "samples_per_s"}
_STEP |= {f"{kind}_s" for kind in KINDS}


def _checked(
    told: Mapping[str, Any], needed: Fields, more: Fields, file: object, before: str = ""
) -> dict[str, Any]:
    """Return the fields that are known, checked."""
    _check(told, needed, more, file, before)
    return {name: told[name] for name in (*needed, *more) if name in told}


def _check(
    told: Mapping[str, Any], needed: Fields, more: Fields, file: object, before: str = ""
) -> None:
    for name, kind in {**needed, **more}.items():
        if name not in told:
            if name in needed:
                raise PlanError(
                    f"{file} cannot be shown: {before}{name} is missing; it should be {kind.what}."
                )
        elif not kind.fits(told[name]):
            raise PlanError(
                f"{file} cannot be shown: {before}{name} is {_SHORT.repr(told[name])}, and should "
                f"be {kind.what}."
            )
