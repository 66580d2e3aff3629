"""The README of an exported model: facts, measured losses, and the prediction of a law."""

import dataclasses
import re
from pathlib import Path


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


def licence(path: str | Path) -> str:
    """The licence that the README of a model's folder names in its head; '' where there is none."""
    try:
        text = (Path(path) / "README.md").read_text("utf-8", "replace")[:100_000]
    except OSError:
        return ""
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = re.search(r"^license:[ \t]*([\w.+-]+)[ \t]*$", head, re.MULTILINE)
    return found[1] if found else ""


def adapter_card(name: str, base: str, facts: dict[str, str], licence: str = "") -> str:
    """Markdown of adapters alone: the model that they belong to, a table of facts, and how to load both."""
    text = card(name, facts, licence=licence).replace("library_name: transformers", "library_name: peft")
    head, _, _ = text.partition("```python")
    return (
        f"{head}Adapters (LoRA) of `{base}`.\n\n```python\nfrom peft import PeftModel\n"
        f'from transformers import AutoModelForCausalLM\n\nbase = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, ".")\n```\n'
    )


def card(name: str, facts: dict[str, str], prediction: Prediction | None = None, licence: str = "") -> str:
    """Markdown with a table of facts, and how to load the model; `licence` is that of what it was made of."""
    rows = facts | ({"loss the law predicted (nats per token)": str(prediction)} if prediction else {})
    rows |= {"licence of the model that it was made of": licence} if licence else {}
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    said = f"license: {licence}\n" if licence else ""
    return (
        f"---\nlibrary_name: transformers\n{said}tags:\n- distill\n---\n\n# {name}\n\n| | |\n|---|---|\n{table}\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n'
    )
