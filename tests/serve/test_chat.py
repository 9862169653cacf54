"""Conversations as tokens: the template, what stands in for roles it lacks, and text that grows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.chat import ChatFormat, GrowingText
from tests.serve.tiny_models import CHAT_TEMPLATE, tiny_tokenizer
from workloads.errors import InputError
from workloads.task import Message

EVERYBODY = (
    Message("system", "be brief"), Message("user", "2 + 2"), Message("assistant", "compute 2 + 2"), Message("tool", "4"),
)  # fmt: skip


def ask(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


def chat(tmp_path: Path, template: str | None, given: str | None = None) -> ChatFormat:
    """The format of a tokenizer with this template."""
    from transformers import AutoTokenizer

    tiny_tokenizer(tmp_path, template)
    return ChatFormat(AutoTokenizer.from_pretrained(tmp_path), given)


@cache
def shared() -> ChatFormat:
    """A format made once."""
    return chat(Path(mkdtemp()), CHAT_TEMPLATE)


def test_the_tokenizers_own_template_is_used(tmp_path: Path) -> None:
    """All four roles as the template writes them, with the assistant's turn opened, and special tokens as single ids."""
    format_ = chat(tmp_path, CHAT_TEMPLATE)
    text = "<|system|>be brief<|end|><|user|>2 + 2<|end|><|assistant|>compute 2 + 2<|end|><|tool|>4<|end|><|assistant|>"
    assert format_.text(EVERYBODY) == text
    assert format_.tokens(EVERYBODY)[0] == 2
    assert format_.tokens(EVERYBODY)[-1] == 4


def test_without_a_template_roles_are_written_out(tmp_path: Path) -> None:
    """The documented plain form: a line per message, then the assistant's cue."""
    text = "system: be brief\nuser: 2 + 2\nassistant: compute 2 + 2\ntool: 4\nassistant:"
    assert chat(tmp_path, None).text(EVERYBODY) == text


def test_a_template_without_tool_role_gets_the_result_as_a_user_message(tmp_path: Path) -> None:
    """Whether the template raises or silently drops the role, the tool's answer reaches the model."""
    drops = CHAT_TEMPLATE.replace("<|{{", "{% if message['role'] != 'tool' %}<|{{").replace(
        "<|end|>", "<|end|>{% endif %}"
    )
    raises = "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
    for template in (drops, raises + CHAT_TEMPLATE):
        text = chat(tmp_path, template).text(EVERYBODY)
        assert "<|user|>Tool result: 4<|end|><|assistant|>" in text
        assert "<|system|>be brief<|end|>" in text


STRICT = """{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
[{{ message['role'] }}]{{ message['content'] }}{% endfor %}[assistant]"""


def test_a_strict_template_gets_what_it_can_take(tmp_path: Path) -> None:
    """Neither system nor tool, and strict turns: the system's words precede the user's, and messages of a role are joined."""
    format_ = chat(tmp_path, STRICT)
    text = "[user]be brief\n\n2 + 2[assistant]compute 2 + 2[user]Tool result: 4\n\nand now?[assistant]"
    assert format_.text((*EVERYBODY, Message("user", "and now?"))) == text
    with pytest.raises(InputError, match="conversation: the model's chat template refuses it"):
        format_.text((Message("assistant", "me first"),))


def test_a_template_that_is_given_replaces_the_tokenizers(tmp_path: Path) -> None:
    """What the user gives wins over what came with the model."""
    mine = "{% for m in messages %}({{ m.role }}) {{ m.content }} {% endfor %}>"
    assert chat(tmp_path, CHAT_TEMPLATE, mine).text(ask("hi")) == "(user) hi >"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }", "raises TemplateSyntaxError"),
        ("nothing of it", "it drops the user message"),
    ],
)
def test_a_bad_template_is_one_message(tmp_path: Path, template: str, problem: str) -> None:
    """Broken or useless, and whose it is."""
    with pytest.raises(InputError, match=f"chat template of the scenario: .*{problem}"):
        chat(tmp_path, CHAT_TEMPLATE, template)


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    """With the nearest of the allowed ones."""
    with pytest.raises(InputError, match=r"message 1: role: found 'asistant'. Did you mean 'assistant'"):
        chat(tmp_path, CHAT_TEMPLATE).text((*ask("hi"), Message("asistant", "hello")))


@given(values=st.lists(st.integers(0, 261), max_size=30), text=st.text(max_size=10))
def test_growing_text_is_the_final_text(values: list[int], text: str) -> None:
    """Whatever tokens come, half characters and special ones among them: the pieces make up the text and none is taken back."""
    format_ = shared()
    whole = [*values, *(format_.tokens(ask(text))[2:] if text.isascii() else values)]
    growing = GrowingText(format_)
    pieces = [growing.add(token) for token in whole] + [growing.finish()]
    assert "".join(pieces) == growing.text == format_.decode(whole)
