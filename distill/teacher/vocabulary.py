"""A model's own tokenizer, and the check that a text's tokens are those that the model knows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.data.mixture import Mixture
from distill.data.store.store import MANIFEST, TokenStore
from distill.data.tokenizers.same import Verdict, compare, same_names
from distill.data.tokenizers.spec import Spec, spec_of
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.errors import DataError
from distill.interop.source import is_model
from distill.system import cloud
from distill.teacher.load import TeacherInfo


def tokenizer_of(model: TeacherInfo) -> Tokenizer:
    """The tokenizer of a published model, from its files, or of a run, from the store that it read.

    Raises DataError, with the reason, where there is none that can be read; no store is built.
    """
    if is_model(model.source):
        return load(spec_of(model.source))
    data = model.config.data
    if model.record.tokenizer == "bytes":
        return load(Spec("bytes"))
    folder = Path(data.cache or Path(model.source) / "data")
    places = [Path(place) for place in (data.tokens, *data.mixture.stores) if place and not cloud.remote(place)]
    for place in (*places, *(file.parent for file in sorted(folder.glob(f"*/{MANIFEST}")))):
        if (place / MANIFEST).exists() and (store := TokenStore(place)).tokenizer_name == model.record.tokenizer:
            return store.tokenizer()
    raise DataError(f"the token store of the run in {model.source} is not there any more")


def special_of(model: TeacherInfo) -> str:
    """What the files of a published model put around a text, as data.tokenizer.special; '' for a run, or unknown."""
    try:
        return tokenizer_of(model).spec.special if is_model(model.source) else ""
    except DataError:
        return ""


def known(model: TeacherInfo) -> bool:
    """Whether the record of a model names its tokenizer; a published model may have none that can be read."""
    return bool(model.record.tokenizer)


def verdict(model: TeacherInfo, store: TokenStore | Mixture) -> Verdict:
    """What differs between a model's tokenizer and the one of a text ('': nothing), and what that was seen on."""
    if known(model) and same_names(model.record.tokenizer, store.tokenizer_name):
        return Verdict("", "content")
    try:
        return compare(tokenizer_of(model), store.tokenizer())
    except DataError as error:
        return Verdict(str(error), "content")


def differing(model: TeacherInfo, store: TokenStore | Mixture) -> str:
    """What differs between a model's tokenizer and the one of a text; '' where their tokens are the same."""
    return verdict(model, store).differs


def check(model: TeacherInfo, store: TokenStore | Mixture, role: str, also: str = "") -> None:
    """Raises ConfigError unless a model has all tokens of a text, and its tokens are the text's.

    role: what the model is to the command, 'teacher'; also: what else than its own tokens would do.
    """
    check_rows(model, store, role, also)
    if not known(model):
        raise ConfigError(
            f"the {role} in {model.source} has no tokenizer that can be read ({differing(model, store)}), so its "
            f"tokens cannot be compared with the {store.tokenizer_name!r} tokens of the text; put its tokenizer.json "
            f"or tokenizer.model beside its config.json (of a GGUF file, make a folder: convert --tokenizer=FILE){also}"
        )
    if differs := differing(model, store):
        raise ConfigError(
            f"the {role} in {model.source} reads {model.record.tokenizer!r} tokens and the text is "
            f"{store.tokenizer_name!r} tokens ({differs}); give a text in its own tokens (data.tokenizer), or models "
            f"that share one tokenizer{also}"
        )


def check_rows(model: TeacherInfo, store: TokenStore | Mixture, role: str, also: str = "") -> None:
    """Raises ConfigError where a text has tokens for which a model has no row in its embedding and head."""
    have = model.config.model.tokens
    if store.vocab_size > have:
        raise ConfigError(
            f"the {role} in {model.source} has {have} tokens, and the text's tokenizer {store.tokenizer_name!r} has "
            f"{store.vocab_size}: the ids from {have} on have no row in its embedding and head; tokenize the text with "
            f"a tokenizer of at most {have} tokens, such as its own{also}"
        )


def rows_by_text(model: TeacherInfo, store: TokenStore | Mixture) -> NDArray[np.int64]:
    """For each token of a text the model's token of the same meaning, or -1 [store.vocab_size].

    Raises ConfigError where the model's tokenizer cannot be read, or has no token in common.
    """
    try:
        theirs = tokenizer_of(model).pieces()
    except DataError as error:
        raise ConfigError(f"config.init.tokens='text' needs the tokenizer of {model.source}: {error}") from None
    row = {piece: i for i, piece in reversed(list(enumerate(theirs[: model.config.model.tokens])))}
    found = [-1 if piece.kind == "none" else row.get(piece, -1) for piece in store.tokenizer().pieces()]
    if max(found) < 0:
        raise ConfigError(
            f"config.init.tokens='text': the model in {model.source} ({model.record.tokenizer}) and the text "
            f"({store.tokenizer_name}) have no token in common; begin with random weights"
        )
    return np.array(found)
