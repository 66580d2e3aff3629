"""Converts budgets in accelerator-hours, money, or days on a number of accelerators to FLOPs.

    >>> prices = prices_of("h100", mfu=0.4)
    >>> budget(prices, gpu_hours=5000).compute
    7.1208e+21

Compute = hours x peak x MFU. The peak is the vendor's, the price a dated list price if one is known
(config/chips.py), and the MFU an assumption that every text states.
"""

import dataclasses

from distill.config import chips
from distill.laws.planning.scenarios import PlanError, Prices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """FLOPs, and a text that says how they were computed."""

    compute: float
    words: str


def prices_of(
    chip: str = "",
    *,
    peak_flops: float | None = None,
    mfu: float | None = None,
    hourly: float | None = None,
    currency: str = "",
    accelerators: int | None = None,
) -> Prices:
    """Prices of a chip by its name, or the defaults (an H100's peak, an assumed price); arguments take precedence.

    `hourly` is money per accelerator-hour in `currency`; nan if no price is known or given. Raises PlanError, and
    ConfigError for a chip that is not in the table.
    """
    prices = Prices()
    if chip:
        known = chips.find(chip)
        price = known.price
        prices = dataclasses.replace(
            prices,
            chip=known.name,
            peak_flops=known.flops,
            hourly=price.hourly if price else float("nan"),
            currency=price.currency if price else "USD",
            source=f"list price of {price.date}: {price.source}" if price else "no list price known, give --hourly",
        )
    return dataclasses.replace(
        prices,
        peak_flops=prices.peak_flops if peak_flops is None else peak_flops,
        mfu=prices.mfu if mfu is None else mfu,
        hourly=prices.hourly if hourly is None else hourly,
        currency=currency or prices.currency,
        accelerators=prices.accelerators if accelerators is None else accelerators,
        chip=prices.chip if peak_flops is None else "",
        source=prices.source if hourly is None else "as given",
    )


def budget(
    prices: Prices, *, gpu_hours: float | None = None, money: float | None = None, days: float | None = None
) -> Budget | None:
    """The compute that one of the arguments buys; None if none is given.

    gpu_hours: total accelerator-hours. money: in the prices' currency. days: on all `prices.accelerators` at once.
    Raises PlanError for two of them, for a value that is not positive, and for money if no price is known.
    """
    given = {"gpu-hours": gpu_hours, "dollars": money, "days": days}
    named = {name: value for name, value in given.items() if value is not None}
    if not named:
        return None
    if len(named) > 1:
        raise PlanError(f"constraint: got {' and '.join(f'--{name}' for name in named)}; wanted one of them")
    name, value = next(iter(named.items()))
    if not 0 < value < float("inf"):
        raise PlanError(f"--{name}={value:g}: wanted a positive number")
    if name == "dollars":
        if prices.hourly == 0:
            raise PlanError("--dollars with --hourly=0: wanted a price above 0, or --gpu-hours in place of money")
        if not prices.hourly > 0:
            raise PlanError(
                f"--dollars: there is no list price of {prices.chip or 'this accelerator'}; "
                "give what an accelerator-hour costs, --hourly=2.50"
            )
        hours, text = value / prices.hourly, f"{value:,.10g} {prices.currency}"
    elif name == "days":
        hours = value * 24 * prices.accelerators
        text = f"{value:g} days on {prices.accelerators} accelerators"
    else:
        hours, text = value, f"{value:,.10g} accelerator-hours"
    compute = prices.flops(hours)
    more = "" if name == "gpu-hours" else f" = {hours:,.0f} accelerator-hours"
    return Budget(compute=compute, words=f"budget: {text}{more} = {compute:.3g} FLOPs ({rate(prices)})")


def rate(prices: Prices) -> str:
    """'h100, 989T FLOP/s peak, 40% of it used (assumed), 3.99 USD an accelerator-hour (list price of ...)'."""
    money = f"{prices.hourly:g} {prices.currency} an accelerator-hour" if prices.hourly >= 0 else "price unknown"
    source = f" ({prices.source})" if prices.source else ""
    chip = f"{prices.chip}, " if prices.chip else ""
    return f"{chip}{prices.peak_flops / 1e12:.4g} TFLOP/s peak, MFU {100 * prices.mfu:.0f}% assumed; {money}{source}"
