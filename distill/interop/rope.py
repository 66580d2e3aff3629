"""Rotary positions in a config.json: rope_parameters (transformers 5), rope_theta and rope_scaling (before), or both.

rope_parameters is one object, or one for each kind of layers. What is derived there from several fields, such as the
attention factor of yarn, is computed once when it is read (`modeling_rope_utils.py` of transformers).
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

from distill.config import ModelConfig, nearest
from distill.errors import InteropError
from distill.interop.families import Family
from distill.interop.reading import Reader

Fields: TypeAlias = dict[str, object]  # of ModelConfig
_FULL, _LOCAL = "full_attention", "sliding_attention"
_COMMON = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    "original_max_position_embeddings",
}
# The kinds of scaling that are read, and the further keys of each.
_KINDS: dict[str, set[str]] = {
    "default": set(), "linear": set(), "llama3": set(), "dynamic": set(),
    "yarn": {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"},
    "longrope": {"short_factor", "long_factor", "attention_factor"},
}  # fmt: skip
_OLD_NAMES = {"su": "longrope", "none": "default"}  # of the kinds


def read(reader: Reader, family: Family, shape: ModelConfig, windowed: bool) -> Fields:
    """The fields of ModelConfig that say how positions are rotated, for a model of these sizes."""
    new, old = reader.get("rope_parameters", dict, {}), reader.get("rope_scaling", dict, {})
    base = reader.positive("rope_theta", float, family.theta)
    if family.name == "GptOss" and not (new or old):
        raise InteropError(
            f"{reader.where}: rope_parameters and rope_scaling are missing; transformers then scales positions 32 "
            "times by yarn: wanted one that says so"
        )
    if new.keys() & {_FULL, _LOCAL}:
        if old:
            raise InteropError(
                f"{reader.where}: rope_parameters has an object for each kind of layers, and rope_scaling is "
                f"{old!r:.80}, by which transformers replaces it; use a copy of the model with one of them"
            )
        return _by_kind(reader, family, shape, windowed, base)
    bases = [base if rope.get("rope_theta") is None else rope["rope_theta"] for rope in (new, old)]
    if new and old and (_said(new) != _said(old) or bases[0] != bases[1]):
        raise InteropError(
            f"{reader.where}: rope_parameters is {new!r:.80} and rope_scaling is {old!r:.80}; which of them the model "
            "was made with is not known: use a copy of the model with one of them"
        )
    rope = Reader(new or old, f"{reader.where}: rope_parameters" if new else f"{reader.where}: rope_scaling")
    fields = _one(rope, reader, family, shape, base)
    if not (family.local_base and windowed):
        return fields
    if family.name == "Olmo3":
        if fields["rope_base"] != family.theta:
            raise InteropError(
                f"{reader.where}: rope_theta is {fields['rope_base']!r}; transformers 5 takes it for layers without "
                "a window alone, and 4 for all: use rope_parameters with an object for each kind"
            )
        return fields | {"local_rope_base": family.local_base}
    return fields | {"local_rope_base": reader.positive("rope_local_base_freq", float, family.local_base)}


def _by_kind(reader: Reader, family: Family, shape: ModelConfig, windowed: bool, base: float) -> Fields:
    """rope_parameters with an object for each kind of layers; those with a window have a base and no scaling."""
    tree = reader.get("rope_parameters", dict)
    where = f"{reader.where}: rope_parameters"
    if not family.local_base:
        raise InteropError(f"{where} has an object for each kind of layers; all layers of {family.name} rotate alike")
    if other := sorted(tree.keys() - {_FULL, _LOCAL}):
        raise InteropError(f"{where}: {other[0]} is {tree[other[0]]!r:.80}, which is not supported beside {_FULL}")
    each = [Reader(tree, where).get(kind, dict, {}) for kind in (_FULL, _LOCAL)]
    full, local = (
        _one(Reader(one, f"{where}: {kind}"), reader, family, shape, usual)
        for one, kind, usual in zip(each, (_FULL, _LOCAL), (base, family.local_base))
    )
    if local.get("rope_scaling", "none") != "none":
        raise InteropError(f"{where}: {_LOCAL} is {each[1]!r:.80}; layers with a window have no scaling here")
    return full | ({"local_rope_base": local["rope_base"]} if windowed else {})


def _one(rope: Reader, reader: Reader, family: Family, shape: ModelConfig, base: float) -> Fields:
    """The fields of one object, `rope`, of the config.json `reader`."""
    said = rope.tree.get("rope_type", rope.tree.get("type", "default"))
    if rope.tree.get("type", said) != said and rope.tree.get("type") not in _OLD_NAMES:
        raise InteropError(f"{rope.where}: type is {rope.tree['type']!r:.40} and rope_type is {said!r:.40}; wanted one")
    kind = _OLD_NAMES.get(str(said), "default" if said is None else str(said))
    if family.name == "Phi3" and kind == "yarn":  # what it was called there before
        kind = "longrope"
    if kind not in _KINDS:
        raise InteropError(f"{rope.where}: rope_type is {said!r:.80}, wanted one of {', '.join(map(repr, _KINDS))}")
    for key, value in rope.tree.items():
        if key not in _COMMON | _KINDS[kind] and value is not None:
            raise InteropError(
                f"{rope.where}: {key} is {value!r:.80}, which is not supported.{nearest(key, _COMMON | _KINDS[kind])}"
            )
    fields: Fields = {
        "rope_base": rope.positive("rope_theta", float, base),
        **_channels(rope, reader, family, shape),
    }
    if kind == "default":
        return fields
    return fields | {"rope_scaling": kind} | _scaling(kind, rope, reader, family)


def _channels(rope: Reader, reader: Reader, family: Family, shape: ModelConfig) -> Fields:
    """rope_channels, where a share of a head's channels is rotated."""
    if family.rotated is None:
        for one in (rope, reader):
            one.want("partial_rotary_factor", (1, 1.0), "all channels of a head are rotated")
        return {}
    beside = reader.positive("partial_rotary_factor", float, family.rotated)
    share = rope.positive("partial_rotary_factor", float, beside)
    channels = int(shape.head_dim * share)
    if not 0 < channels <= shape.head_dim:  # no channels would be taken for all of them
        raise InteropError(
            f"{rope.where}: partial_rotary_factor is {share!r}, which rotates {channels} of the {shape.head_dim} "
            "channels of a head"
        )
    return {} if channels == shape.head_dim else {"rope_channels": channels}


def _scaling(kind: str, rope: Reader, reader: Reader, family: Family) -> Fields:
    """The numbers of a kind of scaling."""
    if kind == "linear":
        return {"rope_factor": rope.positive("factor", float)}
    most = reader.positive("max_position_embeddings", int, None)
    if kind == "dynamic":
        return {"rope_factor": rope.positive("factor", float), "rope_context": _known(most, reader)}
    if kind == "llama3":
        return {
            "rope_factor": rope.positive("factor", float),
            "rope_low": rope.positive("low_freq_factor", float),
            "rope_high": rope.positive("high_freq_factor", float),
            "rope_context": rope.positive("original_max_position_embeddings", int),
        }
    # The field beside the object, which Phi-3 has, counts for more.
    before = reader.positive("original_max_position_embeddings", int, None)
    if before is None and "original_max_position_embeddings" in family.read:
        raise InteropError(  # transformers then takes 4096, whatever the object says
            f"{reader.where}: original_max_position_embeddings is missing, from which its positions are scaled"
        )
    before = before or rope.positive("original_max_position_embeddings", int, None) or _known(most, reader)
    factor = rope.positive("factor", float, None) or _known(most, reader) / before
    amplitude = rope.positive("attention_factor", float, None)
    if kind == "longrope":
        grown = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
        return {
            "rope_factor": factor,
            "rope_context": before,
            "rope_amplitude": grown if amplitude is None else amplitude,
            "rope_short": _numbers(rope, "short_factor"),
            "rope_long": _numbers(rope, "long_factor"),
        }
    return {
        "rope_factor": factor,
        "rope_context": before,
        "rope_low": rope.get("beta_slow", float, None) or 1.0,
        "rope_high": rope.get("beta_fast", float, None) or 32.0,
        "rope_truncate": rope.get("truncate", bool, True),
        "rope_amplitude": _yarn_amplitude(rope, factor) if amplitude is None else amplitude,
    }


def _known(value: int | None, reader: Reader) -> int:
    if value is None:
        raise InteropError(f"{reader.where}: max_position_embeddings is missing, by which its positions are scaled")
    return value


def _yarn_amplitude(rope: Reader, factor: float) -> float:
    """The attention factor, 0.1 ln(s) + 1 (Peng et al. 2309.00071, Eq. 22), or the ratio of two such terms."""

    def term(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    above, below = rope.get("mscale", float, 0.0), rope.get("mscale_all_dim", float, 0.0)
    return term(above) / term(below) if above and below else term(1.0)


def _numbers(rope: Reader, name: str) -> tuple[float, ...]:
    found = rope.get(name, list)
    if not all(type(one) in (int, float) and one > 0 for one in found):
        raise InteropError(f"{rope.where}: {name} is {found!r:.60}, wanted numbers above 0")
    return tuple(map(float, found))


def _said(rope: Mapping[str, object]) -> dict[str, object]:
    """The fields of a rope object with one spelling of each, without the base, which is read separately."""
    said = {key: value for key, value in rope.items() if key not in ("type", "rope_type", "rope_theta")}
    return {key: value for key, value in said.items() if value is not None} | {
        "rope_type": rope.get("rope_type", rope.get("type", "default"))
    }


def write(model: ModelConfig, family: Family, context: int) -> dict[str, object]:
    """The keys of config.json that say how positions are rotated, for a model of `context` positions."""
    scaling = _written(model)
    if family.name == "GptOss" and scaling is None:  # absent would be yarn, as `read` says
        scaling = {"rope_type": "default"}
    tree: dict[str, object] = {"rope_theta": model.rope_base, "rope_scaling": scaling}
    if family.local_base:
        full = _written(model) or {"rope_type": "default"}
        local = {"rope_type": "default", "rope_theta": model.local_rope_base or family.local_base}
        tree = {"rope_parameters": {_FULL: full | {"rope_theta": model.rope_base}, _LOCAL: local}}
    if family.rotated is not None:
        tree["partial_rotary_factor"] = model.rotated / model.head_dim
    if model.rope_scaling == "dynamic":
        tree["max_position_embeddings"] = model.rope_context
    if "original_max_position_embeddings" in family.read:
        tree["original_max_position_embeddings"] = model.rope_context if model.rope_scaling == "longrope" else context
    return tree


def _written(model: ModelConfig) -> dict[str, object] | None:
    """rope_scaling of a model; None for none."""
    if model.rope_scaling == "none":
        return None
    scaling: dict[str, object] = {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling in ("llama3", "yarn", "longrope"):
        scaling["original_max_position_embeddings"] = model.rope_context
    match model.rope_scaling:
        case "llama3":
            scaling |= {"low_freq_factor": model.rope_low, "high_freq_factor": model.rope_high}
        case "yarn":
            scaling |= {"beta_slow": model.rope_low, "beta_fast": model.rope_high, "truncate": model.rope_truncate}
        case "longrope":
            scaling |= {"short_factor": list(model.rope_short), "long_factor": list(model.rope_long)}
    if model.rope_scaling in ("yarn", "longrope"):
        scaling["attention_factor"] = model.rope_amplitude
    return scaling
