"""A teacher whose tokenizer is not the student's (objective.cross_tokenizer): it reads its own tokens of windows."""

import math

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from distill.config import ConfigError, ExperimentConfig, counts
from distill.data.align import Aligner
from distill.data.mixture import Mixture
from distill.data.store.evaluation import Evaluation
from distill.data.store.store import TokenStore
from distill.errors import DataError, DistillError
from distill.losses import cross_tokenizer
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.teacher import load, pretrained, vocabulary
from distill.teacher.cross_tokenizer import CrossTeacher, cells_of
from distill.training.evaluate import Scores, SignalReader, batches, evaluate
from distill.training.inputs import ResolvedRun, make_loader
from distill.types import Alignment, Batch, ChunkSignal

# The rows of a teacher's tokens are as long as the longest of these windows needs, and a little longer.
MEASURED, ROOM, MULTIPLE = 64, 1.1, 32


class CrossTokenizerTeacher:
    """One teacher that runs inside every step, on its own tokens of the student's windows."""

    def __init__(self, run: ResolvedRun, store: TokenStore | Mixture):
        """Raises DistillError where the teacher or its tokenizer is gone, or the student's tokens keep no text."""
        self.teachers = run.teachers
        (teacher,) = self.teachers
        try:
            theirs = vocabulary.tokenizer_of(teacher)
        except DataError as error:
            raise ConfigError(
                f"objective.cross_tokenizer={run.config.objective.cross_tokenizer!r} needs the tokenizer of the "
                f"teacher in {teacher.source}: {error}"
            ) from None
        if theirs.vocab_size > teacher.config.model.tokens:
            raise ConfigError(
                f"the teacher in {teacher.source} has {teacher.config.model.tokens} tokens and its tokenizer "
                f"{theirs.vocab_size}: the others have no row in its embedding; give the tokenizer that it was "
                "made with"
            )
        self.run = teacher.record.run
        self._config, self._store = run.config, store
        self.aligner = Aligner(store.tokenizer(), theirs)
        self.length = self._length()
        self.model = load.load_parameters(teacher, run.config.teacher.dtype)
        wants_cells = run.config.objective.cross_tokenizer == "projection"
        model = run.config.model
        self.cells = cells_of(self.aligner, model.vocab_size, self.model.config.tokens) if wants_cells else None
        self.step_argument = CrossTeacher(model=self.model, cells=self.cells)
        self._losses: dict[tuple[int, int], float] = {}

    def _length(self) -> int:
        """T: the teacher's tokens of a window; of a longer one the rest is cut off.

        Raises ConfigError where the teacher was made for fewer positions than the longest of some windows takes.
        """
        loader = make_loader(self._config, self._store, self._config.data.split)
        count = min(MEASURED, loader.window_count)
        longest, positions = self.aligner.length(loader.read(np.arange(count) * loader.window_count // count))
        (teacher,) = self.teachers
        context = pretrained.context(teacher.source) if pretrained.is_model(teacher.source) else 0
        if 0 < context < positions:
            raise ConfigError(
                f"config.seq_len={self._config.seq_len}: a window is up to {positions} tokens of the teacher in "
                f"{teacher.source}, which was made for {context}; set seq_len to at most "
                f"{max(self._config.seq_len * context // positions, 1)}, or keep documents apart "
                "(data.packing=segments)"
            )
        return math.ceil(ROOM * longest / MULTIPLE) * MULTIPLE

    @property
    def tokens_per_token(self) -> float:
        """T / S, which the teacher's work for a token of the student is multiplied by."""
        return self.length / self._config.seq_len

    def step_flops(self, seq_len: int) -> float:
        return counts.forward_flops(self.teachers[0].config.model, self.length) * self.tokens_per_token

    def signal_reader(self, split: str) -> SignalReader:
        loader = make_loader(self._config, self._store, split)

        def read(windows: NDArray[np.int64]) -> Alignment:
            return self.align(loader.read(np.asarray(windows).reshape(-1)), np.shape(windows))

        return read

    def align(self, batch: Batch, shape: tuple[int, ...]) -> Alignment:
        """The alignment of a batch, with its rows in this shape."""
        aligned = self.aligner.align(batch, self.length)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), aligned)

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        """Without kl and agreement, which need common tokens."""
        return evaluate(params, evaluation, self._config.eval.batch_size)

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float:
        """L_T in nats per token of the *student*, over the validation set's chunks; computed once for each set."""
        key = (len(evaluation.windows), config.seq_len)
        if key not in self._losses:
            self._losses[key] = chunk_loss(self, evaluation, config.eval.batch_size)
        return self._losses[key]

    @property
    def bytes(self) -> int:
        return 0


@jax.jit
def _chunk_sums(teacher: CrossTeacher, alignment: Alignment) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The summed -log p of a batch's chunks, and the number of student's tokens in them."""
    signal = teacher.signal(alignment)
    assert isinstance(signal, ChunkSignal)
    begins = cross_tokenizer.starts(signal.chunk)
    return -(signal.log_probs * begins).sum(), (signal.chunk > 0).sum().astype(signal.log_probs.dtype)


def chunk_loss(source: CrossTokenizerTeacher, evaluation: Evaluation, batch_size: int) -> float:
    """The teacher's loss on a validation set, in nats per token of the student.

    Both models pay for the same bytes: -log p of all chunks over the number of the student's tokens in them. Raises
    DistillError where no chunk is common, or the teacher's output is not finite.
    """
    teacher, device_mesh = CrossTeacher(model=source.model), jax.sharding.get_mesh()
    nats = tokens = 0.0
    for rows, batch in batches(evaluation, batch_size):
        found = _chunk_sums(teacher, sharding.place(source.align(batch, (len(rows),)), device_mesh))
        nats, tokens = nats + float(found[0]), tokens + float(found[1])
    if not tokens or not math.isfinite(nats):
        what = "is not finite (NaN or inf)" if tokens else "and the student's tokens have no chunk of bytes in common"
        raise DistillError(f"the output of the teacher in {source.teachers[0].source} on the validation set {what}")
    return nats / tokens
