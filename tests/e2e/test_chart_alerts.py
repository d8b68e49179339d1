"""The alerts fire when they should and are silent when they should: chart_alerts.yaml, judged by promtool."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stage import ROOT

ALERTS = ROOT / "charts" / "engram" / "files" / "alerts.yaml"
CASES = Path(__file__).with_name("chart_alerts.yaml")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of promtool; without it the test is left out, and says so."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on the PATH (it comes with Prometheus): the alerts were not tried")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "arguments", [("check", "rules", str(ALERTS)), ("test", "rules", str(CASES))], ids=["check", "test"]
)
def test_prometheus_takes_the_alerts_and_they_fire_as_written(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cases_would_notice_an_alert_that_never_fires(tmp_path: Path) -> None:
    rules = ALERTS.read_text().replace(
        "engram_operator_leader) < 1 or absent(engram_operator_leader)", "engram_operator_leader) < -1"
    )
    (tmp_path / "alerts.yaml").write_text(rules)
    cases = CASES.read_text().replace("../../charts/engram/files/alerts.yaml", "alerts.yaml")
    (tmp_path / "cases.yaml").write_text(cases)
    done = promtool("test", "rules", str(tmp_path / "cases.yaml"))
    assert done.returncode != 0
    assert "EngramOperatorNoLeader" in done.stdout + done.stderr
