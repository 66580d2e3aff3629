"""The forms in which tools write a sequence's signals: a record of a file becomes a `Row`, by the names of its fields.

vllm     prompt_logprobs, as LLM.generate's outputs or a server's responses have them, with prompt_token_ids
sglang   meta_info.input_top_logprobs, with input_token_logprobs
columns  ids of tokens, ids of the likeliest ones, their log-probabilities: axolotl, TRL, MaxText, DistillKit
packed   DistillKit's bytepacked_indices and compressed_logprobs
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.system.files import loads
from distill.teacher.imported.distillkit import Codec
from distill.teacher.imported.rows import BadRow, Entry, Row, of_arrays, of_entries, padded, shifted, whole
from distill.types import LOG_ZERO

Record = Mapping[str, object]
Values = Literal["log_probs", "logits"]
Describes = Literal["next", "token"]

TOKENS = ("input_ids", "prompt_token_ids", "tokens", "token_ids")
# Names of the columns of ids and of values, and what a row of them describes.
_PAIRS: tuple[tuple[str, str, Describes], ...] = (
    ("target_token_ids", "target_logprobs", "next"),
    ("token_ids", "top_values", "next"),
    ("top_k_indices", "top_k_logits", "next"),
    ("top_ids", "top_logprobs", "token"),
    ("topk_ids", "topk_logprobs", "next"),
    ("topk_indices", "topk_logprobs", "next"),
    ("topk_idx", "topk_logits", "next"),
    ("top_token_ids", "top_token_logprobs", "token"),
)
_IGNORED = -100  # the label that Hugging Face's losses skip


class Columns(NamedTuple):
    """The names of three columns: the tokens, the likeliest tokens' ids, and their values."""

    tokens: str
    ids: str
    values: str


class Reading(NamedTuple):
    """What the user says about the files, and DistillKit's codec where its config lies beside them.

    describes: 'token' if row i of a column is about token i, 'next' if it is about token i + 1; '': as the tool does.
    """

    columns: Columns | None = None
    values: Values | None = None
    describes: Describes | None = None
    codec: Codec | None = None
    tokenize: Callable[[str], list[int]] | None = None


def rows_of(record: Record, reading: Reading) -> Iterator[Row]:
    """The sequences of one record. Raises BadRow for a record of no known form."""
    body = record
    response = record.get("response")
    if isinstance(response, Mapping):  # a line of a batch file
        inner = response.get("body")
        body = inner if isinstance(inner, Mapping) else response
    choices = body.get("choices")
    if reading.columns is None and isinstance(choices, Sequence) and choices:
        for choice in choices:
            if not isinstance(choice, Mapping):
                raise BadRow(f"choices hold {type(choice).__name__}, wanted objects")
            yield _row({**body, **choice}, reading)
        return
    yield _row(body, reading)


def _row(record: Record, reading: Reading) -> Row:
    if reading.columns is None:
        if record.get("prompt_logprobs") is not None:
            return _vllm(record, reading)
        if isinstance(record.get("meta_info"), Mapping):
            return _sglang(record)
        if "compressed_logprobs" in record and "bytepacked_indices" in record:
            return _packed(record, reading)
    return _columns(record, reading)


def _vllm(record: Record, reading: Reading) -> Row:
    positions = [_entries(entry) for entry in _list(record["prompt_logprobs"], "prompt_logprobs")]
    ids = _tokens(record, reading, positions)
    kept = [[e for e in entries if not 0 < len(entries) < e.rank] for entries in positions]
    own = [next((e.log_prob for e in entries if e.id == i), np.nan) for i, entries in zip(ids, positions)]
    return of_entries(ids, kept, always_own=True)._replace(own=np.array(own, np.float32))


def _tokens(record: Record, reading: Reading, positions: Sequence[Sequence[Entry]]) -> list[int]:
    for name in (*TOKENS, "prompt"):
        if isinstance(value := record.get(name), Sequence) and not isinstance(value, str):
            return _ints(value, name)
    text = record.get("prompt")
    if not isinstance(text, str) or reading.tokenize is None:
        raise BadRow(
            "there are no prompt_token_ids, wanted the tokens beside prompt_logprobs (vLLM's outputs have them)"
        )
    ids = reading.tokenize(text)
    if len(ids) != len(positions) or any(
        entries and i not in {e.id for e in entries} for i, entries in zip(ids, positions)
    ):
        raise BadRow(
            f"there are no prompt_token_ids, and the prompt is {len(ids)} tokens by --tokenizer, which are not the "
            f"{len(positions)} that the teacher read; write prompt_token_ids into the file"
        )
    return ids


def _entries(position: object) -> list[Entry]:
    """The entries of one position: an object of id: value, a list of pairs, or a list of objects."""
    if position is None:
        return []
    pairs: list[tuple[object, object]] = []
    if isinstance(position, Mapping):
        pairs = [(key, value) for key, value in position.items() if value is not None]
    elif isinstance(position, Sequence) and not isinstance(position, str):
        for item in position:
            if isinstance(item, Mapping):
                name = next((n for n in ("token_id", "id", "token") if n in item), "")
                pairs.append((item.get(name), item))
            elif isinstance(item, Sequence) and len(item) == 2:
                pairs.append((item[0], item[1]))
            else:
                raise BadRow(f"a position holds {item!r:.60}, wanted a token's id with its log-probability")
    else:
        raise BadRow(f"a position holds {position!r:.60}, wanted an object of ids and log-probabilities")
    return [_entry(key, value) for key, value in pairs]


def _entry(key: object, value: object) -> Entry:
    rank, text = 0, ""
    if isinstance(value, Mapping):
        if isinstance(value.get("rank"), int):
            rank = int(str(value["rank"]))
        text = str(value.get("decoded_token") or "")
        value = value.get("logprob", value.get("log_prob"))
    name = str(key).removeprefix("token_id:")
    if not name.isdecimal():
        raise BadRow(
            f"a token is named {key!r:.60}, wanted its id; ask the server for ids (vLLM: prompt_logprobs, or "
            "return_tokens_as_token_ids)"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise BadRow(f"token {name} has the log-probability {value!r:.60}, wanted a number")
    return Entry(int(name), float(value), rank, text)


def _sglang(record: Record) -> Row:
    meta = record["meta_info"]
    assert isinstance(meta, Mapping)
    if meta.get("input_top_logprobs") is None:
        raise BadRow(
            "meta_info has no input_top_logprobs; ask SGLang with return_logprob=true, logprob_start_len=0 and "
            "top_logprobs_num=K"
        )
    top = [_triples(entry) for entry in _list(meta["input_top_logprobs"], "input_top_logprobs")]
    own = [_triple(entry) for entry in _list(meta.get("input_token_logprobs"), "input_token_logprobs")]
    ids = [entry.id for entry in own]
    if len(top) != len(own):
        raise BadRow(f"input_top_logprobs of {len(top)} positions and {len(own)} tokens, wanted as many")
    total = meta.get("prompt_tokens", len(ids))
    if total != len(ids):  # logprob_start_len was not 0
        name = next((n for n in ("input_ids", "prompt_token_ids") if record.get(n) is not None), "")
        if not name:
            raise BadRow(
                f"signals of the last {len(ids)} of {total} tokens, and the others are not told; ask with "
                "logprob_start_len=0, or put input_ids into the record"
            )
        whole = _ints(record[name], name)
        if whole[len(whole) - len(ids) :] != ids:
            raise BadRow(f"{name} do not end in the tokens of input_token_logprobs; wanted the prompt's own")
        top = [[] for _ in range(len(whole) - len(ids))] + top
        own = [Entry(i, np.nan) for i in whole[: len(whole) - len(ids)]] + own
        ids = whole
    return of_entries(ids, top)._replace(own=np.array([e.log_prob for e in own], np.float32))


def _triples(position: object) -> list[Entry]:
    return [] if position is None else [_triple(entry) for entry in _list(position, "input_top_logprobs")]


def _triple(entry: object) -> Entry:
    """SGLang's [log-probability, id, text]; the first token's log-probability is null."""
    if not isinstance(entry, Sequence) or len(entry) < 2 or isinstance(entry[1], bool) or not isinstance(entry[1], int):
        raise BadRow(f"got {entry!r:.60}, wanted SGLang's [log-probability, id, text]")
    value = np.nan if entry[0] is None else entry[0]
    if not isinstance(value, (int, float)):
        raise BadRow(f"token {entry[1]} has the log-probability {value!r:.60}, wanted a number")
    text = entry[2] if len(entry) > 2 and isinstance(entry[2], str) else ""
    return Entry(entry[1], float(value), text=text)


def _packed(record: Record, reading: Reading) -> Row:
    if reading.codec is None:
        raise BadRow("compressed_logprobs need the codec's settings: put compression_config.yaml beside the files")
    values, top_ids = reading.codec.unpack(
        _matrix(record, "compressed_logprobs"), _matrix(record, "bytepacked_indices")
    )
    ids = np.array(_ints(record.get("input_ids"), "input_ids"), np.int64)
    row = _aligned(ids, top_ids, values, reading.describes or "next", reading.values or "log_probs")
    return _masked(row, record)


def _matrix(record: Record, name: str) -> NDArray[np.uint8]:
    try:
        return np.asarray(_list(record[name], name), np.uint8)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow(f"{name} are no bytes of equal length ({error!s:.80})") from None


def _columns(record: Record, reading: Reading) -> Row:
    columns, describes, values = _chosen(record, reading)
    ids = np.array(_ints(record.get(columns.tokens), columns.tokens), np.int64)
    top, given = record.get(columns.ids), record.get(columns.values)
    if isinstance(top, np.ndarray) and isinstance(given, np.ndarray):
        if top.shape != given.shape or top.ndim != 2:
            raise BadRow(
                f"{columns.ids} {top.shape} and {columns.values} {given.shape}, wanted two tables of one shape"
            )
        top_ids, log_probs = top, given
    else:
        lists = [_list(_list(record.get(name), name), name) for name in (columns.ids, columns.values)]
        top_ids, log_probs = padded(*([_listed(row) for row in rows] for rows in lists))
    mask = record.get("target_mask")
    if mask is not None:
        rows = [_listed(r) for r in _list(mask, "target_mask")]
        used = padded(rows, rows)[0]
        if used.shape != top_ids.shape:
            raise BadRow(f"target_mask {used.shape} and {columns.ids} {top_ids.shape}, wanted two tables of one shape")
        top_ids = np.where(used > 0, top_ids, -1)
    return _masked(_aligned(ids, top_ids, log_probs, describes, values), record)


def _masked(row: Row, record: Record) -> Row:
    """The row with what labels and attention_mask leave out of the loss. Raises BadRow for one of another length."""
    trained = row.trained
    for name, left_out in (("labels", _IGNORED), ("attention_mask", 0)):
        if record.get(name) is None:
            continue
        given = np.array(_ints(record[name], name), np.int64)
        if given.shape != row.ids.shape:
            raise BadRow(f"{name} of {len(given)} positions for {len(row.ids)} tokens, wanted one for each token")
        trained = trained & (given != left_out)
    return row._replace(trained=trained)


def _chosen(record: Record, reading: Reading) -> tuple[Columns, Describes, Values]:
    """The columns to read, what their rows describe, and whether they are logits: as given, else by their names."""
    if reading.columns is not None:
        for name in reading.columns:
            if record.get(name) is None:
                raise BadRow(f"there is no column {name!r}, only {', '.join(sorted(record)[:12])}; set --columns")
        return reading.columns, reading.describes or "next", reading.values or "log_probs"
    for ids, values, describes in _PAIRS:
        tokens = next((n for n in TOKENS if n != ids and record.get(n) is not None), "")
        if tokens and record.get(ids) is not None and record.get(values) is not None:
            kind: Values = "logits" if values.endswith("logits") else "log_probs"
            return Columns(tokens, ids, values), reading.describes or describes, reading.values or kind
    raise BadRow(
        f"got the fields {', '.join(sorted(map(str, record))[:12])}, wanted vLLM's prompt_logprobs, SGLang's meta_info,"
        " DistillKit's compressed_logprobs, or tokens with ids and log-probabilities; name the three by "
        "--columns=TOKENS,IDS,LOGPROBS"
    )


def _aligned(
    ids: NDArray[np.int64],
    top_ids: NDArray[np.integer],
    values: NDArray[np.floating],
    describes: Describes,
    kind: Values,
) -> Row:
    """The row of columns that may end or begin one position short of the tokens, for the first has no signal."""
    size = len(ids)
    if len(top_ids) not in (size, size - 1):
        raise BadRow(f"signals of {len(top_ids)} positions for {size} tokens, wanted {size} or {size - 1}")
    short = len(top_ids) == size - 1
    if short and describes == "token":  # they begin with the second token, which is the same as 'next'
        describes = "next"
    end = size - len(top_ids)
    try:
        numbers = whole(top_ids, 2)
    except ValueError as error:
        raise BadRow(f"ids of tokens that are no whole numbers ({error!s:.80})") from None
    top = np.pad(numbers, ((0, end), (0, 0)), constant_values=-1)
    log_probs = np.pad(np.asarray(values, np.float64), ((0, end), (0, 0)), constant_values=LOG_ZERO)
    row = of_arrays(ids, top, log_probs, logits=kind == "logits")
    return shifted(row, 1) if describes == "next" else row


def _list(value: object, name: str) -> list[object]:
    if isinstance(value, str):
        try:
            value = loads(value)
        except ValueError:
            raise BadRow(f"{name} is text that is not JSON") from None
    if isinstance(value, np.ndarray):
        return list(value)
    if not isinstance(value, Sequence):
        raise BadRow(f"{name} is {value!r:.60}, wanted a list")
    return list(value)


def _listed(value: object) -> list:
    return [] if value is None else _list(value, "a position")


def _ints(value: object, name: str) -> list[int]:
    ids = _list(value, name)
    try:
        return whole(np.asarray(ids) if ids else np.zeros(0, np.int64), 1).tolist()
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"{name} is {value!r:.60}, wanted whole numbers") from None
