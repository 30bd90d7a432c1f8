"""What is deployed fits the program: options, settings, probes, metric names; and runs with as few rights as it can."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from fastapi import FastAPI
from manifest_schemas import MANIFEST, Compose
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

import serving
from recsys.config import read_yaml
from serving.answers import FallbackReason
from serving.batching import Batcher
from serving.cli import app as program
from serving.path_metrics import PathMetrics
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings, load_settings
from serving.stages import FAILED
from serving.workers.counts import ProcessMetrics

DEPLOY = Path(serving.__file__).with_name("deploy")
ROOT = DEPLOY.parents[1]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
GRACE_S = 10
"""What requests in progress get once draining is over: serving.server."""


OPTIONAL = {"service-monitor.yaml", "queue-autoscaling.yaml", "keda-autoscaling.yaml"}
"""Of what not every cluster has; applied by hand."""


def _documents(*, optional: bool = True) -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        if path.name != "serve.yaml" and (optional or path.name not in OPTIONAL):
            yield from (document for document in yaml.safe_load_all(path.read_text()) if document)


def _manifest(kind: str) -> dict[str, Any]:
    (found,) = [document for document in _documents(optional=False) if document["kind"] == kind]
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
        "HorizontalPodAutoscaler",
        "Kustomization",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ScaledObject",
        "Service",
        "ServiceMonitor",
    ]
    for document in _documents():
        assert document["apiVersion"]
        assert document["kind"] == "Kustomization" or document["metadata"]["name"] == "recsys"
    applied = _manifest("Kustomization")["resources"]
    assert {*applied, "kustomization.yaml", "serve.yaml", *OPTIONAL} == {path.name for path in MANIFESTS}


@pytest.mark.parametrize("document", list(_documents()), ids=lambda document: str(document["kind"]))
def test_a_manifest_has_the_fields_of_its_kind_and_no_others(document: dict[str, Any]) -> None:
    MANIFEST.validate_python(document)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "Deployment",
            lambda spec: spec["template"]["spec"].update(terminationGracePeriod=45),
            "terminationGracePeriod",
        ),
        ("Deployment", lambda spec: spec["template"]["spec"]["containers"][0].pop("readinessProbe"), "readinessProbe"),
        ("Deployment", lambda spec: spec.update(replicas="2"), "replicas"),
        (
            "Deployment",
            lambda spec: spec["template"]["spec"]["volumes"][0].update(emptyDir={"sizeLimit": "1Gi"}),
            "source",
        ),
        ("NetworkPolicy", lambda spec: spec.update(policyTypes=["ingress"]), "policyTypes"),
        ("Service", lambda spec: spec["ports"][0].update(port=99999), "port"),
        ("ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(treshold="8"), "treshold"),
        ("ScaledObject", lambda spec: spec.update(minReplicas=2), "minReplicas"),
    ],
)
def test_a_manifest_with_a_mistake_is_found(kind: str, change: Callable[[Any], object], message: str) -> None:
    document = next(document for document in _documents() if document["kind"] == kind)
    change(document["spec"])
    with pytest.raises(ValidationError, match=message):
        MANIFEST.validate_python(document)


def test_the_autoscaler_of_the_queue_takes_the_place_of_that_of_the_cpu(registry: CollectorRegistry) -> None:
    by_queue = yaml.safe_load((DEPLOY / "kubernetes" / "queue-autoscaling.yaml").read_text())
    by_cpu = _manifest("HorizontalPodAutoscaler")
    for name in ("scaleTargetRef", "minReplicas", "maxReplicas", "behavior"):
        assert by_queue["spec"][name] == by_cpu["spec"][name]
    assert by_queue["metadata"]["name"] == by_cpu["metadata"]["name"]
    assert by_queue["metadata"]["namespace"] == _manifest("Kustomization")["namespace"]
    asked = by_queue["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert asked == "recsys_queue_depth"
    assert asked in {family.name for family in registry.collect()}
    (rule,) = re.findall(r"metricsQuery: (.+)", (DEPLOY / "kubernetes" / "queue-autoscaling.yaml").read_text())
    assert rule.startswith(f"sum(avg_over_time({asked}{{")


def test_keda_scales_as_the_autoscaler_of_the_queue_does() -> None:
    by_queue, by_keda = (
        yaml.safe_load((DEPLOY / "kubernetes" / f"{name}-autoscaling.yaml").read_text())["spec"]
        for name in ("queue", "keda")
    )
    assert by_keda["scaleTargetRef"] == by_queue["scaleTargetRef"]
    assert (by_keda["minReplicaCount"], by_keda["maxReplicaCount"]) == (
        by_queue["minReplicas"],
        by_queue["maxReplicas"],
    )
    taken_over = by_keda["advanced"]["horizontalPodAutoscalerConfig"]
    assert taken_over == {
        "name": _manifest("HorizontalPodAutoscaler")["metadata"]["name"],
        "behavior": by_queue["behavior"],
    }
    pods, cpu = by_queue["metrics"]
    prometheus, processor = (trigger["metadata"] for trigger in by_keda["triggers"])
    assert prometheus["threshold"] == pods["pods"]["target"]["averageValue"]
    assert f"{pods['pods']['metric']['name']}{{" in prometheus["query"]
    assert processor["value"] == str(cpu["resource"]["target"]["averageUtilization"])


def test_the_autoscalers_count_who_waits_for_the_model_and_not_who_is_answered() -> None:
    registry, release = CollectorRegistry(), threading.Event()

    def run(queries: Sequence[int]) -> Sequence[int]:
        release.wait(60)
        return queries

    def depth() -> float | None:
        return registry.get_sample_value("recsys_queue_depth", {"stage": "generator"})

    async def ask_four_times() -> tuple[float | None, float | None]:
        batcher = Batcher(
            stage="generator", run=run, workers=1, max_batch=1, max_waiting=9, observer=PathMetrics(registry)
        )
        asking = [
            asyncio.create_task(batcher.submit(number, key=None, deadline=time.monotonic() + 60)) for number in range(4)
        ]
        while not batcher.num_running:
            await asyncio.sleep(0)
        waiting = depth()
        release.set()
        await asyncio.gather(*asking)
        batcher.close()
        return waiting, depth()

    assert asyncio.run(ask_four_times()) == (3, 0)


def test_copies_of_bundles_have_room_on_a_disk(pod: dict[str, Any]) -> None:
    (directory,) = re.findall(r"TMPDIR=(\S+)", (DEPLOY / "Dockerfile").read_text())
    (container,) = pod["containers"]
    (volume,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == directory]
    (found,) = [entry for entry in pod["volumes"] if entry["name"] == volume]
    assert found["emptyDir"]["sizeLimit"].endswith("Gi")
    assert "medium" not in found["emptyDir"]
    assert directory not in read_yaml(DEPLOY / "compose.yaml")["services"]["recsys"]["tmpfs"]


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
    assert [line for line in _instructions(text) if line.split()[0] not in _INSTRUCTIONS] == []
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(re.fullmatch(r"python:3\.\d+-slim", image) for image in images), "a tag that says which"
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


_INSTRUCTIONS = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER"),
    *("VOLUME", "WORKDIR"),
}


def _instructions(text: str) -> list[str]:
    """Each with the lines that it goes on in."""
    plain = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return plain.replace("\\\n", " ").splitlines()


def test_compose_has_the_fields_of_its_specification_and_no_others() -> None:
    described = read_yaml(DEPLOY / "compose.yaml")
    Compose.model_validate(described)
    described["services"]["recsys"]["mem_limits"] = "4g"
    described["services"]["store"]["volumes"] = ["stored:/data"]
    with pytest.raises(ValidationError, match="mem_limits"):
        Compose.model_validate(described)
    del described["services"]["recsys"]["mem_limits"]
    with pytest.raises(ValidationError, match="no volume stored"):
        Compose.model_validate(described)


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
