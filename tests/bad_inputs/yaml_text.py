"""Scenario files that are no YAML, or YAML that means harm."""

from __future__ import annotations

from tests.bad_inputs import BASE, Case, scenario, text

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)

CASES: list[Case] = [
    text("empty file", "", "scenario.yaml:1", "holds nothing", "quickstart"),
    text("only comments", "# nothing\n", "scenario.yaml:1", "holds nothing"),
    text("a list at the top", "- 1\n- 2\n", "scenario.yaml:1", "not a mapping"),
    text("a number at the top", "5\n", "scenario.yaml:1", "not a mapping"),
    text("prose", "just some words\n", "scenario.yaml:1", "not a mapping"),
    text("binary junk", bytes(range(256)) * 4, "scenario.yaml", "not a text file", "UTF-8"),
    text("latin-1", "name: base\ndescription: caf\xe9\n".encode("latin-1"), "not a text file", "UTF-8"),
    text("utf-16", BASE.encode("utf-16"), "scenario.yaml", "not a text file"),
    text("control characters", "name: a\x07b\n", "scenario.yaml:1", "#x0007"),
    text("huge file", "# x\n" * 100_000, "scenario.yaml", "larger than 200 kB"),
    text("two documents", BASE + "---\n" + BASE, "scenario.yaml:24", "second document"),
    scenario("unclosed bracket", "[home, edge]", "[home, edge", "scenario.yaml:18", "not valid YAML", "','"),
    scenario("unclosed quote", "name: base", "name: 'base", "scenario.yaml:24", "a quote is never closed"),
    scenario("tab for blanks", "    role: slm", "\trole: slm", "scenario.yaml:10", "a tab", "blanks"),
    scenario("wrong indentation", "    kind: poisson", "   - kind: poisson", "scenario.yaml:7", "indentation"),
    scenario("colon in plain text", "name: base", "name: base: two", "scenario.yaml:1", "a second ': ' on one line", "quote text"),
    scenario("character that starts nothing", "name: base", "name: @base", "scenario.yaml:1", "'@'"),
    scenario("undefined alias", "name: base", "name: *base", "scenario.yaml:1", "no anchor"),
    scenario("duplicate key", "", "name: again\n", "scenario.yaml:24: field name", "first on line 1", "Keep one"),
    scenario(
        "duplicate key inside",
        "  requests: 20",
        "  requests: 20\n  requests: 30",
        "scenario.yaml:5: field workload.requests",
        "given twice",
    ),
    scenario("a list as key", "name: base", "? [a, b]\n: base", "scenario.yaml:1", "not plain text"),
    scenario("a key that is nothing", "name: base", "? \n: base", "scenario.yaml:1", "without a name"),
    scenario("merge of text", "    role: slm", "    <<: slm", "scenario.yaml:10", "takes mappings only"),
    scenario(
        "python object", "", "description: !!python/object/apply:os.system ['touch pwned']\n", "scenario.yaml:24: field description",
        "!!python/object/apply:os.system", "not allowed",
    ),
    scenario("tag of one's own", "name: base", "name: !mine base", "scenario.yaml:1: field name", "'!mine'"),
    scenario("a set", "seeds: [1]", "seeds: !!set {1, 2}", "scenario.yaml:23: field seeds", "!!set"),
    scenario("wrong tag", "requests: 20", "requests: !!int many", "scenario.yaml:4", "'many' is not a whole number"),
    text("billion laughs", LAUGHS, "scenario.yaml:", "unfolds to more than 20,000 values"),
    scenario("an alias inside itself", "", "description: &a [*a]\n", "scenario.yaml:24", "nested too deeply"),
    scenario("a mapping merged into itself", "", "client: &c {<<: *c}\n", "scenario.yaml:24", "merged into itself"),
    text("deep nesting", "a: " + "[" * 500 + "]" * 500, "nested too deeply", "40 levels"),
    text("deep nesting in blocks", "\n".join(" " * i + f"a{i}:" for i in range(60)), "nested too deeply"),
    scenario("a date that is none", "", "pricing: {date: 2024-13-45}\n", "scenario.yaml:24: field pricing.date", "2024-13-45"),
    scenario("an integer beyond 64 bits", "seeds: [1]", "seeds: [99999999999999999999]", "scenario.yaml:23", "too large", "64 bits"),
    scenario("five thousand digits", "requests: 20", "requests: " + "9" * 5000, "scenario.yaml:4: field workload.requests"),
    scenario("half a character", "name: base", 'name: "\\ud800"', "scenario.yaml:1: field name", "U+D800"),
    scenario("NUL in a path", "- all-slm", '- "a\\0b.py:C"', "scenario.yaml:21: field policies.0", "U+0000"),
    scenario("another YAML version", "name: base", "%YAML 9.9\n---\nname: base", "scenario.yaml:1", "incompatible"),
]  # fmt: skip
