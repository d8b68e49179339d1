"""The door to the API server: `kubectl` as a child, so that its contexts and its ways to log in are ours too.

Promises: arguments are a list and never meet a shell; what kubectl says becomes one of our errors in one line. It must
not ask for input: a login that wants to ask ends at CALL_TIMEOUT_S with a line that says what to do.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engram_cli.errors import CliError, Failure, Forbidden, Misuse, NotThere, Unreachable
from engram_contract.names import CLUSTERS, GROUP

Json = dict[str, Any]
RESOURCE: Final = f"{CLUSTERS}.{GROUP}"
FIELD_MANAGER: Final = "kubectl-engram"
CALL_TIMEOUT_S: Final = 30.0  # a login by a browser or a plugin may take a while
REQUEST_TIMEOUT: Final = "--request-timeout=10s"
NO_CRDS: Final = f"the CRDs of Engram are not installed: this Kubernetes does not know {RESOURCE}"

# What kubectl writes to standard error, the first that fits: our error, and our words where kubectl has no good ones.
MEANINGS: Final[tuple[tuple[str, type[CliError], str], ...]] = (
    ("doesn't have a resource type", Failure, NO_CRDS),
    ("could not find the requested resource", Failure, NO_CRDS),
    ("no matches for kind", Failure, NO_CRDS),
    ("(Forbidden)", Forbidden, ""),
    ("(NotFound)", NotThere, ""),
    ("(Unauthorized)", Failure, ""),
    ("must be logged in", Failure, ""),
    ("context was not found", Misuse, ""),
    ('context "', Misuse, ""),
    ("Error loading config file", Misuse, ""),
    ("error loading config file", Misuse, ""),
    ("no configuration has been provided", Misuse, ""),
    ("no such file or directory", Misuse, ""),
    ("was refused", Unreachable, ""),
    ("Unable to connect", Unreachable, ""),
    ("dial tcp", Unreachable, ""),
    ("imeout", Unreachable, ""),
    ("deadline exceeded", Unreachable, ""),
    ("(ServiceUnavailable)", Unreachable, ""),
    ("(InternalError)", Unreachable, ""),
    ("currently unable to handle the request", Unreachable, ""),
)


class Kubectl:
    """`kubectl` with the options that choose a cluster and a namespace."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = tuple(options)

    def fetch(self, *what: str, namespace: str = "") -> Json:
        """What `kubectl get` gives as JSON. Raises CliError."""
        answer: Json = json.loads(self._run("get", *what, "-o", "json", REQUEST_TIMEOUT, namespace=namespace))
        return answer

    def patch_spec(self, namespace: str, cluster: str, spec: Mapping[str, object]) -> Json:
        """The MemoryCluster after these fields of its spec were set. Raises CliError."""
        body = json.dumps({"spec": spec})
        what = ("patch", RESOURCE, cluster, "--type=merge", f"--patch={body}", f"--field-manager={FIELD_MANAGER}")
        answer: Json = json.loads(self._run(*what, "-o", "json", REQUEST_TIMEOUT, namespace=namespace))
        return answer

    def apply(self, manifest: Mapping[str, object]) -> None:
        """The object is as the manifest says. Raises CliError."""
        how = ("apply", "--server-side", "--force-conflicts", f"--field-manager={FIELD_MANAGER}", "-f", "-")
        self._run(*how, REQUEST_TIMEOUT, text=json.dumps(manifest))

    def _run(self, verb: str, *arguments: str, namespace: str = "", text: str = "") -> str:
        path = shutil.which("kubectl")
        if path is None:
            raise Failure("kubectl is not on the PATH: install it first, this plugin speaks through it")
        within = (f"--namespace={namespace}",) if namespace else ()
        command = [path, verb, *arguments, *self._options, *within]
        try:
            done = subprocess.run(  # noqa: S603  a list, and no shell
                command, input=text, capture_output=True, text=True, check=False, timeout=CALL_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            said = (
                f"kubectl {verb} did not end within {CALL_TIMEOUT_S:.0f} s; if it wants a login, run kubectl get once"
            )
            raise Unreachable(said) from error
        if done.returncode != 0:
            raise explain(done.stderr)
        return done.stdout


def explain(said: str) -> CliError:
    """What kubectl said on standard error, as the error that it means for us, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _is_log(line)]
    line = lines[-1] if lines else "kubectl failed and did not say why"
    for sign, kind, text in MEANINGS:
        if any(sign in each for each in lines):
            return kind(text or _plain(line))
    return Failure(_plain(line))


def _is_log(line: str) -> bool:
    """Whether it is a line of kubectl's own log, such as `E1121 15:36:59.266246 ...`."""
    return line[:1] in "EWI" and line[1:5].isdigit()


def _plain(line: str) -> str:
    for start in ("error: ", "Error: ", "Error from server: "):
        line = line.removeprefix(start)
    if line.startswith("Error from server ("):
        reason, _, rest = line.removeprefix("Error from server (").partition("): ")
        return rest or reason
    return line
