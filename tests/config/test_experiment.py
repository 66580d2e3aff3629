"""Strict building with errors that help, the command line's values, text at rest, and names that never move."""

import dataclasses
import json

import pytest

from distill import config as configs
from distill.config import (
    ConfigError,
    EvalConfig,
    ExperimentConfig,
    LoopConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    StudyConfig,
    TeacherConfig,
    build,
    fingerprint,
    from_text,
    nearest,
    parse,
    to_flat,
    to_text,
    trunk_fingerprint,
)
from distill.config.data import DataConfig


def test_build_makes_a_frozen_hashable_tree():
    config = build(ExperimentConfig, {"model": {"d_model": 64}, "optim": {"learning_rate": 1}, "tokens": 10**6})
    assert config == ExperimentConfig(model=ModelConfig(d_model=64), optim=OptimConfig(learning_rate=1.0), tokens=10**6)
    assert type(config.optim.learning_rate) is float  # an integer is a number, kept as the field's own type
    assert len({config, build(ExperimentConfig, {}), ExperimentConfig()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_lists_become_tuples_item_by_item():
    study = build(StudyConfig, {"models": ["a = 16x2"], "seeds": [0, 1]})
    assert study.models == ("a = 16x2",) and study.seeds == (0, 1)
    with pytest.raises(ConfigError, match=r"^config.seeds\[1\]: got '1' \(str\), wanted an integer$"):
        build(StudyConfig, {"seeds": [0, "1"]})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"modle": {}}, "config.modle: there is no such field. Did you mean 'model'?"),
        ({"model": {"n_layer": 3}}, "config.model.n_layer: there is no such field. Did you mean 'n_layers'?"),
        ({"model": {"zzzz": 3}}, "config.model.zzzz: there is no such field."),
        ({"model": {"d_model": "64"}}, "config.model.d_model: got '64' (str), wanted an integer"),
        ({"model": {"d_model": 64.0}}, "config.model.d_model: got 64.0 (float), wanted an integer"),
        ({"model": {"d_model": True}}, "config.model.d_model: got True (bool), wanted an integer"),
        ({"model": {"tied": 1}}, "config.model.tied: got 1 (int), wanted true or false"),
        ({"optim": {"learning_rate": "big"}}, "config.optim.learning_rate: got 'big' (str), wanted a number"),
        ({"optim": {"learning_rate": None}}, "config.optim.learning_rate: got None (NoneType), wanted a number"),
        ({"optim": {"clip": True}}, "config.optim.clip: got True (bool), wanted a number"),
        ({"optim": {"schedule": "cosin"}}, "one of 'wsd', 'cosine', 'constant'. Did you mean 'cosine'?"),
        ({"model": 3}, "config.model: got 3, wanted a tree with the fields of ModelConfig"),
        ({"model": {"n_heads": 3}}, "d_model=32 is not a multiple of n_heads=3"),
        ({"model": {"n_heads": 4, "n_kv_heads": 3}}, "n_heads=4 is not a multiple of n_kv_heads=3"),
        ({"model": {"n_heads": 0}}, "n_heads=0, wanted at least 1"),
        ({"batch_size": 0}, "batch_size=0, wanted at least 1"),
        ({"seq_len": -128}, "seq_len=-128, wanted at least 1"),
        ({"microbatches": 0}, "microbatches=0, wanted at least 1"),
        ({"model": {"d_head": 5}}, "head_dim=5 is odd"),
        ({"microbatches": 3}, "microbatches=3 does not divide batch_size=4"),
        ({"tokens": 100}, "tokens=100 is less than one step of 4 x 128 tokens; wanted at least 512"),
    ],
)
def test_a_mistake_is_one_line_with_path_value_and_wish(tree, message):
    with pytest.raises(ConfigError) as error:
        build(ExperimentConfig, tree)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sizes_of_zero_ask_for_the_derived_value():
    model = ModelConfig(d_model=96, n_heads=4)
    assert (model.kv_heads, model.head_dim, model.ff_dim) == (4, 24, 256)
    model = ModelConfig(d_model=96, n_heads=4, n_kv_heads=2, d_head=32, d_ff=100)
    assert (model.kv_heads, model.head_dim, model.ff_dim) == (2, 32, 100)
    assert ModelConfig(d_model=48, d_ff_multiple=128).ff_dim == 128  # 8/3 x 48 is 128 exactly
    assert ModelConfig(d_model=52, d_ff_multiple=128).ff_dim == 256  # 138.7, rounded up


def test_steps_are_whole_and_the_decay_is_their_end():
    config = ExperimentConfig(tokens=10_000)
    assert (config.steps, config.stable_steps) == (19, 14)  # 10000 / 512, and 19 - round(4.75)
    cosine = dataclasses.replace(config, optim=OptimConfig(schedule="cosine"))
    assert cosine.stable_steps == 0


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        *(("tokens", text, 250_000) for text in ("250000", "250_000", "250K", "2.5e5", "250k", "0.25M")),
        ("tokens", "3B", 3 * 10**9),
        ("tokens", "1.005K", 1005),  # as floats 1004.9999999999999
        ("tokens", "7_000_000", 7_000_000),
        ("optim.learning_rate", "5K", 5000.0),
        ("tokens", "1.5T", 15 * 10**11),
        ("seed", "-1", -1),
        ("optim.learning_rate", "1", 1.0),
        ("optim.learning_rate", "3e-4", 3e-4),
        *(("model.tied", text, True) for text in ("true", "True", "1")),
        *(("model.tied", text, False) for text in ("false", "0")),
        ("optim.schedule", "cosine", "cosine"),
        ("teacher.source", "a b/c=d", "a b/c=d"),
        ("data.files.paths", "a/*.txt, b", ("a/*.txt", "b")),
        ("data.mixture.weights", "1,2.5", (1.0, 2.5)),
        ("data.files.paths", "", ()),
    ],
)
def test_a_flags_text_becomes_its_fields_value(path, text, value):
    got = parse(ExperimentConfig, path, text)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model.d_modle", "3", "config.model has no field 'd_modle' (value '3'). Did you mean 'd_model'?"),
        ("modl.d_model", "3", "config has no field 'modl' (value '3'). Did you mean 'model'?"),
        ("tokens.more", "3", "config.tokens has no field 'more'"),
        ("model", "3", "config.model: got '3' for a group of fields; set one of vocab_size"),
        ("tokens", "many", "config.tokens: got 'many', wanted an integer"),
        ("tokens", "1.5", "config.tokens: got '1.5', wanted an integer"),
        ("tokens", "", "config.tokens: got '', wanted an integer"),
        ("tokens", "inf", "config.tokens: got 'inf', wanted an integer"),
        ("tokens", "1e999999999", "config.tokens: got '1e999999999', wanted an integer"),
        ("tokens", "nan", "config.tokens: got 'nan', wanted an integer"),
        ("model.tied", "yes", "config.model.tied: got 'yes', wanted true or false"),
        ("optim.learning_rate", "fast", "config.optim.learning_rate: got 'fast', wanted a number"),
        ("optim.schedule", "wds", "config.optim.schedule: got 'wds', wanted one of 'wsd', 'cosine', 'constant'. Did"),
    ],
)
def test_a_bad_flag_is_one_line_with_path_value_and_wish(path, text, message):
    with pytest.raises(ConfigError) as error:
        parse(ExperimentConfig, path, text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_nearest_offers_only_what_is_near():
    assert nearest("learning_rat", ["learning_rate", "clip"]) == " Did you mean 'learning_rate'?"
    assert nearest("xyz", ["learning_rate", "clip"]) == ""


EXPERIMENT = ExperimentConfig(
    model=ModelConfig(d_model=48, tied=False, dtype="bfloat16"),
    optim=OptimConfig(learning_rate=0.1 + 0.2, schedule="cosine"),
    objective=ObjectiveConfig(lambda_=0.7),
    teacher=TeacherConfig(run="0123456789ab", source="runs/ü = x\n#y"),
    tokens=10**7,
)


def test_text_at_rest_reads_back_to_the_same_config():
    text = to_text(EXPERIMENT)
    assert from_text(ExperimentConfig, text) == EXPERIMENT
    assert from_text(ExperimentConfig, f"# run abc\n\n{text}") == EXPERIMENT
    assert "optim.learning_rate = 0.30000000000000004\n" in text
    study = configs.StudyExperimentConfig(study=StudyConfig(models=("a = 16x2", "b = 32x2"), seeds=(0, 1)))
    assert from_text(configs.StudyExperimentConfig, to_text(study)) == study


def test_flat_keys_are_every_field_once():
    flat = to_flat(EXPERIMENT)
    assert flat["model.d_model"] == 48 and flat["tokens"] == 10**7
    assert len(flat) == len(to_text(EXPERIMENT).splitlines())


@pytest.mark.parametrize("line", ["model.d_model 3", "model.d_model = ", "model.d_model = [", "garbage"])
def test_a_damaged_text_names_its_line(line):
    with pytest.raises(ConfigError, match="^work/config.txt, line 2: got .* wanted `key = JSON value`"):
        from_text(ExperimentConfig, f"seed = 1\n{line}\n", "work/config.txt")


def test_a_text_of_another_version_names_the_field_that_is_unknown():
    with pytest.raises(ConfigError, match="work/config.txt.model.d_modle: there is no such field"):
        from_text(ExperimentConfig, "model.d_modle = 3\n", "work/config.txt")


def replaced(config, path, value):
    """The config with one field, by its dotted path, replaced."""
    head, _, rest = path.partition(".")
    return dataclasses.replace(config, **{head: replaced(getattr(config, head), rest, value) if rest else value})


SAME_RUN = {
    "model.remat": "full",
    "model.unroll": 2,
    "model.sequence": True,
    "model.attention": "splash",
    "mesh": MeshConfig(data=2, fsdp=2, tensor=2),
    "loop": LoopConfig(steps_per_call=1, log_steps=5, checkpoint_seconds=1.0, keep=9),
    "microbatches": 2,
    "eval.batch_size": 3,
    "eval.along": 4,
    "teacher.source": "elsewhere",
    "teacher.signal": "memory",
    "teacher.memory_gib": 9.0,
    "data.cache": "/scratch",
}
OTHER_RUN = {
    "model.d_model": 64,
    "model.dtype": "bfloat16",
    "optim.learning_rate": 0.5,
    "objective.lambda_": 0.5,
    "teacher.run": "0123456789ab",
    "data.split": "teacher",
    "data.seed": 1,
    "eval.tokens": 1024,
    "seed": 1,
    "tokens": 500_000,
    "batch_size": 8,
    "seq_len": 64,
}


@pytest.mark.parametrize("path", SAME_RUN)
def test_how_a_run_is_carried_out_does_not_name_it(path):
    changed = replaced(EXPERIMENT, path, SAME_RUN[path])
    assert changed != EXPERIMENT
    assert fingerprint(changed) == fingerprint(EXPERIMENT)


def test_whatever_makes_another_run_gives_another_name():
    names = [fingerprint(replaced(ExperimentConfig(), path, value)) for path, value in OTHER_RUN.items()]
    assert len({fingerprint(ExperimentConfig()), *names}) == len(OTHER_RUN) + 1


def test_a_field_added_later_orphans_no_run():
    """Tomorrow's classes, with one more field at every level, name yesterday's runs as yesterday's did."""

    def later(value):
        if not dataclasses.is_dataclass(value):
            return value
        added = [("added", float, dataclasses.field(default=0.5, kw_only=True))]
        cls = dataclasses.make_dataclass(
            f"Later{type(value).__name__}", added, bases=(type(value),), frozen=True, kw_only=True
        )
        return cls(**{field.name: later(getattr(value, field.name)) for field in dataclasses.fields(value)})

    for config in (ExperimentConfig(), EXPERIMENT):
        tomorrow = later(config)
        assert "model.added" in to_flat(tomorrow) and "data.tokenizer.added" in to_flat(tomorrow)
        assert fingerprint(tomorrow) == fingerprint(config)
        used = dataclasses.replace(tomorrow, model=dataclasses.replace(tomorrow.model, added=1.0))
        assert fingerprint(used) != fingerprint(config)


def test_fingerprints_are_golden(golden):
    """These name runs that are on disks now. They must never move: change code, not the golden file."""
    small = build(ExperimentConfig, {"model": {"d_model": 48}, "tokens": 500_000, "teacher": {"run": "0123456789ab"}})
    assert fingerprint(ExperimentConfig()) == "4f53cda18c2b"  # of an empty list: nothing differs from its default
    golden("fingerprints", {"small": fingerprint(small), "experiment": fingerprint(EXPERIMENT)})


def test_defaults_are_golden(request, golden):
    """A run's name leaves out what is at its default, so a changed default would give old runs a new meaning.

    A new field may be added (then run with --update-golden); the value of an old one may not change.
    """
    got = {key: json.dumps(value) for key, value in to_flat(ExperimentConfig()).items()}
    for path in SAME_RUN:
        got = {key: value for key, value in got.items() if key != path and not key.startswith(f"{path}.")}
    if not request.config.getoption("--update-golden"):
        known = json.loads((request.path.parents[1] / "golden" / "defaults.json").read_text())
        got = {key: value for key, value in got.items() if key in known}
    golden("defaults", got)


def test_runs_that_differ_in_their_length_alone_share_a_trunk():
    config = ExperimentConfig(model=ModelConfig(d_model=48))
    trunk = trunk_fingerprint(config)
    assert trunk == trunk_fingerprint(dataclasses.replace(config, tokens=10**7))
    assert trunk != trunk_fingerprint(dataclasses.replace(config, seed=1))
    cosine = [dataclasses.replace(config, optim=OptimConfig(schedule="cosine"), tokens=n) for n in (10**6, 10**7)]
    assert [trunk_fingerprint(c) for c in cosine] == [fingerprint(c) for c in cosine]
    wide = ExperimentConfig(batch_size=4096, tokens=10**7)  # one step is longer than the default budget
    assert trunk_fingerprint(wide) == trunk_fingerprint(dataclasses.replace(wide, tokens=10**8))


def test_data_and_evaluation_have_defaults_that_build():
    assert build(ExperimentConfig, {"data": {}, "eval": {}}) == ExperimentConfig(data=DataConfig(), eval=EvalConfig())


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"optim": {"learning_rate": -1.0}}, "optim.learning_rate: got -1.0, wanted above 0 and below 10"),
        ({"optim": {"learning_rate": 1000.0}}, "optim.learning_rate: got 1000.0, wanted above 0 and below 10"),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate: got nan"),
        ({"optim": {"warmup_steps": -1}}, "optim.warmup_steps: got -1, wanted at least 0"),
        ({"optim": {"weight_decay": float("inf")}}, "optim.weight_decay: got inf"),
        ({"optim": {"b2": 1.0}}, "optim.b2: got 1.0, wanted from 0 to below 1"),
        ({"optim": {"clip": 0.0}}, "optim.clip: got 0.0, wanted above 0"),
        ({"objective": {"temperature": 0.0}}, "objective.temperature: got 0.0, wanted a finite number above 0"),
        ({"objective": {"temperature": float("inf")}}, "objective.temperature: got inf"),
        ({"objective": {"z_loss": -1.0}}, "objective.z_loss: got -1.0"),
        ({"batch_size": 0}, "batch_size=0, wanted at least 1"),
        ({"tokens": 10**17}, "tokens=1e+17, wanted at most 1e+16"),
        ({"eval": {"tokens": 0}}, "eval.tokens: got 0, wanted at least 1"),
    ],
)
def test_numbers_outside_of_any_sense_are_refused(tree, words):
    with pytest.raises(ConfigError) as error:
        build(ExperimentConfig, tree)
    assert words in str(error.value)
