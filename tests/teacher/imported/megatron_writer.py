"""Megatron-LM's tar shards, written after its source (megatron/training/distillation): torch.save, zstd, tar.

python -m tests.teacher.imported.megatron_writer     # writes megatron/1 and megatron/2 anew, with torch
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from tests.teacher.imported.written import K, V

FILES = Path(__file__).parent / "megatron"
COUNT = 24  # samples of the files
RANKS, SIZE, GLOBAL, LENGTH = 2, 2, 8, 24  # microbatches of 2 samples, two for each rank and iteration
SAVER = {"k": K, "p": None, "min_k": 1, "save_dtype": "fp32"}


def samples(count, vocab=V, seed=0):
    """Tokens [N, S + 1], and the log-probabilities [N, S, V] of a teacher who mostly knows what follows."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab, (count, LENGTH + 1))
    logits = 2 * random.standard_normal((count, LENGTH, vocab))
    np.put_along_axis(logits, tokens[:, 1:, None], np.log(vocab) + 1, axis=2)
    return tokens, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def saved(log_probs, top_p=None):
    """What the saver's hook makes of logits [B, S, V]: values, lower bits, bits 17, each [S, B, K]."""
    ids = np.argsort(-log_probs, axis=-1)[..., :K]
    values = np.take_along_axis(log_probs, ids, axis=-1)
    if top_p is not None:
        mass = np.exp(values)
        outside = np.cumsum(mass, -1) - mass >= top_p
        values, ids = np.where(outside, -1e3, values), np.where(outside, -1, ids)
    ids, values = ids.swapaxes(0, 1), values.swapaxes(0, 1)
    return values.astype(np.float32), (ids & 0xFFFF).astype(np.uint16), ids >> 16 != 0


def payload(version, parts):
    import torch

    values, low, high = ([torch.from_numpy(np.ascontiguousarray(part)) for part in each] for each in zip(*parts))
    if version == 1:
        return {"values": values, "indices_low": low, "bit_17": high}
    packed = torch.from_numpy(np.packbits(torch.cat(high, dim=1).numpy()))
    whole = {"values": torch.cat(values, dim=1), "indices_low": torch.cat(low, dim=1), "bit_17": packed}
    return whole | {"format_version": 2, "cu_seqlens_padded": None}


def write_tar(path, members, meta):
    with tarfile.open(path, "w") as tar:
        for name, value in [("_meta.json", json.dumps(meta).encode()), *members]:
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return path


def pressed(value):
    import torch
    import zstandard

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def meta_of(version):
    return {"hash": "0" * 32, "identifiers": {"seed": 1}, "saver": SAVER | (
        {} if version == 1 else {"format_version": 2, "mbs_save": SIZE, "dp_size_save": RANKS, "gbs_save": GLOBAL}
    )}  # fmt: skip


def order_of(count):
    """The numbers of the samples in the order in which they lie in the shards of a run."""
    ranks = np.arange(count).reshape(count // GLOBAL, GLOBAL // (RANKS * SIZE), RANKS, SIZE)
    return ranks.transpose(2, 0, 1, 3).ravel().tolist()


def write(folder, version, log_probs, top_p=None):
    """The shards of a teacher's run, in `order_of` the samples."""
    folder.mkdir(parents=True)
    iterations = len(log_probs) // GLOBAL
    for rank in range(RANKS):
        members = []
        for i in range(iterations):
            parts = []
            for m in range(GLOBAL // (RANKS * SIZE)):
                first = i * GLOBAL + (m * RANKS + rank) * SIZE
                parts.append(saved(log_probs[first : first + SIZE], top_p))
            name = f"{i}.pt.zst" if version == 1 else f"{i * GLOBAL}-{(i + 1) * GLOBAL}.pt.zst"
            members.append((name, pressed(payload(version, parts))))
        last = f"cp0_dp{rank}__{iterations - 1}" if version == 1 else f"dp{rank}__0-{iterations * GLOBAL}"
        write_tar(folder / f"{last}.tar", members, meta_of(version))


def table(path, tokens):
    np.save(path, tokens.astype(np.int32))
    return str(path)


if __name__ == "__main__":
    for number in (1, 2):
        write(FILES / str(number), number, samples(COUNT)[1])
