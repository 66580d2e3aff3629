"""A campaign of random model directories and GGUF files, read by us and by `transformers`: a table of the outcomes.

    python -m tests.interop.differential --draws=300 --seed=0 --out=docs/campaigns/differential.jsonl

A draw is a tiny model with random weights: a family, a dialect of its rotary keys, tied or not, a stored dtype, one
file or shards; most heads then get one change. Weights come from `transformers` or `gguf` alone. Both sides compute in
float32. Outcomes: `equal` (logits differ by at most 1e-4), `refused` (by us, in one line that names what was changed),
`both refused`; all others are failures: `different`, `unnamed` (a refusal that does not name the change), `needless` (a
refusal of a model that can be read), `foreign` (an exception that is no refusal) and `only ours` (read by us, refused
there). Exits with 1 at a failure.
"""

import argparse
import json
import random
import re
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOOD = ("equal", "refused", "both refused")
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "GGUF llama", "GGUF qwen2", "GGUF qwen3")
OTHERS = ("Gemma", "GPT2", "Olmo2", "Phi3", "Granite", "Cohere", "Mixtral", "SmolLM3", "StableLm", "Starcoder2")
VOCAB, CONTEXT, LAYERS = 64, 48, 2
TOLERANCE = 1e-4
Tree = dict[str, Any]


class Change(NamedTuple):
    """One change of a head or of the tensors: its name, and what a refusal must match ('' if none is due)."""

    name: str
    word: str
    apply: Callable[[Tree, dict[str, Any]], None]


def put(word: str, **fields: Any) -> Change:
    """A change that sets keys of config.json; ... as a value takes the key away."""

    def apply(tree: Tree, tensors: dict[str, Any]) -> None:
        for key, value in fields.items():
            if value is ...:
                tree.pop(key, None)
            else:
                tree[key] = value

    said = ", ".join(f"{key} {'absent' if value is ... else json.dumps(value)}" for key, value in fields.items())
    return Change(said, word, apply)


def unknown(chance: random.Random) -> Change:
    key = "".join(chance.choices(string.ascii_lowercase + "_", k=chance.randint(4, 16)))
    return put(key, **{key: chance.choice([0, 1, True, 0.5, "x", [], {"a": 1}])})


def known_elsewhere(chance: random.Random) -> Change:
    """A key that means something in another architecture."""
    keys = {
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
        "num_experts": 4,
        "use_qk_norm": True,
        "no_rope_layers": [0, 1],
        "clip_qkv": 1.0,
        "attention_multiplier": 0.1,
        "use_bias": True,
        "rotary_pct": 0.5,
        "original_max_position_embeddings": 16,
        "parallel_residual": True,
    }
    key = chance.choice(list(keys))
    return put(key, **{key: keys[key]})


ROPES: dict[str, Tree] = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"factor": 4.0},
    "longrope": {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 2.0},
}


def rope(chance: random.Random) -> Change:
    """Another type of rotation, in either dialect, sometimes with a field too many or too few."""
    kind = chance.choice(list(ROPES))
    fields = dict(ROPES[kind])
    word = kind if kind in ("yarn", "dynamic", "longrope") else ""
    twist = chance.randrange(4)
    if not word and twist == 0:
        key = chance.choice(["mscale", "beta_fast", "attention_factor", "partial_rotary_factor"])
        fields[key] = 0.5
        word = key
    elif not word and twist == 1 and len(fields) > 1:
        word = chance.choice(list(fields))
        del fields[word]
    if chance.random() < 0.5:
        return put(
            word, rope_parameters={"rope_type": kind, "rope_theta": 5e4, **fields}, rope_scaling=..., rope_theta=...
        )
    spelling = chance.choice(["type", "rope_type"])
    return put(word, rope_scaling={spelling: kind, **fields}, rope_parameters=..., rope_theta=5e4)


def two_ropes(chance: random.Random) -> Change:
    """Both dialects at once; which of the two counts is said by neither."""
    new = {"rope_type": chance.choice(["default", "linear"]), "rope_theta": chance.choice([1e4, 7e5]), "factor": 4.0}
    if new["rope_type"] == "default":
        del new["factor"]
    same = {
        "type" if chance.random() < 0.5 else "rope_type": new["rope_type"],
        **({"factor": 4.0} if "factor" in new else {}),
    }
    old: Tree = chance.choice(
        [same, same, same, {"rope_type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 4.0}]
    )
    if chance.random() < 0.3:
        old = old | {"rope_theta": chance.choice([1e4, 3e5])}
    top = {"rope_theta": 2e4} if chance.random() < 0.5 else {"rope_theta": ...}
    return put("rope", rope_parameters=new, rope_scaling=old, **top)


def two_types(chance: random.Random) -> Change:
    return put(
        "type", rope_parameters=..., rope_theta=1e4, rope_scaling={"type": "yarn", "rope_type": "linear", "factor": 4.0}
    )


def two_bases(chance: random.Random) -> Change:
    return put(
        "rope_theta", rope_scaling=..., rope_theta=2e4, rope_parameters={"rope_type": "default", "rope_theta": 9e5}
    )


def partial(chance: random.Random) -> Change:
    if chance.random() < 0.5:
        return put("partial_rotary_factor", partial_rotary_factor=chance.choice([0.5, 1.0]))
    inside = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    return put("partial_rotary_factor", rope_parameters=inside, rope_scaling=..., rope_theta=...)


def window(chance: random.Random) -> Change:
    kinds = chance.choice(
        [
            ["full_attention"] * LAYERS,
            ["sliding_attention"] * LAYERS,
            ["full_attention", "sliding_attention"],
            ["chunked_attention"] * LAYERS,
            ["sliding_attention"],
            ...,
            ...,
            ...,
        ]
    )
    return put(
        "layer_types|sliding_window",
        sliding_window=chance.choice([3, 7, None, ...]),
        layer_types=kinds,
        use_sliding_window=chance.choice([True, False, ...]),
        max_window_layers=chance.choice([0, 1, LAYERS, ...]),
    )


def bias(chance: random.Random) -> Change:
    key = chance.choice(["attention_bias", "mlp_bias"])
    return put("bias", **{key: chance.choice([True, False, ...])})


def head(chance: random.Random) -> Change:
    return put(SHAPES["head_dim"], head_dim=chance.choice([..., 8, 12, 16]))


# What a refusal says of a key that contradicts the tensors; it may meet the tensors or another key first.
SHAPES = {
    "num_hidden_layers": "layers",
    "hidden_size": "shape|head_dim|hidden_size",
    "num_attention_heads": "shape|n_heads",
    "vocab_size": "vocab|shape",
    "num_key_value_heads": "shape|key_value",
    "head_dim": "shape|head_dim",
    "intermediate_size": "shape|intermediate",
    "tie_word_embeddings": "tie_word_embeddings",
}


def absent(chance: random.Random) -> Change:
    key = chance.choice(
        [
            "rms_norm_eps",
            "num_key_value_heads",
            "rope_theta",
            "rope_parameters",
            "hidden_act",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "tie_word_embeddings",
            "model_type",
            "architectures",
            "max_position_embeddings",
        ]
    )
    strict = key in ("rms_norm_eps", "rope_theta")  # transformers wants a number or no key
    return put(SHAPES.get(key, key), **{key: ... if strict else chance.choice([..., None])})


def kind_of_value(chance: random.Random) -> Change:
    """A value of another type, or one that another architecture has."""
    key, value = chance.choice(
        [
            ("rms_norm_eps", "1e-5"),
            ("rope_theta", "10000"),
            ("hidden_act", "gelu"),
            ("hidden_act", "relu"),
            ("hidden_act", "swish"),
            ("tie_word_embeddings", "true"),
            ("vocab_size", float(VOCAB)),
            ("num_hidden_layers", LAYERS - 1),
            ("hidden_size", 24),
            ("num_attention_heads", 2),
            ("num_key_value_heads", 1),
            ("vocab_size", VOCAB + 8),
            ("rms_norm_eps", 0.01),
            ("rms_norm_eps", 0.3),
            ("intermediate_size", 40),
            ("rope_theta", 100),
            ("num_hidden_layers", LAYERS + 1),
        ]
    )
    return put(SHAPES.get(key, key), **{key: value})


def another_class(chance: random.Random) -> Change:
    """The two names of the architecture contradict each other."""
    other = chance.choice(["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"])
    return put("model_type", model_type=other)


def quantised(chance: random.Random) -> Change:
    return put(
        "quantised", quantization_config={"quant_method": chance.choice(["gptq", "awq", "bitsandbytes"]), "bits": 4}
    )


def harmless(chance: random.Random) -> Change:
    fields = {
        "use_cache": False,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "torch_dtype": "bfloat16",
        "dtype": "float16",
        "pretraining_tp": 2,
        "attention_dropout": 0.1,
        "initializer_range": 0.5,
        "transformers_version": "4.40.0",
        "_name_or_path": "x",
        "attention_bias": False,
        "pad_token_id": 0,
    }
    key = chance.choice(list(fields))
    return put("", **{key: fields[key]})


def tensor(chance: random.Random) -> Change:
    """A tensor that is missing, too many, or of another shape; a head of its own beside a tied embedding."""
    which = chance.choice(["missing", "extra", "shape", "head", "bias", "frequencies"])

    def apply(tree: Tree, tensors: dict[str, Any]) -> None:
        names = sorted(tensors)
        if which == "missing":
            del tensors[chance.choice([name for name in names if "layers" in name])]
        elif which == "extra":
            tensors["model.layers.0.extra.weight"] = tensors["model.norm.weight"].clone()
        elif which == "shape":
            name = chance.choice([name for name in names if "proj" in name])
            tensors[name] = tensors[name][:-4].clone()
        elif which == "head":
            tree["tie_word_embeddings"] = True
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).clone()
        elif which == "bias":
            tensors["model.layers.0.mlp.up_proj.bias"] = tensors["model.norm.weight"].clone()
        else:
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"][:4].clone()

    return Change(f"tensor {which}", "" if which in ("head", "frequencies") else "tensor", apply)


CHANGES = (
    *(
        unknown,
        known_elsewhere,
        rope,
        rope,
        rope,
        two_ropes,
        two_ropes,
        two_types,
        two_bases,
        partial,
        window,
        window,
        window,
        bias,
    ),
    *(head, absent, absent, kind_of_value, kind_of_value, another_class, quantised, harmless, tensor, tensor),
)


def plain(family: str, chance: random.Random) -> Tree:
    """A head of a family without any change, in one of both dialects."""
    heads = 4
    tree: Tree = {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": chance.choice([1, 2, 4]),
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": chance.choice([1e-5, 1e-6, 0.1]),
        "tie_word_embeddings": chance.random() < 0.4,
        "initializer_range": 0.2,
    }
    if family == "Qwen3":
        tree["head_dim"] = chance.choice([8, 16])
    if family == "Mistral":
        tree |= {"sliding_window": chance.choice([None, 7]), "head_dim": 8}
    if family in ("Llama", "Qwen3") and chance.random() < 0.3:
        tree["attention_bias"] = True
    base = chance.choice([1e4, 5e5])
    if chance.random() < 0.5:
        tree["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    else:
        tree["rope_theta"] = base
        tree["rope_scaling"] = None
    return tree


def weights(tree: Tree, seed: int) -> dict[str, Any]:
    """Random tensors of a head, as `transformers` names and shapes them."""
    import torch
    import transformers

    torch.manual_seed(seed)
    family = tree["architectures"][0].removesuffix("ForCausalLM")
    config = getattr(transformers, f"{family}Config").from_dict(dict(tree))
    model = getattr(transformers, f"{family}ForCausalLM")(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if tree.get("tie_word_embeddings"):
        state.pop("lm_head.weight", None)
    return state


def save(path: Path, tree: Tree, tensors: Mapping[str, Any], dtype: str, shards: bool) -> None:
    import torch
    from safetensors.torch import save_file

    path.mkdir()
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    stored = {name: value.to(kinds[dtype]).contiguous() for name, value in tensors.items()}
    (path / "config.json").write_text(json.dumps(tree))
    if not shards:
        save_file(stored, path / "model.safetensors", {"format": "pt"})
        return
    names, where = list(stored), {}
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: stored[name] for name in chosen}, path / file, {"format": "pt"})
        where |= dict.fromkeys(chosen, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def theirs(path: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits of `transformers`. Raises where it refuses, or would make up a tensor that the files lack."""
    import torch
    from transformers import AutoModelForCausalLM

    place = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        path.parent if place else path,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        **place,
    )
    made_up = set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]}
    if made_up:
        raise ValueError(f"it would invent {sorted(made_up)[0]}")
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def ours(path: Path, tokens: np.ndarray) -> np.ndarray:
    import jax.numpy as jnp

    from distill import interop

    return np.asarray(interop.load(path).params(jnp.asarray(tokens)))


def directory(family: str, chance: random.Random, path: Path) -> tuple[Tree, str, str]:
    """Writes a draw of a family; returns what is said of it, the change's name and the word that a refusal must say."""
    tree = plain(family, chance)
    tensors = weights(tree, chance.randrange(2**31))
    change = chance.choice(CHANGES)(chance) if chance.random() < 0.7 else Change("none", "", lambda *_: None)
    change.apply(tree, tensors)
    dtype, shards = chance.choice(["F32", "F32", "BF16", "F16"]), chance.random() < 0.3
    save(path, tree, tensors, dtype, shards)
    dialect = "rope_parameters" if "rope_parameters" in tree else "rope_theta"
    return (
        {"dtype": dtype, "shards": shards, "dialect": dialect, "tied": bool(tree.get("tie_word_embeddings"))},
        change.name,
        change.word,
    )


def another(family: str, chance: random.Random, path: Path) -> tuple[Tree, str, str]:
    """A directory of an architecture that is not read here; its weights do not matter."""
    tree = plain("Llama", chance)
    tensors = weights(tree, chance.randrange(2**31))
    name = {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    tree |= {"architectures": [name], "model_type": family.lower()}
    save(path, tree, tensors, "F32", False)
    return {"dtype": "F32", "shards": False, "dialect": "", "tied": False}, f"architecture {family}", name


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of channels in which llama.cpp stores queries and keys of Llama."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_FIELDS: dict[str, Any] = {
    "expert_count": 4,
    "attention.causal": False,
    "logit_scale": 0.5,
    "rope.scaling.type": "yarn",
    "vocab_size": VOCAB + 1,
    "rope.dimension_count": 4,
    "attention.clamp_kqv": 3.0,
    "attention.value_length": 4,
    "rope.scaling.attn_factor": 0.5,
    "attention.scale": 0.3,
    "residual_scale": 2.0,
    "embedding_scale": 2.0,
    "final_logit_softcapping": 3.0,
}


def gguf_file(family: str, chance: random.Random, path: Path) -> tuple[Tree, str, str]:
    """Writes a GGUF file of a family; some heads get one field that no reader may pass over."""
    import gguf

    name = family.removeprefix("GGUF ")
    tree = plain({"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[name], chance)
    tree |= {"intermediate_size": 64, "attention_bias": False}
    if name == "qwen3":
        tree["head_dim"] = 128  # transformers reads no other of a GGUF file of Qwen3
    tree["rms_norm_eps"] = chance.choice([1e-5, 1e-6])
    tensors = weights(tree, chance.randrange(2**31))
    dtype = chance.choice(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
    base = (tree.get("rope_parameters") or tree)["rope_theta"]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(tree["hidden_size"])
    writer.add_feed_forward_length(tree["intermediate_size"])
    writer.add_head_count(tree["num_attention_heads"])
    writer.add_head_count_kv(tree["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(tree["rms_norm_eps"])
    writer.add_rope_freq_base(base)
    writer.add_uint32(f"{name}.attention.key_length", tree.get("head_dim", 8))
    said, word = "none", ""
    if chance.random() < 0.3:
        word = chance.choice(list(GGUF_FIELDS))
        value = GGUF_FIELDS[word]
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{name}.{word}", value)
        said = f"{word} {json.dumps(value)}"
        word = {"rope.scaling.type": "yarn"}.get(word, word)
    if word != "vocab_size":  # transformers has it of the tokenizer else, of which there is none
        writer.add_vocab_size(VOCAB)
    for there, value in tensors.items():
        stem, kind = there.rsplit(".", 1)
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else ""
        part = GGUF_NAMES[stem.split(".", 3)[3] if layer else stem]
        array = value.numpy()
        if name == "llama" and part in ("attn_q", "attn_k"):
            array = permute(array, tree["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])
        there = f"blk.{layer}.{part}.{kind}" if layer else f"{part}.{kind}"
        stored = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else dtype]
        writer.add_tensor(there, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tied = bool(tree["tie_word_embeddings"])
    return {"dtype": dtype, "shards": False, "dialect": "gguf", "tied": tied}, said, word


def judge(path: Path, change: str, word: str, tokens: np.ndarray) -> dict[str, Any]:
    """What both readers make of a draw."""
    from distill.errors import DistillError

    try:
        want: np.ndarray | None = theirs(path, tokens)
        there = ""
    except Exception as error:  # whatever it raises is its refusal
        want, there = None, f"{type(error).__name__}: {error}"
    try:
        got = ours(path, tokens)
    except DistillError as error:
        said = str(error).replace(str(path), path.name)
        if "\n" in said or not re.search(word, said, re.IGNORECASE):
            return {"outcome": "unnamed", "said": said}
        if not word:
            return {"outcome": "needless", "said": said, "theirs": there.splitlines()[0][:200] if there else ""}
        return {"outcome": "both refused" if want is None else "refused", "said": said}
    except Exception as error:
        return {"outcome": "foreign", "said": f"{type(error).__name__}: {error}"[:300]}
    if want is None:
        return {"outcome": "only ours", "theirs": there.replace("\n", " ")[:200]}
    off = float(np.max(np.abs(got - want))) if got.shape == want.shape else float("inf")
    outcome = "equal" if off <= TOLERANCE and np.std(want) > 0.1 else "different"
    return {"outcome": outcome, "off": float(f"{off:.2g}")}


def draw(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """One line of the table: draw `number` of the campaign with this seed, on its own."""
    chance = random.Random(f"{seed} {number}")
    kinds = [*FAMILIES, OTHERS[number // (len(FAMILIES) + 1) % len(OTHERS)]]
    family = kinds[number % len(kinds)]
    path = folder / (f"draw-{number}.gguf" if family.startswith("GGUF") else f"draw-{number}")
    make = gguf_file if family.startswith("GGUF") else another if family in OTHERS else directory
    facts, change, word = make(family, chance, path)
    tokens = np.random.default_rng(number).integers(0, VOCAB, (2, 40), np.int32)
    return {
        "draw": number,
        "seed": seed,
        "family": family,
        **facts,
        "change": change,
        **judge(path, change, word, tokens),
    }


def summarise(lines: list[dict[str, Any]]) -> str:
    """A table: a row a family, a column an outcome."""
    kinds = (*GOOD, "different", "unnamed", "needless", "foreign", "only ours")
    rows = ["| family | draws | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for family in (*FAMILIES, "others"):
        mine = [line for line in lines if (line["family"] if line["family"] in FAMILIES else "others") == family]
        count = Counter(line["outcome"] for line in mine)
        rows.append(f"| {family} | {len(mine)} | " + " | ".join(str(count[kind]) for kind in kinds) + " |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.interop.differential", allow_abbrev=False)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the number of the first draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    import jax
    import transformers

    from distill.config import MeshConfig
    from distill.model import sharding

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    lines = []
    with jax.set_mesh(sharding.make(MeshConfig())), tempfile.TemporaryDirectory() as folder:
        for number in range(flags.first, flags.first + flags.draws):
            lines.append(draw(number, flags.seed, Path(folder)))
            if number % 50 == 49:
                jax.clear_caches()  # a program a shape, else kept to the end
            if lines[-1]["outcome"] not in GOOD:
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print(summarise(lines))
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return int(any(line["outcome"] not in GOOD for line in lines))


if __name__ == "__main__":
    sys.exit(main())
