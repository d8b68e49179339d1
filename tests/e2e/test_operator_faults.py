"""The API server misbehaves, or a watch goes deaf: nobody stays wrong, and nobody hammers it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import memory, proxies
from tests.e2e.judges import differences
from tests.e2e.operators import Operator, Operators, tell
from tests.e2e.proxies import Proxy, proxying

FAULT_S: Final = 6.0  # longer than a renewal's pause, shorter than a term
LONG_FAULT_S: Final = 60.0
BACK_S: Final = 30.0
DEAF_S: Final = 90.0
MOST_PER_S: Final = 20.0  # requests of one process while the API server is sick
FAULTS: Final = ("429", "500", proxies.RESET, proxies.SLOW, "401")
Json = dict[str, Any]


@dataclass
class Way:
    """An operator behind a proxy, restarted when it ends, as a kubelet does."""

    operators: Operators
    proxy: Proxy
    kubeconfig: Path
    namespace: str
    operator: Operator
    ended: list[int]

    def keep(self) -> None:
        """Starts it again if it ended."""
        status = self.operator.status
        if status is not None:
            self.ended.append(status)
            self.operator = self.operators.start(self.kubeconfig)

    def edit(self, number: int) -> None:
        """One change that shows in a ConfigMap."""
        spec = {"postgres": {"parameters": {"work_mem": f"{number}MB"}}}
        memory.patch(self.operators.cluster, self.namespace, spec)

    def seconds_until_applied(self, deadline_s: float) -> float:
        """How long it took until the objects were those of the spec."""
        began_s = time.monotonic()
        while found := differences(self.operators, self.namespace):
            assert time.monotonic() < began_s + deadline_s, f"{found}\n" + "\n".join(self.operator.lines[-15:])
            self.keep()
            time.sleep(0.2)
        return time.monotonic() - began_s


@pytest.fixture(scope="module")
def way(operators: Operators, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """A cluster without pods whose operator reaches the API server through a proxy."""
    with proxying(operators.cluster) as proxy, operators.cluster.namespace("faults") as namespace:
        kubeconfig = proxy.write_kubeconfig(tmp_path_factory.mktemp("proxy") / "kubeconfig")
        operator = operators.lead(kubeconfig)
        memory.apply(operators.cluster, memory.build_memory(namespace, **memory.NOWHERE))
        found = Way(operators, proxy, kubeconfig, namespace, operator, [])
        found.seconds_until_applied(60)
        yield found
        operators.kill_all()


@pytest.fixture(autouse=True)
def _healed(way: Way) -> Iterator[None]:
    way.ended.clear()
    yield
    way.proxy.fault = ""


def survive(way: Way, fault: str, fault_s: float, number: int) -> None:
    """The fault for a while, with an edit in it; after it the edit is done soon."""
    way.proxy.requests.clear()
    way.proxy.fault = fault
    way.proxy.break_all()
    end_s = time.monotonic() + fault_s
    time.sleep(1)
    way.edit(number)
    while time.monotonic() < end_s:
        way.keep()
        time.sleep(0.2)
    rate = len(way.proxy.requests) / fault_s
    busiest = busiest_second([at_s for at_s, _ in way.proxy.requests])
    way.proxy.fault = ""
    took_s = way.seconds_until_applied(BACK_S)
    tell(f"{fault}: {rate:.1f} requests/s, at most {busiest}; ended {way.ended}; back after {took_s:.1f} s")
    assert rate < MOST_PER_S


def busiest_second(moments: list[float]) -> int:
    """The most requests of any second."""
    return max((sum(at_s <= each < at_s + 1 for each in moments) for at_s in moments), default=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sick_api_server_is_borne(way: Way, fault: str) -> None:
    survive(way, fault, FAULT_S, 10 + FAULTS.index(fault))


@pytest.mark.soak
@pytest.mark.parametrize("fault", [*FAULTS, "410", proxies.SILENT])
def test_an_api_server_that_is_sick_for_a_minute_is_borne(way: Way, fault: str) -> None:
    survive(way, fault, LONG_FAULT_S, 20 + len(fault))


def go_deaf(way: Way, deaf: str) -> float:
    """The seconds until a new cluster has its objects although the watches deliver nothing any more.

    A new one: what waits for its pods is looked at every few seconds, and would prove nothing here.
    """
    way.operator.kill()
    way.operator = way.operators.lead(way.kubeconfig)
    way.operator.wait_reconciled()
    way.proxy.fault = deaf
    began_s = time.monotonic()
    memory.apply(way.operators.cluster, memory.build_memory(way.namespace, deaf, **memory.NOWHERE))
    while found := differences(way.operators, way.namespace, deaf):
        assert way.operator.status is None, way.operator.lines[-5:]
        assert time.monotonic() < began_s + DEAF_S, found
        time.sleep(0.2)
    return time.monotonic() - began_s


def test_what_no_watch_delivers_is_reconciled(way: Way) -> None:
    applied_s = go_deaf(way, proxies.EVENTS)
    tell(f"{proxies.EVENTS}: applied after {applied_s:.1f} s")
    assert any("unheard by the watch" in line for line in way.operator.lines)


@pytest.mark.soak
@pytest.mark.parametrize("deaf", [proxies.EVENTS, proxies.WATCHES], ids=["only bookmarks", "nothing"])
def test_a_watch_that_stays_deaf_ends_the_process(way: Way, deaf: str) -> None:
    """Its streams stay open; with bookmarks even those who watch them for silence see nothing."""
    way.operators.cluster.kubectl("delete", "memorycluster", deaf, "-n", way.namespace, "--ignore-not-found")
    began_s = time.monotonic()
    applied_s = go_deaf(way, deaf)
    status = way.operator.wait_end(DEAF_S)
    ended_s = time.monotonic() - began_s
    tell(f"{deaf}: applied after {applied_s:.1f} s, ended with {status} after {ended_s:.1f} s")
    assert (status, ended_s < DEAF_S) == (1, True)
    assert any("has not delivered" in line for line in way.operator.lines)
