"""The tables that ship with this project as specimens: Apple's runs and those of our own studies.

Lsup of students is the supervised law of the same table where it has three sizes and three budgets, else that of
`micro`, whose models and text are the same.
"""

from collections.abc import Iterator

from distill import laws
from distill.bench.public import REPEATED, Specimen

STUDENTS = ("distillation", "distillation-limit", "overtaking", "additive")
_PAIR = ("distillation-limit", "overtaking")
_NOISE = laws.Objective(delta=1e-2)  # the noise of a small run
# Students of our studies: the table, the rows of it that a form describes, the forms.
_TAUGHT = (
    ("teachers", "lambda == 1", (*_PAIR, "teacher-size", "teacher-tokens")),
    ("repeats", "lambda == 1", (*_PAIR, "distillation-unique")),
    ("lambda", "has(L_T)", (*_PAIR, "lambda-mixture")),
    ("chains", "lambda == 1", _PAIR),
    ("chains-half", "lambda == 0.5", _PAIR),
    ("ensembles", "lambda == 1", _PAIR),
    ("signals", "signal == soft", _PAIR),
)
_LEAST = 3  # sizes and budgets of supervised runs from which their law is a table's own Lsup


def specimens() -> Iterator[Specimen]:
    """Every table that ships and a form reads, Apple's first."""
    apple = laws.load_table("apple").where("L_S > 2.3")
    yield Specimen(name="apple students", table=apple, forms=STUDENTS, given=laws.paper()[0])
    micro = laws.load_table("micro")
    alone = micro.where("kind == supervised")
    yield Specimen(name="micro", table=alone, objective=_NOISE)
    lsup = laws.fit("supervised", alone, objective=_NOISE, units=False).law
    forms = (*STUDENTS, "teacher-size", "teacher-tokens")
    yield Specimen(name="micro students", table=micro, forms=forms, given=lsup, objective=_NOISE)
    yield Specimen(name="entropy", table=laws.load_table("entropy"), objective=_NOISE)
    tuned = laws.as_table(laws.load_table("tuned"), best_of=("N", "D"))
    yield Specimen(name="tuned", table=tuned, objective=_NOISE)
    fresh = laws.load_table("lambda").where("kind == supervised")
    yield Specimen(name="lambda", table=fresh, objective=_NOISE)
    repeated = laws.load_table("repeats").where("kind == supervised")
    yield Specimen(name="repeats", table=repeated, forms=REPEATED, objective=_NOISE)
    for name, rule, taught in _TAUGHT:
        table = laws.load_table(name)
        students = table.where(f"kind == distillation and {rule}")
        yield Specimen(
            name=f"{name} students", table=students, forms=taught, given=_own(table) or lsup, objective=_NOISE
        )


def _own(table: laws.Table) -> laws.Law | None:
    """The supervised law of a table's own runs without repeated text; None where they are too few sizes or budgets."""
    alone = table.where("kind == supervised")
    fresh = alone.where(alone.numbers("D_unique") >= 0.99 * alone.numbers("D"))
    if min(len(set(fresh.numbers(name))) for name in ("N", "D")) < _LEAST:
        return None
    return laws.fit("supervised", fresh, objective=_NOISE, units=False).law
