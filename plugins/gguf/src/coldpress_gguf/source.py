"""GGUF files as dense and plain models: nothing in a model recalls what it came from.

Plain Llamas are read tensor by tensor, so that they are streamed; everything else is built by transformers as a whole.
"""

from pathlib import Path
from typing import Any

import torch

from coldpress.plugin import ModelError, Source, Weights, reading
from coldpress_gguf.file import GgufFile
from coldpress_gguf.llama import LlamaWeights, is_plain_llama, llama_config
from coldpress_gguf.tokenizer import read_tokenizer


class GgufSource(Source):
    """A GGUF file: its weights decoded, its configuration, its tokenizer.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = GgufFile(path)

    def config(self) -> Any | None:
        """Of a plain Llama; of anything else the file speaks to transformers only."""
        return llama_config(self._file) if is_plain_llama(self._file) else None

    def weights(self) -> Weights | None:
        """The tensors of a plain Llama; None of anything else."""
        return LlamaWeights(self._file) if is_plain_llama(self._file) else None

    def load(self, dtype: torch.dtype | None) -> Any:
        """By transformers, decoded; in bfloat16 where nothing else is asked for.

        Raises:
            ModelError: transformers cannot read this architecture from GGUF.
        """
        model = load_by_transformers(self.path, torch.bfloat16 if dtype is None else dtype)
        for name in ("hf_quantizer", "quantization_method"):
            if hasattr(model, name):
                delattr(model, name)
        model.is_quantized = False
        for name in ("quantization_config", "_model_name_or_path"):
            if hasattr(model.config, name):
                delattr(model.config, name)
        return model

    def tokenizer(self) -> Any:
        """The tokenizer in the file."""
        return read_tokenizer(self._file)


def load_by_transformers(path: Path, dtype: torch.dtype) -> Any:
    """The model as transformers reads it, decoded.

    Raises:
        ModelError: it cannot.
    """
    import transformers

    # Since 5.20 transformers keeps blocks packed where it has kernels for them; we want plain weights.
    unpack = getattr(transformers, "GgufConfig", None)
    more = {"quantization_config": unpack(dequantize=True)} if unpack else {}
    with reading(f"transformers cannot read {path}", ModelError):
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=dtype, **more
        )
