"""The planner against the paper's numbers, SciPy, brute force, and impossible requests."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from distill import laws
from distill.bench.findings import lambdas
from distill.bench.plan import slsqp
from distill.config import counts
from distill.laws.planning import weights
from distill.laws.planning.crossover import crossover_stack
from distill.laws.planning.lawfile import StoredLaws
from distill.laws.planning.scenarios import (
    SCENARIOS,
    Flops,
    PlanError,
    Prices,
    Teacher,
    bill,
    effective_tokens,
    signal_bytes,
)

SUPERVISED, DISTILLATION = laws.paper()
FLOPS = Flops.closed()


def plan(**asked):
    return laws.plan(SUPERVISED, DISTILLATION, **asked)


def draws(scale=0.003, count=60, seed=0):
    random = np.random.default_rng(seed)
    return StoredLaws(
        kept=jax.tree_util.tree_map(lambda v: v * np.exp(scale * random.normal(size=count)), DISTILLATION)
    )


class TestCalculatedValues:
    """Every [calc] value of the paper's notes that a law alone gives, to its printed digits."""

    @pytest.mark.parametrize("N, D, L", [(1e9, 2e10, 2.374692), (1e8, 1e9, 3.139078)])
    def test_supervised(self, N, D, L):
        assert round(float(SUPERVISED(N, D)), 6) == L

    @pytest.mark.parametrize(
        "N_S, D_S, L_T, L_S",
        [
            (546e6, 1.092e10, float(SUPERVISED(1.82e9, 3.64e10)), 2.423819),
            (1e9, 2e10, 2.0, 2.276811),
            (198e6, 3.96e9, 2.0, 2.543370),
        ],
    )
    def test_distillation(self, N_S, D_S, L_T, L_S):
        assert round(float(DISTILLATION(N_S, D_S, L_T)), 6) == L_S

    @pytest.mark.parametrize(
        "ratio, gate", [(0.6, "0.992"), (0.8, "0.829"), (0.9, "0.501"), (1.0, "0.112"), (1.1, "0.0023")]
    )
    def test_gate(self, ratio, gate):
        own = float(SUPERVISED(1e9, 2e10))
        L_T = ratio * own
        size = (
            DISTILLATION.A / 1e9**DISTILLATION.alpha + DISTILLATION.B / 2e10**DISTILLATION.beta
        ) ** DISTILLATION.gamma
        found = (float(DISTILLATION(1e9, 2e10, L_T)) - L_T) / (L_T**-DISTILLATION.c0 * size)
        assert f"{found:.{len(gate) - 2}f}" == gate

    def test_flops_of_appendix_h(self):
        assert f"{FLOPS.context:.3f}" == "155.061" and f"{FLOPS.vocabulary:.1f}" == "72131.7"
        assert f"{FLOPS(1e9):.5e}" == "2.45439e+09"
        sizes = np.geomspace(1e6, 1e12, 13)
        np.testing.assert_allclose(FLOPS(sizes), counts.forward_flops_closed(sizes), rtol=1e-12)

    def test_supervised_optimum(self):
        found = laws.supervised_optimum(SUPERVISED, 1e20, flops=FLOPS)
        assert f"{float(found['N']):.2e}" == "9.32e+08"
        peer = minimize_scalar(
            lambda n: float(SUPERVISED(np.exp(n), 1e20 / (3 * FLOPS(np.exp(n))))), bounds=(15, 25), method="bounded"
        )
        assert float(found["L"]) <= peer.fun + 1e-9

    def test_crossover_of_the_546m_pair(self):
        L_T = float(SUPERVISED(546e6, 20 * 546e6))
        assert f"{float(laws.crossover_tokens(SUPERVISED, DISTILLATION, 546e6, L_T)):.2e}" == "8.05e+09"

    def test_losses_at_1e22(self):
        best = plan(N_S=1e9, compute=1e22)
        paid = plan(N_S=1e9, compute=1e22, scenario="teacher_inference")
        assert f"{best.supervised.L:.4f}" == "2.1348" and f"{best.L_S:.4f}" == "2.1310"
        assert f"{paid.L_S:.4f}" == "2.1395" and f"{paid.N_T:.2e}" == "1.68e+09"

    def test_infinite_data_agreement(self):
        """min over L_T of L_S(N, inf) is within -0.8% to +0.5% of L(N, inf)."""
        sizes = np.array([1e8, 3e8, 1e9, 3e9, 1e10, 3e10])
        alone = np.asarray(SUPERVISED(sizes, 1e30))
        L_T = np.linspace(1.3, 3.0, 4001)[:, None]
        taught = np.asarray(DISTILLATION(sizes, 1e30, L_T)).min(axis=0)
        assert (taught / alone - 1).min() > -0.0085 and (taught / alone - 1).max() < 0.0055


class TestSearch:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_never_worse_than_slsqp(self, name):
        random = np.random.default_rng(len(name))
        for _ in range(2):
            N_S, compute = 10 ** random.uniform(8.3, 10.7), 10 ** random.uniform(20, 26)
            ours = laws.allocate(SUPERVISED, DISTILLATION, N_S, compute, SCENARIOS[name], flops=FLOPS)
            theirs = slsqp(SUPERVISED, DISTILLATION, N_S, compute, SCENARIOS[name], FLOPS, 50, seed=1)
            assert float(ours.L_S) <= theirs + 1e-6

    @pytest.mark.slow
    def test_never_worse_than_slsqp_on_a_grid(self):
        random = np.random.default_rng(7)
        for name in SCENARIOS:
            for N_S in (3e8, 3e9, 5e10):
                for compute in (1e20, 1e22, 1e24, 1e26):
                    ours = laws.allocate(SUPERVISED, DISTILLATION, N_S, compute, SCENARIOS[name], flops=FLOPS)
                    seed = int(random.integers(2**31))
                    theirs = slsqp(SUPERVISED, DISTILLATION, N_S, compute, SCENARIOS[name], FLOPS, 50, seed)
                    assert float(ours.L_S) <= theirs + 1e-6, (name, N_S, compute)

    @pytest.mark.parametrize("name", ["teacher_pretraining", "pretraining_and_inference"])
    def test_never_worse_than_a_fine_grid(self, name):
        N_S, compute, scenario = 3e9, 3e22, SCENARIOS[name]
        N_T, share = np.geomspace(1e8, 1e12, 600)[:, None], 1 / (1 + np.exp(-np.linspace(-8, 8, 600)))[None, :]
        D_T = share * compute / (3 * FLOPS(N_T))
        D_S = (1 - share) * compute / (3 * FLOPS(N_S) + scenario.logits * FLOPS(N_T))
        losses = np.asarray(DISTILLATION(N_S, D_S, SUPERVISED(N_T, D_T)))
        ours = laws.allocate(SUPERVISED, DISTILLATION, N_S, compute, scenario, flops=FLOPS)
        assert losses.min() - 1e-5 < float(ours.L_S) <= losses.min()

    @pytest.mark.parametrize("name", SCENARIOS)
    def test_the_split_spends_the_budget(self, name):
        best = plan(N_S=2e9, compute=3e21, scenario=name)
        assert (
            bill(SCENARIOS[name], FLOPS, 2e9, best.D_S, best.N_T, best.D_T).total
            == pytest.approx(3e21, rel=1e-9)
            == pytest.approx(best.bill.total, rel=1e-9)
        )
        assert float(SUPERVISED(best.N_T, best.D_T)) == pytest.approx(best.L_T, rel=1e-9)

    def test_cheaper_scenarios_are_never_worse(self):
        losses = [plan(N_S=1e9, compute=1e21, scenario=name).L_S for name in SCENARIOS]
        assert losses[0] < min(losses[1:3]) and max(losses[1:3]) < losses[3]

    def test_cheapest_teacher_lies_on_the_compute_optimal_path(self):
        N_T, D_T = laws.cheapest_teacher(SUPERVISED, 2.0, 1e11, SCENARIOS["best_case"], flops=FLOPS)
        optimum = laws.supervised_optimum(SUPERVISED, 3 * FLOPS(N_T) * D_T, flops=FLOPS)
        assert float(optimum["N"]) == pytest.approx(float(N_T), rel=1e-6)
        assert float(optimum["L"]) == pytest.approx(2.0, abs=1e-9)

    def test_target_loss_inverts_compute(self):
        there = plan(N_S=1e9, compute=1e21, scenario="pretraining_and_inference")
        back = plan(N_S=1e9, loss=there.L_S, scenario="pretraining_and_inference")
        assert back.bill.total == pytest.approx(1e21, rel=1e-6)

    def test_size_is_chosen_within_the_range(self):
        paying = {"compute": 1e22, "scenario": "pretraining_and_inference"}
        chosen = plan(N_S=(1e8, 1e11), **paying)
        around = [plan(N_S=chosen.N_S * f, **paying).L_S for f in (0.9, 1.1)]
        assert 1e8 < chosen.N_S < 1e11 and min(around) > chosen.L_S

    def test_a_free_teacher_makes_students_grow_to_the_bound(self):
        found = plan(N_S=(1e8, 1e11), compute=1e22)
        assert any("N_S is at the end of its range" in w for w in found.warnings)

    def test_serving_asks_for_a_smaller_student(self):
        paying = {"N_S": (1e8, 1e11), "compute": 1e22, "scenario": "teacher_inference"}
        free, served = plan(**paying), plan(**paying, served=1e12)
        assert served.N_S < free.N_S and served.bill.serving == pytest.approx(float(FLOPS(served.N_S)) * 1e12)
        assert served.bill.total == pytest.approx(1e22, rel=1e-9)

    def test_a_form_of_ones_own(self):
        def own(N, D):
            return 1.5 + 400.0 * N**-0.34 + 410.0 * D**-0.28

        def taught(N_S, D_S, L_T):
            return own(N_S, D_S) * 0.9 + 0.2 * (L_T - 1.2) ** 2

        found = laws.plan(own, taught, N_S=1e9, compute=1e21, flops=lambda N: 2 * N, bounds=laws.Bounds())
        assert pytest.approx(1e21 / 6e9) == found.D_S
        assert pytest.approx(float(taught(1e9, found.D_S, found.L_T)), rel=1e-9) == found.L_S
        assert pytest.approx(float(own(1e17, 1e17)), rel=1e-3) == found.L_T

    def test_process_config_is_unchanged(self):
        plan(N_S=1e9, compute=1e21)
        assert not jax.config.jax_enable_x64


class TestBeyondThePaper:
    def test_sharing_a_teacher_interpolates_the_scenarios(self):
        def loss(**more):
            return plan(N_S=1e9, compute=1e21, scenario="pretraining_and_inference", **more).L_S

        inference = plan(N_S=1e9, compute=1e21, scenario="teacher_inference").L_S
        assert loss() > loss(students=4) > loss(students=4, store=True) > plan(N_S=1e9, compute=1e21).L_S
        assert loss(students=10**6) == pytest.approx(inference, abs=2e-3)

    def test_zoo_takes_the_best_teacher(self):
        zoo = (Teacher(name="weak", N=1e9, L=2.3), Teacher(name="strong", N=3e9, L=2.1))
        chosen = plan(N_S=546e6, compute=1e21, scenario="teacher_inference", teachers=zoo)
        D_S = {t.name: 1e21 / (3 * FLOPS(546e6) + FLOPS(t.N)) for t in zoo}
        losses = {t.name: float(DISTILLATION(546e6, D_S[t.name], t.L)) for t in zoo}
        assert chosen.teacher == min(losses, key=losses.get) and pytest.approx(min(losses.values())) == chosen.L_S

    def test_repeated_tokens_are_worth_less(self):
        assert plan(N_S=1e9, compute=1e22, unique=1e10).L_S > plan(N_S=1e9, compute=1e22).L_S + 0.01
        assert float(effective_tokens(4e9, 1e9)) == pytest.approx(3.72e9, rel=0.01)  # "four epochs are nearly fresh"
        assert float(effective_tokens(5e8, 1e9)) == 5e8

    def test_prices(self):
        prices = Prices(peak_flops=1e15, mfu=0.5, hourly=3.0, accelerators=10)
        assert prices.hours(1.8e21) == pytest.approx(1000) and prices.money(1.8e21) == pytest.approx(3000)
        assert prices.days(1.8e21) == pytest.approx(1000 / 240) and laws.petaflops_days(8.64e19) == 1.0
        assert signal_bytes(1e9) == 48e9

    def test_flops_through_a_studys_models(self):
        sizes = np.geomspace(1e4, 1e6, 6)
        true = Flops(20.0, 60.0)
        assert dataclasses.astuple(Flops.through(sizes, true(sizes))) == pytest.approx((20.0, 60.0))


class TestUncertainty:
    def test_intervals_hold_the_plan(self):
        found = plan(N_S=1e9, compute=1e22, scenario="teacher_inference", boot=draws())
        for name in ("L_S", "N_T", "D_S", "L_T", "crossover_compute"):
            low, high = found.interval[name]
            assert low < getattr(found, name) < high
        assert 0 < found.probability < 0.5 and "probability" in found.sentence()

    def test_a_chosen_size_is_chosen_again_under_every_law(self):
        boot = draws(scale=0.02, count=3)
        asked = {"N_S": (1e8, 3e10), "compute": 1e21, "scenario": "pretraining_and_inference"}
        singles = []
        for r in range(3):
            law = jax.tree_util.tree_map(lambda leaf, r=r: float(leaf[r]), boot.kept)
            singles.append(laws.plan(law.supervised, law, **asked).N_S)
        found = plan(boot=boot, **asked).interval["N_S"]
        np.testing.assert_allclose(found, np.percentile(singles, [5, 95]), rtol=0.03)
        assert found[1] > 1.05 * found[0]

    def test_no_doubt_gives_no_width(self):
        found = plan(N_S=1e9, tokens=1e11, boot=draws(scale=0.0, count=3))
        low, high = found.interval["L_S"]
        assert low == pytest.approx(found.L_S, abs=1e-12) == pytest.approx(high, abs=1e-12)
        assert found.probability == 1.0

    def test_stacked_crossovers_agree_with_single_ones(self):
        stack = draws(count=3).kept
        near = laws.crossover_compute(SUPERVISED, DISTILLATION, 1e9, SCENARIOS["teacher_inference"], flops=FLOPS)
        found = crossover_stack(stack.supervised, stack, 1e9, SCENARIOS["teacher_inference"], near, flops=FLOPS)
        for r in range(3):
            law = jax.tree_util.tree_map(lambda leaf, r=r: float(leaf[r]), stack)
            single = laws.crossover_compute(law.supervised, law, 1e9, SCENARIOS["teacher_inference"], flops=FLOPS)
            assert found[r] == pytest.approx(single, rel=0.1)


class TestWarnings:
    def test_extrapolation(self):
        found = plan(N_S=1e9, compute=1e22, region=laws.PAPER_REGION)
        assert any("D_S = 1.36T is 2.65 times the largest fitted" in w for w in found.warnings)
        assert "Warning" in found.sentence()
        assert not plan(N_S=1e9, tokens=1e11, region=laws.PAPER_REGION).warnings

    def test_a_table_of_students_says_nothing_of_teachers(self):
        region = laws.Region(N_S=(1e8, 1e10), D_S=(1e9, 1e12), L_T=(1.9, 2.8))
        assert not region.beyond({"N_T": 1e12, "D_T": 1e15, "N_S": 1e9})
        assert region.teachers == region.N_S

    def test_free_teacher_tokens_stand_at_their_bound(self):
        warnings = plan(N_S=1e9, compute=1e21, scenario="teacher_inference").warnings
        assert any("D_T is at the search bound" in warning for warning in warnings)

    def test_a_teacher_worse_than_its_student(self):
        zoo = (Teacher(name="bad", N=1e9, L=3.5),)
        found = plan(N_S=1e9, compute=1e21, teachers=zoo)
        assert not found.distil and any("worse than the student alone" in w for w in found.warnings)

    @pytest.mark.parametrize(
        "asked, words",
        [
            ({}, "got none; wanted exactly one of compute, tokens, loss"),
            ({"compute": 1e20, "loss": 2.0}, "got compute and loss"),
            ({"compute": 1e3}, "buys 1.4e-07 tokens"),
            ({"compute": -1.0}, "wanted a positive number"),
            ({"loss": 1.3}, "reaches 2.0883 at best"),
            ({"tokens": 0.5}, "at least one token"),
            ({"compute": 1e21, "scenario": "best_cas"}, "Did you mean 'best_case'"),
            ({"compute": 1e21, "served": 1e15}, "serving"),
            ({"compute": 1e21, "students": 0}, "students"),
            (
                {"compute": 1e21, "scenario": "teacher_pretraining", "teachers": (Teacher(name="t", N=1e9, L=2.0),)},
                "best_case or teacher_inference",
            ),
        ],
    )
    def test_impossible_requests(self, asked, words):
        with pytest.raises(PlanError, match="(?s)" + words.replace("(", r"\(")):
            plan(N_S=1e9, **asked)


def test_a_plan_says_which_lambda_suits_its_teacher():
    """The rule is the one that docs/results/findings.md learns from the table of the study."""
    table = laws.load_table("lambda")
    lines = lambdas.rule(table).splitlines()
    for (low, high), lambda_ in zip(((0.9, 0.95), (0.95, 1.0), (1.0, 1.06)), (0.75, 0.5, 0.25)):
        assert weights.advised((low + high) / 2, 1.0) == lambda_
        row = next(line for line in lines if line.startswith(f"| {low:g} to {high:g} |"))
        assert row.endswith(f"| {lambda_:g} |")
    assert (weights.advised(0.7, 1.0), weights.advised(1.2, 1.0)) == (1.0, 0.0)
    weak = laws.plan(SUPERVISED, DISTILLATION, N_S=1e9, tokens=1e11, teachers=[laws.Teacher(name="t", N=1e9, L=2.35)])
    assert "lambda to try" in laws.describe(weak) and weights.advised(2.35, float(SUPERVISED(1e9, 1e11))) == 0.25
    assert " 0.25  by our micro study: L_T is 1.05 of the student's loss alone" in laws.describe(weak)
