"""What a run reads: its config resolved by content, its token store, and its windows in their order."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from distill import data
from distill.config import ConfigError, ExperimentConfig, InitConfig, ModelConfig, identity, mixture_run
from distill.data import corpus
from distill.data.mixture import Mixture
from distill.data.store.evaluation import Evaluation
from distill.data.store.store import MANIFEST, TokenStore
from distill.errors import DataError, DistillError
from distill.interop.source import is_model
from distill.model import warm_start
from distill.system import cloud, distributed
from distill.system.progress import Progress
from distill.teacher import load, vocabulary
from distill.teacher.load import TeacherInfo
from distill.teacher.signals.reader import identify_stored

PREVIEWED = 50_000_000  # bytes of text that a preview tokenizes


# What else a teacher of other tokens than the text's is good for.
ALSO = (
    "; or let it teach across tokenizers (config.objective.cross_tokenizer=likelihood, or projection); or, if you know "
    "that its tokens are these, config.teacher.tokens=number"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A config whose references to files elsewhere are identified by content, and what was read to do so.

    `teachers` has one entry for each of config.teacher.sources; `init` is the model that the weights come from.
    """

    config: ExperimentConfig
    teachers: tuple[TeacherInfo, ...] = ()
    init: TeacherInfo | None = None


def resolve(run: ExperimentConfig | ResolvedRun, store: TokenStore | Mixture | None = None) -> ResolvedRun:
    """Reads, once, what a config points at, and writes the fingerprints of teacher, signals and data into the config.

    A run that is resolved already is not read again; only `store` is added to it. Raises DistillError where a reference
    of the config leads nowhere, or to something else than the fingerprint that the config gives.
    """
    config = run.config if isinstance(run, ResolvedRun) else run
    if store is not None:
        config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    if isinstance(run, ResolvedRun):
        return dataclasses.replace(run, config=config)
    init = None
    if config.init.source:
        init = load.read_info(config.init.source)
        warm_start.check(config.init, config.model, init.config.model)
        _check_whole(config, init)
        config = dataclasses.replace(config, init=dataclasses.replace(config.init, run=init.record.run))
    elif config.model.lora.rank and not config.init.run and not config.forked:
        raise ConfigError(
            f"config.model.lora.rank={config.model.lora.rank}: adapters are trained on weights that stay as they are, "
            "and these would be random; name the model that is adapted in config.init.source"
        )
    elif not config.init.run and not config.forked and config.init != InitConfig():
        said = ", ".join(f"{name}={value!r}" for name, value in identity(config.init))
        raise ConfigError(
            f"config.init: got {said} without a source, so that weights would be random; name the model that the run "
            "begins with in config.init.source"
        )
    if config.teacher.signal == "stored":
        config = dataclasses.replace(config, teacher=identify_stored(config.teacher))
    teachers = tuple(load.read_info(source) for source, _ in config.teacher.sources)
    if teachers:
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, run=_run(config, teachers)))
    elif config.on_policy.fraction:
        raise ConfigError(
            f"config.on_policy.fraction={config.on_policy.fraction}: on-policy training needs a teacher; give "
            "config.teacher.source, the workdir of a finished run"
        )
    return ResolvedRun(config=config, teachers=teachers, init=init)


def _check_whole(config: ExperimentConfig, init: TeacherInfo) -> None:
    """Raises ConfigError where a config describes a part of the published model that its weights come from.

    A part may be meant (init.width='slice', init.layers='first', init.tokens); the default sizes of a config are not.
    """
    if not is_model(init.source) or config.init.width != "same" or config.init.tokens != "same":
        return
    model, whole = config.model, init.config.model
    try:
        tokens = min(vocabulary.tokenizer_of(init).vocab_size, whole.tokens)
    except DataError:
        tokens = 0
    got = f"model.vocab_size={model.vocab_size}" if model.tokens < tokens else ""
    if model.n_layers == ModelConfig().n_layers < whole.n_layers and config.init.layers == "every":
        got = f"model.n_layers={model.n_layers}"
    if got:
        raise ConfigError(
            f"config.{got}: the published model in {init.source} that config.init begins with has {whole.n_layers} "
            f"layers and {tokens or whole.tokens} tokens, and this describes a part of it; "
            f"--config=configs/student.py:TEACHER,{init.source} describes all of it (or say which part: "
            "config.init.layers=first, config.init.width=slice)"
        )


def _run(config: ExperimentConfig, teachers: tuple[TeacherInfo, ...]) -> str:
    """The fingerprint of the config's teachers, checked against the one that the config names, if it names one."""
    wanted = max((layer for _, layer in config.objective.feature_pairs), default=0)
    for teacher in teachers:
        n_layers = teacher.config.model.n_layers
        if wanted > n_layers:
            raise ConfigError(
                f"config.objective.features={config.objective.features}: the teacher in {teacher.source} has "
                f"{n_layers} layers, got layer {wanted}; wanted 0 (the embedding) to {n_layers}"
            )
    run = mixture_run([(teacher.record.run, weight) for teacher, (_, weight) in zip(teachers, config.teacher.sources)])
    if config.teacher.run not in ("", run):
        sources = ", ".join(teacher.source for teacher in teachers)
        raise ConfigError(f"config.teacher.run={config.teacher.run}, but {sources} holds run {run}")
    return run


def check_heads(teacher: TeacherInfo, store: TokenStore | Mixture, config: ExperimentConfig) -> None:
    """Raises ConfigError where a teacher's head lacks tokens of the text, or does not fit that of the student."""
    model, known = config.model, teacher.config.model
    vocabulary.check_rows(teacher, store, "teacher")
    if (model.vocab_size != known.vocab_size and not model.valid_vocab) or model.tokens > known.tokens:
        raise ConfigError(
            f"config.model.vocab_size={model.vocab_size} with {model.tokens} tokens; the teacher in {teacher.source} "
            f"has {known.vocab_size} with {known.tokens}; teacher and student must share a vocabulary. Where heads are "
            f"padded, give the number of tokens: config.model.valid_vocab={store.vocab_size}"
        )


def check_init(run: ResolvedRun, store: TokenStore | Mixture) -> None:
    """Raises ConfigError where a run would take its rows from a model whose tokens are not those of its text."""
    if run.init and run.config.init.tokens == "same":
        also = (
            "; or config.init.tokens='text', which carries the rows of the tokens that both have, or 'number', which "
            "takes them by number"
        )
        vocabulary.check(run.init, store, "source of config.init", also)


def check_tokens(run: ResolvedRun, store: TokenStore | Mixture) -> None:
    """Raises DistillError where a run's model, or its teacher, has no row for a token of its text."""
    if run.config.objective.cross_tokenizer == "none":
        for teacher in run.teachers:
            vocabulary.check_rows(teacher, store, "teacher", ALSO)
    store.check_vocabulary(run.config.model)


def open_store(
    config: ExperimentConfig, workdir: str | Path, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> TokenStore | Mixture:
    """The token store of a run: in `data.cache`, or in WORKDIR/data."""
    store = data.open_store(config.data, config.data.cache or Path(workdir) / "data", on_progress=on_progress)
    return _checked(config, store)


@contextlib.contextmanager
def preview(
    run: ResolvedRun, workdir: str | Path, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> Iterator[tuple[ResolvedRun, TokenStore | Mixture | None]]:
    """The run and its token store as `open_store` would find them, until the block ends; nothing is left in `workdir`.

    A store that is not there yet is built in a temporary folder. That of a large text is not: it is None, and the run
    is named by what the text is known to become. Raises DistillError as `open_store` does.
    """
    config = run.config
    with tempfile.TemporaryDirectory() as folder:
        home = config.data.cache or Path(workdir) / "data"
        place = config.data.cache or (folder if cloud.remote(workdir) else home)
        if config.data.source not in ("tokens", "mixture"):
            path, recipe = corpus.locate(config.data, place)
            if not (path / MANIFEST).exists() and corpus.size(recipe) > PREVIEWED:
                named = dataclasses.replace(config, data=config.data.identified(recipe.fingerprint))
                yield dataclasses.replace(run, config=named), None
                return
            place = place if (path / MANIFEST).exists() else folder
        elif config.data.source == "mixture":
            place = folder  # the embedded text may be among its stores
        try:
            store = _checked(config, data.open_store(config.data, place, on_progress=on_progress))
            check_tokens(run, store)
            check_init(run, store)
        except DistillError as error:
            # The folder is gone when the sentence is read: it names the place where a run would build the store.
            error.args = (str(error).replace(folder, str(home)),)
            raise
        yield resolve(run, store), store


def _checked(config: ExperimentConfig, store: TokenStore | Mixture) -> TokenStore | Mixture:
    # Checked now rather than after the last step: a run without validation text cannot be scored.
    store.views(
        "validation", config.seq_len, packing=config.data.packing, completions_only=config.data.completions_only
    )
    return store


def make_loader(config: ExperimentConfig, store: TokenStore | Mixture, split: str) -> data.Loader:
    """This process's slice of every batch of a split, on the current mesh; a teacher's signals are of its windows.

    Where devices share sequences every process reads all of a batch, which has few.
    """
    return data.Loader(
        store,
        split=split,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=config.data.seed,
        process=distributed.batch_slice(jax.sharding.get_mesh()) if config.mesh.context == 1 else (0, 1),
        packing=config.data.packing,
        completions_only=config.data.completions_only,
        unique=config.data.unique,
    )


def validation_set(config: ExperimentConfig, store: TokenStore | Mixture) -> Evaluation:
    """The fixed validation windows of a run: `eval.tokens` of them, packed as its training batches are."""
    return store.evaluation(
        "validation",
        config.seq_len,
        config.eval.tokens,
        packing=config.data.packing,
        completions_only=config.data.completions_only,
    )
