"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(name, value)

# A shell has what it runs in the background ignore Ctrl-C, and every process below it too; tests send it to programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared and noisy: how long one example takes says nothing about the code.
settings.register_profile("isthmus", deadline=None)
settings.load_profile("isthmus")

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("ISTHMUS_CACHE_DIR", str(ROOT / ".pytest_cache" / "isthmus"))
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Path of a real recorded file beside the checkout; skips, naming the file, where it is missing."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"needs the recorded file shared/data/{name} beside the checkout")
        return path

    return find
