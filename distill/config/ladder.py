"""The paper's ladder of models (section 4): the number of layers alone fixes every dimension.

d_model = 128 n_layers, heads of 128, d_ff = 8/3 d_model rounded up to a multiple of 128, a vocabulary of 32,768.
Standard library only.
"""

from distill.config import ConfigError, ModelConfig, nearest

VOCAB_SIZE = 32_768  # as the paper counts FLOPs
SEQ_LEN = 4096
HEAD_DIM = 128  # not given in the paper; its printed N, to the digit, allow 64 to 512

# Name (N, rounded) -> n_layers.
PAPER_LADDER: dict[str, int] = {
    **{"103M": 8, "143M": 9, "198M": 10, "266M": 11, "340M": 12, "435M": 13, "546M": 14, "664M": 15, "810M": 16},
    **{"975M": 17, "1.15B": 18, "1.35B": 19, "1.59B": 20, "1.82B": 21, "2.1B": 22, "2.41B": 23, "2.72B": 24},
    **{"3.08B": 25, "3.48B": 26, "3.87B": 27, "4.33B": 28, "4.82B": 29, "5.31B": 30, "5.87B": 31, "6.48B": 32},
    **{"7.07B": 33, "7.75B": 34, "8.47B": 35, "9.17B": 36, "10B": 37, "10.8B": 38, "11.7B": 39, "12.6B": 40},
}


def paper_model(name: str) -> ModelConfig:
    """The model of one rung of the ladder, by the paper's name; bfloat16 activations, every layer rematerialised."""
    if name not in PAPER_LADDER:
        raise ConfigError(
            f"the paper's ladder has no model {name!r}, only {', '.join(PAPER_LADDER)}.{nearest(name, PAPER_LADDER)}"
        )
    layers = PAPER_LADDER[name]
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        d_model=HEAD_DIM * layers,
        n_layers=layers,
        n_heads=layers,
        dtype="bfloat16",
        remat="full",
    )
