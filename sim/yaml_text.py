"""YAML in and out: text becomes plain values with the line of each, values become text that reads back the same.

Only what a scenario needs is accepted: mappings with text keys, lists, text, numbers, dates, true, false and null. Tags of any
other kind are refused and never constructed. Anchors, aliases and merge keys work, within limits that keep a file of a few
lines from unfolding into more values than there is memory.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from workloads.errors import InputError

Location = tuple[str | int, ...]
"""A field: names and list indices from the top."""

MOST_VALUES = 20_000
MOST_LEVELS = 40
_STANDARD = "tag:yaml.org,2002:"
_SCALARS = {_STANDARD + name for name in ("null", "bool", "int", "float", "str", "timestamp")}
_NAMES = {"bool": "true or false", "int": "a whole number", "float": "a number", "timestamp": "a date or time"}
_MERGE = _STANDARD + "merge"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_SYNTAX_REMEDY = (
    "Correct the syntax on or just above this line; indent with blanks, and quote text that holds ': ' or ' #'"
)
_TAG_REMEDY = "Write plain YAML: mappings, lists, text, numbers, dates, true, false and null"
_IN_PLAIN_WORDS = {
    "'\\t'": "a tab where YAML wants blanks",
    "another document": "a second document begins (`---`)",
    "expected <block end>": "the indentation does not fit the lines above",
    "mapping values are not allowed": "a second ': ' on one line, or wrong indentation",
    "unexpected end of stream": "a quote is never closed",
    "<stream end>": "a bracket is never closed",
    "undefined alias": "`*` begins an alias, and there is no anchor `&` of this name",
}
"""What the parser says, and what it means to somebody who does not know its grammar."""


class Document(NamedTuple):
    """A YAML text as plain values (lists as tuples), and the line of each of them, counted from 1."""

    value: Any
    lines: Mapping[Location, int]


def read_yaml(text: str, source: str, *, numbered: bool = True) -> Document:
    """Parse one YAML document; `source` names it in errors, with the line where `numbered`. Raises InputError."""
    reader = _Reader(source, numbered)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an anchor used twice is legal, and no reason to print anything
        node = reader.compose(text)
        value = None if node is None else reader.value(node, ())
    return Document(value, reader.lines)


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Plain values as YAML text in the order given."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 120
    yaml.allow_unicode = True
    out = io.StringIO()
    yaml.dump(_lists(value), out)
    return out.getvalue()


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def field_name(location: Location) -> str:
    """A location as errors name it: `tiers.edge.device`."""
    return ".".join(str(part)[:80].encode("utf-8", "backslashreplace").decode() for part in location)


class _Reader:
    """Turns nodes into values, counting as it goes."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.lines: dict[Location, int] = {}
        self._source, self._numbered = source, numbered
        self._yaml = YAML(typ="safe", pure=True)
        self._values = 0

    def compose(self, text: str) -> Node | None:
        """The document's nodes; None for an empty one."""
        try:
            node: Node | None = self._yaml.compose(text)
        except YAMLError as error:
            raise self._syntax_error(error, text) from None
        except RecursionError:
            raise self._error(None, (), "nested too deeply", f"Nest at most {MOST_LEVELS} levels") from None
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError, AssertionError) as error:
            # The parser's own ways of giving up on absurd directives and escapes, such as a character beyond Unicode.
            raise self._error(None, (), f"not valid YAML ({_first_line(error)})", _SYNTAX_REMEDY) from None
        return node

    def value(self, node: Node, location: Location) -> Any:
        """A node as a plain value."""
        self._count(node, location)
        if isinstance(node, ScalarNode):
            return self._scalar(node, location)
        standard = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag not in (_STANDARD + standard, "!"):
            raise self._error(node, location, f"the tag {_tag(node)!r} is not allowed", _TAG_REMEDY)
        if isinstance(node, SequenceNode):
            return tuple(self._item(item, item, (*location, index)) for index, item in enumerate(node.value))
        assert isinstance(node, MappingNode)
        fields = self._fields(node, location)
        return {name: self._item(key, value, (*location, name)) for name, (key, value) in fields.items()}

    def _item(self, line_of: Node, node: Node, location: Location) -> Any:
        self.lines[location] = line_of.start_mark.line + 1
        return self.value(node, location)

    def _fields(self, node: MappingNode, location: Location) -> dict[str, tuple[Node, Node]]:
        """A mapping's fields by name; what merge keys (`<<: *base`) bring in comes first and gives way."""
        merged: dict[str, tuple[Node, Node]] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for name, entry in self._merged(value, location):
                    merged.setdefault(name, entry)
                continue
            name = self._key(key, location)
            if name in own:
                first = f", first on line {own[name][0].start_mark.line + 1}" if self._numbered else ""
                raise self._error(key, (*location, name), f"given twice{first}", "Keep one of the two")
            own[name] = (key, value)
        return {**merged, **own}

    def _merged(self, node: Node, location: Location) -> Iterator[tuple[str, tuple[Node, Node]]]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, MappingNode):
                raise self._error(node, location, "`<<` takes mappings only", "Write <<: *name of an anchored mapping")
            self._count(source, location)
            try:
                yield from self._fields(source, location).items()
            except RecursionError:
                raise self._error(node, location, "a mapping is merged into itself", "Leave this `<<` out") from None

    def _key(self, node: Node, location: Location) -> str:
        self._count(node, location)
        if not isinstance(node, ScalarNode) or node.tag not in _SCALARS:
            raise self._error(node, location, "the name of a field is not plain text", "Write `name: value`")
        if node.tag == _STANDARD + "null":
            raise self._error(node, location, "a field without a name", "Write `name: value`")
        return str(self._printable(str(node.value), node, location))

    def _scalar(self, node: ScalarNode, location: Location) -> Any:
        if node.tag not in _SCALARS and node.tag != "!":
            raise self._error(node, location, f"the tag {_tag(node)!r} is not allowed", _TAG_REMEDY)
        if node.tag in (_STANDARD + "str", "!"):
            return self._printable(str(node.value), node, location)
        try:
            value = self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError, OverflowError, LookupError, TypeError, AttributeError):
            kind = _NAMES.get(_tag(node).removeprefix("!!"), _tag(node))
            problem = f"{_clipped(str(node.value))} is not {kind}"
            raise self._error(node, location, problem, "Correct it, or quote it if it is text") from None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise self._error(
                node, location, f"the number {_clipped(str(node.value))} is too large", "Give at most 64 bits"
            )
        return value

    def _printable(self, text: str, node: Node, location: Location) -> str:
        found = _UNPRINTABLE.search(text)
        if found:
            problem = f"text with the unprintable character U+{ord(found[0]):04X}"
            raise self._error(node, location, problem, "Leave the character out")
        return text

    def _count(self, node: Node, location: Location) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            remedy = "Aliases (*name) that hold aliases multiply; write less, or sweep over fewer values"
            raise self._error(node, location[:2], f"unfolds to more than {MOST_VALUES:,} values", remedy)
        if len(location) > MOST_LEVELS:
            raise self._error(node, location[:2], "nested too deeply", f"Nest at most {MOST_LEVELS} levels")

    def _syntax_error(self, error: YAMLError, text: str) -> InputError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        position = getattr(error, "position", None)
        line = (
            mark.line + 1 if mark is not None else text.count("\n", 0, position) + 1 if position is not None else None
        )
        problem = getattr(error, "problem", None) or _first_line(error)
        problem = next((plain for jargon, plain in _IN_PLAIN_WORDS.items() if jargon in problem), problem)
        return self._error(line, (), f"not valid YAML ({problem})", _SYNTAX_REMEDY)

    def _error(self, where: Node | int | None, location: Location, problem: str, remedy: str) -> InputError:
        line = where if isinstance(where, int) or where is None else where.start_mark.line + 1
        place = self._source + (f":{line}" if self._numbered and line is not None else "")
        return InputError(place + (f": field {field_name(location)}" if location else ""), problem, remedy)


def _tag(node: Node) -> str:
    return _clipped(str(node.tag).replace(_STANDARD, "!!")).strip("'")


def _clipped(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
