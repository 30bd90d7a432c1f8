"""What is deployed fits the program: options, settings, probes, metric names; and runs with as few rights as it can."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import serving
from recsys.config import read_yaml
from serving.answers import FallbackReason
from serving.cli import app as program
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings, load_settings
from serving.stages import FAILED
from serving.workers.counts import ProcessMetrics

DEPLOY = Path(serving.__file__).with_name("deploy")
ROOT = DEPLOY.parents[1]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
GRACE_S = 10
"""What requests in progress get once draining is over: serving.server."""


def _documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        if path.name != "serve.yaml":
            yield from (document for document in yaml.safe_load_all(path.read_text()) if document)


def _manifest(kind: str) -> dict[str, Any]:
    (found,) = [document for document in _documents() if document["kind"] == kind]
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    return _manifest("Deployment")["spec"]["template"]["spec"]


@pytest.fixture
def registry(app: FastAPI, runtime: RecommenderRuntime) -> CollectorRegistry:
    return app.state.context.metrics.registry


def _is_command_of_the_program(arguments: list[str]) -> dict[str, Any]:
    command = typer.main.get_command(program).commands[arguments[0]]
    return command.make_context(arguments[0], [str(argument) for argument in arguments[1:]]).params


# ---- Kubernetes ----


def test_every_manifest_is_named_and_applied() -> None:
    kinds = [document["kind"] for document in _documents()]
    assert sorted(kinds) == [
        "Deployment",
        "HorizontalPodAutoscaler",
        "Kustomization",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceMonitor",
    ]
    for document in _documents():
        assert document["apiVersion"]
        assert document["kind"] == "Kustomization" or document["metadata"]["name"] == "recsys"
    applied = _manifest("Kustomization")["resources"]
    # The monitor is of a kind that not every cluster knows.
    assert {*applied, "kustomization.yaml", "serve.yaml", "service-monitor.yaml"} == {path.name for path in MANIFESTS}


def test_the_pod_may_do_as_little_as_it_can(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert "privileged" not in yaml.safe_dump(pod)


def test_probes_ask_what_the_api_answers_without_a_key(pod: dict[str, Any], app: FastAPI) -> None:
    (container,) = pod["containers"]
    asked = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for path in asked.values():
        assert "security" not in app.openapi()["paths"][path]["get"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120, "a large model takes its time"


def test_arguments_and_settings_are_the_programs(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    given = _is_command_of_the_program(container["args"])
    assert (given["host"], given["port"], given["no_auth"]) == ("0.0.0.0", 8000, False)
    assert container["ports"] == [{"name": "http", "containerPort": given["port"]}]
    assert {entry["name"] for entry in container["env"]} == {"RECSYS_STORE", "RECSYS_KEYS"}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert [name for name, mount in mounts.items() if not mount.get("readOnly")] == ["tmp", "data"]
    settings = load_settings(DEPLOY / "kubernetes" / "serve.yaml")
    probe = container["readinessProbe"]
    noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert settings.guard.drain_s >= noticed, "nobody is sent to a process that has ended"
    assert pod["terminationGracePeriodSeconds"] > settings.guard.drain_s + GRACE_S


def test_selectors_agree_and_one_process_stays() -> None:
    deployment, labels = _manifest("Deployment"), {"app.kubernetes.io/name": "recsys"}
    assert deployment["spec"]["template"]["metadata"]["labels"] == labels
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert _manifest("Service")["spec"]["selector"] == labels
    assert _manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert _manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    scaling = _manifest("HorizontalPodAutoscaler")["spec"]
    assert scaling["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (
        scaling["minReplicas"]
        >= deployment["spec"]["replicas"]
        > _manifest("PodDisruptionBudget")["spec"]["minAvailable"]
    )


# ---- the image and compose ----


def test_the_image_runs_as_nobody_special_and_has_what_it_copies() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text.split("\nFROM ")[-1]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert "ADD " not in text
    (command,) = re.findall(r"^CMD (\[.*\])$", final, re.MULTILINE)
    assert _is_command_of_the_program(json.loads(command))["host"] == "0.0.0.0"
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in kept


def test_compose_names_files_that_are_there_and_options_of_the_program() -> None:
    services = read_yaml(DEPLOY / "compose.yaml")["services"]
    given = _is_command_of_the_program(services["recsys"]["command"])
    assert given["store"] == "redis://store:6379"
    assert "store" in services
    made_by_hand = {"./secrets/keys.json", "./secrets/prometheus"}
    for name, service in services.items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or source in made_by_hand or (DEPLOY / source).is_file(), source
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "grafana" or service["read_only"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), (
            "what is open is open on purpose"
        )
    settings = load_settings(DEPLOY / "serve.yaml")
    assert settings != ServingSettings()
    assert float(services["recsys"]["stop_grace_period"].removesuffix("s")) > settings.guard.drain_s + GRACE_S


def test_secrets_go_neither_into_the_repository_nor_into_the_image() -> None:
    assert "serving/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept.index("serving/deploy/secrets") > kept.index("!serving"), "the last rule that fits holds"
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert not re.search(r"recsys_(read|write|admin)_[\w-]{43}", path.read_text()), path


# ---- dashboard and alerts ----

_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
_WORDS_OF_PROMQL = {
    *("sum", "max", "count", "by", "rate", "increase", "histogram_quantile", "ignoring", "group_left", "le"),
    *("instance", "job", "up", "__rate_interval"),
}


def _expressions() -> Iterator[tuple[str, str]]:
    for panel in json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in read_yaml(DEPLOY / "monitoring" / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_exist(registry: CollectorRegistry) -> None:
    names, labels = set(), set()
    for one in (registry, ProcessMetrics(lambda: 0).registry):
        for family in one.collect():
            names |= {family.name} | {family.name + suffix for suffix in _SUFFIXES}
            collector = one._names_to_collectors.get(family.name)
            labels |= set(getattr(collector, "_labelnames", ()))
    unknown = []
    for title, expression in _expressions():
        plain = re.sub(r'"[^"]*"', "", expression)
        words = set(re.findall(r"[a-zA-Z_]\w*", re.sub(r"\[[^\]]*\]", "", plain))) - _WORDS_OF_PROMQL
        unknown += [(title, word) for word in words if word not in names | labels]
        assert plain.count("(") == plain.count(")"), title
    assert unknown == []


def test_the_alert_about_fallbacks_counts_what_is_said_of_a_broken_model() -> None:
    (expression,) = [expression for name, expression in _expressions() if name == "RecsysFallbacks"]
    (pattern,) = re.findall(r'fallback_reason=~"([^"]*)"', expression)
    counted = {reason for reason in get_args(FallbackReason) if re.fullmatch(pattern, reason)}
    # A breaker opens after a few failures: from then on nearly all lists are of `circuit_open`.
    assert counted == {reason for reason in FAILED.values() if reason is not None} | {"circuit_open"}


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    for group in read_yaml(DEPLOY / "monitoring" / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"].keys() == {"summary", "action"}
            assert rule["for"]


def test_the_dashboard_has_one_place_for_each_panel() -> None:
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in dashboard["panels"]})
    (source,) = read_yaml(DEPLOY / "monitoring" / "grafana-source.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
