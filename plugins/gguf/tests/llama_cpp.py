"""The real llama.cpp, in this process: what it finds likely after a text, how it goes on, and how it cuts text."""

import json
from urllib.request import Request, urlopen

import pytest
import torch

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp as a wheel: pip install xllamacpp")


class Engine:
    """A GGUF file, opened."""

    def __init__(self, path, *, context=512):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.warmup, params.verbosity = False, -1
        params.cpuparams.n_threads = 1
        self._server = xllamacpp.Server(params)

    def log_probabilities(self, tokens, vocabulary):
        """Of the token after these, [V]."""
        asked = {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": vocabulary, "cache_prompt": False}
        (found,) = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        out = torch.full((vocabulary,), -50.0)
        for one in found["top_logprobs"]:
            out[one["id"]] = one["logprob"]
        return out.log_softmax(0)

    def steps(self, tokens, count):
        """The likeliest token again and again, each with the log-probabilities of the likeliest ten by number."""
        request = {"prompt": tokens, "n_predict": count, "temperature": 0, "n_probs": 10, "cache_prompt": False}
        content = self._server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        return [(step["id"], {one["id"]: one["logprob"] for one in step["top_logprobs"]}) for step in content]

    def tokenize(self, text):
        """The numbers of a text's tokens, nothing added."""
        content = json.dumps({"content": text, "add_special": False}).encode()
        asked = Request(f"{self._server.listening_address}/tokenize", content, {"Content-Type": "application/json"})
        with urlopen(asked) as answer:
            return json.load(answer)["tokens"]


def divergence(p, q):
    """KL of q from p, log-probabilities of both, [V]."""
    return float((p.exp() * (p - q)).sum())
