"""Conversations to text, through the chat template of a tokenizer or processor.

A template is a program that came with the model: its time and its memory have a limit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

from coldpress.calibration.bounded import bounded, bounded_memory
from coldpress.calibration.chat_options import PLAIN, ChatOptions
from coldpress.calibration.conversation import Conversation, Turns
from coldpress.errors import CalibrationError
from coldpress.foreign import reading

_SECONDS = 5  # that a chat template may take for one conversation
_BYTES = 1 << 29  # of memory, likewise
_CHARACTERS = 10_000_000  # that it may add to ten times the conversation


def rendered(conversation: Conversation, writer: Any, where: str, chat: ChatOptions = PLAIN) -> str:
    """A conversation as the model is served with it, special tokens included.

    Args:
        conversation: with at least one turn.
        writer: a tokenizer or processor that has a chat template.
        where: which row of which data set, for messages.
        chat: another template, and what it is given.

    Raises:
        CalibrationError: the template refuses the turns, or renders nothing of them.
    """
    chat.check(writer)
    with running_template(chat.template_of(writer), where):
        text = _bounded(_written(conversation.turns, writer, chat), conversation.turns, where)
    if _shows(text, conversation.turns):
        return text
    with running_template(chat.template_of(writer), where):
        turns = conversation.raw  # a template may be made for the keys that the data have
        raw = _bounded(_written(turns, writer, chat), turns, where)
    if conversation.raw is not conversation.turns and _shows(raw, conversation.turns):
        return raw
    keys = ", ".join(dict.fromkeys(str(key) for turn in conversation.raw for key in turn))
    raise CalibrationError(
        f"{where}: the chat template renders nothing of the turns in {conversation.column!r} (keys {keys}): it writes "
        f"{text[:80]!r}; templates read role and content: rename the keys with preprocessing_func"
    )


def answers_marked(
    conversation: Conversation, writer: Any, where: str, chat: ChatOptions = PLAIN
) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and 1 for those of answers, as the template marks them.

    Raises:
        CalibrationError: the template marks none.
    """
    chat.check(writer)
    if "generation" not in str(chat.template_of(writer)):
        raise CalibrationError(
            f"{where}: use_loss_mask needs a chat template that marks the answers with {{% generation %}}, or rows "
            "with a loss_mask"
        )
    with running_template(chat.template_of(writer), where):
        _bounded(_written(conversation.turns, writer, chat), conversation.turns, where)
    with (
        reading(f"{where}: the tokenizer cannot read the conversation"),
        bounded(_SECONDS, f"{where}: the chat template runs"),
    ):
        marks = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = writer.apply_chat_template(list(conversation.turns), **marks, **chat.arguments())
    return list(found["input_ids"]), list(found["assistant_masks"])


@contextmanager
def running_template(template: Any, where: str) -> Iterator[None]:
    """What a chat template raises as our error, and limits of its time and memory.

    Args:
        template: in Jinja; several by name, or none, where the writer has such.
        where: which row of which data set, for messages.

    Raises:
        CalibrationError: the template fails, takes too much, or raises numbers to a power.
    """
    if _has_powers(str(template or "")):  # one that is large enough cannot be stopped
        raise CalibrationError(
            f"{where}: the chat template has a power (`**`), which none needs; write it as a product"
        )
    with (
        reading(f"{where}: the chat template refuses the conversation"),
        bounded_memory(_BYTES, f"{where}: the chat template runs"),
        bounded(_SECONDS, f"{where}: the chat template runs"),
    ):
        yield


@lru_cache(maxsize=8)
def _has_powers(template: str) -> bool:
    """Whether `**` stands between two values of a template; before an argument it unpacks."""
    if "**" not in template:
        return False
    from jinja2 import Environment, TemplateError

    try:
        tokens = [text for _, kind, text in Environment().lex(template) if kind not in ("whitespace", "data")]
    except TemplateError:
        return False  # jinja2 says better what is wrong with it
    return any(text == "**" and before not in ("(", ",") for before, text in pairwise(tokens))


def plain(conversation: Conversation) -> str:
    """A conversation as paragraphs, for models that were never shown one."""
    return "\n\n".join(part for turn in conversation.turns for part in _contents(turn))


def _written(turns: Turns, writer: Any, chat: ChatOptions) -> str:
    plain_tokenizer = getattr(writer, "tokenizer", None) is None
    turns = [_flat(turn) for turn in turns] if plain_tokenizer else list(turns)
    return str(writer.apply_chat_template(turns, tokenize=False, **chat.arguments()))


def _bounded(text: str, turns: Turns, where: str) -> str:
    """The text, if it is not far longer than the turns."""
    most = _CHARACTERS + 10 * sum(len(part) for turn in turns for part in _contents(turn))
    if len(text) > most:
        raise CalibrationError(f"{where}: the chat template makes {len(text)} characters of the conversation")
    return text


def _flat(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn whose content is one text, where it is parts of text: templates of text models read nothing else."""
    parts = turn.get("content")
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Mapping) and "text" in p for p in parts):
        return turn
    return {**turn, "content": "".join(str(part["text"]) for part in parts)}


def _shows(text: str, turns: Turns) -> bool:
    """Whether a word of some turn is in the text; true where no turn has words."""
    words = [part.split()[0] for turn in turns for part in _contents(turn)]
    return any(word in text for word in words) if words else bool(text.strip())


def _contents(turn: Mapping[str, Any]) -> list[str]:
    """The texts of a turn."""
    content = turn.get("content")
    if content is None:  # a key that no template reads is there to be seen missing
        content = [value for key, value in turn.items() if key != "role" and isinstance(value, str)]
    parts = content if isinstance(content, (list, tuple)) else [content]
    found = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [str(text) for text in found if text is not None and str(text).strip()]
