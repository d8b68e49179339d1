"""Stages: a data directory of its own for each test, and one that the tests of a file share. And the test cluster.

A test that asks for `cluster` is left out, with the reason, where no cluster was named, and fails where the one at hand
was not (cluster.py says how to name one). After a failure its report has a section of what the cluster shows.
"""

import os
from collections.abc import Generator, Iterator
from datetime import UTC, datetime

import pytest

from tests.e2e.cluster import (
    CONTEXTS_VARIABLE,
    SKIP_VARIABLE,
    Cluster,
    CommandFailed,
    Door,
    current_context,
    judge_context,
    open_cluster,
)
from tests.e2e.evidence import evidence
from tests.e2e.operators import Operators, operating
from tests.e2e.releases import released
from tests.e2e.stage import Stage, new_stage

NOTES = pytest.StashKey[list[str]]()
STARTED = pytest.StashKey[datetime]()
OPENED = pytest.StashKey[Cluster]()


@pytest.fixture
def fresh() -> Iterator[Stage]:
    """A data directory that is not there yet."""
    stage = new_stage()
    yield stage
    stage.clean_up()


@pytest.fixture(scope="module")
def _made() -> Iterator[Stage]:
    stage = new_stage()
    stage.up().end()
    yield stage
    stage.clean_up()


@pytest.fixture
def stage(_made: Stage) -> Iterator[Stage]:
    """A data directory made from the quickstart, shared by the tests of a file; nothing runs before and after."""
    yield _made
    for program in _made.programs:
        program.kill()
    _made.programs.clear()
    _made.run("down")
    assert _made.processes() == []


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The test cluster, without what an earlier run left on it."""
    allowed = os.environ.get(CONTEXTS_VARIABLE)
    try:
        current = current_context() if allowed else ""
    except CommandFailed as error:
        pytest.fail(f"{CONTEXTS_VARIABLE}={allowed}, but {error}", pytrace=False)
    verdict = judge_context(allowed, current, os.environ.get(SKIP_VARIABLE))
    if verdict.door is Door.ABSENT:
        pytest.skip(verdict.text)
    if verdict.door is Door.REFUSED:
        pytest.fail(verdict.text, pytrace=False)
    notes = request.config.stash.setdefault(NOTES, [])
    with open_cluster(verdict.text) as opened:
        opened.observers.append(lambda: notes.append(evidence(opened, request.config.stash[STARTED])))
        opened.remove_leftovers()
        request.config.stash[OPENED] = opened
        yield opened
        del request.config.stash[OPENED]


@pytest.fixture(scope="session")
def _crds_applied(cluster: Cluster) -> None:
    cluster.apply_crds()


@pytest.fixture
def crds(cluster: Cluster, _crds_applied: None) -> None:
    """Both kinds are served, also after a test that uninstalled them; one small request if nothing is to be done."""
    if not cluster.has_crds():
        cluster.apply_crds()


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[str]:
    """What Helm says of a release that is the file's own."""
    with released(cluster) as said:
        yield said


@pytest.fixture(scope="module")
def operators(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    """Where a file's tests start operators as processes of their own; no release is installed."""
    if not cluster.has_crds():
        cluster.apply_crds()
    with operating(cluster, tmp_path_factory.mktemp("operators")) as opened:
        yield opened


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """When the test began, for what its report shows of the cluster."""
    item.config.stash[STARTED] = datetime.now(UTC)


def _asks(item: pytest.Item) -> bool:
    return "cluster" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report of a failure on the cluster, with what the cluster shows."""
    report = yield
    opened = item.config.stash.get(OPENED, None)
    notes = item.config.stash.setdefault(NOTES, [])
    # A fixture may have asked for the cluster by name, so what counts is whether something of the tests is on it.
    if report.failed and call.when != "teardown" and opened and (notes or opened.namespaces or _asks(item)):
        report.sections.append(
            ("what the cluster shows", "\n".join(notes or [evidence(opened, item.config.stash[STARTED])]))
        )
    notes.clear()
    return report
