"""The door to kubectl with a kubectl of our own, and the verbs behind it as a user calls them."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engram_cli.clusterscreen import ClusterScreen
from engram_cli.errors import CliError, Failure, Forbidden, Misuse, NotThere, Unreachable
from engram_cli.kubectl import Kubectl, explain
from engram_cli.plugin import hoist
from engram_cli.pluginverbs import Hands, run_pause, run_plan, run_shards, run_status, run_switchover
from tests.unit.test_plugin_handover import AHEAD, LEADS, config_map, pod
from tests.unit.test_plugin_view import CASES, NOW_S, READY, conditions, resource

Json = dict[str, Any]
LOG = 'E1121 15:36:59.266246   15673 memcache.go:265] "Unhandled Error" err="dial tcp: connection refused"\n'


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ('error: the server doesn\'t have a resource type "memoryclusters"', Failure, "CRDs of Engram are not inst"),
        ('Error from server (NotFound): memoryclusters.x "a" not found', NotThere, 'memoryclusters.x "a" not found'),
        ('Error from server (Forbidden): x is forbidden: User "bob"', Forbidden, 'x is forbidden: User "bob"'),
        (LOG + "The connection to the server 127.0.0.1:1 was refused - did you", Unreachable, "The connection to the"),
        ("Unable to connect to the server: dial tcp: no such host", Unreachable, "Unable to connect to the server"),
        ("error: You must be logged in to the server (Unauthorized)", Failure, "You must be logged in"),
        ("Error in configuration: context was not found for specified context: zz", Misuse, "Error in configuration"),
        ('error: context "zz" does not exist', Misuse, 'context "zz" does not exist'),
        ("error: stat /nope: no such file or directory", Misuse, "stat /nope"),
        (LOG + "error: something new", Failure, "something new"),
        ("", Failure, "kubectl failed and did not say why"),
    ],
)
def test_what_kubectl_says_becomes_one_error_in_one_line(said: str, kind: type[CliError], text: str) -> None:
    error = explain(said)
    assert type(error) is kind
    assert str(error).startswith(text) or text in str(error)
    assert "\n" not in str(error)


class Fake:
    """A kubectl on the PATH that answers by its verb and what it is asked for, and writes down how it was called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.screen_out, self.screen_err = io.StringIO(), io.StringIO()
        self.clock_s = 0.0
        script = folder / "kubectl"
        script.write_text(
            f"#!{sys.executable} -IS\n"
            "import json, pathlib, sys\n"
            f"folder = pathlib.Path({str(folder)!r})\n"
            "call = {'args': sys.argv[1:], 'stdin': sys.stdin.read()}\n"
            "with (folder / 'calls').open('a') as calls: calls.write(json.dumps(call) + '\\n')\n"
            "what = sys.argv[2].split('.')[0].split(',')[0] if sys.argv[1] in ('get', 'patch') else ''\n"
            "name = '-name' if len(sys.argv) > 3 and not sys.argv[3].startswith('-') else ''\n"
            "answers = sorted(folder.glob(f'{sys.argv[1]}{what}{name}.*'))\n"
            "code, text = json.loads(answers[0].read_text())\n"
            "if len(answers) > 1: answers[0].unlink()\n"
            "print(text, file=sys.stderr if code else sys.stdout); sys.exit(code)\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
        for verb in ("getconfigmaps", "getmemoryclusters"):
            self.answers(verb, {"items": []})
        self.answers("apply", {})

    def answers(self, call: str, *values: object, code: int = 0) -> None:
        """What a call gets: each value once, the last one for ever. A text is given as it is."""
        for old in self._folder.glob(f"{call}.*"):
            old.unlink()
        for number, value in enumerate(values):
            text = value if isinstance(value, str) else json.dumps(value)
            (self._folder / f"{call}.{number}").write_text(json.dumps([code, text]))

    @property
    def calls(self) -> list[Json]:
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def hands(self, *, as_json: bool = False) -> Hands:
        screen = ClusterScreen(self.screen_out, self.screen_err)
        kubectl = Kubectl(["--context=there", "--namespace=dev"])
        return Hands(kubectl, screen, as_json, lambda: NOW_S, lambda: self.clock_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.clock_s += seconds


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Fake(tmp_path)


def test_a_call_is_a_list_with_the_users_options_and_no_shell(fake: Fake) -> None:
    fake.answers("getthings-name", {"a": 1})
    assert fake.hands().kubectl.fetch("things", "$(touch /x); b") == {"a": 1}
    (call,) = fake.calls
    assert call["args"] == [
        *("get", "things", "$(touch /x); b", "-o", "json", "--request-timeout=10s"),
        *("--context=there", "--namespace=dev"),
    ]


def test_without_kubectl_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="kubectl is not on the PATH"):
        Kubectl().fetch("pods")


@pytest.mark.parametrize(
    ("given", "hoisted"),
    [
        (["status", "mem", "-n", "dev"], ["-n", "dev", "status", "mem"]),
        (["-n", "dev", "status"], ["-n", "dev", "status"]),
        (["status", "--context=a", "-ndev", "-o", "json"], ["--context=a", "-ndev", "status", "-o", "json"]),
        (["switchover", "m", "s0", "--to", "x", "--kubeconfig", "f"], ["--kubeconfig", "f", "switchover", "m", "s0"]),
        (["status", "--", "-n"], ["status", "--", "-n"]),
        (["status", "-n"], ["-n", "status"]),
    ],
)
def test_options_that_choose_a_cluster_may_stand_anywhere(given: list[str], hoisted: list[str]) -> None:
    assert hoist(given)[: len(hoisted)] == hoisted
    assert sorted(hoist(given)) == sorted(given)


def test_a_cluster_that_is_not_there_is_answered_with_names_like_it(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", 'Error from server (NotFound): memoryclusters.x "men" not found', code=1)
    fake.answers("getmemoryclusters", {"items": [CASES["ready"]]})
    with pytest.raises(NotThere, match="there is no MemoryCluster men; did you mean mem"):
        run_shards(fake.hands(), "men")


@pytest.mark.parametrize("name", ["--all", "a/b", "A", ""])
def test_a_name_that_no_cluster_can_have_never_reaches_kubectl(fake: Fake, name: str) -> None:
    with pytest.raises(Misuse):
        run_shards(fake.hands(), name)
    assert fake.calls == []


@pytest.mark.parametrize(("case", "is_ready"), [("ready", True), ("degraded", False), ("old-status", False)])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_answer_of_status_is_whether_the_cluster_is_ready(
    fake: Fake, case: str, is_ready: bool, as_json: bool
) -> None:
    fake.answers("getmemoryclusters-name", CASES[case])
    assert run_status(fake.hands(as_json=as_json), "mem", everywhere=False, watch=False) is is_ready
    if as_json:
        assert json.loads(fake.screen_out.getvalue())["ready"] is is_ready
    assert fake.screen_err.getvalue() == ""


def test_a_user_who_may_not_read_config_maps_still_gets_the_status(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["ready"])
    fake.answers("getconfigmaps", "Error from server (Forbidden): configmaps is forbidden", code=1)
    assert run_status(fake.hands(), "mem", everywhere=False, watch=False)


def test_without_a_name_all_clusters_are_told_in_short(fake: Fake) -> None:
    fake.answers("getmemoryclusters", {"items": [CASES["degraded"], CASES["ready"]]})
    assert not run_status(fake.hands(), None, everywhere=True, watch=False)
    assert [line.split()[:4] for line in fake.screen_out.getvalue().splitlines()[1:]] == [
        ["✗", "dev", "mem", "Degraded"],
        ["✓", "dev", "mem", "Ready"],
    ]


def test_no_cluster_at_all_is_no_error(fake: Fake) -> None:
    assert run_status(fake.hands(), None, everywhere=False, watch=False)
    assert fake.screen_out.getvalue() == ""
    assert "there is no MemoryCluster in this namespace" in fake.screen_err.getvalue()


def test_a_namespace_and_all_of_them_cannot_both_be_meant(fake: Fake) -> None:
    with pytest.raises(Misuse):
        run_status(fake.hands(), "mem", everywhere=True, watch=False)


def paused_by(generation: int, status: str, observed: int) -> Json:
    """A cluster with spec.paused as `status` will say, and a status that has seen `observed`."""
    said = conditions(Paused=(status, "Asked", "as asked"))
    for each in said:
        each["observedGeneration"] = observed
    whole = READY | {"observedGeneration": observed, "conditions": said}
    return resource(whole, generation=generation, paused=generation > 1)


def test_a_pause_ends_when_the_operator_says_so_for_the_new_generation(fake: Fake) -> None:
    before, asked, obeyed = paused_by(1, "False", 1), paused_by(2, "False", 1), paused_by(2, "True", 2)
    fake.answers("getmemoryclusters-name", before, asked, asked, obeyed)
    fake.answers("patchmemoryclusters-name", asked)
    run_pause(fake.hands(as_json=True), "mem", paused=True, timeout_s=30)
    told = json.loads(fake.screen_out.getvalue())
    assert told == {"namespace": "dev", "cluster": "mem", "paused": True, "changed": True, "seconds": 2.0}
    patches = [each["args"] for each in fake.calls if each["args"][0] == "patch"]
    assert len(patches) == 1
    assert '--patch={"spec": {"paused": true}}' in patches[0]
    assert "--field-manager=kubectl-engram" in patches[0]


def test_a_pause_that_is_there_is_not_asked_for_again(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", paused_by(2, "True", 2))
    run_pause(fake.hands(), "mem", paused=True, timeout_s=30)
    assert fake.screen_out.getvalue() == "mem is paused already\n"
    assert [each["args"][0] for each in fake.calls] == ["get"]


def test_a_pause_that_nobody_obeys_is_an_error_after_its_time(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", paused_by(2, "False", 1))
    with pytest.raises(Failure, match=r"not so within 5 s: spec\.paused of mem is true, and the operator has not said"):
        run_pause(fake.hands(), "mem", paused=True, timeout_s=5)
    assert fake.clock_s == 5.0


def test_a_spec_that_the_operator_refuses_ends_the_wait(fake: Fake) -> None:
    refused = resource({"observedGeneration": 1, "conditions": conditions(Ready=("False", "BadSpec", "no: spec.x"))})
    refused["status"]["conditions"] = refused["status"]["conditions"][:1]
    refused["spec"]["paused"] = True
    fake.answers("getmemoryclusters-name", refused)
    with pytest.raises(Failure, match=r"the operator refuses the spec of mem: no: spec\.x"):
        run_pause(fake.hands(), "mem", paused=True, timeout_s=5)


def test_a_plan_is_shown_while_it_is_held(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["paused"])
    run_plan(fake.hands(), "mem", None, 5)
    lines = fake.screen_out.getvalue().splitlines()
    assert lines[0] == "  1. apply ConfigMap mem-s0-patroni (data.10-patroni.yml)"
    assert len(lines) == 12


def test_a_plan_that_is_carried_out_says_how_to_hold_it(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["ready"])
    run_plan(fake.hands(), "mem", None, 5)
    assert fake.screen_out.getvalue() == "mem carries out its plan at once; now: nothing is left to do\n"
    assert "--turn-on" in fake.screen_err.getvalue()
    assert [each["args"][0] for each in fake.calls] == ["get"]


def seen_shard(leader: str, *, asked: bool, after: str = "mem-s0-0") -> Json:
    """The live objects of s0 while `leader` leads and the pod `after` has the label."""
    maps = [config_map("leader", leader=leader, optime=str(AHEAD))]
    maps += [config_map("failover", leader="mem-s0-0", member="mem-s0-1")] if asked else []
    pods = [LEADS, pod(1)] if after == "mem-s0-0" else [pod(0), pod(1, role="primary")]
    return {"items": [*maps, *pods]}


def test_a_switchover_is_asked_of_patroni_and_followed_to_its_end(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["ready"])
    done = seen_shard("mem-s0-1", asked=False, after="mem-s0-1")
    seen = [seen_shard("mem-s0-0", asked=False), seen_shard("mem-s0-0", asked=True), seen_shard("", asked=True), done]
    fake.answers("getpods", *seen)
    run_switchover(fake.hands(as_json=True), "mem", "s0", None, yes=True, timeout_s=30)
    assert json.loads(fake.screen_out.getvalue()) == {
        "namespace": "dev",
        "cluster": "mem",
        "shard": "s0",
        "from": "mem-s0-0",
        "to": "mem-s0-1",
        "seconds": 0.6,
    }
    (written,) = (json.loads(each["stdin"]) for each in fake.calls if each["args"][0] == "apply")
    assert written["metadata"]["name"] == "mem-s0-failover"
    assert written["metadata"]["annotations"] == {"leader": "mem-s0-0", "member": "mem-s0-1"}


def test_a_switchover_that_patroni_refuses_is_an_error(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["ready"])
    fake.answers("getpods", seen_shard("mem-s0-0", asked=False))
    with pytest.raises(Failure, match="Patroni refused: mem-s0-0 still leads s0"):
        run_switchover(fake.hands(), "mem", "s0", None, yes=True, timeout_s=30)


def test_a_switchover_that_nobody_can_confirm_changes_nothing(fake: Fake) -> None:
    fake.answers("getmemoryclusters-name", CASES["ready"])
    fake.answers("getpods", seen_shard("mem-s0-0", asked=False))
    with pytest.raises(Misuse, match="say --yes"):
        run_switchover(fake.hands(), "mem", "s0", None, yes=False, timeout_s=30)
    assert "apply" not in [each["args"][0] for each in fake.calls]


@pytest.mark.parametrize(
    ("prepare", "arguments", "status", "error"),
    [
        (lambda fake: fake.answers("getmemoryclusters-name", CASES["ready"]), ["status", "mem"], 0, ""),
        (lambda fake: fake.answers("getmemoryclusters-name", CASES["degraded"]), ["status", "mem"], 1, ""),
        (lambda _: None, ["status", "A B"], 2, "error: 'A B' is not a name of a MemoryCluster\n"),
        (
            lambda fake: fake.answers("getmemoryclusters", "The connection to the server x was refused", code=1),
            ["status"],
            1,
            "error: The connection to the server x was refused\n",
        ),
    ],
)
def test_the_program_ends_with_its_status_and_at_most_one_line(
    fake: Fake, tmp_path: Path, prepare: Callable[[Fake], None], arguments: list[str], status: int, error: str
) -> None:
    prepare(fake)
    command = [sys.executable, "-m", "engram_cli.plugin", *arguments, "-n", "dev"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (status, error)
    assert "\x1b" not in done.stdout
