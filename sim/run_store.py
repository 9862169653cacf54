"""Where a run's results live: results/<name>/<run id>/, written atomically, so that an interrupted run can go on.

The run id is a hash of everything the records depend on: the resolved scenario, the policies and seeds, the input files and
this program's own source. The same command therefore comes back to the same folder and finds its finished cells there, and a
result is never mixed with one of another scenario or version.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.cells import Cell, resolved
from sim.loading import LoadedScenario, data_path, dump_yaml
from sim.records import Columns, Records, read_columns, to_arrow, write_parquet
from sim.workload import named_files
from workloads.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
NUMBERS_COME_FROM = ("simpy", "numpy", "scipy", "scikit-learn", "genai-prices")
"""Packages whose other versions may give other draws, fits or prices."""
PACKAGES = ("ray", "simpy", "numpy", "scipy", "pydantic", "pyarrow", "scikit-learn", "genai-prices")


class RunStore:
    """The results folder of one run."""

    def __init__(self, out: Path, loaded: LoadedScenario, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.inputs = dict(sorted(input_hashes(loaded, cells)))
        self.run_id = _run_id(cells, self.inputs)
        self.name = loaded.scenario.name
        self.folder = out / self.name / self.run_id

    def finished(self, cell: Cell) -> bool:
        """Whether the cell's records are there: the request table is written last."""
        return self._file("requests", cell).exists()

    def save(self, cell: Cell, records: Records) -> None:
        """Write a cell's two tables, each atomically."""
        write_parquet(to_arrow(records.subtasks, cell.constants), self._file("subtasks", cell))
        write_parquet(to_arrow(records.requests, cell.constants), self._file("requests", cell))

    def requests(self) -> dict[str, Any]:
        """The request tables of all cells, in the cells' order."""
        return read_columns([self._file("requests", cell) for cell in self.cells])

    def subtasks(self, variant: str, policy: str, seed: int) -> Columns:
        """One cell's subtask table."""
        for cell in self.cells:
            if (cell.variant, cell.policy.name, cell.seed) == (variant, policy, seed):
                return read_columns([self._file("subtasks", cell)])
        raise KeyError((variant, policy, seed))

    def _file(self, table: str, cell: Cell) -> Path:
        return self.folder / table / cell.file_name

    def start(self) -> None:
        """Make the folder; a killed run's partial files go."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(self.folder), f"cannot be written ({error.strerror})", "Choose another --out"
            ) from None
        for partial in self.folder.rglob(".*.partial"):
            writer = partial.name.split(".")[-2]
            if not (writer.isdecimal() and _is_running(int(writer))):
                partial.unlink(missing_ok=True)

    def finish(
        self,
        loaded: LoadedScenario,
        summary: list[dict[str, Any]],
        frontier: Mapping[str, Any],
        manifest: Mapping[str, Any],
        wrong: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the small files and point `latest` here."""
        write_text(self.folder / "scenario.yaml", dump_yaml(loaded.scenario.model_dump()))
        write_text(self.folder / "summary.json", as_json(summary))
        _write_csv(self.folder / "summary.csv", summary)
        write_text(self.folder / "frontier.json", as_json(frontier))
        if wrong:
            write_text(self.folder / "assignments.json", as_json(wrong))
        write_text(self.folder / "manifest.json", as_json(manifest))
        point(self.folder.parent / "latest", self.run_id)

    def manifest(self, loaded: LoadedScenario, wall_s: float, cells_kept: int) -> dict[str, Any]:
        """What one needs to know to trust or repeat the run."""
        return {
            "scenario": self.name, "run_id": self.run_id, "scenario_file": loaded.path.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seeds": list(loaded.scenario.seeds), "cells": len(self.cells), "cells_kept_from_before": cells_kept,
            "wall_s": round(wall_s, 3), "isthmus": own_version(), "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES}, "inputs_sha256": self.inputs,
        }  # fmt: skip


def _run_id(cells: Sequence[Cell], inputs: Mapping[str, str]) -> str:
    live = any(cell.scenario.inference.backend == "serve" for cell in cells)
    digest = hashlib.sha256(source_hash(("serve",) if live else ()).encode())
    digest.update(json.dumps({name: importlib.metadata.version(name) for name in NUMBERS_COME_FROM}).encode())
    digest.update(json.dumps(inputs, sort_keys=True).encode())
    scenarios: dict[int, str] = {}
    for cell in cells:
        key = id(cell.scenario)
        if key not in scenarios:
            plain = dict(resolved(cell.scenario))
            plain.pop("policies"), plain.pop("seeds"), plain.pop("sweep")  # the cell itself says which it is
            scenarios[key] = json.dumps(plain, sort_keys=True)
        policy = json.dumps([cell.policy.name, cell.policy.policy, cell.policy.options], sort_keys=True, default=str)
        digest.update(f"{cell.variant}{scenarios[key]}{policy}{cell.seed}".encode())
    return digest.hexdigest()[:12]


def source_hash(also: Sequence[str] = ()) -> str:
    """Hash of the program's own source: records of different versions never share a folder.

    Live runs depend on `also`: the serving package with the weights it ships.
    """
    digest = hashlib.sha256()
    for package in ("sim", "workloads", *also):
        for path in sorted(p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".safetensors")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def input_hashes(loaded: LoadedScenario, cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """(name as written, hash) of every file the scenario or its policies read."""
    names = {
        cell.policy.policy.rpartition(":")[0] for cell in cells if cell.policy.policy.rpartition(":")[0].endswith(".py")
    }
    for variant in loaded.variants:
        names |= {name for _, name in named_files(variant.scenario)}
    for name in names:
        path = data_path(name, loaded.path)
        if not path.is_file():
            raise InputError(str(path), "no such file", "See docs/data.md for where recorded data comes from and goes")
        with path.open("rb") as file:
            yield name, hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*facts: Any) -> str:
    """A hash of whatever these facts say; a dozen of its digits tell a project's apart."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def as_json(value: Any) -> str:
    """Plain values as the text of a file."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def point(link: Path, target: str) -> None:
    """Move `latest` to a run; a copy where symbolic links are not to be had."""
    partial = link.with_name(f".latest.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    try:
        partial.symlink_to(target)
        os.replace(partial, link)
    except OSError:
        link.unlink(missing_ok=True)  # copying through it would overwrite the run it points to
        shutil.copytree(link.parent / target, link)


def _is_running(pid: int) -> bool:
    """Whether another process may still be writing its partial file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def own_version() -> str:
    """This program's version."""
    try:
        return importlib.metadata.version("isthmus")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout whose dependencies were installed by hand
        return "unknown"
