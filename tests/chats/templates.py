"""Forty chat templates, written for these tests in the manner of the published families; none is anybody's own text.

Each is written with {% generation %} around what its assistant says. Without these tags it renders the same text, and
what they enclose is then what distill has to find by itself.
"""

import dataclasses
import re
from collections.abc import Mapping

IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
INST = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_TAG = re.compile(r"\{% (?:end)?generation %\}")


@dataclasses.dataclass(frozen=True)
class Family:
    """A template, and the tokenizer that goes with it."""

    text: str
    special: tuple[str, ...]  # special tokens that the vocabulary gets
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)  # bos_token and others
    base: str = "bytes"  # the tokenizer: bytes, nfc, first or always
    plain: tuple[str, ...] = ()  # added tokens that are not special
    rstrip: bool = False  # special tokens take the blanks that follow
    named_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def untagged(self) -> str:
        return _TAG.sub("", self.text)


_ROLES_ALTERNATE = (
    "{%- set talk = messages[1:] if messages[0].role == 'system' else messages %}"
    "{%- for m in talk %}{% if (m.role == 'user') != loop.index0 is even %}"
    "{{ raise_exception('after a user speaks the assistant, and after the assistant a user') }}{% endif %}{% endfor %}"
)
_EOS = {"bos_token": "<s>", "eos_token": "</s>"}
_END = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _chatml(
    start: str = "", before: str = "", prompt: str = "", reply: str = "{{ m.content }}", roles: str = ""
) -> str:
    """Turns between <|im_start|> and <|im_end|>. start: before all turns; before: in each."""
    return (
        start + "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + before
        + "{% if m.role == 'assistant' %}{% generation %}" + reply + "{{ '<|im_end|>' }}{{ '\n' }}{% endgeneration %}"
        + roles + "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n" + prompt + "' }}{% endif %}"
    )  # fmt: skip


_TOOL_LIST = (
    "{%- if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}"
    "{% endif %}{{ 'You may call these functions, one in a pair of tool_call tags:' }}"
    "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}"
)
_CALLS = (
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{% set f = call.function if call.function else call %}"
    "{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}{% endif %}"
    "{{ '}\n</tool_call>' }}"
    "{% endfor %}{% endif %}"
)
_ANSWERS = (
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
# Where the last question stands: reasoning before it is not repeated.
_LAST_QUESTION = (
    "{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not (m.content.startswith("
    "'<tool_response>') and m.content.endswith('</tool_response>')) %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
)
_THOUGHT = (
    "{% set content = m.content if m.content is string else '' %}{% set why = '' %}"
    "{% if m.reasoning_content is string %}"
    "{% set why = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set why = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)


def _qwen(thought: str, prompt: str, check: str = "") -> str:
    """Tools, and reasoning of the turns after the last question."""
    return (
        _TOOL_LIST + _LAST_QUESTION + check
        + "{% for m in messages %}{% if m.role == 'user' or m.role == 'system' and not loop.first %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}" + _THOUGHT
        + "{{ '<|im_start|>assistant\n' }}" + thought
        + "{{ content }}" + _CALLS + "{{ '<|im_end|>' }}{{ '\n' }}{% endgeneration %}" + _ANSWERS
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        + prompt + "{% endif %}"
    )  # fmt: skip


def _headers(start: str, reply: str = "{{ m.content | trim }}", end: str = "<|eot_id|>") -> str:
    """Llama 3's turns: a header, an empty line, the text."""
    return (
        "{{ bos_token }}" + start + "{% for m in talk %}{% if m.role == 'assistant' %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% generation %}"
        + reply
        + "{{ '"
        + end
        + "' }}{% endgeneration %}"
        "{% elif m.role == 'tool' or m.role == 'ipython' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
        "{{ m.content | tojson if m.content is not string else m.content }}{{ '<|eot_id|>' }}"
        "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
        "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )


_LLAMA_SYSTEM = (
    "{% set talk = messages %}{% set said = '' %}{% if messages[0].role == 'system' %}"
    "{% set said = messages[0].content | trim %}"
    "{% set talk = messages[1:] %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{% if tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}"
)
_LLAMA_TOOLS = (
    "{% if tools is not none %}{{ 'Answer with a call of one of these functions.\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=2) + '\n\n' }}{% endfor %}{% endif %}{{ said + '<|eot_id|>' }}"
)
_LLAMA_REPLY = (
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call in a turn') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + f.arguments | tojson + '}' }}"
    "{% else %}{{ m.content | trim }}{% endif %}"
)


def _turns(user: str, assistant: str, close: str, end: str, start: str = "", system: str = "{{ m.content + '\n\n' }}",
           content: str = "m.content", prompt: str | None = None, after: str = "") -> str:  # fmt: skip
    """Turns that begin with a name and end with a token or a line end; the prompt is the assistant's name."""
    prompt = assistant if prompt is None else prompt
    assert assistant.startswith(prompt)
    assistant, blank = prompt, assistant[len(prompt) :]  # what follows the prompt is the assistant's
    return (
        start + "{% for m in messages %}{% if m.role == 'system' %}" + system + "{% elif m.role == 'user' %}"
        "{{ '"
        + user
        + "' + "
        + content
        + " + '"
        + close
        + "' }}{% elif m.role == 'assistant' %}{{ '"
        + assistant
        + "' }}"
        "{% generation %}{{ '"
        + blank
        + "' + "
        + content
        + " }}"
        + end
        + "{% endgeneration %}"
        + after
        + "{% else %}{{ raise_exception('no place for the role ' + m.role) }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + prompt + "' }}{% endif %}"
    )


_LLAMA2 = (
    _ROLES_ALTERNATE + "{% for m in talk %}{% if m.role == 'user' %}{% set said = m.content %}"
    "{% if loop.first and messages[0].role == 'system' %}"
    "{% set said = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' + m.content %}{% endif %}"
    "{{ bos_token + '[INST] ' + said | trim + ' [/INST]' }}{% else %}"
    "{% generation %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ bos_token }}" + _ROLES_ALTERNATE + "{% for m in talk %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
_MISTRAL_FIRST = _MISTRAL.replace("loop.last", "loop.first")
_MISTRAL_TOOLS = (
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
    "{% if tools is not none and users and m == users[-1] %}{{ '[AVAILABLE_TOOLS][' }}{% for tool in tools %}"
    "{{ tool | tojson }}{{ ', ' if not loop.last else '' }}{% endfor %}{{ '][/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have nine letters') }}{% endif %}"
    "{{ '[TOOL_RESULTS]{\"content\": ' + m.content | tojson}}"
    "{{ ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{% elif m.tool_calls %}{% generation %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
    "{% set f = call.function %}"
    '{{ \'{"name": "\' + f.name + \'", "arguments": \' + f.arguments | tojson + \', "id": "\' + call.id + \'"}\' }}'
    "{{ ', ' if not loop.last else '' }}{% endfor %}{{ ']' + eos_token }}{% endgeneration %}"
    "{% else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
_GEMMA_TURNS = (
    "{% for m in talk %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<end_of_turn>\n' }}{% endgeneration %}"
    "{% else %}{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim + '<end_of_turn>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('there is no role for a system') }}"
    "{% endif %}"
    "{% set first = '' %}" + _ROLES_ALTERNATE + _GEMMA_TURNS
)
_GEMMA_SYSTEM = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content | trim + '\n\n' %}"
    "{% endif %}" + _ROLES_ALTERNATE + _GEMMA_TURNS
)
_GEMMA_BLOCKS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% set said = m.content %}{% if m.content is not string %}{% set ns = namespace(text='') %}"
    "{% for block in m.content %}"
    "{% set ns.text = ns.text + block['text'] %}{% endfor %}{% set said = ns.text %}{% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ said | trim + '<end_of_turn>\n' }}{% endgeneration %}"
    "{% else %}{{ said | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{% set said = m.content if m.content is string else '' %}{% if '</think>' in said %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' }}{% generation %}{{ said }}{% if m.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}"
    "{% for call in m.tool_calls %}"
    "{{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name }}"
    "{{ '\n' + call.function.arguments | tojson }}"
    "{{ '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}{{ '<｜end▁of▁sentence｜>' }}"
    "{% endgeneration %}"
    "{% elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
_DEEPSEEK_TOKENS = tuple(
    f"<｜{name}｜>"
    for name in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁calls▁begin", "tool▁calls▁end",
                 "tool▁call▁begin", "tool▁call▁end", "tool▁sep", "tool▁output▁begin", "tool▁output▁end")
)  # fmt: skip
_COMMAND_ROLE = (
    "{{ '<|START_OF_TURN_TOKEN|>' }}{% if m.role == 'user' %}{{ '<|USER_TOKEN|>' }}{% elif m.role == 'assistant' %}"
    "{{ '<|CHATBOT_TOKEN|>' }}{% else %}{{ '<|SYSTEM_TOKEN|>' }}{% endif %}"
)
_COMMAND = (
    "{{ bos_token }}{% for m in messages %}" + _COMMAND_ROLE + "{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content | trim + '<|END_OF_TURN_TOKEN|>' }}{% endgeneration %}{% else %}"
    "{{ m.content | trim + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
_COMMAND_DOCUMENTS = _COMMAND.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if documents %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' }}{% for d in documents %}"
    "{{ 'Document: ' ~ loop.index0 ~ '\n' }}{% for key, value in d.items() %}{{ key ~ ': ' ~ value ~ '\n' }}"
    "{% endfor %}{% endfor %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endif %}",
)
_COMMAND_TOOLS = _COMMAND.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Tools' }}{% for tool in tools %}"
    "{{ '\n' + tool | tojson(indent=4) }}{% endfor %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}",
)
_CHANNELS = (
    "{{ '<|start|>system<|message|>Today: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}{% generation %}"
    "{% if m.thinking is defined %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}"
    "{% endif %}"
    "{{ '<|channel|>final<|message|>' + m.content }}"
    "{% if loop.last and not add_generation_prompt %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}"
    "{% endgeneration %}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ '\n' + m.content | trim }}{% endgeneration %}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' }}{% if m.role == 'assistant' %}"
    "{% generation %}"
    "{{ m.content + '<|end_of_text|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|end_of_text|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
_KIMI = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_system|>system<|im_middle|>Be of help.<|im_end|>' }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}"
    "{{ '<|im_' + m.role + '|>' + (m.name or m.role) + '<|im_middle|>' + m.content + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)
_MODES = (
    "{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
    "{{ '<|im_start|>system\nMode: ' + mode + '\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{% if mode == '/think' %}{{ m.content.lstrip('\n') }}{% else %}"
    "{{ '<think>\n\n</think>\n' + m.content.lstrip('\n') }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PHI = tuple(
    f"<|{name}|>" for name in ("user", "assistant", "system", "end", "endoftext", "im_start", "im_sep", "im_end")
)
_EMPTY_THOUGHT = (
    "{% set thought = '<think>\n' + why.strip('\n') + '\n</think>\n\n'"
    " if loop.index0 > ns.last and (loop.last or why) else '' %}"
    "{% set given = enable_thinking is defined and enable_thinking is false and not why %}"
    "{% if given %}{{ thought }}{% endif %}{% generation %}{% if not given %}{{ thought }}{% endif %}"
)
_BEGUN_THOUGHT = (
    "{% if loop.index0 > ns.last %}{{ '<think>\n' }}{% endif %}{% generation %}"
    "{% if loop.index0 > ns.last %}{{ why | trim + '\n</think>\n\n' }}{% endif %}"
)
_NEEDS_QUESTION = "{% if ns.last < 0 %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
_ENDS = "{{ eos_token }}"

FAMILIES: dict[str, Family] = {
    "chatml": Family(_chatml(), IM, _END),
    "chatml-default-system": Family(
        _chatml("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"),
        IM,
        _END,
    ),
    "chatml-without-prompt": Family(re.sub(r"(?s)\{%- if add_generation_prompt.*", "", _chatml()), IM, _END),
    "chatml-bos": Family(_chatml("{{ bos_token }}"), (*IM, "<s>", "</s>"), _EOS, base="first"),
    "chatml-trim": Family(_chatml().replace("m.content", "m.content | trim"), IM, _END, base="nfc"),
    "zephyr": Family(
        _turns(
            "<|user|>\n",
            "<|assistant|>\n",
            "</s>\n",
            "{{ eos_token + '\n' }}",
            system="{{ '<|system|>\n' + m.content + '</s>\n' }}",
        ),
        ("<s>", "</s>"),
        _EOS,
        base="always",
    ),
    "llama-2": Family(_LLAMA2, INST[:2], _EOS, base="always"),
    "llama-2-first": Family(_LLAMA2, INST[:2], _EOS, base="first"),
    "mistral-first": Family(_MISTRAL_FIRST, INST[:2], _EOS, base="first"),
    "mistral-last": Family(_MISTRAL, INST[:4], _EOS, base="first"),
    "mistral-tools": Family(_MISTRAL_TOOLS, INST, _EOS),
    "llama-3": Family(
        _headers("{% set talk = messages %}"), HEADERS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    ),
    "llama-3.1": Family(
        _headers(_LLAMA_SYSTEM + "{{ 'Cutting: 2023\n\n' }}" + _LLAMA_TOOLS, _LLAMA_REPLY),
        HEADERS,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "llama-3.2": Family(
        _headers(
            _LLAMA_SYSTEM + "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}"
            "{{ 'Today: ' + date + '\n\n' }}" + _LLAMA_TOOLS,
            _LLAMA_REPLY,
        ),
        HEADERS,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "gemma": Family(
        _GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        base="always",
    ),
    "gemma-system": Family(
        _GEMMA_SYSTEM, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), {"bos_token": "<bos>"}
    ),
    "gemma-blocks": Family(
        _GEMMA_BLOCKS, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), {"bos_token": "<bos>"}
    ),
    "qwen2": Family(
        _chatml("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"),
        IM,
        _END,
        base="nfc",
    ),
    "qwen2.5": Family(
        _qwen("{% generation %}", "").replace(_THOUGHT, "{% set content = m.content or '' %}"),
        IM,
        _END,
        base="nfc",
        plain=THINK,
    ),
    "qwen3": Family(
        _qwen(
            _EMPTY_THOUGHT,
            "{% if enable_thinking is defined and enable_thinking is false %}"
            "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
        ),
        IM,
        _END,
        base="nfc",
        plain=THINK,
    ),
    "qwen3-thinking": Family(_qwen(_BEGUN_THOUGHT, "{{ '<think>\n' }}"), IM, _END, base="nfc", plain=THINK),
    "qwen3.5": Family(_qwen(_BEGUN_THOUGHT, "{{ '<think>\n' }}", _NEEDS_QUESTION), IM, _END, base="nfc", plain=THINK),
    "phi-3": Family(
        _turns(
            "<|user|>\n",
            "<|assistant|>\n",
            "<|end|>\n",
            "{{ '<|end|>\n' }}",
            system="{{ '<|system|>\n' + m.content + '<|end|>\n' }}",
        ),
        _PHI,
        {"eos_token": "<|endoftext|>"},
        rstrip=True,
    ),
    "phi-3-end": Family(
        _turns(
            "<|user|>\n",
            "<|assistant|>\n",
            "<|end|>\n",
            "{{ '<|end|>\n' }}",
            system="{{ '<|system|>\n' + m.content + '<|end|>\n' }}",
            prompt="<|assistant|>\n",
        )
        + "{% if not add_generation_prompt %}{% if messages[-1].role == 'assistant' %}{% generation %}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ eos_token }}{% endif %}{% endif %}",
        _PHI,
        {"eos_token": "<|endoftext|>"},
    ),
    "phi-4": Family(
        _turns(
            "<|im_start|>user<|im_sep|>",
            "<|im_start|>assistant<|im_sep|>",
            "<|im_end|>",
            "{{ '<|im_end|>' }}",
            system="{{ '<|im_start|>system<|im_sep|>' + m.content + '<|im_end|>' }}",
        ),
        _PHI,
        {"eos_token": "<|im_end|>"},
    ),
    "deepseek-2": Family(
        _turns("User: ", "Assistant: ", "\n\n", _ENDS, start="{{ bos_token }}", prompt="Assistant:"),
        _DEEPSEEK_TOKENS,
        {"bos_token": _DEEPSEEK_TOKENS[0], "eos_token": _DEEPSEEK_TOKENS[1]},
    ),
    "deepseek-r1": Family(
        _DEEPSEEK,
        _DEEPSEEK_TOKENS,
        {"bos_token": _DEEPSEEK_TOKENS[0], "eos_token": _DEEPSEEK_TOKENS[1]},
        plain=THINK[:2],
    ),
    "command-r": Family(
        _COMMAND,
        ("<BOS_TOKEN>", *(f"<|{n}_TOKEN|>" for n in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"))),
        {"bos_token": "<BOS_TOKEN>"},
    ),
    "command-r-documents": Family(
        _COMMAND_DOCUMENTS,
        ("<BOS_TOKEN>", *(f"<|{n}_TOKEN|>" for n in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"))),
        {"bos_token": "<BOS_TOKEN>"},
        named_templates={"tool_use": _COMMAND_TOOLS},
    ),
    "gpt-oss": Family(
        _CHANNELS,
        tuple(f"<|{n}|>" for n in ("start", "end", "message", "channel", "return", "call")),
        {"eos_token": "<|return|>"},
    ),
    "vicuna": Family(
        _turns(
            "USER: ",
            "ASSISTANT: ",
            " ",
            _ENDS,
            start="{{ bos_token }}",
            system="{{ m.content + ' ' }}",
            prompt="ASSISTANT:",
        ),
        ("<s>", "</s>"),
        _EOS,
        base="always",
    ),
    "alpaca": Family(
        _turns("### Instruction:\n", "### Response:\n", "\n\n", "{{ eos_token + '\n\n' }}"), ("<s>", "</s>"), _EOS
    ),
    "openchat": Family(
        _turns(
            "GPT4 Correct User: ",
            "GPT4 Correct Assistant: ",
            "<|end_of_turn|>",
            "{{ '<|end_of_turn|>' }}",
            start="{{ bos_token }}",
            system="{{ m.content + '<|end_of_turn|>' }}",
            prompt="GPT4 Correct Assistant:",
        ),
        ("<s>", "</s>", "<|end_of_turn|>"),
        _EOS,
        base="first",
    ),
    "olmo": Family(
        _turns(
            "<|user|>\n",
            "<|assistant|>\n",
            "\n",
            _ENDS,
            after="{% if not loop.last %}{{ '\n' }}{% endif %}",
            start="{{ bos_token }}",
            system="{{ '<|system|>\n' + m.content + '\n' }}",
        ),
        ("<|endoftext|>",),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
    "granite": Family(
        _GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), {"eos_token": "<|end_of_text|>"}
    ),
    "exaone": Family(
        _turns(
            "[|user|]",
            "[|assistant|]",
            "\n",
            "{{ '[|endofturn|]\n' }}",
            system="{{ '[|system|]' + m.content + '[|endofturn|]\n' }}",
        ),
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
        {"eos_token": "[|endofturn|]"},
        base="nfc",
    ),
    "glm-4": Family(
        _GLM,
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        {"eos_token": "<|user|>"},
    ),
    "minicpm": Family(
        _turns("<用户>", "<AI>", "", "{{ eos_token }}", system="{{ m.content }}", content="m.content | trim"),
        ("<s>", "</s>"),
        _EOS,
        base="always",
    ),
    "kimi": Family(
        _KIMI,
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_tool|>", "<|im_middle|>", "<|im_end|>"),
        {"eos_token": "<|im_end|>"},
    ),
    "smollm3": Family(_MODES, IM, _END, plain=THINK[:2]),
}
assert len(FAMILIES) == 40
