"""What a source is: a container that models come in, other than a folder of plain safetensors files.

    class MySource(Source):                     # coldpress.sources: mine = "package:MySource"
        def weights(self): ...                  tensors of the dense model by name, each decoded when it is read
        def config(self): ...                   what the container says itself; else the folder's config.json
        def tokenizer(self): ...                likewise; else what lies in the folder

The name of the entry point says which models are meant: `fp8` those whose config.json has this `quant_method`, `npz`
files with this suffix, `hf_quant_config.json` folders that hold such a file; and a name that users write in place of a
path, if `find` knows it.  One source may have several names.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from coldpress.errors import must_implement
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme


class Weights(ABC):
    """Named tensors on disk, of which none is in memory before it is read.

    Attributes:
        files: that they are in; an interrupted run resumes only where none of these has changed.
    """

    files: Sequence[Path]

    @abstractmethod
    def names(self) -> list[str]:
        """All tensors, as a checkpoint of the dense model names them."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` gives, without reading the tensor."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` gives, without reading the tensor."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in memory of its own.

        Raises:
            CheckpointError: there is no such tensor, or its file is damaged.
        """

    def get(self, name: str) -> Tensor:
        """One tensor to look at, not to write into: it may be backed by its file, so that parts of it can be had."""
        return self.read(name)

    def made_of(self, name: str) -> Sequence[str]:
        """What the container calls the tensors that one is read from, codes before scales; itself, unless decoded."""
        return (name,)

    def scheme(self, name: str) -> Scheme | None:
        """How the container has a weight quantized; None where it is whole, or no scheme says how.

        Its targets mean nothing.  Where there is one, `quantized` gives codes and scales.
        """
        return None

    def quantized(self, name: str, cut: "Cut | None" = None) -> Quantized:
        """A weight as codes and scales, those of the container bit for bit.

        Args:
            name: of a weight, [O, I], or of experts in one tensor, [E, O, I] or [E, I, O].
            cut: takes one expert, and rows of it, from codes and scales that both begin with [E, O]; None for a weight
                that is no such tensor.

        Raises:
            CheckpointError: a tensor is missing or damaged.
        """
        raise must_implement(self, "quantized(name, cut), as scheme() gives one")


Cut = Callable[[Tensor], Tensor]
"""Takes rows of one expert: [E, O, ...] to [O', ...]."""


class Source(ABC):
    """A model in a container; a plugin of the kind `sources`.

    Attributes:
        path: of the file or folder.
    """

    own_files: ClassVar[frozenset[str]] = frozenset()
    """Small files of a folder that describe this container, and so are not copied beside compressed weights."""

    def __init__(self, path: Path) -> None:
        """Open the container.

        Raises:
            CheckpointError: it is damaged, or something else; the path is named.
        """
        self.path = path

    @classmethod
    def find(cls, name: str) -> Path | None:
        """The file or folder of a model that users name; None where the name of the entry point is no model's.

        Raises:
            ModelError: the model must be installed first; says how.
        """
        return None

    @abstractmethod
    def weights(self) -> Weights | None:
        """The tensors of the dense model, read stage by stage; None where only `load` can build it, as a whole.

        Raises:
            CheckpointError: a tensor is missing or damaged; it is named.
        """

    def config(self) -> Any | None:
        """The configuration of the dense model, for transformers; None where that is the folder's config.json."""
        return None

    def load(self, dtype: torch.dtype | None) -> Any:
        """The dense model on the CPU; only asked for where `weights` gives None.

        Args:
            dtype: of its weights; None for what suits the container.
        """
        raise must_implement(self, "load(dtype), as weights() gives None")

    def tokenizer(self) -> Any | None:
        """The tokenizer in the container; None where it lies in the folder, if anywhere."""
        return None
