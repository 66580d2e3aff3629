"""What XLA's GPU compiler has to know of a GPU that is not there, as the text of its GpuTargetConfigProto.

Figures are NVIDIA's of the SXM modules, as XLA lists them (xla/backends/gpu/target_config/specs). Only the fields that
XLA has known since jax 0.10. Standard library only.
"""

import dataclasses

from distill.config.chips import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One GPU: its name as JAX prints it, compute capability, cores (SMs), GHz, and sizes in bytes."""

    device: str
    capability: int
    cores: int
    clock: float
    memory: int
    bandwidth: int  # a second
    l2: int
    shared: int = 233472  # of a core
    fpus: int = 128  # of a core


TARGETS = {
    "a100": Target(device="NVIDIA A100-SXM4-80GB", capability=8, cores=108, clock=1.41, memory=85_100_068_864,
                   bandwidth=2_039_040_000_000, l2=41_943_040, shared=167_936, fpus=64),
    "h100": Target(device="NVIDIA H100 80GB HBM3", capability=9, cores=132, clock=1.98, memory=84_942_979_072,
                   bandwidth=3_352_320_000_000, l2=52_428_800),
    "h200": Target(device="NVIDIA H200 141GB HBM3e", capability=9, cores=132, clock=1.98, memory=151_397_597_184,
                   bandwidth=4_800_000_000_000, l2=52_428_800),
    "b200": Target(device="NVIDIA B200", capability=10, cores=148, clock=1.965, memory=191_514_411_008,
                   bandwidth=7_672_320_000_000, l2=132_644_864),
}  # fmt: skip


def text(chip: Chip) -> str:
    """The target's description for `jax.experimental.topologies.get_topology_desc(target_config=...)`."""
    t = TARGETS[chip.name]
    extension = "ACCELERATED_FEATURES" if t.capability >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {t.shared} shared_memory_per_block_optin: {t.shared - 1024}
  core_count: {t.cores} fpus_per_core: {t.fpus} clock_rate_ghz: {t.clock}
  memory_bandwidth: {t.bandwidth} l2_cache_size: {t.l2} device_memory_size: {t.memory}
  cuda_compute_capability {{ major: {t.capability} feature_extension: {extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{t.device}"
"""
