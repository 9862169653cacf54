"""Search in the few paragraphs a question brings along: the tools of a HotpotQA agent.

Both tools are functions of the question and the text asked for alone, so a conversation meets the same observations each time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workloads.grading import normalise
from workloads.task import Task

MAX_SENTENCES = 3
"""Sentences `lookup` shows at most."""
_TITLE_WEIGHT = 2.0
"""How much more a word counts in a title than in the text below it."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A title and its sentences."""

    title: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.title}: {' '.join(sentence.strip() for sentence in self.sentences)}"


def search(task: Task, argument: str) -> str:
    """The paragraph whose title is asked for, else the one that shares most with what is asked; the first of equal ones.

    A shared word weighs the less the more paragraphs have it, and twice as much in a title. `task.latent` holds the
    paragraphs.
    """
    paragraphs: tuple[Paragraph, ...] = task.latent
    asked = normalise(argument)
    if not asked:
        return "error: nothing to search for"
    titles = [normalise(paragraph.title) for paragraph in paragraphs]
    if asked in titles:
        return str(paragraphs[titles.index(asked)])
    words = _words(asked)
    in_title = [_words(title) & words for title in titles]
    in_text = [_words(normalise(" ".join(paragraph.sentences))) & words for paragraph in paragraphs]
    paragraphs_with = Counter(word for a, b in zip(in_title, in_text, strict=True) for word in a | b)

    def weight(found: set[str]) -> float:
        return sum(1 / paragraphs_with[word] for word in sorted(found))  # in order: sums of floats depend on it

    scores = [_TITLE_WEIGHT * weight(a) + weight(b) for a, b in zip(in_title, in_text, strict=True)]
    best = max(scores)
    if not best:
        return f"nothing found; the titles are: {'; '.join(paragraph.title for paragraph in paragraphs)}"
    return str(paragraphs[scores.index(best)])


def lookup(task: Task, argument: str) -> str:
    """Up to three sentences of any paragraph that hold most words of what is asked, each after its title."""
    paragraphs: tuple[Paragraph, ...] = task.latent
    words = _words(normalise(argument))
    if not words:
        return "error: nothing to look up"
    found = [
        (len(_words(normalise(sentence)) & words), paragraph.title, sentence.strip())
        for paragraph in paragraphs
        for sentence in paragraph.sentences
    ]
    most = max((shared for shared, _, _ in found), default=0)
    if not most:
        return "nothing found"
    best = [f"({title}) {sentence}" for shared, title, sentence in found if shared == most]
    return " ".join(best[:MAX_SENTENCES])


def _words(text: str) -> set[str]:
    return set(text.split())
