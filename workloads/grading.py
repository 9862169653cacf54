"""The usual graders: exact match, token F1 and the last number.

Sources: exact match and F1 after normalisation are SQuAD's (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine
Comprehension of Text", EMNLP 2016, evaluate-v1.1); that a wrong yes or no earns no partial credit is HotpotQA's (Yang et al.,
"HotpotQA", EMNLP 2018, hotpot_evaluate_v1); the number after `####` is GSM8K's (Cobbe et al., "Training Verifiers to Solve Math
Word Problems", 2021). That the last number of an answer counts is common practice for models that write a sentence.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from decimal import Decimal

from workloads.agent import Grader
from workloads.errors import InputError
from workloads.task import Task

FINAL = "####"
"""What stands before the final number in GSM8K's solutions."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})
# A minus is a sign only where no number or bracket ends before it: `7-5` holds 7 and 5. Thousands are split by commas only.
_NUMBER = re.compile(
    r"(?:(?<![\w)])(-))?\$?(?:(?<=\$)(-))?(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)", re.ASCII
)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words one blank apart. Doing it twice changes nothing."""
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def f1(first: str, second: str) -> float:
    """Harmonic mean of precision and recall over the words two texts share after `normalise`, in [0, 1]; symmetric.

    Equal texts have 1, also if nothing is left of them. `yes`, `no` and `noanswer` match themselves only.
    """
    texts = normalise(first), normalise(second)
    if texts[0] == texts[1]:
        return 1.0
    if not _ALL_OR_NOTHING.isdisjoint(texts):
        return 0.0
    words = [Counter(text.split()) for text in texts]
    return 2 * (words[0] & words[1]).total() / (words[0].total() + words[1].total())


def last_number(text: str) -> Decimal | None:
    """The last number after the last `####` of a text, or of all of it where that is missing; None if there is none.

    Commas between thousands, a dollar sign, a percent sign and units do not matter: `$1,000.50 in all` is 1000.5.
    """
    found = list(_NUMBER.finditer(text.rpartition(FINAL)[2].replace("\N{MINUS SIGN}", "-")))
    if not found:
        return None
    before_dollar, after_dollar, digits = found[-1].groups()
    value = Decimal(digits.replace(",", ""))
    return -value if before_dollar or after_dollar else value


def exact_match(task: Task, text: str) -> float:
    """1 if the answer equals the task's after `normalise`, else 0."""
    return float(normalise(text) == normalise(_answer(task)))


def token_f1(task: Task, text: str) -> float:
    """The answer's `f1` with the task's."""
    return f1(text, _answer(task))


def numeric_match(task: Task, text: str) -> float:
    """1 if the answer's last number equals the task's, digit for digit in value (42 = 42.0), else 0."""
    found = last_number(text)
    return float(found is not None and found == last_number(_answer(task)))


GRADERS: dict[str, Grader] = {"exact_match": exact_match, "f1": token_f1, "numeric": numeric_match}
"""The graders by the names that scenarios use."""


def _answer(task: Task) -> str:
    if task.answer is None:
        raise InputError(f"task {task.id!r}", "has no answer to grade by", "Give every task its answer")
    return task.answer
