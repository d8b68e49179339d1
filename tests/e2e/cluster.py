"""The tests' door to a Kubernetes cluster: kubectl as a user runs it, and the raw API behind one `kubectl proxy`.

Promises: only a cluster whose context is on the list in ENGRAM_E2E_CONTEXT is ever spoken to, and every command names
that context, so a change of the current one in the middle of a run leads nowhere else. What a killed run left behind
goes when the next one begins. Nothing sleeps for luck: whoever waits, waits for a fact, with a deadline.
"""

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import yaml

from engram_contract.names import API_VERSION, GROUP, PROTECTED_LABEL
from engram_operator.clients import kube
from tests.e2e.stage import ROOT, Program

CONTEXTS_VARIABLE: Final = "ENGRAM_E2E_CONTEXT"
SKIP_VARIABLE: Final = "ENGRAM_E2E_SKIP"
NO_CLUSTER: Final = f"no test cluster: run `make e2e`, or name a context in {CONTEXTS_VARIABLE}"
E2E_LABEL: Final = f"{GROUP}/e2e"
FIELD_MANAGER: Final = "engram-e2e"
PLURALS: Final = ("memoryclusters", "memorytenants")
CRDS: Final = tuple(yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("crds/*.yaml")))
DEADLINE_S: Final = 180.0  # a hang is a failure, a slow machine is not
POLL_S: Final = 0.2  # kubectl takes about as long
BODIES: Final = {  # the two ways to change an object: the real method and the type of the body
    "PATCH": ("PATCH", "application/merge-patch+json"),
    "APPLY": ("PATCH", "application/apply-patch+yaml"),
}
T = TypeVar("T")
Json = dict[str, Any]


# --------------------------------------------------------------------------------------------- which cluster, if any


class Door(Enum):
    """Whether the tests may go to the cluster."""

    OPEN = "open"
    ABSENT = "absent"  # nobody named a cluster: the tests are left out
    REFUSED = "refused"  # a cluster that nobody named is at hand: the tests fail


@dataclass(frozen=True, slots=True)
class Verdict:
    """The door and, if it is open, the context, else the reason."""

    door: Door
    text: str


def judge_context(allowed: str | None, current: str, skip_reason: str | None) -> Verdict:
    """Whether `current` is on the comma-separated list `allowed`; without a list there is no cluster to test on."""
    names = [name.strip() for name in (allowed or "").split(",") if name.strip()]
    if not names:
        return Verdict(Door.ABSENT, skip_reason or NO_CLUSTER)
    if current in names:
        return Verdict(Door.OPEN, current)
    seen = f"the current context, {current!r}," if current else "no context is current, and none"
    return Verdict(
        Door.REFUSED,
        f"{seen} is not on the list of clusters that tests may change, {CONTEXTS_VARIABLE}={','.join(names)}. "
        f"Choose a listed one with `kubectl config use-context`, or, if this cluster is for tests, add it to the list.",
    )


def current_context() -> str:
    """What kubectl would speak to; empty if nothing."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise CommandFailed("kubectl is not on the PATH")
    done = subprocess.run([kubectl, "config", "current-context"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# -------------------------------------------------------------------------------------------------------- the cluster


class CommandFailed(AssertionError):
    """A command did not end well; the text is the command and what it said."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of `kubectl proxy`: a file that only we may open, while a port is open to all on a host."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster whose context is on the list."""

    context: str
    folder: Path  # with the proxy's socket, and what kubectl remembers
    namespaces: set[str] = field(default_factory=set)  # of the tests that run now
    timeout_s: float = DEADLINE_S  # of one request
    observers: list[Callable[[], None]] = field(default_factory=list)  # look before a failed test's namespace goes

    def kubectl(self, *arguments: str, input: str | None = None, deadline_s: float = DEADLINE_S) -> str:  # noqa: A002  as subprocess calls it
        """What kubectl writes to standard output; raises CommandFailed with what it writes to the other."""
        return _run(["kubectl", "--context", self.context, f"--cache-dir={self._cache}", *arguments], input, deadline_s)

    def helm(self, *arguments: str, input: str | None = None, deadline_s: float = DEADLINE_S) -> str:  # noqa: A002  as subprocess calls it
        """As kubectl, for helm."""
        return _run(["helm", "--kube-context", self.context, *arguments], input, deadline_s)

    def request(self, method: str, path: str, body: object = None, **query: str | int) -> tuple[int, Json]:
        """The status and the body of an answer of the API server. PATCH sends a merge patch, APPLY applies the body."""
        verb, kind = BODIES.get(method, (method, "application/json"))
        status, text = self.fetch(verb, path, body, kind, **query)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        return status, answer if isinstance(answer, dict) else {"message": text}

    def fetch(
        self, method: str, path: str, body: object = None, kind: str = "application/json", **query: str | int
    ) -> tuple[int, str]:
        """The status and the text of an answer, for what is not JSON, such as a log."""
        connection = _UnixConnection(self.folder / "api", self.timeout_s)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, sent, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def wait_until(self, what: str, seen: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
        """The first value that is true; fails after the deadline, saying what was waited for and what was there."""
        end_s = time.monotonic() + deadline_s
        while not (value := seen()):
            assert time.monotonic() < end_s, f"waited {deadline_s} s for {what}; last seen: {value!r}"
            time.sleep(POLL_S)
        return value

    @contextmanager
    def namespace(self, prefix: str) -> Iterator[str]:
        """A namespace of a test's own, gone at the end with all that is in it."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        labels = {E2E_LABEL: "true"}
        status, answer = self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        assert status == http.HTTPStatus.CREATED, answer
        self.namespaces.add(name)
        try:
            yield name
        except BaseException:
            for look in self.observers:
                look()
            with suppress(AssertionError):  # the test's own failure is the news, and the next run removes what is left
                self._end(name)
            raise
        self._end(name)

    def _end(self, name: str) -> None:
        self.namespaces.discard(name)
        self.delete_namespaces(name)

    def delete_namespaces(self, *names: str, is_forced: bool = False) -> None:
        """Nothing is left of them. `is_forced` also when nobody is there who lets go of what is in them."""
        for name in names:
            for path, body in self._memories(name):
                protected = {"spec": {"deletionProtection": False}} if "memoryclusters" in path else {}
                let_go = {"metadata": {"finalizers": None}} if is_forced else {}
                if (patch := protected | let_go) and body.get("kind") != "Status":
                    self.request("PATCH", path, patch)  # refused or not: the wait below is what counts
            self.wait_until(f"namespace {name} to be let go", partial(self._let_go, name))
        for name in names:
            self.wait_until(f"the end of namespace {name}", partial(self._is_gone, name))

    def remove_leftovers(self) -> None:
        """Nothing is left of the namespaces of an earlier run, which was killed."""
        _, answer = self.request("GET", "/api/v1/namespaces", labelSelector=f"{E2E_LABEL}=true")
        left = [each["metadata"]["name"] for each in answer.get("items", ())]
        self.delete_namespaces(*left, is_forced=True)

    def apply_crds(self) -> None:
        """Both kinds are as crds/ has them, and served."""
        for crd in CRDS:
            self.apply_crd(crd)
        self.wait_until("both kinds to be served", self.has_crds)
        self.forget_kinds()

    def forget_kinds(self) -> None:
        """What kubectl remembers is gone, so that it asks again which kinds and short names there are."""
        shutil.rmtree(self._cache, ignore_errors=True)

    def apply_crd(self, crd: Json) -> None:
        """One CRD is as given, and established. The API server takes a moment more to judge by a new schema."""
        path = kube.CRDS.path(None, crd["metadata"]["name"])
        status, answer = self.request("APPLY", path, crd, fieldManager=FIELD_MANAGER, force="true")
        assert status in (http.HTTPStatus.OK, http.HTTPStatus.CREATED), answer

        def is_established() -> bool:
            return holds(self.request("GET", path)[1], "Established")

        self.wait_until(f"{crd['metadata']['name']} to be established", is_established)

    def has_crds(self) -> bool:
        """Whether both kinds are there and served. What is served is told for a moment longer than it is there."""
        for crd in CRDS:
            status, found = self.request("GET", kube.CRDS.path(None, crd["metadata"]["name"]))
            if status != http.HTTPStatus.OK or "deletionTimestamp" in found["metadata"]:
                return False
        _, answer = self.request("GET", f"/apis/{API_VERSION}")
        return {each["name"] for each in answer.get("resources", ())} >= set(PLURALS)

    @property
    def _cache(self) -> Path:
        return self.folder / "cache"

    def _memories(self, namespace: str) -> Iterator[tuple[str, Json]]:
        for plural in PLURALS:
            folder = f"/apis/{API_VERSION}/namespaces/{namespace}/{plural}"
            for body in self.request("GET", folder)[1].get("items", ()):
                yield f"{folder}/{body['metadata']['name']}", body

    def _let_go(self, namespace: str) -> bool:
        """Asked again, because an operator that has not seen its clusters opened protects their namespace again."""
        path = f"/api/v1/namespaces/{namespace}"
        self.request("PATCH", path, {"metadata": {"labels": {PROTECTED_LABEL: None}}})
        return self.request("DELETE", path)[0] != http.HTTPStatus.FORBIDDEN

    def _is_gone(self, namespace: str) -> bool:
        return self.request("GET", f"/api/v1/namespaces/{namespace}")[0] == http.HTTPStatus.NOT_FOUND


def holds(thing: Json, condition: str) -> bool:
    """Whether a condition of an object is true."""
    return any((each["type"], each["status"]) == (condition, "True") for each in conditions(thing))


def conditions(thing: Json) -> list[Json]:
    """An object's; it may have none yet, or null, and an error that came instead of it has a word for a status."""
    status = thing.get("status")
    return (status.get("conditions") if isinstance(status, dict) else None) or []


def _run(command: list[str], text: str | None, deadline_s: float) -> str:
    shown = " ".join(command)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=deadline_s, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(f"{command[0]} is not on the PATH, wanted for: {shown}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{shown}\nhad not ended after {deadline_s} s") from error
    if done.returncode != 0:
        raise CommandFailed(f"{shown}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


@contextmanager
def open_cluster(context: str) -> Iterator[Cluster]:
    """The cluster of a context that was judged, while a proxy to it runs."""
    folder = Path(tempfile.mkdtemp(prefix="engram-e2e-"))  # only its owner may pass
    arguments = ["kubectl", "--context", context, "proxy", f"--unix-socket={folder / 'api'}"]
    program = Program(arguments, dict(os.environ))
    try:
        program.wait_line("Starting to serve")
        yield Cluster(context, folder)
    finally:
        program.kill()
        shutil.rmtree(folder, ignore_errors=True)
