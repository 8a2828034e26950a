"""What the panel's controls ask for, what is plainly wrong with it, and the same as Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench import machine
from workbench.arguments import MOST_THREADS, MOST_WORKERS
from workbench.catalogue import CATALOGUE
from workbench.controls import OWN, WHOLE, checked
from workbench.controls import python as program
from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS
from workbench.mesh import AXES, Mesh
from workbench.sharing import encode
from workbench.speedup import FEWEST_STEPS
from workbench.strategies import OPTIONS, STRATEGIES
from workbench.strategies.choices import without_effect
from workbench.strategies.notation import parse
from workbench.ui import texts
from workbench.ui.language import text, translate

FEWEST_USEFUL_STEPS = WARM_UP_STEPS + FEWEST_STEPS


@dataclass(frozen=True)
class Request:
    """What to compare with the serial run: the state of the controls when Run was pressed.

    Attributes
    ----------
    axes:
        Axes with their degrees as they are written, ``("data", "2")`` or ``("spatial", "2x2")``;
        none of degree 1. Without any the strategy is serial.
    workers:
        How many workers the cluster is to have.
    also:
        More strategies that are compared.
    accumulate:
        Micro-batches per step; None leaves that to the plan.
    seed:
        None is the workload's own.
    threads:
        Torch threads per rank; None is the cores, shared equally.
    options:
        Stated choices of the strategies that are not left as they are, name and value.
    """

    workload: str
    axes: tuple[tuple[str, str], ...]
    workers: int
    batch: int
    steps: int
    repeats: int = 3
    seed: int | None = None
    threads: int | None = None
    accumulate: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()

    @property
    def strategy(self) -> str:
        """The strategy as it is written: ``"data=2,tensor=2"``, or ``"serial"``."""
        found = dict(self.axes)
        return ",".join(f"{axis}={found[axis]}" for axis in axes() if axis in found) or "serial"

    @property
    def strategies(self) -> list[str]:
        """What is compared; the serial run comes first."""
        return list(dict.fromkeys(["serial", *self.also, self.strategy]))

    @property
    def choices(self) -> dict[str, Any]:
        """What :func:`workbench.plan` is given beside the strategy."""
        accumulate = {} if self.accumulate is None else {"accumulate": self.accumulate}
        return {**accumulate, **dict(self.options)}

    @property
    def changes(self) -> dict[str, int]:
        """What is changed of the workload."""
        return {"batch_size": self.batch} | ({} if self.seed is None else {"seed": self.seed})

    @property
    def task(self) -> tuple[Any, ...]:
        """What must be alike for two runs to be drawn in one figure."""
        return (self.workload, self.batch, self.seed)

    @property
    def basis(self) -> Request:
        """What decides, beside the strategy, whether there is a plan; all else at its least."""
        fixed = {"axes": (), "also": (), "workers": 1, "threads": None, "repeats": 1, "seed": None}
        return replace(self, steps=FEWEST_USEFUL_STEPS, **fixed)  # type: ignore[arg-type]

    def code(self, limits: Mapping[str, Any]) -> str:
        """Return the share code of all this with what a teacher limits, or why there is none."""
        try:
            return encode(
                {**self.controls, **{name: names or None for name, names in limits.items()}}
            )
        except PlanError as error:
            return translate(str(error))

    @property
    def controls(self) -> dict[str, Any]:
        """The same in plain values, see :func:`workbench.controls.checked`."""
        return {
            "workload": self.workload,
            "strategy": self.strategy,
            "compare": list(self.also) or None,
            **{name: getattr(self, name) for name in WHOLE},
            **dict(self.options),
        }

    def python(self, kind: str = "compare") -> str:
        """Return a Python program that does the same, or why there is none.

        ``kind`` is what the button does: ``"compare"``, ``"sweep"`` or ``"train"``.
        """
        try:
            lines = program(self.controls, kind).split("\n")
        except PlanError as error:
            return f"# {translate(str(error))}"
        return "\n".join(translate(line) if line.startswith("#") else line for line in lines)


def axes() -> list[str]:
    """Return all axes in the order in which a strategy is written; somebody's own come last."""
    return sorted(STRATEGIES, key=lambda axis: AXES.index(axis) if axis in AXES else len(AXES))


def check_kinds(work: object, lab: object, presets: Mapping[str, object]) -> None:
    """Check that what :func:`workbench.ui.panel.app` is given is of its kind.

    Raises
    ------
    PlanError
        If it is not, with what to write instead.
    """
    if work is not None and not hasattr(work, "batch_size"):
        hint = f"workload={work!r}" if isinstance(work, str) and work in CATALOGUE else "workload="
        raise PlanError(
            f"work= takes a wb.Workload, and got {type(work).__name__}. One of the catalogue is "
            f"chosen by its name, wb.app({hint}); a model goes into wb.Workload(model=...)."
        )
    if lab is not None and not hasattr(lab, "closed"):
        raise PlanError(
            f"lab= takes what wb.start() returns, and got {type(lab).__name__}. To use a cluster "
            "that runs already: wb.start(client=Client(address))."
        )
    strategy = presets.get("strategy", "")
    if not isinstance(strategy, str):
        raise PlanError(
            f"strategy= takes one strategy, such as 'data=2', and got {type(strategy).__name__}. "
            "Several are compared with compare=[...]."
        )


def request(work: Any, presets: Mapping[str, Any]) -> Request:
    """Return the request that the panel opens with.

    Parameters
    ----------
    work:
        A workload of the user's own, or None.
    presets:
        As for :func:`workbench.controls.checked`; a strategy may be an axis alone, over all
        workers.

    Raises
    ------
    PlanError
        For a name that there is not, or a value that cannot be; with what there is.
    """
    workers = presets.get("workers") or max(2, min(machine.cores(), 4))
    axis = presets.get("strategy", next(iter(STRATEGIES)))
    strategy = f"{axis}={workers}" if axis in STRATEGIES else axis
    given = checked({**presets, "strategy": strategy})
    if given.get("workload") == OWN and work is None:
        raise PlanError(
            "The workload is somebody's own: hand it over, wb.app(work=...), or choose one of the "
            f"catalogue: {', '.join(CATALOGUE)}."
        )
    asked = Request(
        workload=given.get("workload", OWN if work is not None else next(iter(CATALOGUE))),
        axes=written(parse(given["strategy"])),
        workers=workers,
        batch=given.get("batch", 128 if work is None else work.batch_size),
        steps=given.get("steps", 30 if work is None else work.steps),
        repeats=given.get("repeats", 3),
        seed=given.get("seed"),
        threads=given.get("threads"),
        accumulate=given.get("accumulate"),
        options=tuple((name, given[name]) for name in OPTIONS if name in given),
        also=tuple(given.get("compare", ())),
    )
    if "workers" not in given:
        ranks = max(parse(each).size for each in asked.strategies)
        asked = replace(asked, workers=max(workers, ranks))
    problems = check(asked)
    if problems:
        raise PlanError(next(iter(problems.values())))
    return asked


def written(mesh: Mesh) -> tuple[tuple[str, str], ...]:
    """Return axes and degrees of a mesh as a request has them."""
    return tuple(
        (axis, "x".join(map(str, mesh.grid)) if axis == "spatial" and mesh.grid else str(degree))
        for axis, degree in mesh.axes
    )


def check(asked: Request) -> dict[str, str]:
    """Return what is wrong with the numbers, as one sentence for each control concerned."""
    problems: dict[str, str] = {}
    limits = {"workers": MOST_WORKERS, "threads": MOST_THREADS}
    for name in ("workers", "threads", "batch", "steps", "repeats", "seed", "accumulate"):
        value = getattr(asked, name)
        if value is None and name in ("threads", "seed", "accumulate"):
            continue
        least = 0 if name == "seed" else 1
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not whole:
            values = {"name": text(f"control.{name}"), "value": repr(value), "least": least}
            problems[name] = text("check.whole", **values)
        elif value > limits.get(name, value):
            values = {"name": text(f"control.{name}"), "value": value, "most": limits[name]}
            problems[name] = text("check.most", **values)
    try:
        ranks, strategy = max((parse(each).size, each) for each in asked.strategies)
    except PlanError as error:
        return problems | {"strategy": translate(str(error))}
    if "workers" not in problems and ranks > asked.workers:
        values = {"strategy": strategy, "ranks": ranks, "workers": asked.workers}
        problems["workers"] = text("check.ranks", **values)
    if "steps" not in problems and asked.steps < FEWEST_USEFUL_STEPS:
        problems["steps"] = text(
            "check.steps",
            steps=asked.steps,
            warm=WARM_UP_STEPS,
            fewest=FEWEST_STEPS,
            least=FEWEST_USEFUL_STEPS,
        )
    return problems


def hints(asked: Request, cores: int) -> dict[str, str]:
    """Return what is worth knowing about the request on a machine of ``cores``, by control."""
    used = [axis for axis, _ in asked.axes]
    if not used:
        strategy = text("hint.serial")
    elif len(used) == 1:
        strategy = translate(STRATEGIES[used[0]].summary)
    else:
        named = " × ".join(translate(STRATEGIES[axis].family) for axis in used)
        strategy = text("hint.hybrid", named=named, ranks=parse(asked.strategy).size)
    asked_for = [parse(each) for each in (asked.strategy, *asked.also)]
    if idle := without_effect(dict(asked.options), *asked_for):
        strategy = text("hint.idle", strategy=strategy, idle=translate(idle))
    notes = {
        "batch": text("hint.batch"),
        "steps": text("hint.steps"),
        "repeats": text("hint.repeats"),
        "seed": text("hint.seed"),
        "threads": text("hint.threads"),
        "strategy": f"{asked.strategy}: {strategy}",
        "workers": text("hint.workers"),
    }
    threads = asked.threads or max(1, cores // max(1, asked.workers))
    if asked.workers * threads > cores:
        notes["workers"] = text(
            "hint.crowded", cores=texts.count(cores, "core"), use=texts.count(cores, "worker")
        )
    return notes


def degrees(axis: str, workers: int) -> list[str]:
    """Return the degrees that are offered on an axis, as they are written; "1" is first."""
    offered = ["1"]
    for degree in range(2, max(2, min(workers, MOST_WORKERS)) + 1):
        offered.append(str(degree))
        if STRATEGIES[axis].grid:
            sides = (side for side in range(2, degree) if degree % side == 0)
            offered += [f"{side}x{degree // side}" for side in sides]
    return offered


def tries(asked: Request) -> list[tuple[str, str, str]]:
    """Return what else one change on one axis could ask for: axis, degree, strategy.

    It stands beside what is chosen on the other axes where the workers are enough for that, else
    alone.
    """
    found = []
    for axis in STRATEGIES:
        others = tuple(each for each in asked.axes if each[0] != axis)
        for degree in degrees(axis, asked.workers)[1:]:
            strategy = replace(asked, axes=(*others, (axis, degree))).strategy
            fits = parse(strategy).size <= asked.workers
            found.append((axis, degree, strategy if fits else f"{axis}={degree}"))
    return found
