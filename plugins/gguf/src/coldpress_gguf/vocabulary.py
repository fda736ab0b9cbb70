"""A tokenizer as the keys of a GGUF file: tokens and their kinds, merges or scores, and how text is cut before.

llama.cpp knows the ways of cutting text by names, and finds the name by what a tokenizer makes of one text; the text,
and the hashes of the tokens, are those of its converter (`pre_tokenizers.json`; MIT licence).
"""

import json
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress.plugin import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_SPACE = "▁"  # of SentencePiece
_BARE = -1000.0  # the score of a token that was added


@frozen
class Vocabulary:
    """What llama.cpp must know of a tokenizer.

    Attributes:
        model: `gpt2` is BPE of bytes, `llama` SentencePiece.
        pre: how text is cut first.
        tokens: by their numbers, as many as the model has.
        kinds: of each.
        scores: of each, of SentencePiece; else none.
        ends: whether the tokenizer puts its first and its last token around a text.
        add_space_prefix: whether a text begins with a space, of SentencePiece; None where it does not matter.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    ends: tuple[bool, bool]
    add_space_prefix: bool | None = None


def vocabulary_of(tokenizer: Any, size: int, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a tokenizer of transformers.

    Args:
        tokenizer: with a backend of the library tokenizers.
        size: of the model's vocabulary; numbers without a token get a name that is never used.
        pre: name of the way to cut text; None to find it.

    Raises:
        ModelError: it is of no kind that llama.cpp has, or its way to cut text is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"a {type(tokenizer).__name__} cannot be written as GGUF: it has no tokenizer.json")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE" or len(model["vocab"]) > size:
        raise ModelError(
            f"the tokenizer cannot be written as GGUF: it is {model['type']} with {len(model['vocab'])} tokens, and "
            f"BPE with up to {size}, as the model has, is written"
        )
    if model.get("byte_fallback"):
        return _sentencepiece(tokenizer, content, size)
    return _byte_level(tokenizer, content, size, pre or _pre_tokenizer(tokenizer))


def write_vocabulary(writer: Any, vocabulary: Vocabulary, folder: Path) -> None:
    """Add the keys.

    Args:
        writer: a `gguf.GGUFWriter`.
        vocabulary: what to write.
        folder: with tokenizer.json, from which the library takes merges, special tokens and the chat template.
    """
    from gguf import SpecialVocab

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    special = SpecialVocab(folder, load_merges=vocabulary.model == "gpt2", n_vocab=len(vocabulary.tokens))
    if not special.merges and vocabulary.model == "gpt2":
        special.merges = [_idle_merge(vocabulary.tokens)]
    special.add_special_token |= dict(zip(("bos", "eos"), vocabulary.ends, strict=True))
    special.add_to_gguf(writer, quiet=True)


def _idle_merge(tokens: list[str]) -> str:
    """A merge to what is no token, and so is taken apart again: llama.cpp opens no file of this kind without merges."""
    known = set(tokens)
    return next(f"{one} {one}" for one in map(chr, range(33, 127)) if one in known and 2 * one not in known)


def _byte_level(tokenizer: Any, content: dict[str, Any], size: int, pre: str) -> Vocabulary:
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in content["model"]["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    _add(tokens, kinds, content)
    return Vocabulary("gpt2", pre, tokens, kinds, [], _ends(tokenizer))


def _sentencepiece(tokenizer: Any, content: dict[str, Any], size: int) -> Vocabulary:
    """BPE with bytes to fall back on is what SentencePiece makes; the order of merges is that of tokens."""
    vocabulary, unknown = content["model"]["vocab"], content["model"].get("unk_token")
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    scores = [-10000.0] * size
    for token, number in vocabulary.items():
        tokens[number], scores[number] = token, -float(number)
        byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        kinds[number] = UNKNOWN if token == unknown else BYTE if byte else NORMAL
    for number in _add(tokens, kinds, content):
        scores[number] = _BARE
    return Vocabulary("llama", "default", tokens, kinds, scores, _ends(tokenizer), _begins_with_space(content))


def _add(tokens: list[str], kinds: list[int], content: dict[str, Any]) -> list[int]:
    """Put the tokens that were added in their places; returns their numbers."""
    unknown, found = content["model"].get("unk_token"), []
    for added in content["added_tokens"]:
        number, text = added["id"], added["content"]
        if number >= len(tokens):
            raise ModelError(f"the tokenizer has a token {text!r} with the number {number}, which the model has not")
        tokens[number] = text if added["special"] else text.replace(_SPACE, " ")
        kinds[number] = CONTROL if added["special"] or _looks_special(text) else USER_DEFINED
        if text == unknown:
            kinds[number] = UNKNOWN
        found.append(number)
    return found


def _ends(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the first and the last token of a text are those of the beginning and the end."""
    numbers = tokenizer("a").input_ids
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    return first is not None and numbers[0] == first, last is not None and len(numbers) > 1 and numbers[-1] == last


def _looks_special(text: str) -> bool:
    """Tokens that some tokenizers have as words, and that are not: the rule of llama.cpp's converter."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or (text.startswith("<|") and text.endswith("|>"))


def _begins_with_space(content: dict[str, Any]) -> bool:
    """Whether the normalizer or the pre-tokenizer puts a space before a text."""
    text = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _pre_tokenizer(tokenizer: Any) -> str:
    """What llama.cpp calls the way in which this tokenizer cuts text.

    Raises:
        ModelError: it has no name for it.
    """
    known = _known()
    found = sha256(str(tokenizer.encode(known["text"])).encode()).hexdigest()
    name = next((name for name, hashes in known["names"].items() if found in hashes), None)
    if name is None:
        raise ModelError(
            f"llama.cpp does not know how this tokenizer cuts text (its hash is {found[:12]}); if it does, name it "
            "with format: {gguf: {pre_tokenizer: ...}}, for example llama-bpe, qwen2 or gpt-2"
        )
    return str(name)


@lru_cache
def _known() -> dict[str, Any]:
    """The text, and name to hashes."""
    text = files("coldpress_gguf").joinpath("pre_tokenizers.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
