"""Which column is which: aliases, several candidates, units, FLOPs in place of N or D."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.config import counts
from distill.laws.fitting import columns as naming
from distill.laws.fitting.rows import notes, rows_of, select

N, D, LOSS = [1e8, 2e8, 4e8], [1e10, 2e10, 4e10], [3.0, 2.8, 2.6]


def inputs(table, form=laws.Supervised):
    rows = rows_of(form, select(form, table))
    return [*rows.inputs, rows.target]


def check(table):
    for got, want in zip(inputs(table), (N, D, LOSS)):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        ("params", "tokens", "loss"),
        ("n_params", "train/tokens", "eval/loss"),
        ("model.params", "training tokens", "val_loss"),
        ("params.n_params", "params.train_tokens", "metrics.eval_loss"),  # MLflow
        ("config.model.num_parameters", "summary.tokens_seen", "summary.val/loss"),  # W&B
        ("Num Params", "Total-Tokens", "Validation Loss"),
        ("params.N", "params.D", "metrics.L"),
    ],
)
def test_exports_are_recognised(names):
    check(laws.from_arrays(**dict(zip(names, (N, D, LOSS)))))


def test_every_alias_in_random_dress():
    """300 seeded names: an alias of N, D and L each, in another case, with other separators, behind a prefix."""
    draw = random.Random(2)

    def dressed(name):
        alias = draw.choice(naming.ALIASES[name][1])
        if naming.is_perplexity(alias):
            alias = "loss"
        alias = "".join(draw.choice(["_", ".", "/", "-", " "]) if c == "_" else c for c in alias)
        alias = draw.choice([alias, alias.upper(), alias.title()])
        return draw.choice(["", *(f"{prefix}." for prefix in naming.PREFIXES)]) + alias

    for _ in range(300):
        names = [dressed(name) for name in "NDL"]
        check(laws.as_table(dict(zip([*names, "note"], (N, D, LOSS, ["a", "b", "c"])))))


def test_no_alias_belongs_to_two_quantities():
    for role, others in (("N", "DLC"), ("D", "LC"), ("L", "C")):
        for other in others:
            assert not set(naming.ALIASES[role][1]) & set(naming.ALIASES[other][1])


def test_a_column_of_layers_named_L_is_no_loss():
    table = laws.as_table({"N": N, "D": D, "L": [4, 8, 12], "loss": LOSS})
    with pytest.raises(laws.LawError, match="L may be the column 'L' and 'loss', and they differ.*--columns=L=loss "):
        inputs(table)
    check(laws.as_table(table, {"L": "loss"}))
    check(laws.as_table({"N": N, "D": D, "L": LOSS, "loss": LOSS}))  # two of one content are one


def test_random_pairs_of_candidates_are_refused_by_both_names():
    """200 seeded tables in which one quantity has two columns that differ."""
    draw = random.Random(3)
    for _ in range(200):
        role = draw.choice("NDL")
        aliases = [a for a in (*naming.ALIASES[role][0], *naming.ALIASES[role][1]) if not naming.is_perplexity(a)]
        one, two = draw.sample(aliases, 2)
        cells = {"N": N, "D": D, "L": LOSS}
        values = cells.pop(role)
        table = laws.as_table(cells | {one: values, two: [value * 1.5 for value in values]})
        with pytest.raises(laws.LawError) as caught:
            inputs(table)
        assert repr(one) in str(caught.value) and repr(two) in str(caught.value)
        check(laws.as_table(table, {role: one}))


def test_all_that_is_missing_is_told_at_once():
    with pytest.raises(laws.LawError) as caught:
        inputs(laws.from_arrays(width=N, steps=D, accuracy=LOSS))
    for name in ("no column for N", "no column for D", "no column for L", "--columns=N=ITS_NAME,D=ITS_NAME,L=ITS_NAME"):
        assert name in str(caught.value)


def test_a_name_with_a_unit_is_offered_with_its_factor():
    for names, unit in ((("params_b", "tokens_b"), "1e9"), (("model size (M)", "tokens (in millions)"), "1e6")):
        with pytest.raises(laws.LawError) as caught:
            inputs(laws.as_table({names[0]: N, names[1]: D, "loss": LOSS}))
        named = ",".join(f"{name}={column}" for name, column in zip("ND", names))
        wanted = f"'{named}'" if " " in named else named
        assert f"Name them: --columns={wanted} --scale=N={unit},D={unit}." in str(caught.value)


def test_a_training_loss_is_no_loss_of_a_law():
    with pytest.raises(laws.LawError, match="'train/loss' looks like a loss on the training text"):
        inputs(laws.as_table({"N": N, "D": D, "train/loss": LOSS}))
    check(laws.as_table({"N": N, "D": D, "train/loss": [2.9, 2.7, 2.5], "eval/loss": LOSS}))


def test_units_by_suffix_and_by_scale():
    check(laws.from_arrays(N=["100M", "0.2B", "400_000_000"], D=["10B", "20b", "4e10"], loss=LOSS))
    check(laws.as_table({"N": [100, 200, 400], "tokens": [10, 20, 40], "loss": LOSS}, scale={"N": 1e6, "D": 1e9}))
    table = laws.as_table({"n": [100, 200, 400], "D": D, "loss": LOSS}, {"N": "n"}, scale={"N": 1e6})
    check(table)
    assert table.matching("n > 1.5e8").tolist() == table.matching("N > 1.5e8").tolist() == [False, True, True]
    with pytest.raises(laws.LawError, match="wanted a positive number"):
        laws.as_table({"N": N}, scale={"N": -1.0})
    with pytest.raises(laws.LawError, match=r"is n in millions or billions.*--scale=N=1e6"):
        inputs(laws.as_table({"n": [100, 200, 400], "D": D, "loss": LOSS}, {"N": "n"}))


def test_losses_in_bits_and_perplexities():
    bits = [loss / np.log(2) for loss in LOSS]
    check(laws.as_table({"N": N, "D": D, "loss": bits}, loss_unit="bits"))
    check(laws.as_table({"N": N, "D": D, "val_ppl": np.exp(LOSS)}, loss_unit="perplexity"))
    check(laws.as_table({"N": N, "D": D, "loss": [1, 2, 3], "ppl": np.exp(LOSS)}, loss_unit="perplexity"))
    check(laws.as_table({"N": N, "D": D, "loss": LOSS, "ppl": np.exp(LOSS)}))
    with pytest.raises(laws.LawError, match="'val_ppl' holds perplexities by its name; add --loss-unit=perplexity"):
        inputs(laws.as_table({"N": N, "D": D, "val_ppl": np.exp(LOSS)}))
    with pytest.raises(laws.LawError, match="Did you mean 'bits'"):
        laws.as_table({"N": N}, loss_unit="bit")
    students = {"N": N, "D": D, "loss": bits, "L_T": [2.5 / np.log(2)] * 3}
    rows = rows_of(laws.Distillation, select(laws.Distillation, laws.as_table(students, loss_unit="bits")))
    np.testing.assert_allclose(rows.inputs[2], 2.5)
    crashed = laws.as_table({"N": N, "D": D, "loss": [3.0, "error", 2.0], "ok": [1, 0, 1]}, loss_unit="bits")
    np.testing.assert_allclose(crashed.where("ok == 1").numbers("loss"), [3 * np.log(2), 2 * np.log(2)])


def test_flops_stand_for_tokens_or_size():
    n, d = np.array(N), np.array(D)
    check(laws.as_table({"N": n, "flops": 6 * n * d, "loss": LOSS}))
    check(laws.as_table({"C": 6 * n * d, "tokens": d, "loss": LOSS}))
    F = 3 * counts.forward_flops_closed(n) * d
    check(laws.as_table({"N": n, "compute": F, "loss": LOSS}, flops="F"))
    check(laws.as_table({"compute": F, "D": d, "loss": LOSS}, flops="F"))
    check(laws.as_table({"N": n, "D": d, "compute": 7 * n, "loss": LOSS}))  # not needed, not read
    table = laws.as_table({"N": n, "flops": 6 * n * d, "loss": LOSS})
    assert "D = C / (6 N) with C = flops" in notes(laws.Supervised, table)[0]
    with pytest.raises(laws.LawError, match=r"no column for N .*no column for D .*FLOPs \(C\) may stand for N or D"):
        inputs(laws.as_table({"flops": 6 * n * d, "loss": LOSS}))


def test_the_report_names_the_columns_and_the_unit():
    table = laws.as_table({"params": N, "my tokens": D, "loss": LOSS}, {"D": "my tokens"})
    first = notes(laws.Supervised, table)[0]
    assert first == (
        "N = params, D = my tokens, L = loss; losses in nats per token (assumed; else --loss-unit=bits or perplexity)"
    )
    stated = laws.as_table({"N": N, "D": D, "L": LOSS}, loss_unit="nats")
    assert notes(laws.Supervised, stated) == ["N, D, L; losses in nats per token (stated as nats)"]


def test_the_guide_lists_every_alias():
    """The table of docs/guide/laws.md, row by row."""
    text = (Path(__file__).parents[2] / "docs" / "guide" / "laws.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| [^|]* (\w+) \| (`[^|]*`) \|$", text, re.MULTILINE))
    for role in ("N", "D", "L", "C", "U"):
        exact, aliases = naming.ALIASES[role]
        assert re.findall(r"`([^`]+)`", rows[role]) == [*exact, *aliases]


def test_a_swept_budget_beside_the_tokens_of_our_own_rows():
    """sweep.csv has `tokens`, as asked for, and D, as trained; they are not two candidates for one column."""
    root = Path(__file__).parents[2] / "docs" / "study" / "rates" / "supervised"
    table = laws.load_table(root / "sweep.csv")
    assert (table["tokens"] != table["D"]).any() and "D; losses" in notes(laws.Supervised, table)[0].replace(
        ", L = loss", ""
    )
    foreign = laws.as_table({name: table[name] for name in ("N", "D", "tokens", "loss")})
    with pytest.raises(laws.LawError, match="D may be the column"):
        inputs(foreign)
