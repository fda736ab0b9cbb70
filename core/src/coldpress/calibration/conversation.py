"""What a row of text holds: one text, or turns of a conversation, in the forms in which data sets have them.

{"text": "..."}                                          the column that text_column names
{"messages": [{"role": "user", "content": "..."}, ...]}  also conversation(s), chat, dialog(ue)
{"conversations": [{"from": "human", "value": "..."}]}   as ShareGPT writes them
{"prompt": "...", "response": "..."}                     and other pairs, below
{"prompt": [turns], "completion": [turns]}               as TRL writes them
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from coldpress.calibration.table import rows_of_table
from coldpress.errors import CalibrationError
from coldpress.spelling import suggest

CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("article", "highlights"),
    ("document", "summary"),
)
"""Columns of what is asked, and of what is answered."""

_MORE = ("input", "context")  # what an instruction or question is about, where it stands apart
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}


class MissingColumnError(CalibrationError):
    """A row has no column of a form that is known."""


Turns = Sequence[Mapping[str, Any]]


@frozen(eq=False)
class Text:
    """A text as it is.

    Attributes:
        text: may be empty.
        column: that it comes from.
    """

    text: str
    column: str


@frozen(eq=False)
class Conversation:
    """Turns of a conversation, with the keys `role` and `content` that chat templates read.

    Attributes:
        turns: may be none.
        column: that they come from.
        raw: as the row has them.
        is_pair: they are a question and its answer in columns of their own.
    """

    turns: Turns
    column: str
    raw: Turns = ()
    is_pair: bool = False


def read_text(row: Mapping[str, Any], text_column: str, where: str) -> Text | Conversation:
    """What a row says.

    Args:
        row: columns and their values.
        text_column: the column that is read if the row has it.
        where: which row of which data set, for messages.

    Raises:
        MissingColumnError: the row has no column of a form that is known.
        CalibrationError: a column is not of its form.
    """
    if text_column in row:
        return _column(row[text_column], text_column, where, is_chat=text_column in CHAT_COLUMNS)
    for name in CHAT_COLUMNS:
        if name in row:
            return _column(row[name], name, where, is_chat=True)
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            return _pair(row, asked, answered, where)
    raise MissingColumnError(
        f"{where} has no column {text_column!r}{suggest(text_column, map(str, row))}; its columns are "
        f"{', '.join(map(str, row)) or 'none'}: name the one that holds text with text_column=, or rename "
        f"columns with column_map=; conversations ({', '.join(CHAT_COLUMNS[:2])}) and pairs (prompt and response, "
        "instruction and output, question and answer, ...) are understood"
    )


def renamed_columns(row: Mapping[str, Any], names: Mapping[str, str], where: str) -> Mapping[str, Any]:
    """A row whose columns have other names.

    Args:
        row: columns and their values.
        names: old name to new one; a column that has a new name already gives way.
        where: which row of which data set, for messages.

    Raises:
        MissingColumnError: the row lacks one of them.
    """
    if not names:
        return row
    missing = [name for name in names if name not in row]
    if missing:
        raise MissingColumnError(
            f"{where} has no column {missing[0]!r}, which column_map= renames{suggest(missing[0], map(str, row))}; its "
            f"columns are {', '.join(map(str, row)) or 'none'}"
        )
    others = {name: value for name, value in row.items() if name not in names and name not in names.values()}
    return {**others, **{new: row[old] for old, new in names.items()}}


def _column(value: Any, name: str, where: str, *, is_chat: bool) -> Text | Conversation:
    if value is None:
        return Text("", name)
    if isinstance(value, str):
        if is_chat and value.lstrip().startswith(("[", "{")):
            raise CalibrationError(
                f"{where}: column {name!r} holds turns written as text: parse them with preprocessing_func (json.loads)"
            )
        return Text(value, name)
    turns = _turns(value)
    if turns is None:
        raise CalibrationError(f"{where}: column {name!r} holds {type(value).__name__}, not text")
    return Conversation([_turn(turn, where) for turn in turns], name, turns)


def _pair(row: Mapping[str, Any], asked: str, answered: str, where: str) -> Text | Conversation:
    """A question and its answer, as turns; empty where both are missing."""
    column = f"{asked} and {answered}"
    about = [row[name] for name in _MORE if isinstance(row.get(name), str) and row[name].strip()]
    question = row[asked]
    if isinstance(question, str):
        question = "\n\n".join([question, *about])
    first, last = _side(question, "user", asked, where), _side(row[answered], "assistant", answered, where)
    if not first and not last:
        return Text("", column)
    system = row.get("system")
    head = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    whole = answered == "chosen" and len(last) > 1  # it holds the prompt as well
    turns = last if whole else [*head, *first, *last]
    return Conversation(turns, column, turns, is_pair=True)


def _side(value: Any, role: str, name: str, where: str) -> list[Mapping[str, Any]]:
    """What one side of a pair says, as turns."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = _turns(value)
    if turns is None:
        raise CalibrationError(f"{where}: column {name!r} holds {type(value).__name__}, not text")
    return [_turn(turn, where) for turn in turns]


def _turns(value: Any) -> list[Mapping[str, Any]] | None:
    """A list of turns; also from a table of lists, which is what some readers make of it."""
    if isinstance(value, Mapping):
        rows = rows_of_table(value)
        return [value] if rows is None else [*rows]
    turns = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    return [*turns]


def _turn(turn: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A turn with the keys that chat templates read."""
    if "role" in turn:
        return turn
    if "from" in turn and "value" in turn:
        speaker = str(turn["from"])
        return {"role": _ROLES.get(speaker.lower(), speaker), "content": turn["value"]}
    raise CalibrationError(
        f"{where}: a turn has the keys {', '.join(map(str, turn)) or 'of nothing'}; a chat template reads role and "
        "content (from and value are understood): rename them with preprocessing_func"
    )
