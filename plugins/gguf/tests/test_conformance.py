"""The promises of a source, on a tiny Llama in a GGUF file and on the embedded model; and those of a format."""

from gguf_files import write_llama

from coldpress.testing import conformance
from coldpress.testing.models import tiny_llama


def example(folder):
    return write_llama(folder / "tiny.gguf", tiny_llama(hidden=64))


test_conformance = conformance("gguf", kind="sources", settings={"example": example})
test_embedded_conformance = conformance("smollm2")
test_format_conformance = conformance("gguf", kind="formats", settings={"pre_tokenizer": "gpt-2"})
