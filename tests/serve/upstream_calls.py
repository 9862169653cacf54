"""What the tests of serve/cloud.py share: a client for one test, and short ways to ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from serve.cloud import Upstream, UpstreamError, UpstreamSpec
from tests.serve import upstream
from workloads.task import Message

Result = TypeVar("Result")

QUESTION = (Message("system", "Answer."), Message("user", "one two three four five six"))
"""Seven words; the upstream answers with eight: "You said:" and the last six."""

PRICED: dict[str, Any] = {"input_usd_per_mtok": 1000.0, "output_usd_per_mtok": 4000.0}
"""0.001 dollars a word of prompt, 0.004 a word of answer."""


def use(server: upstream.Upstream, work: Callable[[Upstream], Awaitable[Result]], **fields: Any) -> Result:
    """Run `work` with a client of the server; quick backoff, no key, and the fields of the spec given."""
    settings: dict[str, Any] = {"api_key_env": None, "first_backoff_s": 0.01, "max_backoff_s": 0.05, "timeout_s": 20.0}

    async def main() -> Result:
        client = Upstream(UpstreamSpec(server.url, "large", **(settings | fields)))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(main())


async def failed(call: Awaitable[Any]) -> UpstreamError:
    """The error a call ends with."""
    with pytest.raises(UpstreamError) as caught:
        await call
    return caught.value


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what another process will do; fails after a minute."""
    until = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < until, "it did not happen within a minute"
        time.sleep(0.02)
