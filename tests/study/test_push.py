"""What is uploaded to a hub: the adapter and its card, without paths and tokens of this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedjax_post.integrity import seal_file
from fedjax_post.study import Spec, push
from fedjax_post.study.files import write_spec
from fedjax_post.study.push import card

TOKEN = "hf_a_secret_that_nobody_prints"
SUMMARY = {
    **{"rounds": 3, "visits": 12, "bytes_up": 4000, "bytes_down": 8000},
    **{"bytes_up_per_client": 1000, "bytes_down_per_client": 2000, "commit": "abc"},
    "population": {"clients": 4, "examples": 24, "examples_min": 6, "examples_max": 6}
    | {"partition": "natural"},
    **{"versions": {"jax": "0.1"}, "device": "1 x cpu", "warnings": []},
    "privacy": {"epsilon": 3.5, "delta": 1e-3, "unit": "a client", "not_covered": "scores"},
    "secure_sum": None,
    "disclosure": {"private_tokens": 0, "labels": 0, "queries": 0},
}


@pytest.fixture
def run(tmp_path):
    """A finished run on a base in a folder of this machine."""
    base, folder = tmp_path / "home" / "my-base", tmp_path / "run"
    base.mkdir(parents=True)
    (folder / "adapter").mkdir(parents=True)
    write_spec(folder / "spec.json", Spec(model=str(base)))
    (folder / "summary.json").write_text(seal_file(SUMMARY))
    text = f"---\nlibrary_name: peft\n---\n\n# An adapter\n\n| base | `{base}` |\n"
    (folder / "adapter" / "README.md").write_text(text)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


class Hub(ThreadingHTTPServer):
    """Answers as a model hub does to the creation of a repository and to one commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.seen, self.files = [], {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.url}/me/adapter", "name": "me/adapter"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {
                    "files": [
                        {"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                found = base64.b64decode(entry["value"]["content"])
                self.server.files[entry["value"]["path"]] = found.decode()
        address = f"{self.server.url}/me/adapter/commit/0"
        self.answer({"commitUrl": address, "commitOid": "0", "success": True})

    def do_GET(self):
        self.answer({"id": "me/adapter", "sha": "0", "siblings": []})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants
    import huggingface_hub.hf_api

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for module in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
        monkeypatch.setattr(module, "ENDPOINT", server.url)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()


def test_the_adapter_and_its_card_are_uploaded(run, hub, capfd, monkeypatch):
    assert push(run, "me/adapter") == f"{hub.url}/me/adapter"
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert hub.files["adapter_model.safetensors"] == "weights"
    assert hub.files["README.md"] == card(run)
    created = next(json.loads(body) for path, _, body in hub.seen if path.endswith("/create"))
    assert created.get("private") or created.get("visibility") == "private"
    whole = "".join(hub.files.values())
    assert str(run.parent) not in whole
    config = json.loads(hub.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "my-base"
    assert {key for _, key, _ in hub.seen} == {f"Bearer {TOKEN}"}
    assert TOKEN not in whole
    assert TOKEN not in "".join(capfd.readouterr())


def test_the_card_has_data_bytes_epsilon_and_openness(run):
    text = card(run)
    for part in (
        *("4 kB in all, 1 kB per client and round", "4 clients with 24 examples"),
        *("epsilon 3.5 at delta 0.001 for a client", "not covered: scores", "jax 0.1"),
        *("3 rounds and 12 visits", "no passport of my-base is known", "library_name: peft"),
    ):
        assert part in text, part


def test_the_passport_of_a_known_base_is_on_the_card(run):
    write_spec(run / "spec.json", Spec(model="builtin"))
    text = card(run)
    assert "Model Openness Framework: class" in text
    assert "licence of the base: Apache-2.0" in text


def test_a_run_without_privacy_says_that_epsilon_is_not_bounded(run):
    (run / "summary.json").write_text(seal_file(SUMMARY | {"privacy": None}))
    assert "no differential privacy: epsilon is not bounded" in card(run)


def test_a_run_that_has_not_ended_is_refused(run):
    (run / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        push(run, "me/adapter")


def test_a_repository_that_cannot_be_named_so_is_refused(run):
    with pytest.raises(ValueError, match="me/a/b"):
        push(run, "me/a/b")
