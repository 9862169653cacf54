"""Tools that agents call: a calculator, and what tools share.

A tool takes the task and the text after the verb and answers with text. It never raises: what it cannot do, it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from workloads.task import Task

Tool = Callable[[Task, str], str]
"""(task, argument text) -> observation text."""

MAX_EXPRESSION = 500
"""Characters of an expression; also bounds how deep its brackets can nest."""
_MAX_NESTING = 40
_MAX_STATEMENTS = 8
_MAX_DIGITS = 60
_TOKEN = re.compile(r"\s*(?:(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)|([-+*/()×÷]))")
_LABEL = re.compile(r"\s*([A-Za-z_][\w ]*?)\s*=\s*(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_]\w*")


class _Refused(ValueError):
    """What is wrong with an expression, in words for the model."""


def statements(argument: str, value: Callable[[str, dict[str, str]], str]) -> str:
    """Works out `A = ... ; B = ...` from left to right; labels come back with the values, one statement without a label bare.

    `value` gets an expression and the values of the labels before it. Thoughts before a colon are not asked for anything.
    """
    parts = argument.rpartition(":")[2].split(";")
    if len(parts) > _MAX_STATEMENTS:
        return f"error: more than {_MAX_STATEMENTS} statements"
    known, found = dict[str, str](), []
    for part in parts:
        match = _LABEL.fullmatch(part)
        result = value((match[2] if match else part).strip(), known)
        found.append(f"{match[1]} = {result}" if match else result)
        if match:
            known[match[1]] = result
    return " ; ".join(found)


def compute(task: Task, argument: str) -> str:
    """Exact arithmetic with + - * / and brackets: `( 11 + 10 ) * 2` -> `42`.

    Labels come back and may be used after it: `Ben = 11 + 10 ; Ivo = Ben * 2` -> `Ben = 21 ; Ivo = 42`.
    """
    del task
    return statements(argument.strip().removesuffix("=").replace("$", ""), _computed)


def _computed(expression: str, known: dict[str, str]) -> str:
    filled = _NAME.sub(lambda name: f"({known[name[0]]})" if name[0] in known else name[0], expression)
    try:
        return _text(_Parser(filled).value())
    except _Refused as error:
        return f"error: {error}"


class _Parser:
    """Recursive descent over sums, products and signed brackets; values are exact fractions."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_EXPRESSION:
            raise _Refused(f"an expression of more than {MAX_EXPRESSION} characters")
        self._tokens = _tokens(expression)
        self._next = 0
        self._depth = 0

    def value(self) -> Fraction:
        result = self._sum()
        if self._next < len(self._tokens):
            raise _Refused(f"unexpected {self._tokens[self._next]}")
        return result

    def _take(self, *wanted: str) -> str | None:
        if self._next < len(self._tokens) and self._tokens[self._next] in wanted:
            self._next += 1
            return self._tokens[self._next - 1]
        return None

    def _sum(self) -> Fraction:
        result = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            result = _bounded(result + right if sign == "+" else result - right)
        return result

    def _product(self) -> Fraction:
        result = self._factor()
        while sign := self._take("*", "/"):
            right = self._factor()
            if sign == "/" and right == 0:
                raise _Refused("division by zero")
            result = _bounded(result * right if sign == "*" else result / right)
        return result

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise _Refused("brackets nested too deep")
        try:
            if sign := self._take("-", "+"):
                return -self._factor() if sign == "-" else self._factor()
            if self._take("("):
                inner = self._sum()
                if not self._take(")"):
                    raise _Refused("a bracket is not closed")
                return inner
            return self._number()
        finally:
            self._depth -= 1

    def _number(self) -> Fraction:
        if self._next == len(self._tokens):
            raise _Refused("the expression ends too early")
        token = self._tokens[self._next]
        if not token[-1].isdigit():
            raise _Refused(f"unexpected {token}")
        self._next += 1
        return _bounded(Fraction(token))


def _tokens(expression: str) -> list[str]:
    found, position = [], 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Refused(f"cannot read {text[position:].split()[0][:20]}")
        found.append((match[1] or match[2]).replace(",", "").replace("×", "*").replace("÷", "/"))
        position = match.end()
    return found


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**_MAX_DIGITS:
        raise _Refused("a number too large")
    return value


def _text(value: Fraction) -> str:
    """Whole numbers plainly, others to six decimals without trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(value * 10**6)
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled):07d}"
    return f"{sign}{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip(".")
