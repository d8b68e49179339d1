"""The chart over a matrix of values: what Helm makes of it, and what it refuses. No cluster is needed."""

import json
import re

import pytest
import yaml

from engram_contract.names import MANAGED_BY, MANAGED_BY_LABEL, PATRONI_PORT, POSTGRES_PORT, REDIS_PORT
from engram_operator.settings import InjectorSettings, OperatorSettings
from tests.e2e.chart import (
    CASES,
    CLUSTER_KINDS,
    KUBE_VERSION,
    MONITORING_API,
    Case,
    Json,
    deployment,
    environment,
    helm,
    kind_of,
    pod,
    render,
)
from tests.e2e.releases import CHART

DEFAULTS = CASES[0]
COMPONENTS = ("operator", "injector")
LABEL = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SELECTING = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
EVERYWHERE = SELECTING | {"app.kubernetes.io/version", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)


def running(objects: list[Json]) -> list[str]:
    """The components that are there."""
    return [
        name
        for name in COMPONENTS
        if any(each["metadata"]["name"].endswith(f"-{name}") for each in kind_of(objects, "Deployment"))
    ]


def test_helm_finds_nothing_to_complain_about() -> None:
    done = helm("lint", "--strict", str(CHART), "--kube-version", KUBE_VERSION)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_an_older_kubernetes_is_refused() -> None:
    done = helm("template", "engram", str(CHART), "--kube-version", "1.29.14")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


@each_case
def test_every_object_is_named_placed_and_labelled(case: Case) -> None:
    objects = render(case)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        metadata = each["metadata"]
        assert metadata.get("namespace") == (None if each["kind"] in CLUSTER_KINDS else case.namespace), metadata
        assert metadata["labels"].keys() >= EVERYWHERE | {"helm.sh/chart"}
        assert all(LABEL.fullmatch(value) and len(value) <= 63 for value in metadata["labels"].values()), metadata
        assert SERVICE_NAME.fullmatch(metadata["name"])
        assert len(metadata["name"]) <= 63
    counts = {kind: len(kind_of(objects, kind)) for kind in case.kinds}
    assert counts == case.kinds


@each_case
def test_selectors_find_their_pods_and_nothing_else(case: Case) -> None:
    objects = render(case)
    labels = {name: deployment(objects, name)["spec"]["template"]["metadata"]["labels"] for name in running(objects)}
    for component, own in labels.items():
        selector = deployment(objects, component)["spec"]["selector"]["matchLabels"]
        assert set(selector) == SELECTING, "whatever else changes between versions must not be in a selector"
        assert [name for name, each in labels.items() if selector.items() <= each.items()] == [component]
        assert "helm.sh/chart" not in own, "a new chart alone would restart the pods"
    for each in kind_of(objects, "Service"):
        found = [name for name, own in labels.items() if each["spec"]["selector"].items() <= own.items()]
        assert found == [each["metadata"]["labels"]["app.kubernetes.io/component"]]
        ports = {port["name"] for port in pod(objects, found[0])["containers"][0]["ports"]}
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for each in kind_of(objects, kind):
            wanted = each["spec"].get("selector", each["spec"].get("podSelector"))["matchLabels"]
            assert any(wanted.items() <= own.items() for own in labels.values()), each["metadata"]["name"]
    for each in kind_of(objects, "ServiceMonitor"):
        selector = each["spec"]["selector"]["matchLabels"]
        (service,) = [
            one for one in kind_of(objects, "Service") if selector.items() <= one["metadata"]["labels"].items()
        ]
        assert {one["port"] for one in each["spec"]["endpoints"]} == {one["name"] for one in service["spec"]["ports"]}


@each_case
def test_pods_are_locked_down(case: Case) -> None:
    objects = render(case)
    for component in running(objects):
        spec = pod(objects, component)
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert spec["automountServiceAccountToken"] is True
        assert spec["serviceAccountName"] in {each["metadata"]["name"] for each in kind_of(objects, "ServiceAccount")}
    assert {each["automountServiceAccountToken"] for each in kind_of(objects, "ServiceAccount")} == {False}


@each_case
def test_the_processes_understand_their_environment(case: Case) -> None:
    objects = render(case)
    fields = {"metadata.namespace": case.namespace, "metadata.name": "pod-1"}

    def seen_by(component: str) -> dict[str, str]:
        found = environment(pod(objects, component))
        return {name: fields[it["fieldRef"]["fieldPath"]] if isinstance(it, dict) else it for name, it in found.items()}

    operator = OperatorSettings.from_env(seen_by("operator"))
    labels = deployment(objects, "operator")["spec"]["selector"]["matchLabels"]
    assert dict(operator.site.operator_labels) == labels, "by these the shards' network policies let the operator in"
    asked = case.values.get("imagePullPolicy", "IfNotPresent"), case.values.get("imagePullSecrets", [])
    assert operator.site.image_pull_policy == asked[0]
    assert [{"name": name} for name in operator.site.image_pull_secrets] == asked[1]
    assert pod(objects, "operator")["containers"][0]["args"] == ["run"]
    leases = [rule for each in kind_of(objects, "Role") for rule in each["rules"] if rule["resources"] == ["leases"]]
    assert [operator.lease_name] in [rule.get("resourceNames") for rule in leases]
    if "injector" not in running(objects):
        assert operator.webhook is None
        return
    injector = InjectorSettings.from_env(seen_by("injector"))
    assert pod(objects, "injector")["containers"][0]["args"] == ["inject"]
    assert operator.webhook is not None
    (config,) = kind_of(objects, "MutatingWebhookConfiguration")
    assert operator.webhook.config_name == config["metadata"]["name"]
    service = config["webhooks"][0]["clientConfig"]["service"]
    assert f"{service['name']}.{service['namespace']}.svc" in operator.webhook.dns_names
    assert service["name"] in {each["metadata"]["name"] for each in kind_of(objects, "Service")}
    secrets = {
        tuple(rule.get("resourceNames", ()))
        for each in kind_of(objects, "Role")
        for rule in each["rules"]
        if rule["resources"] == ["secrets"]
    }
    assert secrets == {(operator.webhook.tls_secret,)} == {(injector.tls_secret,)}, "the injector reads this one alone"


@each_case
def test_bindings_lead_from_a_role_to_its_account(case: Case) -> None:
    objects = render(case)
    accounts = {
        (each["metadata"]["name"], each["metadata"]["namespace"]) for each in kind_of(objects, "ServiceAccount")
    }
    for kind in ("Role", "ClusterRole"):
        roles = {each["metadata"]["name"] for each in kind_of(objects, kind)}
        bindings = kind_of(objects, f"{kind}Binding")
        assert sorted(each["roleRef"]["name"] for each in bindings) == sorted(roles)
        assert {(one["name"], one["namespace"]) for each in bindings for one in each["subjects"]} == accounts


def test_images_are_named_by_digest_then_tag_then_version() -> None:
    def images(case: Case) -> list[str]:
        objects = render(case)
        told = environment(pod(objects, "operator")) | environment(pod(objects, "injector"))
        parts = [told[f"ENGRAM_{part}_IMAGE"] for part in ("SIDECAR", "POSTGRES", "REDIS")]
        return [pod(objects, "operator")["containers"][0]["image"], *parts]

    by_why = {case.why: case for case in CASES}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    ours = [f"localhost/engram-{part}:{version}" for part in ("operator", "sidecar", "postgres")]
    assert images(DEFAULTS) == [*ours, "docker.io/library/redis:8"]
    tagged = ["r.example/o:1.0", "r.example/s:2024_01", "r.example/p:18", "r.example/r:8-alpine"]
    assert images(by_why["images by tag"]) == tagged
    digests = [
        "registry.example:5000/engram/operator@sha256:" + "a" * 64,
        "registry.example/engram/sidecar@sha256:" + "b" * 64,
        "registry.example/engram/postgres@sha256:" + "c" * 64,
        "registry.example/redis@sha256:" + "d" * 64,
    ]
    assert images(by_why["images by digest"]) == digests


def test_the_webhook_sees_labelled_pods_outside_the_system_and_itself() -> None:
    (config,) = kind_of(render(DEFAULTS), "MutatingWebhookConfiguration")
    webhook, for_namespaces = config["webhooks"]
    for each, path in ((webhook, "/mutate"), (for_namespaces, "/mutate-namespace")):
        assert each.pop("clientConfig") == {
            "service": {"name": "engram-webhook", "namespace": "engram-system", "path": path, "port": 443}
        }, "no caBundle: that one is the operator's"
    asks = {"key": "engram.dev/inject", "operator": "In", "values": ["true"]}
    silent = {"key": "engram.dev/inject", "operator": "NotIn", "values": ["true", "false"]}
    foreign = {"key": MANAGED_BY_LABEL, "operator": "NotIn", "values": [MANAGED_BY]}
    assert for_namespaces == {
        **webhook,
        "name": "inject-namespace.engram.dev",
        "objectSelector": {"matchExpressions": [silent, foreign]},
        "namespaceSelector": {"matchExpressions": [*webhook["namespaceSelector"]["matchExpressions"], asks]},
    }
    assert webhook == {
        "name": "inject.engram.dev",
        "admissionReviewVersions": ["v1"],
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ],
        "objectSelector": {"matchExpressions": [{"key": "engram.dev/inject", "operator": "In", "values": ["true"]}]},
        "namespaceSelector": {
            "matchExpressions": [
                {
                    "key": "kubernetes.io/metadata.name",
                    "operator": "NotIn",
                    "values": ["kube-system", "kube-node-lease", "engram-system"],
                }
            ]
        },
        "failurePolicy": "Ignore",
        "timeoutSeconds": 5,
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "reinvocationPolicy": "IfNeeded",
    }


def test_a_selector_of_the_user_comes_beside_ours() -> None:
    selector = {"matchLabels": {"stage": "prod"}, "matchExpressions": [{"key": "legacy", "operator": "DoesNotExist"}]}
    (config,) = kind_of(render(DEFAULTS, injector={"namespaceSelector": selector}), "MutatingWebhookConfiguration")
    found = config["webhooks"][0]["namespaceSelector"]
    assert found["matchLabels"] == selector["matchLabels"]
    assert [each["key"] for each in found["matchExpressions"]] == ["kubernetes.io/metadata.name", "legacy"]
    found = config["webhooks"][1]["namespaceSelector"]
    assert found["matchLabels"] == selector["matchLabels"]
    assert [each["key"] for each in found["matchExpressions"][1:]] == ["legacy", "engram.dev/inject"]


def test_the_webhook_is_asked_from_anywhere_or_from_where_it_is_said() -> None:
    def peers(**values: object) -> list[object]:
        policies = kind_of(render(DEFAULTS, **values), "NetworkPolicy")
        rules = [rule for each in policies for rule in each["spec"].get("ingress", ())]
        return [rule.get("from") for rule in rules if rule["ports"][0]["port"] == "webhook"]

    api_server = [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    assert peers() == [None]
    assert peers(networkPolicy={"webhookFrom": api_server}) == [api_server]


def test_only_the_operator_reaches_databases_ours_and_those_that_are_named() -> None:
    def ways(component: str, **values: object) -> list[tuple[list[int], object]]:
        policies = kind_of(render(DEFAULTS, **values), "NetworkPolicy")
        (policy,) = [each for each in policies if each["metadata"]["name"] == f"engram-{component}"]
        return [([port["port"] for port in rule["ports"]], rule.get("to")) for rule in policy["spec"]["egress"]]

    shards = {"namespaceSelector": {}, "podSelector": {"matchLabels": {MANAGED_BY_LABEL: MANAGED_BY}}}
    ours = [([POSTGRES_PORT, PATRONI_PORT, REDIS_PORT], [shards])]
    peers = [{"ipBlock": {"cidr": "10.9.0.0/16"}}]
    theirs: list[Json] = [{"to": peers, "ports": [5432, 6543]}, {"to": [], "ports": [15432]}]
    assert ways("operator") == ways("injector") + ours
    named = ways("operator", networkPolicy={"externalDatabases": theirs})
    assert named == [*ways("operator"), ([5432, 6543], peers), ([15432], None)]
    assert ways("injector", networkPolicy={"externalDatabases": theirs}) == ways("injector")


@each_case
def test_a_policy_asks_about_deletions_or_pods_and_is_bound_by_its_own_name(case: Case) -> None:
    objects = render(case)
    policies = kind_of(objects, "ValidatingAdmissionPolicy")
    bindings = {each["metadata"]["name"]: each["spec"] for each in kind_of(objects, "ValidatingAdmissionPolicyBinding")}
    for each in policies:
        spec = each["spec"]
        assert spec["failurePolicy"] == "Fail"
        asked = [(rule["resources"], rule["operations"]) for rule in spec["matchConstraints"]["resourceRules"]]
        if each["metadata"]["name"].endswith("-tenant-guard"):
            assert asked == [(["pods"], ["CREATE", "UPDATE"]), (["pods/ephemeralcontainers"], ["UPDATE"])]
            assert len(spec["matchConditions"]) == 1, "pods that name no Secret of ours are let through by it"
        else:
            assert [operations for _, operations in asked] == [["DELETE"]] * len(asked)
        assert not any("resourceNames" in rule for rule in spec["matchConstraints"]["resourceRules"]), (
            "a delete of a collection goes past them"
        )
        name = each["metadata"]["name"]
        assert bindings.pop(name) == {"policyName": name, "validationActions": ["Deny"]}
    assert bindings == {}


def test_the_guard_knows_the_sidecars_image_and_what_else_is_allowed() -> None:
    def said(case: Case) -> str:
        (guard,) = [
            each
            for each in kind_of(render(case), "ValidatingAdmissionPolicy")
            if each["metadata"]["name"].endswith("-tenant-guard")
        ]
        assert all({"reason", "expression"} < {*each} for each in guard["spec"]["validations"])
        return json.dumps(guard)

    own = environment(pod(render(DEFAULTS), "injector"))["ENGRAM_SIDECAR_IMAGE"]
    assert json.dumps(f'c.image in ["{own}"] ||')[1:-1] in said(DEFAULTS)
    case = next(case for case in CASES if case.why == "everything on and set")
    images = [own, *case.values["tenantGuard"]["allowedImages"]]
    assert json.dumps(f"c.image in {json.dumps(images, separators=(',', ':'))} ||")[1:-1] in said(case)
    assert json.dumps('["VAULT_"].exists')[1:-1] in said(case)


def test_values_are_taken_where_they_belong() -> None:
    case = next(case for case in CASES if case.why == "everything on and set")
    objects = render(case)
    for component in COMPONENTS:
        spec, values = pod(objects, component), case.values[component]
        for name in ("priorityClassName", "nodeSelector", "tolerations", "affinity", "terminationGracePeriodSeconds"):
            assert spec[name] == values[name]
        own = deployment(objects, component)["spec"]["selector"]
        assert [each["labelSelector"] for each in spec["topologySpreadConstraints"]] == [
            own,
            {"matchLabels": {"a": "b"}},
        ]
        assert spec["containers"][0]["resources"] == values["resources"]
        metadata = deployment(objects, component)["spec"]["template"]["metadata"]
        assert metadata["labels"]["cost"] == "shared"
        assert metadata["annotations"]["note"] == "a: b"
    assert {each["metadata"]["labels"]["team"] for each in objects} == {"memory"}
    assert {each["metadata"]["annotations"]["owner"] for each in objects} == {"platform@example"}
    resources = json.loads(environment(pod(objects, "injector"))["ENGRAM_SIDECAR_RESOURCES"])
    assert resources["requests"] == {"cpu": "0.5", "memory": 134217728}
    monitors = [each for each in objects if each["apiVersion"] == MONITORING_API]
    assert {each["metadata"]["labels"]["release"] for each in monitors} == {"kube-prometheus-stack"}


def test_two_long_names_stay_two() -> None:
    long = "a" * 52
    first, second = (render(Case("", release=f"{long}{end}")) for end in "xy")
    names = [{each["metadata"]["name"] for each in objects} for objects in (first, second)]
    assert not names[0] & names[1]


def test_the_rules_are_the_file_without_what_is_not_installed() -> None:
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    for is_enabled in (True, False):
        objects = render(Case("", monitored=True, values={"injector": {"enabled": is_enabled}}))
        (rule,) = kind_of(objects, "PrometheusRule")
        assert rule["spec"]["groups"] == [each for each in groups if is_enabled or each["name"] != "engram.injector"]


def test_the_dashboard_is_the_file() -> None:
    objects = render(Case("", values={"monitoring": {"dashboards": {"enabled": True}}}))
    (config_map,) = kind_of(objects, "ConfigMap")
    assert json.loads(config_map["data"]["engram.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("name", ["serviceMonitor", "podMonitor", "prometheusRule"])
def test_an_insisted_monitor_without_its_api_is_an_error_that_says_so(name: str) -> None:
    values = json.dumps({"monitoring": {name: {"enabled": True}}})
    done = helm("template", "engram", str(CHART), "--kube-version", KUBE_VERSION, "--values", "-", text=values)
    assert done.returncode != 0
    assert f"monitoring.{name}.enabled is true" in done.stderr
    assert MONITORING_API in done.stderr


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"operator": {"replica": 2}}, "replica"),
        ({"operator": {"replicas": "two"}}, "replicas"),
        ({"injector": {"failurePolicy": "Never"}}, "failurePolicy"),
        ({"injector": {"timeoutSeconds": 31}}, "timeoutSeconds"),
        ({"images": {"operator": {"digest": "sha256:1"}}}, "digest"),
        ({"deletionProtection": {"enabled": "no"}}, "deletionProtection"),
        ({"tenantGuard": {"allowedImages": ["a'b"]}}, "/tenantGuard/allowedImages/0"),
        ({"tenantGuard": {"allowedVariables": [""]}}, "/tenantGuard/allowedVariables/0"),
        ({"networkPolicy": {"externalDatabases": [{"to": []}]}}, "externalDatabases"),
        ({"networkPolicy": {"apiServer": {"ports": [70000]}}}, "ports"),
        ({"monitoring": {"podMonitor": {"enabled": "yes"}}}, "podMonitor"),
        ({"nmeOverride": "x"}, "nmeOverride"),
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"labels": {"app.kubernetes.io/name": "mine"}}, "/labels/app.kubernetes.io~1name"),
        ({"annotations": {"a": 1}}, "/annotations/a"),
        ({"operator": {"podLabels": {"a b": "c"}}}, "/operator/podLabels"),
        ({"operator": {"podLabels": {"a": 1}}}, "/operator/podLabels/a"),
        ({"operator": {"podAnnotations": {"a": 1}}}, "/operator/podAnnotations/a"),
        ({"injector": {"nodeSelector": {"a": True}}}, "/injector/nodeSelector/a"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values: Json, field: str) -> None:
    done = helm(
        "template", "engram", str(CHART), "--kube-version", KUBE_VERSION, "--values", "-", text=json.dumps(values)
    )
    assert done.returncode != 0
    assert field in done.stderr
