"""Everything that can be wrong with a model is one clear message, before it answers anything."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.engine.errors import EngineBusy, PromptTooLong
from serve.engine.loading import load_model
from serve.generation import ModelSpec
from tests.serve.tiny_models import edit_json, tiny_model
from workloads.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def problem_of(spec: ModelSpec) -> str:
    """What loading it says."""
    with pytest.raises(InputError) as caught:
        load_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # noqa: S301 - made in this line
    return message


def cut(path: Path, keep: float) -> None:
    """Keep this share of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def rename_tensor(folder: Path) -> None:
    """Save the weights with one tensor under another name."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["something.else"] = tensors.pop("model.norm.weight")
    save_file(tensors, file, {"format": "pt"})


def of_other_width(folder: Path) -> None:
    """Weights that belong to another config."""
    edit_json(folder / "config.json", lambda fields: fields.update(hidden_size=48))


def fewer_rows(folder: Path) -> None:
    """An embedding that is smaller than the tokenizer's vocabulary."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {name: tensor[:100] if tensor.shape[0] == 264 else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    edit_json(folder / "config.json", lambda fields: fields.update(vocab_size=100))


def no_end(folder: Path) -> None:
    """Neither tokenizer nor model say what ends a turn."""
    edit_json(folder / "config.json", lambda fields: fields.update(eos_token_id=None))
    edit_json(folder / "tokenizer_config.json", lambda fields: fields.pop("eos_token"))
    (folder / "generation_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def other_tokenizer(folder: Path) -> None:
    """The tokenizer of another model, whose tokens all exist here and mean something else."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<unk>", "hello", "</s>"]
    words = Tokenizer(models.WordLevel({mark: number for number, mark in enumerate(marks)}, unk_token=marks[1]))
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=marks[0], eos_token=marks[3])
    fast.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    """Weights alone."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def config(**fields: Any) -> Callable[[Path], object]:
    """Replaces config.json."""
    return lambda folder: (folder / "config.json").write_text(json.dumps(fields))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config.json cannot be used"),
    "unknown kind": (config(model_type="nonesuch"), r"config.json cannot be used .*nonesuch"),
    "encoder": (config(model_type="bert", architectures=["BertForMaskedLM"]), r"BertForMaskedLM is not a causal language"),
    "translator": (config(model_type="t5", is_encoder_decoder=True), r"t5 is not a causal language model"),
    "own code": (
        config(model_type="mine", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}),
        r"config.json cannot be used",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no weights"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"holds only pytorch_model.bin, which may run code when loaded. Isthmus loads safetensors",
    ),
    "truncated weights": (lambda f: cut(f / "model.safetensors", 0.7), r"not a whole safetensors file \(it has \d+ bytes"),
    "header only": (lambda f: cut(f / "model.safetensors", 0.0001), r"not a whole safetensors file"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), r"not a whole safetensors file"),
    "text as weights": (lambda f: (f / "model.safetensors").write_text("version https"), r"not a whole safetensors file"),
    "lacking tensors": (rename_tensor, r"its weights lack 1 tensors such as model.norm.weight"),
    "other shapes": (of_other_width, r"its weights cannot be loaded"),
    "broken tokenizer": (lambda f: cut(f / "tokenizer.json", 0.5), r"its tokenizer cannot be read"),
    "no tokenizer": (no_tokenizer, r"its tokenizer"),
    "tokenizer too large": (fewer_rows, r"its tokenizer has 262 tokens, the model's embedding 100"),
    "other tokenizer": (other_tokenizer, r"its tokenizer ends a turn with '</s>', token 3, the model with 1, 6, 7, "),
    "no end": (no_end, r"neither tokenizer nor config names an end-of-turn token"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_one_message(tmp_path: Path, name: str) -> None:
    """The message names the folder or the file and says what is wrong with it."""
    spoil, problem = SPOILED[name]
    folder = tiny_model(tmp_path / "model")
    spoil(folder)
    message = problem_of(ModelSpec(str(folder), device="cpu"))
    assert str(folder) in message
    assert re.search(problem, message), message


def test_what_is_missing_comes_with_what_is_there(tmp_path: Path) -> None:
    """A mistyped path names the folders beside it, a file is no folder, and nothing is a model."""
    for name in ("tiny-slm", "tiny-llm", ".hidden"):
        (tmp_path / name).mkdir()
    message = problem_of(ModelSpec(str(tmp_path / "tiny-slmm")))
    assert "not a folder and not a Hugging Face name. Did you mean 'tiny-slm'" in message
    assert ".hidden" not in message
    (tmp_path / "weights").write_text("")
    assert "not a folder" in problem_of(ModelSpec(str(tmp_path / "weights")))
    assert "Give a folder with config.json" in problem_of(ModelSpec(str(tmp_path / "no" / "such" / "place")))
    assert "not a folder and not a Hugging Face name" in problem_of(ModelSpec("a/b/c"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"source": " "}, "model source: found ' '"),
        ({"source": 3}, "model source: found 3"),
        ({"dtype": "float3"}, "model dtype: found 'float3'. Did you mean 'float32'"),
        ({"device": "gpu"}, "model device: found 'gpu'. Allowed: auto, cpu, cuda, cuda:N"),
        ({"device": "cuda:x"}, "model device: found 'cuda:x'"),
        ({"quantisation": "int4"}, "model quantisation: found 'int4'. Did you mean 'int8'"),
        ({"attention": "flash"}, "model attention: found 'flash'"),
        ({"max_tokens": 0}, "max_tokens: found 0"),
        ({"max_tokens": True}, "max_tokens: found True"),
        ({"threads": -1}, "threads: found -1"),
        ({"context_tokens": 0}, "context_tokens: found 0"),
        ({"temperature": -0.1}, "temperature: found -0.1. Allowed: 0 to 2"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"top_p": 0.0}, "top_p: found 0.0. Allowed: above 0 to 1"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(fields: dict[str, Any], problem: str) -> None:
    """Every field says what it allows, before anything is loaded."""
    with pytest.raises(InputError, match=re.escape(problem)):
        ModelSpec(**{"source": "owner/name", **fields})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    """Asked for by device or by a quantisation that needs one; `auto` takes the CPU."""
    folder = str(tiny_model(tmp_path))
    for device in ("cuda", "cuda:3"):
        message = problem_of(ModelSpec(folder, device=device))
        assert (
            message == f"model device: '{device}' asked for, found no GPU that torch can use. "
            "Use device: cpu (in a scenario with num_gpus: 0), or a driver and a torch build for the GPU"
        )
    assert "bnb-4bit needs a GPU, found cpu" in problem_of(ModelSpec(folder, quantisation="bnb-4bit"))
    assert load_model(ModelSpec(folder)).model.device.type == "cpu"


def test_a_context_larger_than_the_models_is_refused(tmp_path: Path) -> None:
    """The model's own limit is named."""
    message = problem_of(ModelSpec(str(tiny_model(tmp_path)), device="cpu", context_tokens=257))
    assert message.startswith("context_tokens: found 257.")
    assert message.endswith("holds 256")


def test_reasons_survive_the_trip_from_another_process() -> None:
    """Pickled and back: class, text and reason."""
    for error in (PromptTooLong(9, 8), EngineBusy("3 requests wait")):
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this line
        assert (type(back), str(back), back.reason) == (type(error), str(error), error.reason)


def test_specs_and_answers_need_no_model_library() -> None:
    """Whoever only passes them on pays for neither torch nor transformers."""
    code = "import sys, serve.generation, serve.engine.errors; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# -------------------------------------------------------------------------------------------------------------- the hub

LOAD = """
import sys
from serve.generation import ModelSpec
from serve.engine.loading import load_model
from workloads.errors import InputError
for source in sys.argv[1:]:
    try:
        load_model(ModelSpec(source, device="cpu"))
    except InputError as error:
        print(error)
"""


def load_from_hub(endpoint: str, cache: Path, *sources: str) -> list[str]:
    """What loading these says with this hub, in a process whose settings are its own."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_secret"}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    command = [sys.executable, "-c", LOAD, *sources]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=True)
    assert "hf_secret" not in run.stdout + run.stderr
    return run.stdout.splitlines()


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """Refused connections and a server that accepts and says nothing: one message, without the client's half minute of retries."""
    expected = (
        "model 'nobody/none': neither a folder here nor in the Hugging Face cache, and the hub does not answer. Give a"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert load_from_hub(f"http://127.0.0.1:{port}", tmp_path, "nobody/none")[0].startswith(expected)
    assert load_from_hub(f"http://127.0.0.1:{port}", tmp_path, "nobody/none")[0].startswith(expected)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that cannot be had."""

    def do_HEAD(self) -> None:
        """Any file of an owner's model; the front page is there."""
        codes = {"unknown": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "empty": (404, "EntryNotFound")}
        code, reason = next((codes[name] for name in codes if name in self.path), (200, ""))
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.mark.slow
def test_what_the_hub_says_is_passed_on(tmp_path: Path) -> None:
    """An unknown model, a gated one and one without config."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        unknown, gated, empty = load_from_hub(endpoint, tmp_path, "owner/unknown", "owner/gated", "owner/empty")
        server.shutdown()
    assert "neither a folder here nor a model on the hub" in unknown
    assert "is gated on the hub. Accept its terms there and set HF_TOKEN" in gated
    assert "has no config.json on the hub" in empty
