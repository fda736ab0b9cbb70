"""Which class of transformers builds a model: the one that its configuration names.

"architectures": ["Qwen2_5_VLForConditionalGeneration"]    that class, with its vision tower
"auto_map": {"AutoModel": "modeling_own.OwnModel"}         code that comes with the model, where it is trusted
neither                                                    the first auto class that knows the configuration
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch

from coldpress.errors import ModelError

log = logging.getLogger(__name__)

_TEXT = ("CausalLM", "ImageTextToText", "MultimodalLM", "Seq2SeqLM", "SpeechSeq2Seq", "CTC", "MaskedLM")
_TOWERS = ("ImageTextToText", "MultimodalLM", "Seq2SeqLM", "SpeechSeq2Seq", "AutoModel")
"""Heads of auto classes where a configuration names no class: those that make language first, and where it has an
encoder or towers, those that have them too."""


def model_class(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The class that builds the model of a configuration: a model class, or an auto class for code of the model's own.

    Args:
        config: of transformers.
        trust_remote_code: whether classes that come with the model may be used.

    Raises:
        ModelError: no class of transformers builds models of such a configuration.
    """
    listed = getattr(config, "architectures", None) or []
    named = [name for name in ([listed] if isinstance(listed, str) else listed) if isinstance(name, str)]
    remote = _remote_class(config, named) if trust_remote_code else None
    found = remote or next((one for name in named if (one := _named_class(config, name)) is not None), None)
    if found is not None:
        return found
    found = next(_auto_classes(config, named), None)
    if found is None:
        subject = f"{named[0]!r}, which " if named else f"a {type(config).__name__}, which "
        raise ModelError(f"its configuration names {subject}no class of the installed transformers builds")
    if named:
        log.warning(
            "config.json names the class %r, which the installed transformers does not have for a %s: %s is used",
            *(named[0], type(config).__name__, found.__name__),
        )
    return found


def build_model(config: Any, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A model of the class that its configuration names, with weights as its initialisation leaves them."""
    kind = model_class(config, trust_remote_code=trust_remote_code)
    if hasattr(kind, "from_config"):
        return kind.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return kind._from_config(config, dtype=dtype)


def build_outline(kind: type, config: Any) -> Any:
    """A model of a class without weights: every tensor is on the meta device."""
    with torch.device("meta"):
        return kind(config)


def _remote_class(config: Any, named: list[str]) -> Any:
    """The auto class through which code of the model's own is reached; None where there is none."""
    import transformers

    classes = getattr(config, "auto_map", None) or {}
    autos = [auto for auto in classes if auto.startswith("AutoModel") and hasattr(transformers, auto)]
    likely = sorted(autos, key=lambda auto: (str(classes[auto]).rpartition(".")[2] not in named, _rank(auto, _TEXT)))
    return getattr(transformers, likely[0]) if likely else None


def _named_class(config: Any, name: str) -> Any:
    """The model class of this name, of transformers or registered with it, if it is one for this configuration."""
    import transformers

    known: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel):
        made_for = getattr(known, "config_class", None)
        if made_for is not None and isinstance(config, made_for):
            return known
    for auto in _every_auto_class():
        if type(config) in auto._model_mapping:
            models = auto._model_mapping[type(config)]
            for model in models if isinstance(models, (list, tuple)) else [models]:
                if model.__name__ == name:
                    return model
    return None


def _auto_classes(config: Any, named: list[str]) -> Iterator[Any]:
    """Auto classes that know a configuration: those for the head that a name ends with, then in their order."""
    heads = [match[1] for name in named if (match := re.search(r"For([A-Za-z0-9]+)$", name))]
    known = {auto.__name__: auto for auto in _every_auto_class() if type(config) in auto._model_mapping}
    towers = getattr(config, "is_encoder_decoder", False) or len(getattr(config, "sub_configs", {})) > 1
    order = _TOWERS if towers else _TEXT
    for name in sorted(known, key=lambda name: (name.removeprefix("AutoModelFor") not in heads, _rank(name, order))):
        yield known[name]


def _rank(auto: str, order: tuple[str, ...]) -> int:
    head = auto.removeprefix("AutoModelFor")
    if head in order:
        return order.index(head)
    return len(order) + (head != "AutoModel")


def _every_auto_class() -> list[Any]:
    from transformers.models.auto import modeling_auto

    names = [name for name in vars(modeling_auto) if name.startswith("AutoModel")]
    autos = [getattr(modeling_auto, name) for name in names]
    return [auto for auto in autos if getattr(auto, "_model_mapping", None) is not None]
