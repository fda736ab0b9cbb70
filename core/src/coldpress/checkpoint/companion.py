"""What lies beside the weights of a model: tokenizer, processor, chat template, code; copied as it is."""

import shutil
from pathlib import Path

from attrs import frozen

_SUFFIXES = {".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"}
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What a run writes itself, or what speaks of weights that are not copied.
_OTHERS = {"config.json", "manifest.json", "report.json", "adapter_config.json"}
_OF_TOKENIZER = (
    "added_tokens",
    "chat_template",
    "merges",
    "sentencepiece",
    "special_tokens",
    "spiece",
    "tokenizer",
    "vocab",
)


@frozen
class Origin:
    """Where a model came from.

    Attributes:
        folder: with its config.json.
        has_tokenizer: whether the tokenizer of the run is the one that lies there; if not, its files are not copied.
    """

    folder: Path
    has_tokenizer: bool


def copy_companions(origin: Origin, target: Path) -> None:
    """Copy the small files of a model's folder that are no weights and that a run does not write.

    Args:
        origin: the folder of the model.
        target: the folder of the checkpoint; files that are there are replaced.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(origin.folder.rglob("*")):
        name = path.relative_to(origin.folder)
        if not path.is_file() or not _is_companion(name):
            continue
        if not origin.has_tokenizer and name.name.startswith(_OF_TOKENIZER):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _is_companion(name: Path) -> bool:
    parents = name.parts[:-1]
    if any(part.startswith((".", "__")) for part in parents) or len(parents) > 1 or name.name.startswith("."):
        return False
    if parents:  # packages of custom code and folders of chat templates; nothing else is the model's
        return name.suffix in (".py", ".jinja")
    if name.name in _OTHERS or name.name.endswith(".index.json"):
        return False
    return name.suffix in _SUFFIXES or name.name.startswith(_LICENCES)
