"""The environment of a sidecar: what is set, what is not, and a bad value that is named."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from engram_contract.names import (
    ADMIN_PORT,
    ENV_ADMIN_PORT,
    ENV_AGENT,
    ENV_CONFIG_DIR,
    ENV_DRAIN_S,
    ENV_HOST,
    ENV_HTTP_PORT,
    ENV_LOG_LEVEL,
    ENV_POD_NAME,
    ENV_POD_UID,
    ENV_SERVICE_ACCOUNT,
    HTTP_PORT,
)
from engram_sidecar.errors import BadConfig
from engram_sidecar.identity import Identity, Pod
from engram_sidecar.settings import Settings
from engram_sidecar.tracing import Tracing

FOLDER = {ENV_CONFIG_DIR: "/etc/engram"}
USUAL = Settings(Path("/etc/engram"))


@pytest.mark.parametrize(
    ("environ", "settings"),
    [
        ({}, USUAL),
        ({"PATH": "/bin", "ENGRAM_URL": "x"}, USUAL),
        ({ENV_HTTP_PORT: "8080"}, replace(USUAL, http_port=8080)),
        ({ENV_HTTP_PORT: "0"}, replace(USUAL, http_port=0)),
        ({ENV_HTTP_PORT: "65535"}, replace(USUAL, http_port=65_535)),
        ({ENV_HTTP_PORT: ""}, USUAL),
        ({ENV_ADMIN_PORT: "8081"}, replace(USUAL, admin_port=8081)),
        ({ENV_ADMIN_PORT: ""}, USUAL),
        ({ENV_HOST: "0.0.0.0"}, replace(USUAL, admin_host="0.0.0.0")),  # noqa: S104  what a pod says for its probes
        ({ENV_HOST: ""}, USUAL),
        ({ENV_DRAIN_S: "0"}, replace(USUAL, drain_timeout_s=0)),
        ({ENV_DRAIN_S: "3600"}, replace(USUAL, drain_timeout_s=3600)),
        ({ENV_LOG_LEVEL: "debug"}, replace(USUAL, log_level=logging.DEBUG)),
        ({ENV_LOG_LEVEL: "WARNING"}, replace(USUAL, log_level=logging.WARNING)),
        ({ENV_LOG_LEVEL: "", ENV_DRAIN_S: "", ENV_AGENT: "", ENV_SERVICE_ACCOUNT: "", ENV_POD_NAME: ""}, USUAL),
        ({ENV_SERVICE_ACCOUNT: "bots.team"}, replace(USUAL, identity=Identity("bots.team", "bots.team"))),
        ({ENV_SERVICE_ACCOUNT: "default", ENV_AGENT: ""}, replace(USUAL, identity=Identity("default", "default"))),
        (
            {ENV_SERVICE_ACCOUNT: "default", ENV_AGENT: "Bot_1.x"},
            replace(USUAL, identity=Identity("Bot_1.x", "default")),
        ),
        ({ENV_POD_NAME: "web-0", ENV_POD_UID: "1-a"}, replace(USUAL, pod=Pod("web-0", "1-a"))),
        ({ENV_POD_NAME: "web-0"}, replace(USUAL, pod=Pod("web-0", ""))),
        ({ENV_POD_UID: "1-a"}, USUAL),
    ],
)
def test_the_environment_makes_the_settings(environ: dict[str, str], settings: Settings) -> None:
    assert Settings.from_env(FOLDER | environ) == settings


def test_without_more_words_the_ports_are_those_of_the_contract_on_loopback() -> None:
    assert (USUAL.http_port, USUAL.admin_port) == (HTTP_PORT, ADMIN_PORT)
    assert USUAL.host == USUAL.admin_host == "127.0.0.1"


def test_no_variable_takes_the_interface_off_loopback() -> None:
    environ = {ENV_CONFIG_DIR: "x", ENV_HOST: "192.0.2.1", ENV_HTTP_PORT: "1", ENV_ADMIN_PORT: "2"}
    assert Settings.from_env(environ).host == "127.0.0.1"


@pytest.mark.parametrize("environ", [{}, {ENV_CONFIG_DIR: ""}])
def test_a_missing_folder_is_named_by_its_variable(environ: dict[str, str]) -> None:
    with pytest.raises(BadConfig, match=ENV_CONFIG_DIR):
        Settings.from_env(environ)


@pytest.mark.parametrize("variable", [ENV_HTTP_PORT, ENV_ADMIN_PORT])
@pytest.mark.parametrize(
    "text", ["x", "-1", "+1", "65536", "80.0", "0x50", " 80", "80\n", "1_000", "\u0668\u0660", "\u00b2", "9" * 5000]
)
def test_a_bad_port_is_named_by_its_variable(variable: str, text: str) -> None:
    with pytest.raises(BadConfig, match=f"^{variable} must be a port"):
        Settings.from_env(FOLDER | {variable: text})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        (ENV_LOG_LEVEL, "loud"),
        (ENV_LOG_LEVEL, "10"),
        (ENV_DRAIN_S, "3601"),
        (ENV_DRAIN_S, "-1"),
        (ENV_DRAIN_S, "1.5"),
        (ENV_SERVICE_ACCOUNT, "Default"),
        (ENV_SERVICE_ACCOUNT, "a" * 254),
        (ENV_SERVICE_ACCOUNT, "a b"),
        (ENV_AGENT, "bot\n"),
        (ENV_AGENT, "a" * 64),
        (ENV_AGENT, "-bot"),
        (ENV_POD_NAME, "web_0"),
        (ENV_POD_UID, "a b"),
        (ENV_POD_UID, "a" * 64),
    ],
)
def test_a_bad_value_is_named_by_its_variable(variable: str, text: str) -> None:
    usual = {ENV_SERVICE_ACCOUNT: "default", ENV_POD_NAME: "web-0"}
    with pytest.raises(BadConfig, match=f"^{variable} must be "):
        Settings.from_env(FOLDER | usual | {variable: text})


def test_an_agent_without_a_service_account_is_refused() -> None:
    with pytest.raises(BadConfig, match=f"^{ENV_AGENT} needs {ENV_SERVICE_ACCOUNT}"):
        Settings.from_env(FOLDER | {ENV_AGENT: "bot"})


BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
OWN = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SENT = Tracing("http://c:4318/v1/traces", "engram-sidecar")


@pytest.mark.parametrize(
    ("environ", "tracing"),
    [
        ({BASE: "http://c:4318"}, SENT),
        ({BASE: "http://c:4318/"}, SENT),
        ({BASE: "https://c/otlp"}, replace(SENT, endpoint="https://c/otlp/v1/traces")),
        ({OWN: "http://c:4318/here"}, replace(SENT, endpoint="http://c:4318/here")),
        ({BASE: "http://c:4318", OWN: "http://d"}, replace(SENT, endpoint="http://d")),
        ({BASE: "http://c:4318", "OTEL_SERVICE_NAME": "memory"}, replace(SENT, service="memory")),
        ({BASE: "http://c:4318", "OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=x"}, replace(SENT, service="")),
        ({BASE: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, SENT),
        ({BASE: "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({BASE: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({BASE: ""}, None),
    ],
)
def test_traces_are_sent_where_the_standards_variables_say(environ: dict[str, str], tracing: Tracing | None) -> None:
    assert Settings.from_env(FOLDER | environ).tracing == tracing


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {BASE: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "the protocol is grpc, and must be http",
        ),
        ({BASE: "c:4317"}, f"{BASE} is no http or https URL"),
        ({BASE: "http://"}, f"{BASE} is no http or https URL"),
        ({OWN: "http://c?d"}, f"{BASE} is no http or https URL"),
    ],
)
def test_variables_of_traces_that_cannot_be_are_told_and_end_nothing(
    environ: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Settings.from_env(FOLDER | environ).tracing is None
    assert said in caplog.text
