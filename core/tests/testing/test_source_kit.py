"""The kit of sources: a good one passes, and every bad one is caught by the check that is for it."""

import pytest
import torch

from coldpress.plugin import CheckpointError, CheckpointReader, Source, Weights
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.models import tiny_llama
from coldpress.testing.subject import subject_of


def write(folder):
    tiny_llama(hidden=64).save_pretrained(folder)
    return folder


class Doubled(Weights):
    """Twice what is in the files, in float32."""

    factor = 2

    def __init__(self, folder):
        self._reader = CheckpointReader(folder)
        self.files = self._reader.files

    def names(self):
        return self._reader.names()

    def shape(self, name):
        return self._reader.shape(name)

    def dtype(self, name):
        return torch.float32

    def read(self, name):
        return self._reader.read(name) * self.factor


class GoodSource(Source):
    """A folder of halved weights."""

    def weights(self):
        return Doubled(self.path)


class Abstract(Source):
    """Forgets what it is for."""


class OtherArguments(GoodSource):
    """Wants to be told the device."""

    def load(self, dtype, device):
        raise AssertionError


class EverythingIsMine(GoodSource):
    """Takes any name for its own."""

    @classmethod
    def find(cls, name):
        return "/models" + name


class LetsPythonSpeak(GoodSource):
    """Opens a file without looking."""

    def __init__(self, path):
        super().__init__(path)
        self._first = (path / "config.json").read_text()[0]


class NamesNoFile(GoodSource):
    """Leaves the search to the user."""

    def weights(self):
        try:
            return Doubled(self.path)
        except CheckpointError:
            raise CheckpointError("it is damaged") from None


class Announced(Doubled):
    """Says another dtype than it reads."""

    def dtype(self, name):
        return torch.bfloat16


class WrongDtype(GoodSource):
    """Says another dtype than it reads."""

    def weights(self):
        return Announced(self.path)


class Shared(Doubled):
    """Gives the same memory twice."""

    def __init__(self, folder):
        super().__init__(folder)
        self._kept = {}

    def read(self, name):
        return self._kept.setdefault(name, super().read(name))


class SharedMemory(GoodSource):
    """Gives the same memory twice."""

    def weights(self):
        return Shared(self.path)


class Unwatched(Doubled):
    """Says of no file that it is read."""

    def __init__(self, folder):
        super().__init__(folder)
        self.files = []


class NoFiles(GoodSource):
    """Says of no file that it is read."""

    def weights(self):
        return Unwatched(self.path)


class KeepsConfig(GoodSource):
    """Leaves in the configuration how weights were stored."""

    def config(self):
        config = tiny_llama(hidden=64).config
        config.quantization_config = {"quant_method": "mine"}
        return config


class Drifting(Doubled):
    """Decodes a little otherwise each time that the container is opened."""

    opened = 0

    def __init__(self, folder):
        super().__init__(folder)
        Drifting.opened += 1
        self.factor = 2 + Drifting.opened


class OtherEachTime(GoodSource):
    """Decodes a little otherwise each time that the container is opened."""

    def weights(self):
        return Drifting(self.path)


BAD = {
    Abstract: "signatures",
    OtherArguments: "signatures",
    EverythingIsMine: "knows_its_own_names",
    LetsPythonSpeak: "refuses_what_it_cannot_read",
    NamesNoFile: "refuses_what_it_cannot_read",
    WrongDtype: "tensors_are_as_announced",
    SharedMemory: "tensors_are_as_announced",
    NoFiles: "tensors_are_as_announced",
    KeepsConfig: "builds_the_model",
    OtherEachTime: "builds_the_model",
}


def failing(source):
    subject = subject_of(source, kind=None, settings={"example": write})
    checks = [check for check in checks_for(subject) if check.name != "import_is_quiet"]
    verdicts = Verdicts(subject, checks)
    return [check.name for check in checks if verdicts.blocker(check) is None and not verdicts.holds(check.name)]


def test_a_good_source_passes_everything():
    assert failing(GoodSource) == []


@pytest.mark.parametrize(("source", "check"), BAD.items(), ids=lambda value: getattr(value, "__name__", None))
def test_bad_sources_fail_their_check_and_no_other(source, check):
    assert failing(source) == [check]


def test_without_an_example_the_form_is_checked():
    names = {check.name for check in checks_for(subject_of(GoodSource, kind=None, settings={}))}

    assert names == {"signatures", "knows_its_own_names", "refuses_what_it_cannot_read"}
