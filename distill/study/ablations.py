"""Parses the lines of study.ablations, 'field = values': each varies one field of the objective, all else unchanged.

A number after a value sets the field that the value needs: 'topk:4' is target=topk with top_k=4.
"""

import dataclasses

from distill.config import ConfigError, ExperimentConfig, StudyExperimentConfig, nearest, parse
from distill.config.objective import ObjectiveConfig

_NEEDS = {"topk": "top_k", "topp": "top_p", "sampled": "draws", "jensen_shannon": "beta"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationSetting:
    """One value of one field, as written, and the resulting objective."""

    field: str
    value: str
    objective: ObjectiveConfig


def settings(config: StudyExperimentConfig) -> list[AblationSetting]:
    """Every setting in the order of the lines. Raises ConfigError, naming the line and the objective's error."""
    return [setting for line in config.study.ablations for setting in _line(config.objective, line)]


def _line(base: ObjectiveConfig, line: str) -> list[AblationSetting]:
    field, separator, values = (part.strip() for part in line.partition("="))
    if not separator or not values:
        raise ConfigError(
            f"config.study.ablations: got {line!r}, wanted 'field = values', e.g. 'temperature = 0.5 1 2 4'"
        )
    names = [f.name for f in dataclasses.fields(ObjectiveConfig)]
    if field not in names:
        raise ConfigError(
            f"config.study.ablations: {line!r} names {field!r}, which is no field of config.objective."
            f"{nearest(field, names)}"
        )
    return [
        AblationSetting(field=field, value=value, objective=_set(base, line, field, value)) for value in values.split()
    ]


def _set(base: ObjectiveConfig, line: str, field: str, value: str) -> ObjectiveConfig:
    word, colon, number = value.partition(":")
    if colon and word not in _NEEDS:
        raise ConfigError(f"config.study.ablations: {line!r}: {word!r} takes no number; {', '.join(_NEEDS)} do")
    texts = {field: word} | ({_NEEDS[word]: number} if colon else {})
    try:
        values = {name: parse(ExperimentConfig, f"objective.{name}", text) for name, text in texts.items()}
        return dataclasses.replace(base, **values)
    except ConfigError as error:
        raise ConfigError(f"config.study.ablations: {line!r}: {error}") from None
