"""Why an architecture of transformers that is not in the table of families is not read."""

_EXPERTS, _IMAGES = "it is a mixture of experts of another kind", "it reads images"
_BOTH, _TWO = "it reads in both directions", "it is an encoder and a decoder"
_LINEAR = "some of its layers have linear attention or another recurrence"
# Why an architecture is not supported, by the beginning of its name; the longest that matches applies.
REASONS = {
    "GPT2": "it has learned positions", "GPTNeo": "it has learned positions", "GPTBigCode": "it has learned positions",
    "OPT": "it has learned positions", "GPTNeoX": "its attention and feed-forward stand side by side",
    "GPTJ": "its attention and feed-forward stand side by side", "Bloom": "its positions are ALiBi",
    "CodeGen": "its attention and feed-forward stand side by side", "Mpt": "its positions are ALiBi",
    "Phi": "its attention and feed-forward stand side by side", "PhiMoE": _EXPERTS, "Phimoe": _EXPERTS,
    "Phi3Small": "some of its layers attend to blocks of positions", "Phi3V": _IMAGES,
    "Phi4Multimodal": "it reads images and sound", "Phi4MM": "it reads images and sound",
    "Cohere": "its attention and feed-forward stand side by side", "Command": _IMAGES,
    "Falcon": "its attention and feed-forward stand side by side", "FalconH1": _LINEAR,
    "FalconMamba": "it has no attention",
    "Qwen2Moe": "some of its experts are shared by all tokens", "FlexOlmo": _EXPERTS,
    "GraniteMoe": _EXPERTS, "Ernie4_5_Moe": _EXPERTS,
    "Glm4Moe": _EXPERTS, "Dbrx": _EXPERTS, "JetMoe": _EXPERTS, "Mellum": _EXPERTS, "HunYuanMoE": _EXPERTS,
    "Dots1": _EXPERTS, "MiniMax": _EXPERTS, "BailingMoe": _EXPERTS, "ExaoneMoe": _EXPERTS,
    "Deepseek": "it is a mixture of experts, some of them shared by all tokens",
    "DeepseekV2": "it has latent attention and a mixture of experts",
    "DeepseekV3": "it has latent attention and a mixture of experts",
    "KimiK2": "it has latent attention and a mixture of experts", "MiniCPM3": "it has latent attention",
    "GraniteMoeHybrid": _LINEAR, "GraniteSpeech": "it reads sound", "Bamba": _LINEAR, "Jamba": _LINEAR,
    "Zamba": _LINEAR, "NemotronH": _LINEAR, "OlmoHybrid": _LINEAR, "Qwen3Next": _LINEAR, "Qwen3_5": _LINEAR,
    "KimiLinear": _LINEAR, "RecurrentGemma": _LINEAR, "Lfm2": "most of its layers are convolutions",
    "Lfm2Moe": "most of its layers are convolutions", "Mamba": "it has no attention", "Rwkv": "it has no attention",
    "Gemma3ForConditional": "it reads images; a directory of its text model alone (Gemma3ForCausalLM) is read",
    "Gemma3n": "each of its layers has an embedding of its own", "PaliGemma": _IMAGES, "VaultGemma":
    "it is Gemma 2 without the norms after its blocks", "T5Gemma": _TWO,
    "Qwen2VL": _IMAGES, "Qwen2_5_VL": _IMAGES, "Qwen3VL": _IMAGES, "Mllama": _IMAGES, "Llava": _IMAGES,
    "Mistral3": _IMAGES, "Pixtral": _IMAGES, "Idefics": _IMAGES, "InternVL": _IMAGES, "SmolVLM": _IMAGES,
    "Llama4": "it is a mixture of experts that attends to chunks of positions",
    "Llama4ForConditional": "it is a mixture of experts that reads images",
    "Ministral3": "its queries are scaled by their position",
    "Olmo": "its norms have no gains", "Arcee": "its feed-forward has no gate and squares a ReLU",
    "Nemotron": "its feed-forward has no gate and squares a ReLU", "Jais2": "its feed-forward squares a ReLU",
    "Apertus": "its activation is xIELU", "DiffLlama": "its attention is the difference of two",
    "HunYuanDense": "its queries and keys are normalised after their rotation", "BitNet": "its weights are ternary",
    "Bert": _BOTH, "Roberta": _BOTH, "XLMRoberta": _BOTH, "DistilBert": _BOTH, "ModernBert": _BOTH, "Deberta": _BOTH,
    "Electra": _BOTH, "T5": _TWO, "MT5": _TWO, "Bart": _TWO, "MBart": _TWO, "Pegasus": _TWO, "Marian": _TWO,
    "Whisper": _TWO,
}  # fmt: skip

# Ends of names of transformers' classes with another head, or none.
_OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice", "ForMaskedLM", "Model")


def reason(name: str) -> str:
    """The reason for an architecture or a model_type, in words."""
    if name.endswith(_OTHER_HEADS) and "LMHead" not in name:
        return "it has no head for the next token"
    begins = max((one for one in REASONS if _bare(name).startswith(_bare(one))), key=len, default="")
    return REASONS.get(begins, "this architecture is unknown here")


def _bare(name: str) -> str:
    return name.lower().replace("_", "")
