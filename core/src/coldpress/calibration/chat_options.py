"""How conversations are to be written: a chat template of the user's own, and what it is given beside the turns."""

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from coldpress.errors import CalibrationError
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

_WORD = re.compile(r"[A-Za-z_]\w*")


@frozen(eq=False)
class ChatOptions:
    """Options of `apply_chat_template`.

    Attributes:
        template: instead of the tokenizer's; None takes that.
        settings: what it is given beside the turns.
    """

    template: str | None = None
    settings: Mapping[str, Any] = field(factory=dict)
    _checked: list[bool] = field(factory=list, init=False)

    @classmethod
    def of(cls, template: str | None, settings: Mapping[str, Any]) -> "ChatOptions":
        """The options that arguments name; a template without `{` is the file that holds it.

        Raises:
            CalibrationError: the file cannot be read.
        """
        if template is None or "{" in template:
            return cls(template, settings)
        try:
            return cls(Path(template).expanduser().read_text(encoding="utf-8"), settings)
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise CalibrationError(
                f"chat_template={template!r} is no template, and no file with one: {error}"
            ) from error

    def arguments(self) -> dict[str, Any]:
        """Of `apply_chat_template`."""
        return {**self.settings, **({} if self.template is None else {"chat_template": self.template})}

    def template_of(self, writer: Any) -> Any:
        """The template that a tokenizer or processor writes with."""
        return self.template if self.template is not None else getattr(writer, "chat_template", None)

    def check(self, writer: Any) -> None:
        """Name settings that neither the template nor the writer reads, once."""
        if self._checked or not self.settings:
            return
        self._checked.append(True)
        template = self.template_of(writer)
        words = set(_WORD.findall(" ".join(template.values()) if isinstance(template, Mapping) else str(template)))
        known = words | {*inspect.signature(writer.apply_chat_template).parameters}
        for name in self.settings:
            if name not in known:
                log.warning("chat_template_kwargs: the chat template reads no %r%s", name, suggest(name, words))


PLAIN = ChatOptions()
"""The tokenizer's own template, and the turns alone."""
