"""Reports of a fit as text: estimates with intervals, the status, errors in and out of sample, the path of deltas."""

from collections.abc import Sequence

import numpy as np

from distill.laws.fitting.checks import loss_doubts
from distill.laws.fitting.fit import NOT_ASSESSED, SUSPECT, Fit, Status, worse
from distill.laws.fitting.rows import notes
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.holdout import Holdout


def report(
    fit: Fit,
    boot: Bootstrap | None = None,
    held: Holdout | None = None,
    first: Fit | None = None,
    level: float = 0.9,
) -> str:
    """Both statuses, estimates with intervals, what the runs identify, and the errors in and out of sample."""
    measure = str(fit.minimised)
    lines = [f"{fit.law.name}: {len(fit.rows)} runs of {fit.table.source}, {measure}"]
    lines += [*(f"  {note}" for note in notes(type(fit.law), fit.table)), ""]
    lines += [*statuses(fit, boot), ""]
    if first and boot and boot.supervised:
        lines += [*_estimates(first, boot.supervised, level, "supervised "), ""]
    lines += [*_estimates(fit, boot, level), ""]
    lines.append(f"status     {judged(fit, boot)}")
    if first:
        lines.append(f"           supervised law: {first.status}")
    lines.append(
        f"objective  {fit.objective:.9g}; {fit.agreement:.0%} of the starts agree; decrement {fit.decrement:.0e}"
    )
    if boot:
        how = f"{boot.kind}{f' by {boot.cluster}' if boot.cluster else ''}"
        lines.append(f"bootstrap  {len(boot)} resamples ({how}), {int(boot.failed.sum())} failed their certificate")
        if boot.laws.given() and not boot.staged:
            lines.append("           the intervals are conditional on the given supervised law")
    lines += [f"open       {d.words()} (a factor of {_factor(d.error)})" for d in fit.directions() if d.open]
    return "\n".join(lines + _errors(fit, held))


def statuses(fit: Fit, boot: Bootstrap | None = None) -> list[str]:
    """Two lines, for every place that shows a fit: which coefficients are fixed; how good predictions are, how far."""
    left = list(boot.open if boot else fit.open)
    fixed = [name for name in (*fit.law.parameters(), *fit.law.combinations) if name not in left]
    words = "; ".join(f"{what}: {', '.join(names)}" for what, names in (("fixed", fixed), ("open", left)) if names)
    lines = [f"coefficients  {fit.coefficients.kind}; {words}", f"predictions   {predictions(fit, boot)}"]
    if boot and boot.others and boot.calibration:
        names = [one.fit.law.name for one in (boot, *boot.others)]
        shares = ", ".join(f"{name} {weight:.0%}" for name, weight in zip(names, boot.calibration.weights))
        lines.append(f"              averaged over {shares} (weights by held-out likelihood)")
    return lines


def judged(fit: Fit, boot: Bootstrap | None = None) -> Status:
    """The worse of both statuses, with what rolling forward has shown where the bootstrap was calibrated."""
    return worse(fit.coefficients, predictions(fit, boot))


def predictions(fit: Fit, boot: Bootstrap | None) -> Status:
    """How good predictions are, and how far; of suspect rows nothing is claimed."""
    if fit.coefficients.kind == SUSPECT:
        return Status(kind=NOT_ASSESSED, message="suspect rows make it look better or worse than it is; leave them out")
    if boot and boot.calibration:
        return Status(kind=boot.calibration.kind, message=boot.calibration.message)
    return fit.predictions


def _errors(fit: Fit, held: Holdout | None) -> list[str]:
    """In and out of sample, after doubts about the unit."""
    mean, largest = fit.error
    doubts = [] if fit.table.loss_unit else loss_doubts(fit.law, fit.rows.target)
    lines = [f"units      {doubt}" for doubt in doubts]
    lines.insert(0, f"error      in the sample {mean:.3%} mean, {largest:.3%} max")
    if held:
        errors = held.errors
        lines.append(
            f"           held out ({len(errors)} runs) {errors.mean():.3%} mean, {errors.max():.3%} max; "
            f"{held.coverage:.0%} inside their {held.level:.0%} bootstrap intervals, {held.calibrated:.0%} inside the "
            "calibrated ones"
        )
    return lines


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
    found = [(fit.minimised.delta, fit.status) for fit, _ in fits]
    lines += ["", *(f"status at {delta:g}: {status}" for delta, status in found if not status)]
    return "\n".join(lines).rstrip()


def _estimates(fit: Fit, boot: Bootstrap | None, level: float, prefix: str = "") -> list[str]:
    within = {name: cell for name, _, cell in boot.estimates(level, "({:.5g}, {:.5g})")} if boot else {}
    within |= {} if boot else {name: f"open: {why}" for name, why in fit.open.items()}
    names = [*fit.law.parameters(), *fit.law.combinations]
    width = max(len(prefix + name) for name in names) + 2
    lines = [f"{'':{width}s}{'estimate':>12s}" + (f"   {level:.0%} interval (bootstrap)" if boot else "")]
    for name in names:
        ends = f"   {within[name]}" if name in within else ""
        lines.append(f"{prefix + name:{width}s}{getattr(fit.law, name):12.6g}{ends}")
    return lines


def _factor(error: float) -> str:
    return f"{np.exp(error):.2g}" if error < 20 else "any size"
