"""Readers of tables that others published, on made files in the published layout: columns, units, duplicates."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill import laws
from distill.bench import public, scalebench


@pytest.fixture
def write(tmp_path):
    """Writes a file of the folder: text, or columns as parquet."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            pq.write_table(pa.table(content), path)

    return write


def read(folder):
    return {one.name: one for one in public.specimens(folder)}


def test_nothing_is_read_from_an_empty_folder(tmp_path):
    assert read(tmp_path) == {}


def test_csv_files(tmp_path, write):
    lines = "".join(f"{1e8 * k},{6e17 * k * k},{3 - 0.01 * k}\n" for k in range(1, 11))
    write("chinchilla/svg_extracted_data.csv", "Model Size,Training FLOP,loss\n" + lines)
    twice = "llama_3__raw_loss,2e9,1e8,1.2\n" * 2
    write("openathena/isoflops.csv", f"experiment,tokens,params,loss\n{twice}llama_3__exp_loss,1,1,9\n")
    rows = "a,c4_val,1e8,1e9,3\na,c4_val,1e8,1e9,2.5\na,x,1,1,1\n"
    write("gadre_overtraining/runs_long.csv", "train_set,eval,N_no_emb,D,loss\n" + rows)
    write("misfitting/scaling_results_last_ckpt_only.csv", "N_no_emb,D,loss\n1e8,1e9,3.5\n1e8,1e9,3.2\n2e8,1e9,3.1\n")
    write("steplaw/dense_lr_bs_loss.csv", "N,D,smooth loss\n1e8,1e9,3.0\n1e8,1e9,2.9\n1e8,2e9,2.8\n")
    got = read(tmp_path)
    assert sorted(got) == ["chinchilla", "gadre a", "llama 3", "misfitting", "steplaw"]
    # The five highest losses are left out, and D = C / 6 N.
    np.testing.assert_allclose(got["chinchilla"].table["D"], [6e9, 7e9, 8e9, 9e9, 1e10])
    assert len(got["llama 3"].table) == 2 and got["llama 3"].table.duplicates == "keep"
    assert got["gadre a"].table.best_of == got["steplaw"].table.best_of == ("N", "D")


def test_openeurollm(tmp_path, write):
    names = (
        "job_name,N,N_approx,D,C,lr,gbsz,beta2,seed,iteration,train_samples,train_tokens,num_of_valid_seq,loss,loss_se"
    )
    line = "dense_130M,124455168,1.3e8,{D},8.96e18,{lr},16,0.99,1234,183106.0,2929696.0,12000034816.0,204800.0,{L},0.0"
    sweep = [(12e9, 1e-3, 2.66), (12e9, 2e-3, 2.65), (6e9, 1e-3, 2.7)]
    lines = [names, *(line.format(D=D, lr=lr, L=L) for D, lr, L in sweep)]
    write("openeurollm/loss_all_exps_post_annealing.csv", "\n".join(lines))
    table = read(tmp_path)["openeurollm"].table
    assert len(table) == 3 and table.best_of == ("N", "D") and set(table["N"]) == {124455168.0}
    assert table["L"].tolist() == [2.66, 2.65, 2.7]


def test_olmo_ladder(tmp_path, write):
    column = "eval/c4_en-validation/CrossEntropyLoss"
    ends = ("200,6.1", "7000,3.4", "7200,")
    curve = f"_step,{column},learning_rate_peak,batch_size_in_tokens\n"
    curve += "".join(f"{end},1e-3,524288\n" for end in ends)
    write("olmo_ladder/190M-1xC.csv", curve)
    write("olmo_ladder/1B-10xC.csv", curve.replace("3.4", "2.6"))
    write("olmo_ladder/7B-final.csv", curve)  # no rung
    table = read(tmp_path)["olmo ladder"].table
    assert table["N"].tolist() == [190354176.0, 1279395840.0] and table["L"].tolist() == [3.4, 2.6]
    assert table["D"].tolist() == [7000 * 524288.0] * 2  # the last step that was evaluated


def test_gemstones(tmp_path, write):
    line = {"run_name": "PyGemma-1024x28_pretrain", "params_active_precise": 543482880, "width": 1024, "depth": 28,
            "tokens": 10003415040, "step": 2385, "final_loss": 3.1}  # fmt: skip
    twice = json.dumps(line) + "\n" + json.dumps(line | {"tokens": 2e10, "final_loss": 2.9}) + "\n"
    for part in public.GEMSTONES[:-1]:
        write(f"gemstones/wandb_df_for_fitting_{part}.jsonl", twice)
    slim = {"params_active_precise": 2006673381.1, "tokens": 811602861.0, "FLOPs": 9.77e18, "final_loss": 3.4}
    write("gemstones/wandb_df_for_fitting_slim_chinchilla.jsonl", json.dumps(slim) + "\n")
    write("gemstones/fineweb_edu_losses_combined.jsonl", twice)
    got = read(tmp_path)
    assert sorted(got) == sorted(["gemstones edu", *(f"gemstones {part}" for part in public.GEMSTONES)])
    assert got["gemstones cool_end"].table["trunk"].tolist() == ["PyGemma-1024x28_pretrain"] * 2
    assert "trunk" not in got["gemstones slim_chinchilla"].table.columns


def test_scalebench(tmp_path, write):
    tables = {
        "data_constrained": {"params": [1e8] * 2, "tokens": [1e9, 2e9], "unique_tokens": [1e9] * 2, "loss": [3.5, 3.3]},
        "moe": {"num_experts": [8.0, 16.0], "dense_parameter_count": [1e8, 1e8], "loss_validation": [2.9, 2.8]},
        "farseer": {"group": ["all", "all"], "N": [1e8, 2e8], "D": [1e9, 2e9], "loss": [0.7, 0.65]},
        "lr_bsz": {"lr": [1e-3, 2e-3], "bsz": [16.0, 16.0], "data_size": [2e9, 2e9],
                   "non_embedding_param_size": [6e7, 6e7], "lm_loss": [3.1, 3.0]},
        "sparsity": {"P": [2.0, 4.0], "N_active": [0.1, 0.1], "N_dense": [0.1, 0.1], "D1": [2.3, 2.3],
                     "D2": [1.15, 4.61], "loss": [2.9, 2.8]},
        "vocab": {"non_vocab_parameters": [1e8], "vocab_size": [4096.0], "num_characters": [1e9],
                  "unigram_normalized_loss": [-2.0]},
    }  # fmt: skip
    for task, columns in tables.items():
        for part in ("train", "test"):
            write(f"scalebench/{task}/{part}.parquet", columns)
    got = read(tmp_path)
    assert sorted(got) == ["farseer", "muennighoff", "scalebench experts", "scalebench lr_bsz",
                           "scalebench sparsity 1.15B", "scalebench sparsity 4.61B"]  # fmt: skip
    assert len(got["muennighoff"].all) == 4 and got["muennighoff"].held["U"].tolist() == [1e9, 1e9]
    assert got["scalebench lr_bsz"].table.best_of == got["scalebench lr_bsz"].all.best_of == ("N", "D")
    assert got["scalebench sparsity 4.61B"].table["D"].tolist() == [4.0]
    (tmp_path / "scalebench/farseer/test.parquet").unlink()
    assert "farseer" not in read(tmp_path)


def test_a_share_of_the_price_is_kept_and_chosen_runs_predict_the_target():
    true = laws.Chinchilla(A=480.0, B=2100.0, E=1.8, alpha=0.35, beta=0.37)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 10), np.geomspace(2e9, 2e11, 10)))
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(100))
    far = np.geomspace(5e9, 2e10, 5)
    price = N * D / (N * D).sum()
    task = scalebench.Task(
        form="chinchilla",
        candidates=laws.from_arrays(N=N, D=D, L=true(N, D) * noise),
        targets=laws.from_arrays(N=far, D=20 * far, L=true(far, 20 * far)),
        price=price,
    )
    for way in (scalebench.randomly, scalebench.cheapest, scalebench.designed):
        chosen = way(task, 0.05, np.random.default_rng(0))
        assert len(set(chosen)) == len(chosen) and price[chosen].sum() <= 0.05 + 1e-9
    assert price[chosen].sum() > 0.04  # a design spends its share
    assert task.score(chosen, 0) > 0.5 > task.score(np.arange(4), 0) == -1.0
