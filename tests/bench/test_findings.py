"""The findings: made runs whose answer is known, and that the page says what the tables say."""

from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.bench import findings
from distill.bench.findings import cells, chains, entropy, lambdas, repeats, signals, sizes, tuned
from distill.config import ConfigError
from distill.data.sources import language

PAGE = Path(__file__).parents[2] / "docs" / "results" / "findings.md"
LAW = laws.paper()[1]


def test_cells_compare_runs_of_one_seed():
    table = laws.as_table(
        {"N": [1, 1, 1, 1], "kind": ["a", "a", "b", "b"], "seed": [0, 1, 1, 0], "loss": [2, 4, 4.5, 2.5]}
    )
    both = cells.Cells.of(table, ("N", "kind"))
    a, b = both[1.0, "a"], both[1.0, "b"]
    assert cells.difference(b, a) == pytest.approx(0.5) and cells.spread([(a, b)]) == 0.0
    assert both.noise == pytest.approx(np.std([2, 4], ddof=1)) and both.mean((1.0, "b")) == 3.5
    assert [cells.count(value) for value in (6800, 249_856, 999_936, 1.41e6, 8e9, 12)] == [
        "6.8K", "250K", "1M", "1.41M", "8B", "12",
    ]  # fmt: skip


def test_a_planted_reading_of_a_signal_is_found():
    N, D, L_T = (np.array(each) for each in ([1e8, 1e8, 1e9, 1e9], [1e10, 1e11, 1e10, 1e11], [2.1, 2.3, 2.2, 2.0]))
    readings = dict(signals._readings(LAW, (N, D, L_T)))
    for name, number in (("offset, nats", 0.05), ("factor on D_S", 0.4), ("another L_T, nats", 0.1)):
        cost = readings[name](number)
        errors = {
            other: np.mean([abs(signals._left_out(predict, cost, at)) for at in range(4)])
            for other, predict in readings.items()
        }
        assert min(errors, key=errors.get) == name and errors[name] < 1e-4
        assert signals._fitted(readings[name], cost, np.ones(4, bool)) == pytest.approx(number, abs=1e-3)


def test_a_planted_effect_of_the_teachers_size_is_found():
    generator = np.random.default_rng(0)
    L_T, N_T, seed = np.repeat([1.9, 1.8, 1.7], 6), np.tile([1e4, 1e4, 4e4, 4e4, 16e4, 16e4], 3), np.tile([0, 1], 9)
    L_T = L_T + 0.01 * generator.standard_normal(18)
    for exponent in (0.0, -0.01):
        loss = 1.1 * L_T**0.8 * N_T**exponent * np.exp(0.003 * seed)
        table = laws.as_table({"L_T": L_T, "N_T": N_T, "seed": seed, "loss": loss})
        assert sizes._effect(table, np.ones(18)) == pytest.approx(16**exponent - 1, abs=1e-9)


def test_losses_are_read_back_into_fresh_tokens():
    law = laws.Chinchilla(A=400.0, B=2000.0, E=1.7, alpha=0.34, beta=0.37)
    assert repeats._tokens(law, 1e8, float(law(1e8, 3e9))) == pytest.approx(3e9, rel=1e-6)
    assert repeats._tokens(law, 1e8, 1.0) == float("inf")


def test_generations_count_the_teachers_before_a_run():
    table = laws.as_table({"run": ["a", "b", "c"], "teacher": ["", "a", "b"], "L": [3.0, 2.0, 1.0]})
    assert chains._generations(table) == [0, 1, 2]


def test_the_floor_of_a_language():
    spoken = entropy.Spoken.of(language.markov(symbols=8, depth=1, concentration=0.3, seed=0))
    assert entropy.floor(spoken, 8) == pytest.approx(spoken.entropy, abs=2e-3)  # the full rank, but for the norm
    narrow = [entropy.floor(spoken, width) - spoken.entropy for width in (1, 2, 4)]
    assert narrow[0] > narrow[1] > narrow[2] > 1e-3


def test_the_best_of_a_cell():
    table = laws.as_table({
        "N": [1e3] * 4, "D": [1e4] * 4, "N_T": [1e3] * 4, "D_T": [1e4] * 4,
        "lambda": [0.5, 0.5, 1.0, 1.0], "seed": [0, 1, 0, 1], "loss": [2.0, 2.2, 1.9, 2.5],
    })  # fmt: skip
    assert lambdas._best(table).tolist() == [True, True, False, False]
    swept = laws.as_table({"N": [1e3] * 3, "budget": [1e4, 1e4, 2e4], "loss": [2.0, 1.9, 1.8]})
    assert tuned._best(swept)["loss"].tolist() == [1.9, 1.8]


def test_a_rule_is_judged_on_cells_that_it_did_not_learn_from():
    """Large students want the opposite of small ones: a rule learned without them pays the whole difference."""
    rows = []
    for N, D_T, lambda_, loss in [
        (1e3, 1e6, 0.25, 2.0), (1e3, 1e6, 0.5, 2.1), (1e3, 1e6, 0.75, 2.2), (1e3, 1e6, 1.0, 2.3),
        (2e5, 1e6, 0.25, 2.3), (2e5, 1e6, 0.5, 2.2), (2e5, 1e6, 0.75, 2.1), (2e5, 1e6, 1.0, 2.0),
    ]:  # fmt: skip
        taught = {"kind": "distillation", "split": "student", "N_T": 5e3, "D_T": D_T, "L_T": 1.9, "lambda": lambda_}
        rows.append({"N": N, "D": 1e5, "seed": 0, "loss": loss} | taught)
    alone = {"kind": "supervised", "split": "student", "N_T": None, "D_T": None, "L_T": None, "lambda": None}
    rows += [{"N": N, "D": 1e5, "seed": 0, "loss": 2.4} | alone for N in (1e3, 2e5)]
    table = laws.as_table({name: [row[name] for row in rows] for name in rows[0]})
    paid, each = lambdas._Costs.of(table).left_out((0.5, 1.0))["the largest students"]
    assert paid == pytest.approx(0.3) and each == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


def test_sections_go_between_their_marks(tmp_path):
    text = "a\n<!-- finding: x -->\nold\n<!-- end of x -->\nb"
    assert findings.replaced(text, "x", "new") == "a\n<!-- finding: x -->\nnew\n<!-- end of x -->\nb"
    with pytest.raises(ConfigError, match="no section between"):
        findings.replaced(text, "y", "new")
    with pytest.raises(ConfigError, match="Did you mean 'signals'"):
        findings.main(["--part=signal"])


@pytest.mark.parametrize(
    "part", ["chains", "ensembles", "predicted", "published", "repeats", "signals", "tokenizers", "tuned"]
)
def test_the_page_says_what_the_tables_say(part):
    """Word for word where nothing is fitted; the fits' tables are written by the same command, on any machine alike."""
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(f"<!-- finding: {part} -->\n")[2].partition(f"\n<!-- end of {part} -->")[0]
    assert shown and shown.split("\n\n")[0] == findings.section(part).split("\n\n")[0]
