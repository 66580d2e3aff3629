"""The findings as sentences, composed from the counts."""

import math
from collections.abc import Mapping

from distill.laws.fitting.fit import NOT_IDENTIFIED
from distill.report.study.findings import Costs, Findings, Noise, Ordering
from distill.report.study.results import Results
from distill.system.numbers import duration, flops, plural, si, signed

_ENOUGH = 5  # with so many pairs beyond noise, only they give the verdict


def headline(results: Results, findings: Findings) -> str:
    """The planner's advice if there is a plan, else the effect of distillation at the smallest budget."""
    if results.plan:
        return results.plan.sentence
    answer = small_budget(findings)
    return answer[1] if answer else "This study has no student with supervised training of the same N and D beside it."


def opening(results: Results, findings: Findings) -> list[str]:
    """The first three sentences of the page: about teachers, about text, and the plan where there is one."""
    learnt = lessons(findings)
    return [*learnt, results.plan.sentence] if results.plan else learnt or [headline(results, findings)]


def answers(findings: Findings) -> list[tuple[str, str, str]]:
    """The study's questions that its rows can answer: (question, verdict, grounds)."""
    asked = (
        ("Do students of a better teacher end lower, until a gap opens?", ordering(findings)),
        ("Does distillation beat supervised training at small D?", small_budget(findings)),
    )
    return [(question, *answer) for question, answer in asked if answer]


def ordering(findings: Findings) -> tuple[str, str] | None:
    """(verdict, sentence): do students of a better teacher end lower, until a gap opens?"""
    o = findings.ordering
    if o is None or not o.pairs:
        return None
    # Pairs within noise are coin flips: they decide only if there are no others.
    clear = o.clear_pairs >= _ENOUGH
    share = o.clear_agree / o.clear_pairs if clear else o.agree / o.pairs
    verdict = "Yes" if share >= 0.9 else "Mostly" if share >= 0.7 else "Not clearly" if share >= 0.5 else "No"
    where = f"a clear gap opens in {o.clear_gaps} of {o.cells} settings" if o.clear_gaps else "no clear gap opens"
    verdict += f"; {where}"
    text = (
        f"Of {o.clear_pairs} pairs of teachers at the same N and D whose students differ by more than noise, the "
        f"better teacher has the lower student in {o.clear_agree}; of all {o.pairs} pairs in {o.agree} (half would be "
        f"chance). {_gap(o)}"
    )
    below, clear_below = findings.beaten
    if below:
        text += f" {plural(below, 'student')} ended below the teacher's own loss, {clear_below} of them beyond noise"
        text += ", which Eq. 8 cannot express." if clear_below else "."
    return verdict, text


def _gap(o: Ordering) -> str:
    if not o.gaps:
        return f"In all {o.cells} settings of N and D the strongest teacher has the lowest student: no gap opened here."
    return (
        f"In {o.gaps} of {o.cells} settings of N and D the strongest teacher does not have the lowest student; there "
        f"it costs {o.cost:.4f} nats per token on average, more than noise in {o.clear_gaps} of them."
    )


def small_budget(findings: Findings) -> tuple[str, str] | None:
    """(verdict, sentence): does distillation beat supervised training at the smallest D_S?"""
    if not findings.by_tokens:
        return None
    (least, (every, strong)), (most, (_, strong_most)) = (
        list(findings.by_tokens.items())[0],
        list(findings.by_tokens.items())[-1],
    )
    share = strong.wins / strong.pairs if strong.pairs else 0.0
    verdict = "Yes" if share == 1 else "In most cases" if share > 0.5 else "In few cases" if share > 0 else "No"
    text = (
        f"At D = {si(least)}, the smallest budget, the student of the strongest teacher beats supervised training "
        f"of the same N and D in {strong.wins} of {plural(strong.pairs, 'pair')} (mean difference "
        f"{signed(strong.mean)} nats per token, beyond noise in {strong.wins_beyond}); over all teachers in "
        f"{every.wins} of {every.pairs} (mean {signed(every.mean)})."
    )
    if most != least:
        text += (
            f" At D = {si(most)}, the largest, the strongest teacher's student wins {strong_most.wins} of "
            f"{strong_most.pairs} (mean {signed(strong_most.mean)})."
        )
    return verdict, text


def lessons(findings: Findings) -> list[str]:
    """The study's lessons for a new reader: at most two sentences, about teachers and about text."""
    sentences, o = [], findings.ordering
    if o is not None and o.pairs:
        clear = o.clear_pairs >= _ENOUGH
        agree, pairs = (o.clear_agree, o.clear_pairs) if clear else (o.agree, o.pairs)
        counted = "pairs of students that differ by more than noise" if clear else "pairs of students"
        sentences.append(f"The better teacher made the better student in {agree} of {pairs} {counted}.")
    if findings.by_tokens:
        (least, (_, strong)), (most, (_, strong_most)) = (list(findings.by_tokens.items())[i] for i in (0, -1))
        text = (
            f"With the least text ({si(least)} tokens), learning from the strongest teacher gave a lower loss than "
            f"training on the text alone in {strong.wins} of {plural(strong.pairs, 'case')} "
            f"(mean difference {signed(strong.mean)} nats per token)"
        )
        if most != least:
            text += f"; with the most ({si(most)}) in {strong_most.wins} of {strong_most.pairs}"
        sentences.append(f"{text}.")
    return sentences


def not_identified(results: Results) -> str:
    """The meaning of the status "not identified" for a reader; '' if no law of the study has it."""
    named = [law.title for law in results.laws if law.status.startswith(NOT_IDENTIFIED)]
    if not named:
        return ""
    return (
        f"many settings of the coefficients of the {' and the '.join(named)} describe these runs equally well. Do not "
        "quote the coefficients; use the predictions near the runs, whose intervals say how well they are known."
    )


def noise_sentence(noise: Noise) -> str:
    """The source of the noise, and what it does not cover."""
    size = f"{noise.relative:.2%} of the loss"
    if noise.source == "seeds":
        text = f"Noise: {size} (standard deviation), from {noise.cells} settings that were run with several seeds."
    elif noise.source == "law":
        text = (
            f"Noise: hardly any setting was run with several seeds, so seed noise is not measured here. {size} "
            "(standard deviation) is taken from the laws' residuals instead, which hold their misfit as well."
        )
    else:
        text = (
            f"Noise: hardly any setting was run with several seeds and there is no law, so it is unknown. The "
            f"validation set alone contributes {size}; differences called larger than noise may not be."
        )
    return f"{text} A difference counts as larger than noise beyond two standard deviations of it."


def ledger(findings: Findings) -> str | None:
    """How often the law's predictions held."""
    book = findings.ledger
    if book is None:
        return None
    if not book.total:
        return f"None of the {plural(book.waiting, 'predicted run')} has finished yet."
    text = (
        f"{book.inside} of {plural(book.total, 'later run')} fell inside their predicted {book.level:.0%} interval "
        f"({book.level * book.total:.1f} expected); the prediction was off by {book.error:.2%} on average."
    )
    low, high = binomial_range(book.total, book.level)
    if not low <= book.inside <= high:
        side = "narrow" if book.inside < low else "wide"
        text += f" That is outside the {low} to {high} that chance allows: the intervals are too {side}."
    text += " Runs that share a trunk err together, so these are fewer independent trials than they look."
    return text + (f" {_origins(book.how)}" if book.how else "")


def _origins(how: Mapping[str, int]) -> str:
    """Where the intervals of a study's predictions are from: 'Intervals: 12 calibrated, 4 bootstrap alone (...).'"""
    counted = ", ".join(f"{count} {name}" for name, count in how.items())
    return f"Intervals: {counted} (calibrated: by how well smaller runs predicted larger ones)."


def binomial_range(n: int, p: float) -> tuple[int, int]:
    """The central 95% of a binomial count."""
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    low = next(k for k in range(n + 1) if sum(chances[: k + 1]) > 0.025)
    high = next(k for k in range(n, -1, -1) if sum(chances[k:]) > 0.025)
    return low, high


def costs_sentence(costs: Costs) -> str:
    """FLOPs by purpose and time."""
    total = costs.student + costs.teacher_forward + costs.teacher_training
    text = (
        f"{flops(total)} FLOPs: {flops(costs.student)} training students and supervised models, "
        f"{flops(costs.teacher_forward)} teachers' forward passes on the students' tokens, "
        f"{flops(costs.teacher_training)} training teachers."
    )
    if costs.trunks < costs.runs:
        text += (
            f" This counts every run from its first step; the {costs.runs} runs share {costs.trunks} trunks, so less "
            "was really spent."
        )
    return (
        f"{text} Runs were under way for {duration(costs.seconds)} of wall-clock time; one after the other they would "
        f"have taken {duration(costs.run_seconds)}."
    )
