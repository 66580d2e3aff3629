"""The README of an exported model: facts, measured losses, and the prediction of a law."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A law's prediction for this run, in nats per token, with its interval if the law has one."""

    law: str
    loss: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}] (90%)"
        return f"{self.loss:.4f}{interval} by {self.law}"


def card(name: str, facts: dict[str, str], prediction: Prediction | None = None) -> str:
    """Markdown with a table of facts, and how to load the model."""
    rows = facts | ({"loss the law predicted (nats per token)": str(prediction)} if prediction else {})
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return (
        f"---\nlibrary_name: transformers\ntags:\n- distill\n---\n\n# {name}\n\n| | |\n|---|---|\n{table}\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n'
    )
