"""Megatron-LM's cached logits: tar shards of a teacher's likeliest tokens, without the text that they are about.

`pretrain_gpt.py --logits-save-dir` leaves dpD__START-END.tar, or cpC_dpD__ITERATION.tar in its first version. Inside
are _meta.json (`saver`: k, format_version, mbs_save, dp_size_save, gbs_save) and, for every iteration, a member
NAME.pt.zst: a file of torch.save under zstd with

    values       log-probabilities [S, B, K] (version 1: a list of them, one for each microbatch)
    indices_low  the lower 16 bits of ids, in the same form
    bit_17       the bit above them, in the same form (version 2: as bits, eight to a byte)

Row s is about the token after position s. Microbatch m of rank d in iteration i holds the samples from
i gbs + (m dp + d) mbs on, of the order in which training read them (megatron/training/distillation/utils.py,
LogprobsReshardPlan). The text comes from elsewhere: a table of token ids, a row for each sample in that order.
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.data.sources import storage
from distill.errors import SignalError
from distill.system.files import loads
from distill.teacher.imported import plain_pickle
from distill.teacher.imported.dialects import Record
from distill.teacher.imported.rows import BadRow

SUFFIX = ".tar"
_META, _MEMBER = "_meta.json", ".pt.zst"
_NAME = re.compile(r"(?:cp(\d+)_)?dp(\d+)__(\d+)(?:-(\d+))?\.tar")
_META_BYTES, _PAYLOAD = 1 << 20, 1 << 33  # bytes of the metadata, and of an iteration out of zstd, at most
_ABSENT = -1e3  # what Megatron-LM writes outside of a nucleus
# From so many positions on, all but this share of the samples must fit their signals so much better than the next one.
_PROBED, _WRONG, _BETTER = 64, 0.25, 1.5


class _Plan(NamedTuple):
    """How samples were spread over ranks and microbatches; `size` is that of a microbatch, 0 if the tensors tell it."""

    version: int
    rank: int
    ranks: int
    size: int

    def samples(self, start: int, count: int, size: int) -> NDArray[np.int64]:
        """The numbers of the `count` samples of an iteration on this rank; sample `start` is the first on any rank."""
        microbatch, row = np.divmod(np.arange(count), self.size or size)
        return start + (microbatch * self.ranks + self.rank) * (self.size or size) + row


def read(path: Path, samples: Path | None) -> Iterator[tuple[int, Record]]:
    """The samples of a shard, with their tokens, numbered as in training.

    Raises SignalError for a shard of another form, one that is damaged, and where the table of samples is missing, of
    another length, or in another order.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise SignalError(f"{path}: wanted a shard of Megatron-LM's --logits-save-dir, named dp0__0-1024.tar")
    if name[1] not in (None, "0"):
        raise SignalError(
            f"{path}: a shard of context-parallel rank {name[1]}, which holds parts of sequences; wanted one of a run "
            "with one such rank, or of a later Megatron-LM, whose shards hold whole ones"
        )
    if samples is None:
        raise SignalError(
            f"{path}: Megatron-LM's shards hold no tokens; add --samples=FILE.npy, the token ids [samples, positions] "
            "in the order in which training read them"
        )
    table = _table(samples)
    try:
        with tarfile.open(path, "r:") as tar:
            plan, members = None, 0
            for member in tar:
                if not member.isreg():
                    continue
                if member.name == _META:
                    plan = _plan(path, name, _content(tar, member, _META_BYTES))
                elif member.name.endswith(_MEMBER):
                    if plan is None:
                        raise BadRow(f"there is no {_META} before {member.name}, wanted it first")
                    members += 1
                    yield from _iteration(plan, member, _content(tar, member, _PAYLOAD), table, str(path))
        if not members:
            raise BadRow(f"there is no member *{_MEMBER}; the file may be cut off")
    except BadRow as error:
        raise SignalError(f"{path}: {error}") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SignalError(f"{path}: not a tar file, or damaged ({' '.join(str(error).split()):.200})") from None


def _table(path: Path) -> NDArray[np.int64]:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SignalError(f"--samples={path}: not a file of numpy.save ({' '.join(str(error).split()):.100})") from None
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind not in "iu":
        got = f"{table.dtype} of shape {table.shape}" if isinstance(table, np.ndarray) else "several arrays"
        raise SignalError(f"--samples={path}: got {got}, wanted whole numbers [samples, positions]")
    return table


def _plan(path: Path, name: re.Match[str], content: bytes) -> _Plan:
    """The plan of a shard; in version 1 the number of ranks is known by the shards beside it alone."""
    try:
        meta = loads(content)
    except ValueError as error:
        raise BadRow(f"{_META} is not JSON ({error})") from None
    saver = meta.get("saver") if isinstance(meta, dict) else None
    if not isinstance(saver, dict):
        raise BadRow(f"{_META} has no saver, wanted the settings of Megatron-LM's LogitsSaverHooks")
    version = saver.get("format_version", 1)
    if version not in (1, 2):
        raise BadRow(f"format_version is {version!r:.20}, wanted 1 or 2")
    ranks, size = saver.get("dp_size_save"), saver.get("mbs_save")
    if version == 1:
        beside = (_NAME.fullmatch(file.name) for file in path.parent.glob("*.tar"))
        ranks, size = 1 + max(int(found[2]) for found in beside if found), 0
    if type(ranks) is not int or not int(name[2]) < ranks:
        raise BadRow(f"rank {name[2]} of dp_size_save {ranks!r:.20}, wanted a rank below it")
    if type(size) is not int or size < version - 1:
        raise BadRow(f"mbs_save is {size!r:.20}, wanted the samples of a microbatch")
    return _Plan(version, int(name[2]), ranks, size)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise BadRow(f"{member.name} has {member.size:,} bytes, wanted at most {most:,}")
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise BadRow(f"{member.name} is cut off after {len(content):,} of {member.size:,} bytes")
    return content


def _iteration(
    plan: _Plan, member: tarfile.TarInfo, content: bytes, table: NDArray[np.int64], path: str
) -> Iterator[tuple[int, Record]]:
    try:
        values, ids, size = _signals(plan.version, _torch(content, path))
        length, count = values.shape[:2]
        numbers = plan.samples(_first(plan, member.name, count * plan.ranks), count, size)
        if numbers.max() >= len(table):
            raise BadRow(
                f"it holds sample {numbers.max()}, and --samples has {len(table):,} rows; wanted all samples from the "
                "first on, in the order of training"
            )
        if table.shape[1] not in (length, length + 1):
            raise BadRow(
                f"signals of {length} positions and --samples of {table.shape[1]}, wanted {length} or {length + 1}"
            )
        _check_order(values, ids, table, numbers)
    except BadRow as error:
        raise BadRow(f"{member.name}: {error}") from None
    for row, number in enumerate(numbers.tolist()):
        yield number, {"input_ids": table[number], "topk_ids": ids[:, row], "topk_logprobs": values[:, row]}


def _first(plan: _Plan, member: str, whole: int) -> int:
    """The first sample of an iteration of `whole` samples on all ranks together, by its member's name."""
    name = member.removesuffix(_MEMBER)
    first, _, last = name.partition("-")
    if plan.version == 1 and name.isdecimal():
        return int(name) * whole
    if plan.version == 2 and first.isdecimal() and last.isdecimal():
        if int(last) - int(first) != whole:
            raise BadRow(f"it holds {whole} samples on all ranks, wanted the {int(last) - int(first)} of its name")
        return int(first)
    raise BadRow(f"wanted the name of an iteration in format {plan.version}, as {'7' if plan.version == 1 else '0-64'}")


def _torch(content: bytes, path: str) -> dict[str, object]:
    """The dict that torch.save wrote, under zstd, with its tensors as arrays. Nothing is unpickled."""
    zstandard = storage.optional("zstandard", "zstandard", path)
    try:
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= _PAYLOAD:
            raise BadRow(f"it has {size:,} bytes, wanted at most {_PAYLOAD:,}")
        with zipfile.ZipFile(io.BytesIO(zstandard.ZstdDecompressor().decompress(content))) as archive:
            files = archive.infolist()
            stored = all(file.compress_type == zipfile.ZIP_STORED for file in files)
            if not stored or sum(file.file_size for file in files) > size:
                raise BadRow("its parts are compressed or lie in each other, wanted a file of torch.save")
            inside = {file.filename.partition("/")[2]: archive.read(file) for file in files}
    except BadRow:
        raise
    except (zstandard.ZstdError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadRow(f"not a file of torch.save under zstd ({' '.join(str(error).split()):.100})") from None
    if inside.get("byteorder", b"little") != b"little":
        raise BadRow("it was written on a machine of the other byte order, wanted little")
    tensors = {name.removeprefix("data/"): part for name, part in inside.items() if name.startswith("data/")}
    found = plain_pickle.load(inside.get("data.pkl", b""), tensors)
    if not isinstance(found, dict):
        raise BadRow(f"it is a {type(found).__name__}, wanted the dict of Megatron-LM's LogitsSaverHooks")
    return found


def _signals(version: int, found: dict[str, object]) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Log-probabilities and ids [S, B, K] of all microbatches, and the number of samples in the first tensor."""
    given = [found.get(name) for name in ("values", "indices_low", "bit_17")]
    if version == 1:
        lists = [part if isinstance(part, list) else [] for part in given]
        if not lists[0] or len({len(part) for part in lists}) > 1:
            raise BadRow("wanted lists values, indices_low and bit_17 of equal length, one entry for each microbatch")
        parts = [_one(*part) for part in zip(*lists)]
    else:
        boundaries = found.get("cu_seqlens_padded")
        if isinstance(boundaries, np.ndarray) and boundaries.shape[-1:] != (2,):
            raise BadRow("its samples are several texts each (cu_seqlens_padded), wanted one; not read")
        parts = [_one(*given)]
    most = max(values.shape[2] for values, _ in parts)
    if len({values.shape[:2] for values, _ in parts}) > 1:
        raise BadRow("its microbatches are of different lengths or sizes, wanted one")
    wide = lambda part, fill: np.pad(part, ((0, 0), (0, 0), (0, most - part.shape[2])), constant_values=fill)
    values = np.concatenate([wide(part, _ABSENT) for part, _ in parts], axis=1)
    return values, np.concatenate([wide(part, 0) for _, part in parts], axis=1), parts[0][0].shape[1]


def _one(values: object, low: object, high: object) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities and ids [S, B, K] of one monolith or microbatch."""
    if not (isinstance(values, np.ndarray) and isinstance(low, np.ndarray) and isinstance(high, np.ndarray)):
        raise BadRow("wanted the tensors values, indices_low and bit_17")
    if values.ndim != 3 or low.shape != values.shape or low.dtype.kind not in "iu" or 0 in values.shape:
        raise BadRow(f"values {values.shape} and indices_low {low.dtype} {low.shape}, wanted [S, B, K] and whole ids")
    if high.dtype == np.uint8 and high.size == -(-values.size // 8):  # the last byte is filled up
        high = np.unpackbits(high.ravel(), count=values.size)
    if high.size != values.size:
        raise BadRow(f"bit_17 {high.dtype} {high.shape} and values {values.shape}, wanted a bit for each")
    ids = low.astype(np.int64) + (high.reshape(values.shape).astype(np.int64) << 16)
    return values.astype(np.float32), ids


def _check_order(
    values: NDArray[np.float32], ids: NDArray[np.int64], table: NDArray[np.int64], numbers: NDArray[np.int64]
) -> None:
    """Raises BadRow where many rows fit the tokens of their own sample no better than those of the next one."""
    own, other = (table[rows, 1:].astype(np.int64).T[: len(values)] for rows in (numbers, (numbers + 1) % len(table)))
    differ = own != other
    if differ.sum() < _PROBED:
        return
    near = np.where(differ[..., None], np.exp(values[: len(own)]), 0)
    here, there = (np.where(ids[: len(own)] == wanted[..., None], near, 0).sum((0, 2)) for wanted in (own, other))
    wrong = (here <= _BETTER * there) & differ.any(0)
    if wrong.mean() > _WRONG:
        raise BadRow(
            f"{wrong.sum()} of {len(wrong)} signals fit their row of --samples no better than the next one; wanted the "
            "samples in the order in which training read them: seed, blend, sequence length and number of samples as "
            "in the teacher's run"
        )
