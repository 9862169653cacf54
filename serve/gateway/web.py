"""The gateway's HTTP: OpenAI's chat API over `Calls`, as an ASGI application that runs under Ray Serve and under any other server.

    POST /v1/chat/completions    plain, or server-sent events with stream = true
    GET  /v1/models, /v1/models/{id}
    GET  /healthz                503 with the reasons while a tier has no healthy replica

Every answer to a chat call says where it was placed in headers (X-Isthmus-Tier, -Reason, -Decision-S; of a plain answer also
-Cost-USD and -Energy-J) and in the field `isthmus` of the body, or of a stream's last event.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Send

from serve.gateway.calls import Calls
from serve.gateway.openai_answers import model_object
from serve.gateway.openai_protocol import ApiError, ChatRequest, read_chat
from serve.gateway.replies import HUNG_UP, CallRecord, Exchange, Observer, Reply, TooSlow, error_response, json_response
from workloads.placing import FIRST_UNNUMBERED, Part

_LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MOST_NUMBER = 2**31 - 1


def build_app(calls: Calls, observe: Observer, *, own_request_ids: bool = True) -> FastAPI:
    """The application. `own_request_ids` False leaves x-request-id to a server that sets it itself, as Ray Serve does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        calls.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    pages = _Pages(calls, observe, own_request_ids)
    app.add_route("/v1/chat/completions", pages.guarded(pages.chat), methods=["POST"])
    app.add_route("/v1/models", pages.guarded(pages.models), methods=["GET"])
    app.add_route("/v1/models/{name:path}", pages.guarded(pages.model), methods=["GET"])
    app.add_route("/healthz", pages.health, methods=["GET"])
    app.add_exception_handler(HTTPException, pages.no_such_page)
    return app


class _Pages:
    def __init__(self, calls: Calls, observe: Observer, own_request_ids: bool) -> None:
        self.calls, self.options, self._observe, self._own_request_ids = calls, calls.options, observe, own_request_ids
        self._created_s = int(time.time())

    # ------------------------------------------------------------------------------------------------------ every page

    def guarded(self, page: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The page, behind the key, with its errors as answers."""

        async def answer(request: Request) -> Response:
            try:
                self._check_key(request)
                return await page(request)
            except ApiError as error:
                return self._failure(request, error)
            except ClientDisconnect:
                return Response(status_code=HUNG_UP)
            except Exception:
                return self._failure(request, self._unexpected(request))

        return answer

    def _headers(self, request: Request) -> dict[str, str]:
        if not self._own_request_ids:
            return {}
        given = request.headers.get("x-request-id", "")
        if not hasattr(request.state, "id"):
            request.state.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        return {"x-request-id": request.state.id}

    def _failure(self, request: Request, error: ApiError) -> Response:
        return error_response(error, self._headers(request))

    def _unexpected(self, request: Request) -> ApiError:
        """What the client learns of an error of ours; the log learns the rest."""
        _LOG.exception("request %s failed", self._id_of(request))
        return ApiError(500, "The gateway failed. Its log says why.", kind="server_error", code="internal_error")

    def _id_of(self, request: Request) -> str | None:
        return self._headers(request).get("x-request-id") or request.headers.get("x-request-id")

    def _check_key(self, request: Request) -> None:
        expected = self.options.key_sha256
        if expected is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, expected):
            message = "The API key is missing or wrong. Send it as Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def no_such_page(self, request: Request, error: Exception) -> Response:
        """Unknown paths and methods, in the API's words."""
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path[:200]}"
        message = f"{where}: {'method not allowed' if error.status_code == 405 else 'there is nothing here'}."
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return self._failure(request, ApiError(error.status_code, message, code=code, headers=error.headers))

    # ---------------------------------------------------------------------------------------------------- simple pages

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        listed = [model_object(name, self._created_s) for name in self.calls.placer.names()]
        return json_response({"object": "list", "data": listed}, 200, self._headers(request))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}: also of names that are valid without being listed."""
        name = request.path_params["name"]
        self.calls.label(name)
        return json_response(model_object(name, self._created_s), 200, self._headers(request))

    async def health(self, request: Request) -> Response:
        """GET /healthz."""
        names = list(self.calls.tiers)
        found = dict(zip(names, await asyncio.gather(*(self._health_of(name) for name in names)), strict=True))
        tiers = {name: {"healthy": not problem, "reason": problem} for name, problem in found.items()}
        ok = not any(found.values())
        status = {"status": "ok" if ok else "unavailable", "tiers": tiers}
        return json_response(status, 200 if ok else 503, self._headers(request))

    async def _health_of(self, tier: str) -> str:
        timeout_s = self.options.health_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self.calls.tiers[tier].health()
        except TimeoutError:
            return f"no replica answered within {timeout_s:g} s"
        except Exception:  # whatever a tier's client raises: its text may name machines
            _LOG.exception("the health of tier %s is unknown", tier)
            return "its health is unknown"

    # ------------------------------------------------------------------------------------------------------------ chat

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        begun_s = time.perf_counter()
        record = CallRecord()

        def ended(record: CallRecord) -> None:
            self._observe(replace(record, elapsed_s=time.perf_counter() - begun_s))

        try:
            number, part = _request_number(request), _part(request)
            chat = read_chat(await self._body(request))
            record = replace(record, model=self.calls.label(chat.model))
        except ApiError as error:
            ended(replace(record, status=error.status))
            raise
        except ClientDisconnect:
            ended(replace(record, status=HUNG_UP))
            raise

        async def work(send: Send) -> None:
            reply = Reply(self.calls, self._headers(request), send, replace(record, status=HUNG_UP))
            try:
                await self._answer(request, chat, (number, part), reply)
            except TooSlow:
                _LOG.warning("request %s: its client does not read the answer", self._id_of(request))
            finally:
                ended(reply.record)

        return Exchange(work)

    async def _answer(self, request: Request, chat: ChatRequest, whose: tuple[int | None, Part], reply: Reply) -> None:
        try:
            with self.calls.admitted():
                placed = await self.calls.place(chat, *whose)
                await (reply.streamed(placed) if chat.stream else reply.plain(placed))
        except TooSlow:
            raise
        except ApiError as error:
            await reply.failed(error)
        except Exception:
            await reply.failed(self._unexpected(request))

    async def _body(self, request: Request) -> bytes:
        """The request's body, refused as soon as it is known to be unusable."""
        kind, _, parameters = request.headers.get("content-type", "application/json").lower().partition(";")
        charset = parameters.partition("charset=")[2].strip('" ') or "utf-8"
        encoding = request.headers.get("content-encoding", "identity").lower()
        if kind.strip() != "application/json" or charset not in ("utf-8", "utf8") or encoding != "identity":
            raise ApiError(415, "Send application/json in UTF-8, not compressed.", code="unsupported_media_type")
        limit = self.options.max_body_bytes
        too_large = ApiError(
            413, f"The body is larger than {limit} bytes.", code="body_too_large", headers={"Connection": "close"}
        )
        if (
            request.headers.get("content-length", "0").isdecimal()
            and int(request.headers.get("content-length", "0")[:20]) > limit
        ):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.options.body_timeout_s):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            message = f"The body did not arrive within {self.options.body_timeout_s:g} s."
            raise ApiError(408, message, code="body_timeout", headers={"Connection": "close"}) from None
        return bytes(body)


def _request_number(request: Request) -> int | None:
    """The number a client gives its request, if it does; below those that a conversation's text is given."""
    assert _MOST_NUMBER < FIRST_UNNUMBERED
    return _whole_number(request, "X-Isthmus-Request")


def _part(request: Request) -> Part:
    """Which subtask of a request that forks this is, if its client tells. Raises ApiError where it tells half of it."""
    position, branch = (_whole_number(request, f"X-Isthmus-{name}") for name in ("Position", "Branch"))
    if branch and (position is None or request.headers.get("x-isthmus-request") is None):
        message = "Header X-Isthmus-Branch needs X-Isthmus-Request and X-Isthmus-Position: branches do not tell what they belong to."
        raise ApiError(400, message, param="X-Isthmus-Branch", code="missing_required_parameter")
    return Part(position, branch or 0)


def _whole_number(request: Request, header: str) -> int | None:
    given = request.headers.get(header.lower())
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or len(given) > 10 or int(given) > _MOST_NUMBER:
        message = f"Invalid header {header}: allowed are whole numbers from 0 to {_MOST_NUMBER}."
        raise ApiError(400, message, param=header, code="invalid_value")
    return int(given)
