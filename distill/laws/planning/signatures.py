"""The interfaces of laws and costs in a plan: any callables with these arguments, such as a `laws.Law`."""

from typing import Protocol

from distill.laws.forms.arrays import Values


class SupervisedLaw(Protocol):
    """L(N, D): the loss of a model of N parameters trained on D tokens, nats per token."""

    def __call__(self, N: Values, D: Values, /) -> Values: ...


class StudentLaw(Protocol):
    """L_S(N_S, D_S, L_T): the loss of a student of N_S parameters on D_S tokens, from a teacher of loss L_T."""

    def __call__(self, N_S: Values, D_S: Values, L_T: Values, /) -> Values: ...


class ForwardFlops(Protocol):
    """F(N): forward FLOPs per token of a model of N parameters."""

    def __call__(self, N: Values, /) -> Values: ...
