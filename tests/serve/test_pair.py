from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open

from serve.pair import MODELS, pair_path
from serve.pair.decode import GreedyDecoder
from serve.pair.evaluate import answer_all, routes
from serve.pair.models import RECIPES
from serve.pair.scores import mean_score, mean_subtasks
from serve.pair.tokenizer import encode_message, pieces
from workloads.errors import InputError
from workloads.task import Message
from workloads.tasks.pair import pair_tasks

BOTH_MB = 12


@pytest.fixture(scope="module")
def models():
    """Both embedded models on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: GreedyDecoder(pair_path(name)) for name in MODELS}
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tasks():
    """Unseen questions of all difficulties, in both families."""
    return pair_tasks("test", 120, 1)


def test_the_weights_are_safetensors_and_small():
    """No pickle among the files; both models together stay below the limit; float32 of the recipe's shape."""
    size = 0
    for name in MODELS:
        files = sorted(path.name for path in pair_path(name).iterdir())
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(
            files
        )
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
        size += sum(path.stat().st_size for path in pair_path(name).iterdir())
        with safe_open(pair_path(name) / "model.safetensors", "pt") as weights:
            shape = weights.get_slice("model.embed_tokens.weight").get_shape()
        assert shape == [len(pieces()), RECIPES[name].width]
    assert size < BOTH_MB * 1e6


def test_an_unknown_model_is_refused():
    """The message names the two there are; a folder without weights says how to make them."""
    with pytest.raises(InputError, match=r"no model 'slim'.*'slm'"):
        pair_path("slim")


def test_a_folder_without_weights_is_refused(tmp_path):
    """The message names the folder and the training script."""
    with pytest.raises(InputError, match=r"no model.safetensors.*serve\.pair\.train"):
        GreedyDecoder(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_any_transformers_code_can_load_them(name):
    """AutoTokenizer and AutoModelForCausalLM read the folder, the template gives the ids of training, generation ends by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair_path(name))
    model = AutoModelForCausalLM.from_pretrained(pair_path(name), use_safetensors=True)
    message = Message("user", pair_tasks("test", 1, 3)[0].prompt)
    inputs = tokenizer.apply_chat_template(
        [message._asdict()], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert inputs["input_ids"][0].tolist() == [*encode_message(message), pieces()["<assistant>"]]
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert output[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(output, skip_special_tokens=True)
    assert text == GreedyDecoder(pair_path(name)).complete([(message,)], 30)[0]


@pytest.mark.slow
def test_each_model_alone_is_as_good_as_its_card_says(models, tasks):
    """Within three standard errors of the card; the large model is right by far more often, the small one takes more steps."""
    alone = {name: answer_all(models, tasks, routes()[name]) for name in MODELS}
    for name, answered in alone.items():
        stated = re.search(r"\*\*(0\.\d+) right", (pair_path(name) / "README.md").read_text())
        assert stated is not None
        score = float(stated[1])
        assert abs(mean_score(answered) - score) < 3 * (score * (1 - score) / len(tasks)) ** 0.5
    assert mean_score(alone["llm"]) > mean_score(alone["slm"]) + 0.2
    assert 0.3 <= mean_score(alone["slm"]) <= 0.7
    assert mean_subtasks(alone["slm"]) > 1.1 * mean_subtasks(alone["llm"])
    for name, easy, hard in (("length", (1,), (4,)), ("distractors", (0,), (2,))):
        scores = [[a for a in alone["slm"] if a.task.features[name] in values] for values in (easy, hard)]
        assert mean_score(scores[0]) > mean_score(scores[1]) + 0.1


@pytest.mark.slow
def test_the_large_model_is_right_nine_times_in_ten(models):
    """On the thousand test requests of the shipped recording."""
    assert mean_score(answer_all({"llm": models["llm"]}, pair_tasks("test", 1000, 1), routes()["llm"])) >= 0.9


@pytest.mark.slow
def test_each_model_goes_on_from_the_others_half_finished_conversation(models, tasks):
    """In turns and by a coin, requests end, and the mixture lands between the two or above: nobody is thrown off by the other."""
    small = mean_score(answer_all(models, tasks, routes()["slm"]))
    for name in ("slm first, in turns", "llm first, in turns", "random 0.5"):
        mixed = answer_all(models, tasks, routes()[name])
        assert mean_score(mixed) > small, name
        assert all(sum(a.subtasks.values()) >= 2 for a in mixed)
        assert min(mean_subtasks(mixed, "slm"), mean_subtasks(mixed, "llm")) > 0.5


def test_the_cards_agree_with_the_training_record():
    """The card of a model shows its parameters, its seed and its scores by difficulty."""
    for name in MODELS:
        card = (pair_path(name) / "README.md").read_text()
        facts = json.loads((pair_path(name) / "training.json").read_text())
        assert f"{facts['parameters']:,} parameters" in card
        assert f"--seed {facts['seed']}" in card
        assert "hops: length | 0 distractors" in card
        assert "random 0.5" in card
