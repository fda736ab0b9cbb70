"""What takes the place of the network while a ported script runs: models, tokenizers, data sets, others' libraries.

Models are tiny and random, the tokenizer is SmolLM2's, data sets are a few rows with every column that the scripts
read.  Libraries that only fetch or decode images and sound do nothing.
"""

import pydoc_data.topics
import re
import sys
import tempfile
import types
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import ported_zoo
import torch
import transformers
from attrs import evolve
from transformers import BatchFeature, PreTrainedTokenizerBase

import coldpress

SAMPLES = 8  # of calibration, whatever a script asks for
TOKENS = 96  # of one
STEPS = 20  # of learning, likewise
NEW_TOKENS = 4  # that a script may generate
TEXTS = [text[:400] for text in pydoc_data.topics.topics.values() if len(text) > 400][:SAMPLES]
LIBRARIES = ("librosa", "loguru", "qwen_omni_utils", "qwen_vl_utils", "requests", "soundfile", "auto_round")
LLAMA_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_TEMPLATE = (
    "{% for turn in messages %}<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n{{ turn.content }}<|eot_id|>"
    "{% endfor %}"
)

_MODEL_CLASS = re.compile(r"\b(AutoModel\w*|\w+ForConditionalGeneration|\w+ForCausalLM)\b")
_CHAT = ("add_generation_prompt",)


class StandIns:
    """Everything that one script finds changed.

    Attributes:
        folder: of a tokenizer.
        model: that the script loaded last.
        compressed: whether a call of coldpress that compresses has returned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.model: Any = None
        self.compressed = False
        self._processor: type[Processor] | None = None
        self._is_llama = False

    def install(self, text: str) -> None:
        """Put them in place for a script."""
        self._is_llama = LLAMA_TOKENS[0] in text  # it looks for them
        for name in LIBRARIES:
            self._library(name)
        self._transformers(text)
        self._images()
        self._accelerator(text)
        datasets.load_dataset = self.load_dataset
        coldpress.oneshot = partial(self._oneshot, coldpress.oneshot)
        coldpress.model_free_ptq = partial(self._model_free, coldpress.model_free_ptq)
        coldpress.convert = partial(self._model_free, coldpress.convert)
        generate = transformers.generation.GenerationMixin.generate

        def shortly(model: Any, *args: Any, **options: Any) -> Any:
            options.pop("max_length", None)
            return generate(model, *args, **options | {"max_new_tokens": NEW_TOKENS})

        transformers.generation.GenerationMixin.generate = shortly

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer that can pad."""
        found = _read_tokenizer(self.folder)
        found.pad_token = found.pad_token or found.eos_token
        if self._is_llama:
            found.add_special_tokens({"additional_special_tokens": LLAMA_TOKENS})
            found.add_tokens("assistant")
            found.chat_template = LLAMA_TEMPLATE
        return found

    def load_model(self, class_name: str, hub_id: Any, *_: Any, **__: Any) -> Any:
        """A tiny model in place of one of the hub; one that the script itself wrote is read."""
        if Path(str(hub_id)).is_dir():
            self.model = _READ[class_name](hub_id)
            return self.model
        self.model = ported_zoo.build(str(hub_id), class_name)
        folder = tempfile.mkdtemp()
        self.model.config.save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)
        self.model.config._name_or_path = self.model.name_or_path = folder
        return self.model

    def load_dataset(self, path: str, *_: Any, **__: Any) -> datasets.Dataset:
        """Rows with the columns of every data set that the scripts name; the Pile's are long."""
        times = 40 if "pile" in path else 1
        rows = [_row(text * times) for text in TEXTS] * 64
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return datasets.Dataset.from_dict({**columns, "image": [_image()] * len(rows)})

    def samples(self, *_: Any, **__: Any) -> list[dict[str, torch.Tensor]]:
        """What auto_round's data sets are."""
        tokenizer = self.tokenizer()
        rows = [torch.tensor(tokenizer(text)["input_ids"][:48]) for text in TEXTS]
        return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]

    def _oneshot(self, oneshot: Any, *args: Any, **options: Any) -> Any:
        if (options.get("num_calibration_samples") or 0) > SAMPLES:
            options["num_calibration_samples"] = SAMPLES
        for name in ("tokenizer", "processor"):
            if isinstance(options.get(name), str) and not Path(options[name]).is_dir():
                options[name] = self.tokenizer() if self._processor is None else self._processor(self)
        recipe = options.get("recipe")
        if isinstance(recipe, list):
            options["recipe"] = [_shorter(step) for step in recipe]
        elif recipe is not None:
            options["recipe"] = _shorter(recipe)
        done = oneshot(*args, **options)
        self.compressed = True
        return done

    def _model_free(self, function: Any, model_stub: Any, *args: Any, **options: Any) -> Any:
        if not Path(str(model_stub)).is_dir():
            folder = tempfile.mkdtemp()
            ported_zoo.build(str(model_stub), "AutoModelForCausalLM").save_pretrained(folder)
            self.tokenizer().save_pretrained(folder)
            model_stub = folder
        done = function(model_stub, *args, **options | {"device": None} if "device" in options else options)
        self.compressed = True
        return done

    def _transformers(self, text: str) -> None:
        for name in set(_MODEL_CLASS.findall(text)):
            kind = getattr(transformers, name, None)
            if kind is not None:
                _READ[name] = kind.from_pretrained
                kind.from_pretrained = staticmethod(partial(self.load_model, name))
        transformers.AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: self.tokenizer())
        processor = Recorder if "Whisper" in text else Processor
        self._processor = processor if "AutoProcessor" in text else None
        for name in ("AutoProcessor", "Llama4Processor", "WhisperProcessor"):
            getattr(transformers, name).from_pretrained = staticmethod(lambda *_, **__: processor(self))

    @staticmethod
    def _images() -> None:
        """Every image that a script opens is a black one."""
        PIL.Image.open = lambda *_, **__: _image()

    @staticmethod
    def _accelerator(text: str) -> None:
        """The CPU in place of a GPU that a script names."""
        for name, value in {"max_memory_allocated": 0, "device_count": 1, "get_memory_info": (0, 1 << 34)}.items():
            setattr(torch.accelerator, name, lambda *_, value=value: value)
        for name in ("reset_peak_memory_stats", "empty_cache", "synchronize", "set_device_index"):
            setattr(torch.accelerator, name, lambda *_: None)
        if "cuda" in text:
            move = torch.Tensor.to

            def moved(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
                args, device = tuple("cpu" if _is_gpu(arg) else arg for arg in args), options.get("device")
                return move(tensor, *args, **options | ({"device": "cpu"} if _is_gpu(device) else {}))

            torch.Tensor.to = moved

    def _library(self, name: str) -> None:
        """A module that has whatever is asked of it, where the library is not installed."""
        module = types.ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__getattr__ = lambda attribute: _nothing(attribute)  # type: ignore[attr-defined]
        sys.modules[name] = module
        if name == "auto_round":
            inner = sys.modules["auto_round.calib_dataset"] = types.ModuleType("auto_round.calib_dataset")
            inner.get_dataset = self.samples  # type: ignore[attr-defined]
        if name == "qwen_vl_utils":
            module.process_vision_info = lambda *_, **__: ([object()], None)  # type: ignore[attr-defined]


class Processor:
    """A tokenizer that also hands out what a model of images takes."""

    def __init__(self, stand_ins: StandIns) -> None:
        self._stand_ins = stand_ins
        self.tokenizer = stand_ins.tokenizer()
        self.chat_template = self.tokenizer.chat_template

    def __getattr__(self, name: str) -> Any:
        if name in ("tokenizer", "_stand_ins"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def apply_chat_template(self, messages: Any, tokenize: bool = False, **options: Any) -> Any:
        """Text of messages, whose images are a word."""
        plain = [{"role": one["role"], "content": _words(one["content"])} for one in messages]
        chat = {key: options[key] for key in _CHAT if key in options}
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, **chat)
        if not tokenize:
            return text
        found = self(text=text, return_tensors=options.get("return_tensors"))
        return found if options.get("return_dict") else found["input_ids"]

    def __call__(self, text: Any = None, images: Any = None, return_tensors: str | None = None, **_: Any) -> Any:
        """What a model takes: token ids, and an image where one is given."""
        found = dict(self.tokenizer(text, truncation=True, max_length=TOKENS, return_tensors=return_tensors))
        if images is not None:
            self._add_image(found, as_tensors=return_tensors is not None)
        return BatchFeature(found)

    def save_pretrained(self, folder: str) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(folder)

    def _add_image(self, found: dict[str, Any], *, as_tensors: bool) -> None:
        config = self._stand_ins.model.config
        config = getattr(config, "thinker_config", config)
        ids = torch.as_tensor(found["input_ids"])
        ids = ids if ids.ndim == 2 else ids[None]
        found.clear()
        image, pixels = ported_zoo.image_of(config)
        found |= pixels
        found["input_ids"] = torch.cat([torch.tensor([image]), ids], 1)
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        if "aspect_ratio_ids" in pixels:
            found["cross_attention_mask"] = torch.ones(*found["input_ids"].shape, 1, 4, dtype=torch.int64)
        if "image_grid_thw" in pixels:
            found["mm_token_type_ids"] = (found["input_ids"] == config.image_token_id).long()
        if not as_tensors:
            found |= {key: value.tolist() for key, value in found.items()}

    @classmethod
    def register(cls, *_: Any, **__: Any) -> None:
        """Nothing."""


class Recorder(Processor):
    """What takes sound and hands out features, as Whisper's does."""

    def __init__(self, stand_ins: StandIns) -> None:
        super().__init__(stand_ins)
        self.tokenizer.set_prefix_tokens = lambda **_: None
        self.tokenizer.prefix_tokens = [1, 5]

    def __call__(self, *_: Any, text: Any = None, **__: Any) -> Any:  # type: ignore[override]
        """Features of a sound, and labels where there is text."""
        found = {"input_features": torch.randn(1, 16, 100)}
        if text is not None:
            found["labels"] = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=24)["input_ids"]
        return BatchFeature(found)


_READ: dict[str, Any] = {}  # class name -> its own from_pretrained
_read_tokenizer = transformers.AutoTokenizer.from_pretrained


def _shorter(step: Any) -> Any:
    """A modifier that learns, with fewer steps."""
    return evolve(step, iters=STEPS) if (getattr(step, "iters", None) or 0) > STEPS else step


def _is_gpu(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _nothing(name: str) -> Any:
    """An object of any use, which does nothing."""
    if name.startswith("__"):
        raise AttributeError(name)

    class Nothing:
        def __getattr__(self, name: str) -> Any:
            return _nothing(name)

        def __call__(self, *_: Any, **__: Any) -> Any:
            return Nothing()

        def __iter__(self) -> Any:
            return iter((None, None, None))

    return Nothing()


def _words(content: Any) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text") or "<image>" for part in content)


def _row(text: str) -> dict[str, Any]:
    start, rest = text[:80], text[80:]
    talk = [{"role": "user", "content": start}, {"role": "assistant", "content": rest}]
    return {
        **{"text": text, "messages": talk, "conversation": talk[:1], "conversations": talk, "caption": [start]},
        **{"instruction": start, "output": rest, "prompt": text, "response": rest, "question": start, "answer": rest},
        **{"article": text, "highlights": rest},
        "audio": {"array": [0.0] * 160, "sampling_rate": 16000},
    }


def _image() -> Any:
    return PIL.Image.new("RGB", (28, 28))
