"""Chat templates of published models: renders Jinja in a sandbox and separates template from message text."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.data.documents import Part
from distill.data.sources import jinja_sandbox as render
from distill.data.tokenizers.gguf import GgufFile
from distill.errors import DataError
from distill.system.files import loads

TOKENIZER_CONFIG, JINJA = "tokenizer_config.json", "chat_template.jinja"


def read_template(path: str | Path) -> tuple[str, dict[str, str]]:
    """Reads the chat template ('' if there is none) and special tokens of a model folder, GGUF or .jinja file.

    Raises DataError where the file cannot be read.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        fields = GgufFile(path).fields
        tokens = fields.get("tokenizer.ggml.tokens", [])
        ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        special = {
            f"{name}_token": str(tokens[i])
            for name, i in ids.items()
            if isinstance(tokens, list) and type(i) is int and 0 <= i < len(tokens)
        }
        return str(fields.get("tokenizer.chat_template", "")), special
    try:
        if not path.is_dir():
            return path.read_text("utf-8"), {}
        file = path / TOKENIZER_CONFIG
        tree = loads(file.read_text("utf-8")) if file.exists() else {}
        if not isinstance(tree, dict):
            raise ValueError(f"{TOKENIZER_CONFIG} holds no object")
        text = (path / JINJA).read_text("utf-8") if (path / JINJA).exists() else tree.get("chat_template") or ""
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read its chat template ({error})") from None
    if isinstance(text, list):  # several templates, by name
        defaults = [item for item in text if isinstance(item, dict) and item.get("name") == "default"]
        text = defaults[0].get("template") if defaults else ""
    if not isinstance(text, str):
        raise DataError(f"{path}: its chat template is {text!r:.60}, wanted text")
    known = {name: tree.get(name) for name in ("bos_token", "eos_token")}
    known = {name: value.get("content") if isinstance(value, dict) else value for name, value in known.items()}
    return text, {name: value for name, value in known.items() if isinstance(value, str)}


class ChatTemplate:
    """The chat template of a published model.

    A template is untrusted code: it runs in Jinja's sandbox, in a separate process with bounded time and memory
    (jinja_sandbox.py). Special tokens are recognised in the text that the template writes around a message's content,
    and not in the content.
    """

    def __init__(self, path: str):
        self.text, self._special = read_template(path)
        if not self.text:
            raise DataError(f"{path}: there is no chat template; set data.columns.chat instead of template")
        self._path = path
        if importlib.util.find_spec("jinja2") is None:
            raise DataError(f"{path}: its chat template needs jinja2; `pip install 'distill[interop]'`")
        self._render([])

    def render(self, messages: Sequence[Mapping[str, str]], prompt: bool = False) -> str:
        """Renders the conversation; with `prompt`, up to the start of the assistant's next turn."""
        return self._render([(messages, prompt)])[0]

    def _render(self, wanted: Sequence[tuple[Sequence[Mapping[str, str]], bool]]) -> list[str]:
        calls = [render.Call(messages=list(messages), add_generation_prompt=prompt) for messages, prompt in wanted]
        try:
            return render.render(self.text, self._special, calls)
        except render.RenderError as error:
            what = "fails on a conversation" if error.compiled else "is not Jinja"
            raise DataError(f"{self._path}: its chat template {what} ({' '.join(str(error).split()):.200})") from None

    def parts(self, messages: Sequence[Mapping[str, str]]) -> list[Part]:
        """Splits the conversation into parts; the assistant's contents, and the ends of its turns, are trained.

        Raises DataError for a template that changes contents or rewrites earlier turns, because the tokens of a message
        can then not be separated from those of the template.
        """
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
        marked = [{**message, "content": mark} for message, mark in zip(messages, marks)]
        parts: list[Part] = []
        done = ""
        *prefixes, want = self._render([*((marked[: i + 1], False) for i in range(len(messages))), (messages, False)])
        for i, (message, mark, now) in enumerate(zip(messages, marks, prefixes)):
            before, middle, after = now[len(done) :].partition(mark)
            if not now.startswith(done) or not middle or mark in after:
                raise DataError(f"{self._path}: its chat template does not write turn {i + 1} after turn {i} and once")
            reply = message["role"] == "assistant"
            parts.append(Part(before, trained=False, template=True))
            parts.append(Part(message["content"], trained=reply))
            parts.append(Part(after, trained=reply, template=True))
            done = now
        for tidy in (str, str.strip):
            found_parts = [part if part.template else part._replace(text=tidy(part.text)) for part in parts]
            if "".join(part.text for part in found_parts) == want:
                return [part for part in found_parts if part.text]
        raise DataError(f"{self._path}: its chat template changes the contents of messages")
