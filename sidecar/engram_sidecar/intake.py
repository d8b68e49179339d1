"""Reading HTTP requests: host, query, JSON body, and the limits of each. What cannot be read is answered here.

Promises
1. Only requests to a loopback name are read (else 421): a web page cannot reach the memory by DNS rebinding.
2. No body is taken beyond the limit, and none that does not come in time.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from engram_contract.names import CONSISTENCY_HEADER, IDEMPOTENCY_HEADER, SESSION_HEADER
from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar import jsontext
from engram_sidecar.audit import Subject
from engram_sidecar.clock import monotonic_s
from engram_sidecar.consistency import Floors, Session, begin_session
from engram_sidecar.errors import BadRequest, Flaw, NotFound, TooLarge, Unprocessable
from engram_sidecar.etags import write_conditions
from engram_sidecar.idempotency import Once, parse_key
from engram_sidecar.patience import of_request
from engram_sidecar.problems import Problem, problem
from engram_sidecar.records import Conditions
from engram_sidecar.timing import part
from engram_sidecar.wire import encode, parse_id

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_JSON: Final = frozenset({"application/json", "application/merge-patch+json"})
_CHUNK_BYTES: Final = 65_536
_INLINE_BYTES: Final = 65_536  # a larger body is parsed beside the loop
NO_ROUTE: Final = ("other", "other")  # whoever asks for what is not there makes no new series of metrics
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})


@dataclass(slots=True)
class Call:
    """One request, and what it turned out to be about so far. `parts`: each operation of a batch, with its status."""

    request: web.BaseRequest
    started_s: float  # monotonic
    session: Session
    route: tuple[str, str] = NO_ROUTE  # method, template of the path
    path_id: str = ""
    body_digest: str = ""  # of the body of a request with an idempotency key
    subject: Subject = field(default_factory=Subject)
    parts: Sequence[tuple[str, int, Subject]] = ()

    def read_session(self) -> None:
        """Takes the session's token and the asked consistency from the headers. Raises BadRequest."""
        said = self.request.headers
        now_s = monotonic_s()
        self.session.read_headers(said.getall(CONSISTENCY_HEADER, []), said.getall(SESSION_HEADER, []), now_s)


Handler = Callable[[Call], Awaitable[web.Response]]


class Answered(Exception):
    """Ends the reading of a request: the answer is ready."""

    def __init__(self, response: web.Response) -> None:
        super().__init__()
        self.response = response


def problem_response(found: Problem) -> web.Response:
    """The problem as a response."""
    body = encode(found.document)
    return web.Response(body=body, status=found.status, headers=found.headers, content_type="application/problem+json")


class Intake:
    """Reads requests within the limits."""

    def __init__(self, limits: Limits, body_timeout_s: float, now_s: Callable[[], float], floors: Floors) -> None:
        self.limits = limits
        self.now_s = now_s
        self._body_timeout_s = body_timeout_s
        self._floors = floors

    def begin(self, request: web.BaseRequest) -> Call:
        """A request of which nothing is read yet; this task answers it from now on."""
        return Call(request, self.now_s(), begin_session(self._floors))

    def query(self, call: Call, names: tuple[str, ...], repeated: tuple[str, ...] = ()) -> dict[str, list[str]]:
        """The query's parameters. Raises BadRequest, Unprocessable for an unknown or repeated one."""
        try:
            pairs = parse_qsl(
                call.request.rel_url.raw_query_string,
                keep_blank_values=True,
                errors="strict",
                max_num_fields=self.limits.namespace_segments + 16,
            )
        except ValueError as error:
            reason = "the query is not UTF-8 in percent-encoding, or has too many parameters"
            raise BadRequest(reason) from error
        found: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in names:
                known = f"there are {', '.join(names)}" if names else "there are none here"
                raise Unprocessable(Flaw(name[:100], f"is not a parameter; {known}", is_parameter=True))
            if name in found and name not in repeated:
                raise Unprocessable(Flaw(name, "stands twice", is_parameter=True))
            found.setdefault(name, []).append(value)
        return found

    async def json(self, call: Call) -> object:
        """The body's JSON value. Raises BadRequest, TooLarge, or answers 415.

        The type must be said: a web page may send a body of another type, or of none, to localhost without being asked.
        """
        request = call.request
        is_json = "Content-Type" in request.headers and request.content_type in _JSON
        if not is_json or request.headers.get("Content-Encoding", "").strip().lower() not in _ENCODINGS:
            detail = "send it with the header Content-Type: application/json, plain or compressed by gzip or deflate"
            wrong = problem(415, "unsupported-media-type", "The body is not said to be JSON", detail)
            raise Answered(problem_response(wrong))
        with part("body"):
            raw = await self._body(call)
        with part("parse"):
            return await self._parsed(raw)

    async def _parsed(self, raw: bytes) -> object:
        try:
            if len(raw) <= _INLINE_BYTES:
                return jsontext.parse(raw, max_depth=self.limits.json_depth)
            return await asyncio.to_thread(jsontext.parse, raw, max_depth=self.limits.json_depth)
        except jsontext.BadJson as error:
            reason = f"the body is not JSON that can be stored: {error}"
            raise BadRequest(reason) from error

    async def _body(self, call: Call) -> bytes:
        request = call.request
        await _continue(request)
        limit = self.limits.body_bytes
        if (request.content_length or 0) > limit:
            raise TooLarge("bytes of body", limit)
        body = bytearray()
        digest = hashlib.blake2b(digest_size=32) if IDEMPOTENCY_HEADER in request.headers else None
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                    body += chunk
                    if digest is not None:
                        digest.update(chunk)
                    if len(body) > limit:
                        raise TooLarge("bytes of body", limit)
        except TimeoutError as error:
            slow = problem(408, "request-timeout", "The body did not come in time", f"{self._body_timeout_s:g} s")
            raise Answered(problem_response(slow)) from error
        except web.RequestPayloadError as error:
            reason = "the body's transfer or content encoding is broken"
            raise BadRequest(reason) from error
        of_request().size_bytes = len(body)
        if digest is not None:
            call.body_digest = digest.hexdigest()
        return bytes(body)


async def _continue(request: web.BaseRequest) -> None:
    """Lets a client that asked go on with its body (RFC 9110 section 10.1.1)."""
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    elif expected:
        unknown = problem(417, "expectation-failed", "The expectation is not known", "there is 100-continue")
        raise Answered(problem_response(unknown))


def check_host(request: web.BaseRequest) -> None:
    """Answers 421 to a request for another name than a loopback one."""
    host = request.headers.get("Host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name.lower() not in _LOOPBACK:
        wrong = problem(421, "misdirected", "Engram answers on loopback only", "the Host header must be localhost")
        raise Answered(problem_response(wrong))


def path_id(call: Call) -> MemoryId:
    """The memory that the path names. Raises NotFound."""
    memory_id = parse_id(call.path_id)
    if memory_id is None:
        reason = "no memory can have this id"
        raise NotFound(reason)
    call.subject.memory = memory_id
    return memory_id


def conditions_of(request: web.BaseRequest) -> Conditions:
    """If-Match and If-None-Match of a write. Raises BadRequest."""
    return write_conditions(request.headers.getall("If-Match", []), request.headers.getall("If-None-Match", []))


def once_of(call: Call) -> Once | None:
    """The request as one that is to happen once, if it carries a key. Its body, if it has one, was read."""
    key = parse_key(call.request.headers.getall(IDEMPOTENCY_HEADER, []))
    if key is None:
        return None
    tags = (",".join(call.request.headers.getall(name, [])) for name in ("If-Match", "If-None-Match"))
    return Once(key, (call.request.method, call.request.rel_url.raw_path_qs, *tags, call.body_digest))
