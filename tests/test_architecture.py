"""The promises that docs and design make about the shape of the code, checked on whatever files are there."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("workloads", "sim", "serve")
LONGEST_FILE = 300
HEAVY = ("ray", "torch", "transformers", "sentence_transformers")
DRAWING = re.compile(r"sim\.(report|figures)(?![a-z])")
"""The modules that may draw: sim.report, sim.report_*, sim.figures and what lies below them."""
LEARNING = re.compile(r"sim\.tmo\.learning(?![a-z])")
"""The modules that extend Stable-Baselines3's classes, and so load torch; only the command that trains imports them."""

MACHINE_PATH = re.compile(
    r"(?<![\w.\-/~}])/(?:" + "|".join(("work", "tmp", "root", "home", "opt/pypi", "opt/wheels")) + r")/"
)
HIDDEN_DIRECTORY = re.compile(r"(?<![\w.\-])\.(?:library|mirror)/")


def sources(*packages: str) -> list[Path]:
    """Every Python file of these top-level packages, in a fixed order."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name under which a file of the checkout is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom, imports inside functions included, imports for type checking only left out."""
    return grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def declared() -> list[Requirement]:
    """The dependencies of pyproject.toml, those of its extras included."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def constraints() -> dict[str, Requirement]:
    """The lines of constraints.txt by normalised name."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}


def tracked_text() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file that git tracks or would track."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if git.returncode:
        pytest.skip("needs a git checkout to know which files belong to the project")
    for name in sorted(set(git.stdout.decode().split("\0")) - {""}):
        path = ROOT / name
        try:
            yield name, path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError:
            continue  # an image or a Parquet file


# ------------------------------------------------------------------------------------------------------- who imports whom


def test_import_contracts_are_kept() -> None:
    """The contracts of pyproject.toml hold: layers, independence, and where the model libraries may appear."""
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_module_imports_itself_through_others(graph: grimp.ImportGraph) -> None:
    """There are no import cycles, those dodged by an import inside a function included."""
    own = {name for name in graph.modules if name.partition(".")[0] in PACKAGES}
    imports = {name: graph.find_modules_directly_imported_by(name) & own for name in own}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def test_workloads_need_only_numpy(graph: grimp.ImportGraph) -> None:
    """What is asked and answered can be read anywhere: the standard library and NumPy suffice."""
    allowed = {*sys.stdlib_module_names, "numpy", "workloads"}
    strangers = [
        f"{name} imports {imported}"
        for name in sorted(graph.modules)
        if name.partition(".")[0] == "workloads"
        for imported in sorted(graph.find_modules_directly_imported_by(name))
        if imported.partition(".")[0] not in allowed
    ]
    assert strangers == []


def test_only_the_report_draws(graph: grimp.ImportGraph) -> None:
    """Only the report and its figures know matplotlib."""
    importers = graph.find_modules_that_directly_import("matplotlib") if "matplotlib" in graph.modules else set()
    assert sorted(name for name in importers if not DRAWING.match(name)) == []


def test_every_library_imported_is_declared(graph: grimp.ImportGraph) -> None:
    """No module leans on a package that is installed only because something else needs it."""
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    providers = importlib.metadata.packages_distributions()
    top_levels = {name.partition(".")[0] for name in graph.modules} - set(PACKAGES) - {"run_sim"}
    missing = [
        f"{library} (by {', '.join(sorted(graph.find_modules_that_directly_import(library)))})"
        for library in sorted(top_levels - sys.stdlib_module_names)
        if not names & {canonicalize_name(name) for name in providers.get(library, [])}
    ]
    assert missing == []


IMPORT_ALL = """
import importlib, json, sys
heavy, quiet, drawing = json.loads(sys.argv[1])
loaded = {}
for modules, forbidden in ((quiet, [*heavy, "matplotlib"]), (drawing, heavy)):
    for module in modules:
        importlib.import_module(module)
        for library in forbidden:
            if library in sys.modules:
                loaded.setdefault(library, module)
print(json.dumps(loaded))
"""


def test_importing_sim_and_workloads_loads_no_model_library() -> None:
    """A simulation starts in a blink: Ray, torch and matplotlib load only where they are used."""
    modules = [name for name in map(module_name, sources("workloads", "sim")) if not LEARNING.match(name)]
    drawing = [name for name in modules if DRAWING.match(name)]
    quiet = [name for name in modules if name not in drawing]
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps([HEAVY, quiet, drawing])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {}, "library: the module whose import loaded it"


# ---------------------------------------------------------------------------------------------------- the shape of files


def test_files_stay_readable_in_one_sitting() -> None:
    """No source file is longer than 300 lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*PACKAGES)}
    longest = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LONGEST_FILE}
    assert longest == {}


def test_every_test_says_what_it_checks() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in sources("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_file_depends_on_the_machine_it_was_written_on() -> None:
    """Nobody else has this author's directories."""
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_text()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line) or HIDDEN_DIRECTORY.search(line)
    ]
    assert found == []


# ---------------------------------------------------------------------------------------------------------- installation


def test_constraints_pin_every_dependency() -> None:
    """Each declared dependency has one exact release in constraints.txt, and it is one that pyproject.toml allows."""
    pins = constraints()
    problems = []
    for requirement in declared():
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            problems.append(f"{requirement.name}: no line in constraints.txt")
        elif not requirement.specifier.contains(next(iter(pin.specifier)).version, prereleases=True):
            problems.append(f"{pin} is outside {requirement}")
    assert problems == []


def test_constraints_resolve_on_every_index() -> None:
    """Every line is one exact release without the build tag of one machine's index."""
    loose = [
        str(pin)
        for pin in constraints().values()
        if [spec.operator for spec in pin.specifier] != ["=="] or Version(next(iter(pin.specifier)).version).local
    ]
    assert loose == []


def test_the_wheel_claims_no_import_names(tmp_path: Path) -> None:
    """Installing Isthmus puts its metadata into site-packages and nothing that can be imported."""
    for name in ("pyproject.toml", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "README.md").write_text("stand-in")
    (tmp_path / "run_sim.py").touch()
    for package in (*PACKAGES, "scenarios", "results", "tests"):  # what automatic discovery would pick up
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    run = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        outside = [name for name in archive.namelist() if ".dist-info/" not in name]
        (top_level,) = [name for name in archive.namelist() if name.endswith("/top_level.txt")]
        claimed = archive.read(top_level).split()
    assert (outside, claimed) == ([], [])
