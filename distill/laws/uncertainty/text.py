"""Reports of a fit as text: estimates with intervals, the status, errors in and out of sample, the path of deltas."""

from collections.abc import Sequence

import numpy as np

from distill.laws.fitting.checks import loss_doubts
from distill.laws.fitting.fit import Fit
from distill.laws.fitting.rows import notes
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.holdout import Holdout


def report(
    fit: Fit, boot: Bootstrap | None = None, held: Holdout | None = None, first: Fit | None = None, level: float = 0.9
) -> str:
    """Estimates with intervals, the status, what the runs identify, and the errors in and out of sample."""
    mean, largest = fit.error
    measure = str(fit.minimised)
    lines = [f"{fit.law.name}: {len(fit.rows)} runs of {fit.table.source}, {measure}"]
    lines += [*(f"  {note}" for note in notes(type(fit.law), fit.table)), ""]
    if first and boot and boot.supervised:
        lines += [*_estimates(first, boot.supervised, level, "supervised "), ""]
    lines += _estimates(fit, boot, level)
    lines += ["", f"status     {fit.status}"]
    if first:
        lines.append(f"           supervised law: {first.status}")
    lines.append(
        f"objective  {fit.objective:.9g}; {fit.agreement:.0%} of the starts agree; decrement {fit.decrement:.0e}"
    )
    if boot:
        how = f"{boot.kind}{f' by {boot.cluster}' if boot.cluster else ''}"
        lines.append(f"bootstrap  {len(boot)} resamples ({how}), {int(boot.failed.sum())} failed their certificate")
        if boot.laws.given() and not boot.supervised:
            lines.append("           the intervals are conditional on the given supervised law")
    lines += [f"open       {d.words()} (a factor of {_factor(d.error)})" for d in fit.directions() if d.open]
    lines.append(f"error      in the sample {mean:.3%} mean, {largest:.3%} max")
    if not fit.table.loss_unit:
        lines += [f"units      {doubt}" for doubt in loss_doubts(fit.law, fit.rows.target)]
    if held:
        errors = held.errors
        lines.append(
            f"           held out ({len(errors)} runs) {errors.mean():.3%} mean, {errors.max():.3%} max; "
            f"{held.coverage:.0%} inside their {held.level:.0%} intervals"
        )
    return "\n".join(lines)


def path(fits: Sequence[tuple[Fit, Holdout | None]]) -> str:
    """One column per delta: the fitted law from median regression (small deltas) to least squares (large)."""
    laws, names = [fit.law for fit, _ in fits], (*fits[0][0].law.parameters(), *fits[0][0].law.combinations)
    rows = {name: [f"{getattr(law, name):.6g}" for law in laws] for name in names}
    rows["objective"] = [f"{fit.objective:.9g}" for fit, _ in fits]
    rows["starts that agree"] = [f"{fit.agreement:.0%}" for fit, _ in fits]
    rows["rows within delta"] = [f"{(np.abs(fit.residuals) <= fit.minimised.delta).mean():.0%}" for fit, _ in fits]
    rows["error in the sample"] = [f"{fit.error[0]:.3%}" for fit, _ in fits]
    rows["error held out"] = [f"{held.errors.mean():.3%}" for _, held in fits if held]
    first = fits[0][0]
    lines = [f"{first.law.name}: {len(first.rows)} runs of {first.table.source}", ""]
    lines.append(f"{'delta':20s}" + "".join(f"{fit.minimised.delta:>15g}" for fit, _ in fits))
    lines += [f"{name:20s}" + "".join(f"{cell:>15s}" for cell in cells) for name, cells in rows.items() if cells]
    statuses = [(fit.minimised.delta, fit.status) for fit, _ in fits]
    lines += ["", *(f"status at {delta:g}: {status}" for delta, status in statuses if not status)]
    return "\n".join(lines).rstrip()


def _factor(error: float) -> str:
    return f"{np.exp(error):.2g}" if error < 20 else "any size"


def _estimates(fit: Fit, boot: Bootstrap | None, level: float, prefix: str = "") -> list[str]:
    intervals = boot.interval(level) if boot else {}
    # If only a combination is identified, the interval of a part only shows the search's bound: say so instead.
    through = {name: d.keeps for d in fit.directions() if d.open and d.keeps for name in d.main}
    names = [*fit.law.parameters(), *fit.law.combinations]
    width = max(len(prefix + name) for name in names) + 2
    lines = [f"{'':{width}s}{'estimate':>12s}" + (f"   {level:.0%} interval" if boot else "")]
    for name in names:
        ends = f"   ({intervals[name][0]:.5g}, {intervals[name][1]:.5g})" if name in intervals else ""
        ends = f"   only through {', '.join(through[name])}" if name in through else ends
        lines.append(f"{prefix + name:{width}s}{getattr(fit.law, name):12.6g}{ends}")
    return lines
