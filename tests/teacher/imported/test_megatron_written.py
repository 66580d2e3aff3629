"""What torch makes of other values than those of megatron/1 and megatron/2, written here and then read."""

from pathlib import Path

import numpy as np
import pytest

from distill.errors import SignalError
from distill.teacher.imported import megatron
from distill.teacher.imported.store import import_signals
from tests.teacher.imported.megatron_writer import (
    SIZE,
    meta_of,
    payload,
    pressed,
    samples,
    saved,
    table,
    write,
    write_tar,
)
from tests.teacher.imported.written import K, V, content, wanted

pytestmark = pytest.mark.slow
GOOD = saved(samples(SIZE)[1])  # of the first two samples


@pytest.fixture(autouse=True)
def torch():
    return pytest.importorskip("torch", reason="the extra `parity` is not installed")


def test_entries_outside_of_the_nucleus_are_none(tmp_path):
    tokens, log_probs = samples(16)
    write(tmp_path / "in", 2, log_probs, top_p=0.5)
    import_signals(wanted(str(tmp_path / "in"), samples=table(tmp_path / "s.npy", tokens)), tmp_path / "out")
    ids, found, _, weight = content(tmp_path / "out")
    kept = (found > -100)[weight > 0]
    assert kept[:, 0].all() and not kept.all() and ids[weight > 0][kept].max() < V


@pytest.mark.parametrize("version", [1, 2])
def test_ids_have_seventeen_bits(version, tmp_path):
    vocab = 3 << 15
    tokens, log_probs = samples(8, vocab)
    write(tmp_path / "in", version, log_probs)
    given = Path(table(tmp_path / "s.npy", tokens))
    found = {n: r for file in (tmp_path / "in").iterdir() for n, r in megatron.read(file, given)}
    assert sorted(found) == list(range(8)) and max(record["topk_ids"].max() for record in found.values()) > 1 << 16
    for number, record in found.items():
        np.testing.assert_array_equal(record["topk_ids"], np.argsort(-log_probs[number], axis=-1)[:, :K])
        np.testing.assert_array_equal(record["input_ids"], tokens[number])


@pytest.mark.parametrize("dtype, near", [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_values_of_half_precision(dtype, near, torch, tmp_path):
    value = payload(2, [GOOD])
    value["values"] = value["values"].to(getattr(torch, dtype))
    file = write_tar(tmp_path / "dp0__0-4.tar", [("0-4.pt.zst", pressed(value))], meta_of(2))
    records = dict(megatron.read(file, Path(table(tmp_path / "s.npy", samples(4)[0]))))
    for number in range(SIZE):
        np.testing.assert_allclose(records[number]["topk_logprobs"], GOOD[0][:, number], rtol=near)


class Call:
    def __reduce__(self):
        return Path.touch, (Path("called-by-a-shard"),)


OTHER_FORMS = {
    "a record is a pickle that calls": lambda tensors: {"values": Call()},
    "a record is a pickle that calls.*": lambda tensors: Call(),
    "it is a list": lambda tensors: [1],
    "bit_17": lambda tensors: tensors | {"bit_17": tensors["bit_17"][:3]},
    r"indices_low uint16 \(24, 2, 6\)": lambda tensors: tensors | {"values": tensors["values"][:, :1]},
    "several texts each": lambda tensors: tensors | {"cu_seqlens_padded": tensors["values"][:2, 0, :3].int()},
    "wanted the tensors values, indices_low and bit_17": lambda tensors: {"bit_17": tensors["bit_17"]},
    "it holds 8 samples on all ranks, wanted the 4 of its name": lambda tensors: payload(2, [GOOD, GOOD]),
}


@pytest.mark.parametrize("words", OTHER_FORMS)
def test_members_of_another_form_are_refused(words, tmp_path):
    value = OTHER_FORMS[words](payload(2, [GOOD]))
    file = write_tar(tmp_path / "dp0__0-4.tar", [("0-4.pt.zst", pressed(value))], meta_of(2))
    given = Path(table(tmp_path / "s.npy", samples(8)[0]))
    with pytest.raises(SignalError, match=f"dp0__0-4.tar: 0-4.pt.zst: .*{words}"):
        list(megatron.read(file, given))
    assert not Path("called-by-a-shard").exists()
