"""Where the runs of a study run, by size: hosts, mesh, microbatches, recomputation, time limit. One line a place.

    "to 6e7: hosts=1 runs=8"
    "to 3e9: hosts=4 mesh=data=4,fsdp=8 time=24h"
    "to 2e10: slice=v5e:16x16 mesh=data=8,fsdp=32 remat=full"        (hosts follow from the slice)

The size is N of the student or of the teacher that runs beside it (of an ensemble, their sum), whichever is larger.
Nothing here is part of a run's identity: the same runs at other places keep their names.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, chips, counts, nearest
from distill.config.tree import parse_number

HOST_OF_TPU = 4  # chips that one host of a TPU slice has
Remat = Literal["none", "dots", "full"]
_KEYS = ("hosts", "runs", "mesh", "microbatches", "remat", "time", "slice")
_AXES = tuple(f"{field.name}=" for field in dataclasses.fields(MeshConfig))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """What a run of at most `most` parameters gets; '', 0 and None leave it to the config or the engine."""

    most: float = math.inf
    hosts: int = 1
    runs: int = 16  # small runs that share a program, at most
    mesh: MeshConfig | None = None
    microbatches: int = 0
    remat: Remat | Literal[""] = ""
    time: str = ""  # HH:MM:SS
    chip: str = ""  # a name of distill/config/chips.py
    topology: str = ""  # of the slice, such as 16x16

    @property
    def chips(self) -> int:
        """Accelerators of the slice; 0 where none is named."""
        return math.prod(int(side) for side in self.topology.split("x")) if self.topology else 0

    @property
    def devices(self) -> int:
        """Accelerators that a run needs: of its slice or its mesh; 0 where neither is named, and it takes all."""
        if self.chips or self.mesh is None or self.mesh.data == -1:
            return self.chips
        return self.mesh.data * self.mesh.fsdp * self.mesh.tensor

    def placed(self, config: ExperimentConfig, name: str) -> ExperimentConfig:
        """The config of a run at this place. Raises ConfigError for a batch that does not divide over its mesh."""
        mesh, parts = self.mesh or config.mesh, self.microbatches or config.microbatches
        shards = mesh.data * mesh.fsdp if mesh.data != -1 else self.chips // mesh.tensor
        if (self.mesh or self.chips) and config.batch_size % (parts * shards):
            raise ConfigError(
                f"config.study.places: {name}: a batch of {config.batch_size} sequences does not divide into {parts} "
                f"microbatches over data x fsdp = {shards} devices; change the mesh or microbatches"
            )
        model = dataclasses.replace(config.model, remat=self.remat) if self.remat else config.model
        return dataclasses.replace(config, mesh=mesh, microbatches=parts, model=model)


def parse(lines: Sequence[str]) -> tuple[Place, ...]:
    """The places of study.places, smallest first. Raises ConfigError, naming the line."""
    places = tuple(sorted((_place(line) for line in _whole(lines)), key=lambda place: place.most))
    sizes = [place.most for place in places]
    if repeated := [most for most in sizes if sizes.count(most) > 1]:
        raise ConfigError(f"config.study.places: two lines are for runs to {repeated[0]:g}; leave one")
    return places


def find(places: Sequence[Place], config: ExperimentConfig, teachers: Sequence[ModelConfig], name: str) -> Place:
    """The place of a run, by N of the larger of student and teachers (together: all are in memory at once).

    Raises ConfigError where none is large enough.
    """
    N = counts.non_embedding(config.model)
    if config.teacher.signal != "stored":
        N = max(N, sum(counts.non_embedding(teacher) for teacher in teachers))
    for place in places:
        if place.most >= N:
            return place
    if places:
        raise ConfigError(
            f"config.study.places: {name} has N={N:.4g} (the larger of student and teacher), and the last line ends at "
            f"{places[-1].most:g}; add a line such as 'to {2 * N:.1g}: hosts=8'"
        )
    return Place()


def devices_of(places: Iterable[Place]) -> int:
    """Accelerators that each worker of one machine gets; 0 where no place says. Raises ConfigError for several."""
    wanted = sorted({place.devices for place in places})
    if len(wanted) > 1:
        raise ConfigError(
            f"config.study.places: runs want {' and '.join(map(str, wanted))} accelerators (0: all), and the workers "
            "of one machine have equally many; give all places meshes of one size, or choose --backend=ray"
        )
    return wanted[0] if wanted else 0


def _whole(lines: Sequence[str]) -> list[str]:
    """The lines as they were meant: a flag of a command is cut at every comma, that of 'mesh=data=8,fsdp=2' too."""
    whole: list[str] = []
    for line in lines:
        if whole and line.strip().startswith(_AXES):
            whole[-1] += f",{line.strip()}"
        else:
            whole.append(line)
    return whole


def _place(line: str) -> Place:
    match = re.fullmatch(r"\s*to\s+(\S+)\s*:\s*(.*)", line)
    try:
        most = parse_number(match[1]) if match else 0.0
    except ValueError:
        most = 0.0
    if not match or not most > 0:
        raise ConfigError(f"config.study.places: got {line!r}, wanted 'to PARAMETERS: hosts=1 time=4h ...'")
    values: dict[str, str] = {}
    for word in match[2].split():
        key, _, value = word.partition("=")
        if key not in _KEYS:
            raise ConfigError(f"config.study.places: {line!r} has no {key!r} to give.{nearest(key, _KEYS)}")
        values[key] = value
    chip, topology = _slice(line, values.get("slice", ""))
    mesh = _mesh(line, values["mesh"]) if "mesh" in values else None
    place = Place(
        most=most,
        hosts=_count(line, values, "hosts", 1),
        runs=_count(line, values, "runs", 16),
        mesh=mesh,
        microbatches=_count(line, values, "microbatches", 0),
        remat=_remat(line, values.get("remat", "")),
        time=_time(line, values.get("time", "")),
        chip=chip,
        topology=topology,
    )
    if not topology:
        return place
    per_host = chips.find(chip).node or HOST_OF_TPU
    hosts = -(-place.chips // per_host)
    if "hosts" in values and place.hosts != hosts:
        raise ConfigError(
            f"config.study.places: {line!r}: a slice of {place.chips} {chip} has {hosts} hosts; leave them out"
        )
    if mesh is not None and mesh.data != -1 and (own := mesh.data * mesh.fsdp * mesh.tensor) != place.chips:
        raise ConfigError(f"config.study.places: {line!r}: the mesh has {own} devices and the slice {place.chips}")
    return dataclasses.replace(place, hosts=hosts)


def _count(line: str, values: dict[str, str], key: str, default: int) -> int:
    text = values.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or (key in values and int(text) < 1):
        raise ConfigError(f"config.study.places: {line!r}: {key}={text}, wanted a number of at least 1")
    return int(text)


def _mesh(line: str, text: str) -> MeshConfig:
    names, axes = [field.name for field in dataclasses.fields(MeshConfig)], {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in names or not re.fullmatch(r"[1-9][0-9]{0,5}", value):
            raise ConfigError(f"config.study.places: {line!r}: mesh={text}, wanted such as data=4,fsdp=8")
        axes[name] = int(value)
    return dataclasses.replace(MeshConfig(data=1), **axes)


def _remat(line: str, text: str) -> Remat | Literal[""]:
    if text not in ("", "none", "dots", "full"):
        raise ConfigError(f"config.study.places: {line!r}: remat={text}, wanted none, dots or full")
    return cast(Remat | Literal[""], text)


def _slice(line: str, text: str) -> tuple[str, str]:
    """(chip, topology) of 'v5e:16x16' or 'h100:64'."""
    if not text:
        return "", ""
    chip, _, topology = text.partition(":")
    if chip not in chips.CHIPS or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", topology):
        raise ConfigError(
            f"config.study.places: {line!r}: slice={text}, wanted CHIP:SHAPE such as v5e:16x16 or h100:64"
            f"{nearest(chip, chips.CHIPS) if chip not in chips.CHIPS else ''}"
        )
    return chip, topology


def _time(line: str, text: str) -> str:
    """HH:MM:SS of '24h', '90m' or of itself."""
    if match := re.fullmatch(r"([0-9]{1,5})([hm])", text):
        minutes = int(match[1]) * (60 if match[2] == "h" else 1)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
    if text and not re.fullmatch(r"[0-9]{1,3}:[0-9]{2}:[0-9]{2}", text):
        raise ConfigError(f"config.study.places: {line!r}: time={text}, wanted such as 24h, 90m or 24:00:00")
    return text
