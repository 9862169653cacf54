from __future__ import annotations

import dataclasses
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from serve.pair.decode import GreedyDecoder
from serve.pair.dialogues import IGNORED, conversation, examples
from serve.pair.models import RECIPES, Recipe, new_model
from serve.pair.optimiser import Optimiser, rate_at
from serve.pair.tokenizer import END, build_tokenizer, encode, encode_message, pieces
from serve.pair.train import main, train
from workloads.errors import InputError
from workloads.task import Message
from workloads.tasks.pair import pair_tasks, split_of
from workloads.tasks.problem import STYLES

TINY = Recipe("fine", layers=1, width=16, heads=2, inner=32, steps=20, batch=4)


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums are added in one order only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_weights_to_the_bit(tmp_path):
    """Stopped inside a pool of batches and gone on in a new trainer, 20 steps give what 20 steps in one go give."""
    whole = train(TINY, 5, tmp_path / "whole", save_every=20, compiled=False)
    train(TINY, 5, tmp_path / "parts", save_every=4, compiled=False, stop=7)
    assert not (tmp_path / "parts" / "model.safetensors").exists(), "it is not finished"
    parts = train(TINY, 5, tmp_path / "parts", save_every=4, compiled=False)
    assert (whole.step, parts.step) == (20, 20)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(TINY, 6, tmp_path / "other", save_every=20, compiled=False)
    assert not torch.equal(other.model.model.norm.weight, whole.model.model.norm.weight), (
        "another seed is another model"
    )
    loaded = GreedyDecoder(tmp_path / "parts").complete([(Message("user", "who is the boss of Nia Voss ?"),)], 5)
    assert len(loaded) == 1


@pytest.mark.slow
def test_a_short_training_lowers_the_loss(tmp_path):
    """The optimiser goes downhill on the real data."""
    trainer = train(dataclasses.replace(TINY, steps=100, batch=8), 1, tmp_path, save_every=20, compiled=False)
    assert trainer.losses[-1] < 0.8 * trainer.losses[0]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    """Going on with another seed in the same folder would be neither training."""
    train(TINY, 1, tmp_path, save_every=1, compiled=False, stop=1)
    with pytest.raises(InputError, match="a training with other settings"):
        train(TINY, 2, tmp_path, compiled=False)


def test_the_command_line_refuses_an_unknown_model(tmp_path):
    """One message that names the models there are."""
    with pytest.raises(SystemExit, match=r"no model 'slim'.*Did you mean 'slm'"):
        main(["--model", "slim", "--out", str(tmp_path)])


@pytest.mark.parametrize("style", STYLES)
def test_only_steps_in_the_own_style_are_targets(style):
    """What a conversation teaches are right steps of this model, each up to its end mark; the rest is history."""
    names = {number: piece for piece, number in pieces().items()}
    for task in pair_tasks("train", 60, 11):
        example = conversation(task.latent, style, Random(task.id))
        assert len(example.ids) == len(example.targets)
        taught = " ".join(names[t] if t != IGNORED else "|" for t in example.targets).replace(" ##", "")
        steps = [part.strip() for part in taught.split("|") if part.strip()]
        assert steps, "every conversation teaches something"
        assert all(step.endswith(f" {END}") for step in steps[:-1])
        assert steps[-1].removesuffix(f" {END}") == f"answer {task.answer}"
        verbs = {step.split()[0] for step in steps}
        assert verbs <= {"find", "compute", "answer"}
        assert all((" : " in step) == (style == "coarse") for step in steps[:-1])


def test_training_conversations_are_of_the_training_split():
    """No question of the validation or test split is ever seen, and the same name gives the same data."""
    end, names = pieces()["<assistant>"], {number: piece for piece, number in pieces().items()}
    drawn = examples("coarse", 200, "some name", 1.0)
    for example in drawn:
        words = " ".join(names[i] for i in example.ids[: example.ids.index(end)]).replace(" ##", "")
        assert split_of(words.removeprefix("<user> ").removesuffix(f" {END}")) == "train"
    assert examples("coarse", 200, "some name", 1.0) == drawn


def test_the_curriculum_starts_short():
    """At its start there are at most two operations and no distractors: conversations of about half the mean length."""
    easy, hard = (sum(len(e.ids) for e in examples("fine", 200, "a", hardest)) for hardest in (0.0, 1.0))
    assert easy < 0.6 * hard


def test_the_saved_tokenizer_agrees_with_the_fast_one():
    """The library's tokenizer and chat template give the ids that training used, and decoding gives the text back."""
    tokenizer = build_tokenizer()
    for task in pair_tasks("train", 50, 4):
        messages = (
            Message("user", task.prompt),
            Message("assistant", "compute Ben = ( 29 + 12 ) * 5"),
            Message("tool", "error: unexpected )"),
        )
        mine = [i for m in messages for i in encode_message(m)] + encode("<assistant>")
        theirs = tokenizer.apply_chat_template([m._asdict() for m in messages], add_generation_prompt=True)["input_ids"]
        assert theirs == mine
        assert tokenizer.decode(encode(task.prompt), skip_special_tokens=True) == task.prompt
    assert tokenizer.eos_token_id == pieces()[END]
    assert tokenizer.unk_token_id in tokenizer("something else entirely").input_ids


def test_the_optimiser_makes_matrix_updates_of_even_size():
    """Muon's update of a matrix has singular values near one, whatever the gradient's scale; norms and embeddings go to Adam."""
    model = new_model(TINY, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    Optimiser(model, weight_decay=0.0).step(rate=0.01, muon_rate=0.1)
    name = "model.layers.0.self_attn.q_proj.weight"
    sizes = torch.linalg.svdvals((dict(model.named_parameters())[name].detach() - before[name]) / 0.1)
    assert 0.5 < float(sizes.min()) <= float(sizes.max()) < 1.5
    moved = (model.model.embed_tokens.weight.detach() - before["model.embed_tokens.weight"]).abs()
    assert float(moved.median()) == pytest.approx(0.01, rel=1e-2), "Adam's first step has the size of its rate"


def test_the_rate_warms_up_and_falls_to_nothing():
    """A linear warm-up, then a linear way down."""
    rates = [rate_at(step, 1000) for step in (0, 99, 500, 750, 1000)]
    assert rates == pytest.approx([0.01, 0.901, 0.5, 0.25, 0.0])


def test_the_models_differ_in_size_and_style():
    """The large one has three times the parameters; each is taught its own style."""
    sizes = {name: sum(p.numel() for p in new_model(recipe, 0).parameters()) for name, recipe in RECIPES.items()}
    assert sizes["llm"] > 3 * sizes["slm"]
    assert {name: recipe.style for name, recipe in RECIPES.items()} == {"slm": "fine", "llm": "coarse"}
