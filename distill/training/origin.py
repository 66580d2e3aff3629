"""What a run learns from, in words: its text, its teacher, and a warning where either needs one."""

import dataclasses

from distill.config import DataConfig, ExperimentConfig, counts
from distill.data import corpus
from distill.data.loader import Loader
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.system.numbers import number, plural, si
from distill.teacher import vocabulary
from distill.teacher.load import TeacherInfo
from distill.training.inputs import ResolvedRun

EPOCHS = 4  # up to four, repeated text is nearly as good as new (Muennighoff et al. 2023, section 5)
_NAMED = 3  # files and stores that are named; the others are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The text (name, documents, unique tokens, epochs), the teacher with its own text, and warnings; a line each.

    tokenizer: how the teacher's tokens relate to the text's, where that is not plain equality.
    """

    text: str
    teacher: str
    warnings: tuple[str, ...] = ()
    tokenizer: str = ""

    def comments(self) -> str:
        """Comment lines for config.txt, in ASCII; they are no part of the config."""
        lines = [f"text: {self.text}", f"teacher: {self.teacher}"]
        lines += [f"tokenizer: {self.tokenizer}"] if self.tokenizer else []
        lines += [*(f"warning: {line}" for line in self.warnings)]
        plain = (" ".join(line.split()).encode("ascii", "backslashreplace").decode() for line in lines)
        return "".join(f"# {line}\n" for line in plain)


def describe(run: ResolvedRun, store: TokenStore | Mixture | None) -> Origin:
    """What `run` learns from; `store` is its token store, or None where the text is not tokenized yet."""
    config, warnings = run.config, []
    text = f"{_name(config.data)}, not tokenized yet"
    if store is not None:
        epochs = _loader(config, store).epochs(config.steps)
        text = _text(config.data, store, epochs)
        if max(epochs) > EPOCHS:
            warnings.append(
                f"{counts.training_tokens(config):,d} tokens are {number(max(epochs))} epochs of this text; beyond "
                f"{EPOCHS}, repeated text is worth less than new text: give more text, or fewer config.tokens"
            )
        warnings += _uncapped(config.data, store)
    for teacher in run.teachers:
        theirs, ours = _fingerprint(teacher.config.data), store.fingerprint if store else config.data.store
        if theirs and ours and theirs != ours and teacher.record.D:
            warnings.append(
                f"the teacher in {teacher.source} was trained on another text ({_name(teacher.config.data)}) than "
                "this student reads; on text that it does not know, a teacher is worse than its loss says"
            )
        if theirs and theirs == ours and teacher.config.data.split == config.data.split and teacher.record.D:
            warnings.append(
                f"the teacher in {teacher.source} was trained on the {config.data.split} split too, which this student "
                "reads: it may know by heart what it teaches; train teachers with --config.data.split=teacher"
            )
        if store and (special := vocabulary.special_of(teacher)) not in ("", store.special):
            warnings.append(
                f"the teacher in {teacher.source} was made for texts in {special!r} and this student's stand in "
                f"{store.special!r} ('$A' is the text; data.tokenizer.special): its losses may be worse for it"
            )
    tokenizer = _tokenizers(run, store) if store else ""
    return Origin(text=text, teacher=_teacher(run, store), warnings=tuple(warnings), tokenizer=tokenizer)


def _tokenizers(run: ResolvedRun, store: TokenStore | Mixture) -> str:
    """How the teachers' tokens relate to the text's; '' where all are equal by their content."""
    kind, found = run.config.objective.cross_tokenizer, []
    for teacher in run.teachers:
        verdict, name = vocabulary.verdict(teacher, store), teacher.record.tokenizer or "unknown"
        if run.config.teacher.tokens == "number":
            found.append(f"the teacher's tokens ({name}) are taken by number, as config.teacher.tokens says")
        elif verdict.differs and kind != "none":
            found.append(
                f"the teacher reads {name!r} and the student {store.tokenizer_name!r} ({verdict.differs}); objective: "
                f"{kind} of chunks of equal bytes"
            )
        elif not verdict.differs and verdict.on != "content":
            found.append(f"the teacher's is {name!r} and the text's {store.tokenizer_name!r}: equal on {verdict.on}")
    return "; ".join(found)


def _loader(config: ExperimentConfig, store: TokenStore | Mixture) -> Loader:
    data = config.data
    return Loader(
        store,
        split=data.split,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=data.seed,
        packing=data.packing,
        completions_only=data.completions_only,
        unique=data.unique,
    )


def _uncapped(data: DataConfig, store: TokenStore | Mixture) -> list[str]:
    """A warning where data.unique is more than the text has, and so changes nothing."""
    stores = store.stores if isinstance(store, Mixture) else (store,)
    most = max(one.split(data.split).tokens for one in stores)
    if data.unique <= most:
        return []
    return [
        f"data.unique={data.unique:,d} is more than the {most:,d} tokens of the {data.split} split: all of it is read; "
        "give more text, or a smaller number"
    ]


def _text(data: DataConfig, store: TokenStore | Mixture, epochs: tuple[float, ...]) -> str:
    stores = store.stores if isinstance(store, Mixture) else (store,)
    names = data.mixture.stores if isinstance(store, Mixture) else (_name(data),)
    parts = []
    for name, one, count in zip(names, stores, epochs):
        split = one.split(data.split)
        maker = f" (written by {one.maker['teacher']})" if "teacher" in one.maker else ""
        drawn = f"{data.unique:,d} of its {split.tokens:,d}" if 0 < data.unique < split.tokens else f"{split.tokens:,d}"
        parts.append(
            f"{name}{maker}, {data.split} split: {plural(split.documents, 'document')}, {drawn} unique tokens, "
            f"{number(count)} epochs"
        )
    return "; ".join(parts)


def _teacher(run: ResolvedRun, store: TokenStore | Mixture | None) -> str:
    if run.teachers:
        return "; ".join(_trained(teacher) for teacher in run.teachers)
    if run.config.teacher.run:
        return f"{run.config.teacher.run}, its stored signals in {run.config.teacher.store}"
    maker = getattr(store, "maker", {})
    return f"{maker['teacher']}, which wrote the text" if "teacher" in maker else "none (supervised)"


def _trained(teacher: TeacherInfo) -> str:
    record, data = teacher.record, teacher.config.data
    model = f"{record.run} in {teacher.source}: {si(record.N)} parameters"
    if not record.D:
        return f"{model}, a published model; its text is not known"
    return f"{model}, trained on {si(record.D)} tokens of {_name(data)}, {data.split} split"


def _name(data: DataConfig) -> str:
    """The text of a config as its fields name it."""
    match data.source:
        case "embedded":
            return "the embedded text"
        case "generated":
            made = data.generated
            return f"a generated {made.kind} language of {made.symbols} symbols, seed {made.seed}"
        case "files":
            return f"files {_few(data.files.paths)}"
        case "tfds":
            return f"TFDS {data.tfds.name or data.tfds.data_dir}"
        case "tokens":
            return f"the token store {data.tokens}"
        case "mixture":
            return f"a mixture of {_few(data.mixture.stores)}"


def _few(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _fingerprint(data: DataConfig) -> str:
    """The fingerprint of a config's store; '' where an older run with text from outside did not record it."""
    if data.store or data != data.identified("outside"):
        return data.store
    return corpus.make_recipe(data).fingerprint
