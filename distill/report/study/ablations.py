"""Settings of the objective compared, one field at a time: numbers with their seed noise, CSV, figure, section.

A student under a setting is compared with the unchanged student of the same seed, so the noise of a difference is that
between pairs.
"""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence

from distill.records.runs import RunRecord
from distill.report import page
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.page import Column, TableCell
from distill.report.study.results import AblatedRun, Results
from distill.report.study.run_figures import facts
from distill.report.theme import MARKERS, places
from distill.system.numbers import signed

MEASURES = ("loss", "kl", "ece")
_TITLES = ("student's L_S (nats per token)", "KL(teacher, student)", "ECE of the student")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedSetting:
    """One student under one value of a field: its runs, and their differences in loss from the unchanged student."""

    base: str
    value: str
    plain: bool  # whether this is the unchanged student
    runs: tuple[RunRecord, ...]
    differences: tuple[float, ...]

    def mean(self, measure: str) -> float:
        return statistics.fmean(getattr(run, measure) for run in self.runs)

    def spread(self, measure: str) -> float:
        """The standard deviation over seeds; nan for one."""
        values = [getattr(run, measure) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def difference(self) -> tuple[float, float]:
        """Mean difference from the unchanged student, and its standard error over pairs of one seed."""
        n = len(self.differences)
        error = statistics.stdev(self.differences) / math.sqrt(n) if n > 1 else math.nan
        return (statistics.fmean(self.differences) if n else math.nan), error


def fields(study: Results) -> list[str]:
    """The varied fields, in the order of the study's lines."""
    return list(dict.fromkeys(field for one in study.ablated for field, _ in one.settings))


def compare(study: Results, field: str) -> list[ComparedSetting]:
    """Every student under every value of a field, in the order of its line."""
    plain = {(one.base, one.run.seed): one.run.loss for one in study.ablated if one.plain}
    groups: dict[tuple[str, str], list[AblatedRun]] = {}
    order = study.ablation_values.get(field, ())
    for one in study.ablated:
        for value in [value for name, value in one.settings if name == field]:
            groups.setdefault((one.base, value), []).append(one)
    places = {value: i for i, value in enumerate(order)}
    return [
        ComparedSetting(
            base=base,
            value=value,
            plain=group[0].plain,
            runs=tuple(one.run for one in group),
            differences=tuple(
                one.run.loss - plain[base, one.run.seed] for one in group if (base, one.run.seed) in plain
            ),
        )
        for (base, value), group in sorted(groups.items(), key=lambda item: (item[0][0], places.get(item[0][1], 0)))
    ]


def table(study: Results, field: str) -> str:
    """CSV, one row per run: student, value, seed, losses, KL, agreement and ECE of student and teacher."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ("loss", "loss_se", "kl", "agreement", "ece")
    writer.writerow(["student", field.rstrip("_"), "seed", *own, "L_T", "teacher_ece", "run"])
    for setting in compare(study, field):
        for run in setting.runs:
            teacher = _teacher(study, run)
            values = [getattr(run, name) for name in own]
            ece = teacher.ece if teacher else ""
            writer.writerow([setting.base, setting.value, run.seed, *values, run.L_T, ece, run.run])
    return text.getvalue()


def chart(study: Results, field: str) -> Chart:
    """Loss, KL and ECE over the values of a field; faint markers are seeds, bars their means, dotted the teacher."""
    settings = compare(study, field)
    values = list(dict.fromkeys(setting.value for setting in settings))
    bases = list(dict.fromkeys(setting.base for setting in settings))
    name = field.rstrip("_")
    ticks = tuple((float(place), value) for place, value in enumerate(values))
    x = Axis(label=name, ticks=ticks, limits=(-0.5, len(values) - 0.5))
    frames = []
    for measure, title in zip(MEASURES, _TITLES):
        series: list[Series] = []
        for i, (base, shade) in enumerate(zip(bases, places(len(bases)))):
            group = [setting for setting in settings if setting.base == base]
            series += _student(study, group, measure, values, shade, MARKERS[i % len(MARKERS)])
        frames.append(Panel(title=title, x=x, y=Axis(label=title), series=tuple(series)))
    return Chart(
        name=file(field),
        alt=f"Three charts over the values of {name}: loss, KL to the teacher, calibration error of the student.",
        caption=f"Students by {name}. Faint markers are seeds, bars their means; dotted, the teacher itself.",
        panels=tuple(frames),
        height=3.2,
    )


def _student(
    study: Results, group: Sequence[ComparedSetting], measure: str, values: Sequence[str], shade: float, marker: str
) -> list[Series]:
    """One student under every value of a field: its seeds, their means, and its teacher."""
    base = group[0].base
    runs = [(values.index(setting.value), run) for setting in group for run in setting.runs]
    single = Series(
        label=base,
        x=floats([at for at, _ in runs]),
        y=floats([getattr(run, measure) for _, run in runs]),
        colour=shade,
        marker=marker,
        size=4,
        alpha=0.4,
        facts=facts(study, [run for _, run in runs]),
    )
    line = "-" if all(map(_is_number, values)) else ""  # a line only between numbers
    x, y = [values.index(setting.value) for setting in group], [setting.mean(measure) for setting in group]
    mean = Series(label=base, x=floats(x), y=floats(y), colour=shade, line=line, marker="_", size=12, named=False)
    teachers = [t for setting in group for run in setting.runs if (t := _teacher(study, run))]
    if not teachers or measure == "kl":
        return [single, mean]
    level = statistics.fmean(getattr(run, measure) for run in teachers)
    ends = floats([-0.5, len(values) - 0.5])
    rule = Series(label="its teacher", x=ends, y=floats([level, level]), colour=shade, line=":", width=1.2)
    return [single, mean, rule]


def section(study: Results, figures: Mapping[str, str]) -> str:
    """The section of the page: a sentence, a figure and a table for every field."""
    return "".join(_field(study, field, figures) for field in fields(study))


def _field(study: Results, field: str, figures: Mapping[str, str]) -> str:
    name, settings = field.rstrip("_"), compare(study, field)
    text = page.paragraph(verdict(name, settings)) + figures.get(file(field), "")
    columns = [Column(name="student", text=True), Column(name=name, text=True)]
    columns += [Column(name=n) for n in ("seeds", "L_S", "against as it is", "KL", "agreement", "ECE", "teacher's ECE")]
    rows: list[list[str | TableCell]] = []
    for s in settings:
        mean, error = s.difference
        beyond = not s.plain and abs(mean) > 2 * error
        tone = ("good" if mean < 0 else "bad") if beyond else ""
        words = "as it is" if s.plain else f"{signed(mean)} ± {error:.4f}"
        teachers = [t.ece for run in s.runs if (t := _teacher(study, run))]
        rows.append(
            [
                s.base,
                s.value,
                str(len(s.runs)),
                f"{s.mean('loss'):.4f} ± {s.spread('loss'):.4f}",
                TableCell(text=words, tone=tone),
                f"{s.mean('kl'):.4f}",
                f"{s.mean('agreement'):.1%}",
                f"{s.mean('ece'):.2%}",
                f"{statistics.fmean(teachers):.2%}" if teachers else "",
            ]
        )
    caption = (
        f"Students by {name}: L_S with its standard deviation over seeds, differences with their standard error over "
        f"pairs of one seed. Run by run: {file(field)}.csv"
    )
    return text + page.table(caption, columns, rows)


def verdict(name: str, settings: Sequence[ComparedSetting]) -> str:
    """For every student, the best value and whether it beats the unchanged student by two standard errors."""
    parts = []
    for base in dict.fromkeys(setting.base for setting in settings):
        group = [setting for setting in settings if setting.base == base]
        best = min(group, key=lambda setting: setting.mean("loss"))
        plain = next((setting for setting in group if setting.plain), None)
        if plain is None or best is plain:
            parts.append(f"{base}: {name} = {best.value} gives the lowest loss")
            continue
        mean, error = best.difference
        word = "beyond" if abs(mean) > 2 * error else "within"
        parts.append(
            f"{base}: {name} = {best.value} gives the lowest loss, {signed(mean)} ± {error:.4f} against "
            f"{plain.value}, {word} the noise of {len(best.differences)} pairs"
        )
    return "; ".join(parts) + "."


def file(field: str) -> str:
    """The name of a field's figure and CSV in the report's folder."""
    return f"ablation-{field.rstrip('_')}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _teacher(study: Results, run: RunRecord) -> RunRecord | None:
    return next((other for other in study.runs if other.run == run.teacher), None)
