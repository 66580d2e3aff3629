"""The initial scale of every linear map, and with it its rate of learning. Standard library only."""

from distill.config import ModelConfig


def fan_in(config: ModelConfig) -> dict[str, int]:
    """The number of inputs of every linear map, which sets its initial scale (1/sqrt) and its muP learning rate.

    An untied embedding is a table, not a linear map, and is omitted; a tied one counts as the head.
    """
    maps = dict.fromkeys(("query_dhk", "key_dgk", "value_dgk"), config.d_model)
    if config.experts:
        maps |= dict.fromkeys(("router_dx", "expert_gate_xdf", "expert_up_xdf"), config.d_model)
        maps |= {"out_hkd": config.n_heads * config.head_dim, "expert_down_xfd": config.expert_dim}
    else:
        maps |= dict.fromkeys(("gate_df", "up_df"), config.d_model)
        maps |= {"out_hkd": config.n_heads * config.head_dim, "down_fd": config.ff_dim}
    return maps | {"embed_vd" if config.tied else "head_vd": config.d_model}
