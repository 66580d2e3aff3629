"""The planner from the command line: what it prints, files of laws, and mistakes in one line."""

import dataclasses
import json

import numpy as np
import pytest

from distill import laws
from distill.laws.planning import recipe
from distill.laws.planning.pretraining import pretraining
from tests.laws.test_plan import DISTILLATION, FLOPS, SUPERVISED, draws


class TestCommand:
    def run(self, capsys, *argv):
        from launch.plan import main
        from launch.support import cli

        code = cli.guard(main, list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_prints_a_plan(self, capsys):
        code, out, _ = self.run(capsys, "--N_S=1e9", "--compute=1e22", "--scenario=teacher_inference")
        assert code == 0 and out.startswith("Pretrain: supervised training of a 1B model")
        assert "student loss L_S" in out and "petaFLOP/s-days" in out

    def test_prints_json(self, capsys):
        code, out, _ = self.run(capsys, "--N_S=1e9", "--tokens=1e11", "--json")
        tree = json.loads(out)
        assert code == 0 and tree["distil"] is True and f"{tree['L_S']:.3f}" == "2.204"

    def test_one_line_for_a_mistake(self, capsys, tmp_path):
        damaged = tmp_path / "law.json"
        damaged.write_text('{"form": "distillation"')
        other = tmp_path / "supervised.json"
        laws.PowerLaw(A=400.0, E=1.8, alpha=0.33).save(other)
        torn = tmp_path / "torn.json"
        DISTILLATION.save(torn, draws={"A": [1.0, 2.0]})
        for argv in (
            ["--compute=1e20"],
            ["--N_S=1e9", "--compute=1e20", f"--law={torn}"],
            ["--N_S=big", "--compute=1e20"],
            ["--N_S=1e9", "--compute=1e20", "--teachers=x"],
            ["--N_S=1e9", "--compute=1e20", f"--law={damaged}"],
            ["--N_S=1e9", "--compute=1e20", f"--law={other}"],
            ["--N_S=1e9", "--compute=1e20", f"--law={tmp_path / 'none.json'}"],
        ):
            code, out, err = self.run(capsys, *argv)
            assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1

    def test_numbers_as_people_write_them(self, capsys):
        plain = self.run(capsys, "--N_S=546e6", "--compute=1e21", "--teachers=7B:7e9:2.0", "--json")[1]
        people = self.run(capsys, "--N_S=546M", "--compute=1_000e18", "--teachers=7B:7B:2.0", "--json")[1]
        assert json.loads(plain) == json.loads(people)

    def test_hours_money_and_days_are_one_compute(self, capsys):
        asked = ["--N_S=1B", "--chip=v5p", "--mfu=0.5", "--json"]
        hours = 20000 / 4.2  # the list price of a v5p
        compute = hours * 3600 * 459e12 * 0.5
        same = (f"--compute={compute}", f"--gpu-hours={hours}", "--dollars=20000", f"--days={hours / 24 / 64}")
        found = [json.loads(self.run(capsys, *asked, flag)[1]) for flag in same]
        for tree in found:
            assert tree["L_S"] == pytest.approx(found[0]["L_S"], rel=1e-9)
            assert tree["cost"]["money"] == pytest.approx(20000) and tree["cost"]["currency"] == "USD"
        assert "budget" not in found[0] and found[2]["budget"].startswith(
            "budget: 20,000 USD = 4,762 accelerator-hours"
        )

    def test_the_text_states_chip_mfu_price_and_currency(self, capsys):
        out = self.run(capsys, "--N_S=1B", "--dollars=9000", "--chip=a100", "--hourly=1.5", "--currency=EUR")[1]
        assert out.startswith("budget: 9,000 EUR = 6,000 accelerator-hours = 2.7e+21 FLOPs (a100, 312 TFLOP/s peak")
        assert "MFU 40% assumed; 1.5 EUR an accelerator-hour (as given)" in out and "9,000 EUR" in out.splitlines()[-2]
        out = self.run(capsys, "--N_S=1B", "--gpu-hours=100", "--chip=v4")[1]
        assert "price unknown (no list price known, give --hourly)" in out and "at an unknown price" in out

    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--dollars=100", "--chip=v4"], "no list price of v4; give what an accelerator-hour costs"),
            (["--dollars=100", "--days=3"], "got --dollars and --days; wanted one"),
            (["--gpu-hours=100", "--compute=1e21"], "wanted exactly one of --compute, --tokens, --loss, --gpu-hours"),
            (["--gpu-hours=-5"], "--gpu-hours=-5: wanted a positive number"),
            (["--gpu-hours=5", "--chip=h10"], "Did you mean 'h100'"),
            (["--gpu-hours=5", "--mfu=40"], "wanted a share of the peak"),
        ],
    )
    def test_budgets_that_are_none(self, capsys, flags, message):
        code, out, err = self.run(capsys, "--N_S=1B", *flags)
        assert code == 2 and not out and message in err and err.count("\n") == 1

    def test_snapping_is_told_before_anything_is_written(self, capsys, tmp_path, monkeypatch):
        """The 40.7B teacher that a ladder of 12.6B at most cannot hold, and folders that are taken."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "teacher").mkdir(parents=True)
        (tmp_path / "runs" / "teacher" / "config.txt").write_text("taken")
        (tmp_path / "runs" / "student").mkdir()  # empty: free
        told = []
        write = recipe.config_file.write
        monkeypatch.setattr(
            recipe.config_file, "write", lambda *a, **k: (told.append(capsys.readouterr().out), write(*a, **k))
        )
        code = self.run(capsys, "--N_S=1e9", "--compute=3e20", "--emit-config=out", "--ladder=paper")[0]
        lines = {line[:28].strip(): line[28:].split() for line in told[0].splitlines()}
        assert code == 0 and lines["teacher"] == ["40.7B", "12.6B", "x", "0.31"]
        assert lines["teacher tokens"][:2] == ["607B", "1.31T"] and lines["student loss L_S"][2].startswith("+0.00")
        assert "what that costs: +0.00" in told[0] and "--workdir=" not in told[0]
        student = (tmp_path / "out" / "student.py").read_text()
        assert "runs/teacher-2" in student
        assert "--workdir=runs/teacher-2" in (tmp_path / "out" / "teacher.py").read_text()
        assert "--workdir=runs/student\n" in student or "--workdir=runs/student " in student

    def test_a_supervised_law_alone_gives_size_and_tokens_and_a_guess(self, capsys, tmp_path):
        path = tmp_path / "sup.json"
        stack = draws().kept.supervised.values()
        columns = {name: np.resize(np.asarray(values), 60).tolist() for name, values in stack.items()}
        box = {"N": [1e8, 1e9], "D": [1e9, 1e11]}
        SUPERVISED.save(path, draws=columns, region=box)
        code, out, _ = self.run(capsys, f"--law={path}", "--gpu-hours=2000", "--chip=h100")
        assert code == 0 and "Supervised: a" in out and "tokens per parameter" in out and "Distil instead" in out
        assert "no law of students, so the paper's (Table 6) stands in" in out
        tree = json.loads(self.run(capsys, f"--law={path}", "--compute=1e21", "--json")[1])
        best, low_high = tree["pretraining"], tree["pretraining"]["interval"]
        assert low_high["N"][0] < best["N"] < low_high["N"][1] and low_high["L"][0] < best["L"] < low_high["L"][1]
        assert any("N = " in text and "times the largest fitted" in text for text in best["warnings"])
        assert tree["N_S"] == best["N"] and "guess" in tree["warnings"][0] and tree["interval"]["supervised_L"]
        again = json.loads(self.run(capsys, f"--law={path}", f"--loss={best['L']}", "--json")[1])["pretraining"]
        assert again["compute"] == pytest.approx(1e21, rel=1e-6) and again["N"] == pytest.approx(best["N"], rel=1e-3)
        sized = json.loads(self.run(capsys, f"--law={path}", "--N_S=1B", "--compute=1e21", "--json")[1])
        assert sized["N_S"] == 1e9 and "pretraining" not in sized and "guess" in sized["warnings"][0]
        for flags in (["--tokens=1e10"], ["--compute=1e21", "--served=1e12"], ["--loss=1.0"], []):
            code, out, err = self.run(capsys, f"--law={path}", *flags)
            assert code == 2 and not out and err.count("\n") == 1

    def test_the_best_size_of_a_supervised_law_is_a_minimum(self):
        """Against a brute-force grid, for both forms that a supervised law may have."""
        chinchilla = laws.Chinchilla(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28)
        for law in (SUPERVISED, chinchilla):
            found = pretraining(law, compute=1e21, flops=FLOPS)
            N = np.geomspace(1e7, 1e12, 20001)
            losses = law(N, 1e21 / (3 * FLOPS(N)))
            assert pytest.approx(N[losses.argmin()], rel=2e-3) == found.N and losses.min() * (1 + 1e-9) >= found.L
            assert 3 * FLOPS(found.N) * found.D == pytest.approx(1e21, rel=1e-6)

    def test_writes_the_page(self, capsys, tmp_path):
        code, out, _ = self.run(capsys, f"--page={tmp_path / 'page.html'}")
        assert code == 0 and "planner" in (tmp_path / "page.html").read_text() and "open it" in out

    def test_a_law_file_brings_its_uncertainty(self, capsys, tmp_path):
        stack = draws(count=20).kept
        values = {name: np.asarray(v).tolist() for name, v in stack.values().items()}
        values["supervised"] = {name: np.asarray(v).tolist() for name, v in stack.supervised.values().items()}
        path = tmp_path / "law.json"
        DISTILLATION.save(path, draws=values, region=dataclasses.asdict(laws.PAPER_REGION), flops=[155.061, 72131.7])
        code, out, _ = self.run(capsys, f"--law={path}", "--N_S=1e9", "--compute=1e22")
        assert code == 0 and "distillation wins with probability" in out and "[" in out
