"""Conversations to text, through the chat template of a tokenizer or processor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from coldpress.calibration.conversation import Conversation, Turns
from coldpress.errors import CalibrationError
from coldpress.foreign import bounded, reading

_SECONDS = 5  # that a chat template may take for one conversation


def rendered(conversation: Conversation, writer: Any, where: str) -> str:
    """A conversation as the model is served with it, special tokens included.

    Args:
        conversation: with at least one turn.
        writer: a tokenizer or processor that has a chat template.
        where: which row of which data set, for messages.

    Raises:
        CalibrationError: the template refuses the turns, or renders nothing of them.
    """
    with _template(where):
        text = _written(conversation.turns, writer)
    if _shows(text, conversation.turns):
        return text
    with _template(where):
        raw = _written(conversation.raw, writer)  # a template may be made for the keys that the data have
    if conversation.raw is not conversation.turns and _shows(raw, conversation.turns):
        return raw
    keys = ", ".join(dict.fromkeys(str(key) for turn in conversation.raw for key in turn))
    raise CalibrationError(
        f"{where}: the chat template renders nothing of the turns in {conversation.column!r} (keys {keys}): it writes "
        f"{text[:80]!r}; templates read role and content: rename the keys with preprocessing_func"
    )


def answers_marked(conversation: Conversation, writer: Any, where: str) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and 1 for those of answers, as the template marks them.

    Raises:
        CalibrationError: the template marks none.
    """
    if "generation" not in str(getattr(writer, "chat_template", "")):
        raise CalibrationError(
            f"{where}: use_loss_mask needs a chat template that marks the answers with {{% generation %}}, or rows "
            "with a loss_mask"
        )
    with _template(where):
        found = writer.apply_chat_template(
            list(conversation.turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    return list(found["input_ids"]), list(found["assistant_masks"])


@contextmanager
def _template(where: str) -> Iterator[None]:
    """What a chat template raises as our error, and a limit of its time."""
    with (
        reading(f"{where}: the chat template refuses the conversation"),
        bounded(_SECONDS, f"{where}: the chat template runs"),
    ):
        yield


def plain(conversation: Conversation) -> str:
    """A conversation as paragraphs, for models that were never shown one."""
    return "\n\n".join(part for turn in conversation.turns for part in _contents(turn))


def _written(turns: Turns, writer: Any) -> str:
    plain_tokenizer = getattr(writer, "tokenizer", None) is None
    turns = [_flat(turn) for turn in turns] if plain_tokenizer else list(turns)
    return str(writer.apply_chat_template(turns, tokenize=False))


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
