"""Models on a hub: out of its local cache, whose files are links to blobs, and over HTTP."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.checkpoint import CheckpointReader
from coldpress.errors import ModelError
from coldpress.testing.families import tiny_family
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding

COMMIT = "a" * 40


def save(model, folder, **more):
    model.save_pretrained(folder, **more)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def weights(folder):
    reader = CheckpointReader(folder)
    return {name: reader.get(name) for name in reader.names()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, of a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("coldpress.models.hub.hub_is_reachable", lambda: False)
    return tmp_path / "hub"


def cached(folder, cache):
    """Put the files of a folder into a cache as huggingface_hub does: blobs by checksum, and links to them."""
    home = cache / "models--owner--name"
    snapshot = home / "snapshots" / COMMIT
    for directory in (home / "blobs", home / "refs", snapshot):
        directory.mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        blob.chmod(0o444)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_a_snapshot_of_links_is_streamed(kind, tmp_path, cache):
    def build():
        return tiny_llama() if kind == "llama" else tiny_family(kind)

    cached(save(build(), tmp_path / "model", max_shard_size="200KB"), cache)
    modifier = Rounding(scheme="W8A16", group_size=-1, ignore=["lm_head"])

    oneshot("owner/name", modifier, output_dir=tmp_path / "out", stream_weights=True)

    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out/tokenizer.json").is_file()
    expected = oneshot(build(), modifier).state_dict()
    found = load_model(tmp_path / "out", device="cpu").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_is_not_in_the_cache_is_told(cache):
    with pytest.raises(ModelError, match="'owner/name': no folder of this name exists, and it is not in the local cac"):
        oneshot("owner/name", Rounding(scheme="W8A16"))


class Hub(BaseHTTPRequestHandler):
    """The calls that fetching a snapshot makes: what a revision is, which files it has, and each of them."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.respond(with_body=False)

    def do_GET(self):
        self.respond(with_body=True)

    def respond(self, *, with_body):
        folder = self.server.folder
        path = self.path.partition("?")[0]
        files = [file for file in folder.rglob("*") if file.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        body, headers = None, {"Content-Type": "application/json"}
        if path == "/api/models/owner/name/revision/main":
            body = json.dumps({"id": "owner/name", "sha": COMMIT}).encode()
        elif path == f"/api/models/owner/name/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            body = json.dumps(tree).encode()
        elif (name := path.removeprefix(f"/owner/name/resolve/{COMMIT}/")) in names:
            body = (folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.server.served.append(name)
        self.send_response(404 if body is None else 200)
        for key, value in {**headers, "Content-Length": str(len(body or b""))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and body is not None:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path):
    folder = save(tiny_llama(), tmp_path / "model", max_shard_size="400KB")
    for name in ("pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.served = folder, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_over_http_and_streamed_and_nothing_that_is_not_needed_is_fetched(hub, tmp_path):
    surroundings = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    surroundings |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "coldpress", "compress", "owner/name", "--scheme", "W8A16", "--group-size", "-1"]
    places = ["--output", str(tmp_path / "out"), "--log-dir", str(tmp_path / "log")]

    done = subprocess.run([*command, *places], env=surroundings, capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stderr
    assert "its weights are read stage by stage" in (tmp_path / "log/oneshot.log").read_text()
    assert not {"pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors"}.intersection(hub.served)
    plain = {name: tensor for name, tensor in weights(hub.folder).items() if "norm" in name or "embed" in name}
    found = weights(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert "model.layers.0.mlp.up_proj.weight_packed" in found
