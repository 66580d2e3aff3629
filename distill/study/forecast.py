"""What a study would take: each run's hosts, hours, money and memory, by arithmetic, before anything is sent."""

import dataclasses
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from distill.config import ExperimentConfig, ModelConfig, chips, counts
from distill.config.chips import GIB
from distill.study import units
from distill.study.matrix import PlannedRun
from distill.study.places import Place

_NAMED = 3  # units that an edge names; the others are counted
Memory = Callable[[ExperimentConfig, ModelConfig | None], float]  # bytes of one chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run at its place. Hours, money and memory are None where no slice names a chip."""

    task: PlannedRun
    flops: float  # the teacher's forward passes included
    hours: float | None  # from start to end
    cost: float | None  # None also for a chip without a price
    memory: float | None  # bytes of one chip


def forecast(tasks: Sequence[PlannedRun], memory: Memory) -> list[Forecast]:
    """The runs at their places, with units.MFU of the chips' peak."""
    by_run = {task.run: task for task in tasks}
    return [_one(task, units.teachers(task, by_run), units.run_flops(task, by_run), memory) for task in tasks]


def _one(task: PlannedRun, teachers: Sequence[ModelConfig], flops: float, memory: Memory) -> Forecast:
    place = task.place
    if not place.chip:
        return Forecast(task=task, flops=flops, hours=None, cost=None, memory=None)
    hours = flops / units.speed(place) / 3600
    price = chips.find(place.chip).price
    mesh = place.mesh or dataclasses.replace(task.config.mesh, data=place.chips)
    config = dataclasses.replace(task.config, mesh=mesh)
    alone = memory(config, None)
    return Forecast(
        task=task,
        flops=flops,
        hours=hours,
        cost=hours * place.chips * price.hourly if price else None,
        memory=alone + sum(memory(config, teacher) - alone for teacher in teachers),
    )


def jobs(tasks: Sequence[PlannedRun]) -> Table:
    """The units that a backend would be sent, in an order in which each comes after what it needs."""
    made = units.make(tasks)
    names = {key: unit.name for unit in made for key in unit.keys}
    table = Table(title=f"{len(made)} units", title_justify="left")
    for name in ("unit", "runs", "hosts", "seconds", "needs", "after"):
        table.add_column(name, justify="right" if name in ("runs", "hosts", "seconds") else "left", overflow="fold")
    for unit in made:
        edges = (sorted({names[key] for key in keys}) for keys in (unit.needs, unit.after))
        seconds = unit.seconds if unit.runs else None
        table.add_row(
            unit.name, str(len(unit.runs)), str(unit.place.hosts), _text(seconds, 0), *(_few(each) for each in edges)
        )
    return table


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


Step = tuple[PlannedRun, ExperimentConfig, ModelConfig | None]  # with the mesh of its place, and its teacher


def largest(tasks: Sequence[PlannedRun], memory: Memory) -> list[Step]:
    """The step that needs most memory of every place that names a chip; of an ensemble, with its largest teacher."""
    by_run = {task.run: task for task in tasks}
    found = []
    placed = [each for each in forecast(tasks, memory) if each.memory is not None]
    for place in sorted({each.task.place for each in placed}, key=lambda place: place.most):
        task = max((each for each in placed if each.task.place == place), key=lambda each: each.memory or 0.0).task
        mesh = place.mesh or dataclasses.replace(task.config.mesh, data=place.chips)
        teacher = max(units.teachers(task, by_run), key=counts.non_embedding, default=None)
        found.append((task, dataclasses.replace(task.config, mesh=mesh), teacher))
    return found


def show(tasks: Sequence[PlannedRun], memory: Memory) -> RenderableType:
    """A table of all runs; below it, where places name chips, one of the places and a line for the whole."""
    forecasts = forecast(tasks, memory)
    listing = _listing(forecasts)
    if not any(each.hours for each in forecasts):
        return listing
    return Group(listing, _by_place(forecasts), "\n".join(_sentences(forecasts)))


def _listing(forecasts: Sequence[Forecast]) -> Table:
    training = sum(each.task.flops for each in forecasts)
    table = Table(title=f"{len(forecasts)} runs, {training:.3g} FLOPs of training", title_justify="left")
    placed = any(each.task.place != Place() for each in forecasts)
    extra = ("hosts", "hours", "money", "GiB a chip") if placed else ()
    for name in ("run", "fingerprint", "stage", "N", "D", "FLOPs", *extra):
        # A chain's label is longer than a line: folded, for a label that is cut names no run.
        table.add_column(name, justify="left" if name in ("run", "fingerprint") else "right", overflow="fold")
    for each in forecasts:
        task = each.task
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        row = [task.name, task.run, str(task.stage), f"{N:,d}", f"{D:,d}", f"{task.flops:.3g}"]
        if placed:
            row += [str(task.place.hosts), _text(each.hours), _text(each.cost, 0), _fit(each)]
        table.add_row(*row)
    return table


def _by_place(forecasts: Sequence[Forecast]) -> Table:
    # Nine columns in 80 characters.
    table = Table(title="by place", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in ("to N", "slice", "mesh", "hosts", "runs", "longest hours", "chip hours", "money", "most GiB a chip"):
        table.add_column(name, justify="right", overflow="fold")
    for place in sorted({each.task.place for each in forecasts}, key=lambda place: place.most):
        mine = [each for each in forecasts if each.task.place == place]
        hours = [each.hours or 0.0 for each in mine]
        mesh = mine[0].task.config.mesh
        table.add_row(
            f"{place.most:.3g}",
            f"{place.chip}:{place.topology}" if place.chip else "-",
            "x".join(str(n) for n in (mesh.data, mesh.fsdp, mesh.tensor)) if place.mesh else "all chips: data",
            str(place.hosts),
            str(len(mine)),
            _text(max(hours)),
            _text(sum(hours) * place.chips, 0),
            _text(sum(each.cost or 0.0 for each in mine), 0),
            _fit(max(mine, key=lambda each: each.memory or 0.0)),
        )
    return table


def _sentences(forecasts: Sequence[Forecast]) -> list[str]:
    hours = {each.task.run: each.hours or 0.0 for each in forecasts}
    chip_hours = sum(hours[each.task.run] * each.task.place.chips for each in forecasts)
    money = [each.cost for each in forecasts if each.cost is not None]
    made = units.make([each.task for each in forecasts])
    longest: dict[str, float] = {}
    for unit in made:
        own = sum(hours[task.run] for task in unit.runs)
        way = own + max((longest[key] for key in unit.needs | unit.after), default=0.0)
        longest |= dict.fromkeys(unit.keys, way)
    names = sorted({each.task.place.chip for each in forecasts if each.task.place.chip})
    prices = [(name, price) for name in names if (price := chips.find(name).price)]
    lines = [
        f"{len(forecasts)} runs in {len(made)} units: {chip_hours:,.0f} chip hours, at least "
        f"{max(longest.values()) / 24:,.1f} days however many hosts there are."
    ]
    if money:
        listed = ", ".join(f"{name} {p.hourly:g} {p.currency} an hour ({p.source}, {p.date})" for name, p in prices)
        lines.append(f"{sum(money):,.0f} {prices[0][1].currency} at list prices: {listed}.")
    lines.append(
        f"Assumed: an MFU of {100 * units.MFU:.0f}%. Memory is a model (shapes and arithmetic); `distill dryrun` asks "
        "the TPU compiler. Checkpoints, evaluation and waiting are left out."
    )
    large = [each for each in forecasts if _too_large(each)]
    if large:
        lines.append(f"DOES NOT FIT: {', '.join(each.task.name for each in large[:5])}; {len(large)} of the runs.")
    return lines


def _too_large(each: Forecast) -> bool:
    return each.memory is not None and each.memory > chips.find(each.task.place.chip).memory


def _fit(each: Forecast) -> str:
    if each.memory is None:
        return "-"
    return f"{each.memory / GIB:.1f}{' DOES NOT FIT' if _too_large(each) else ''}"


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
