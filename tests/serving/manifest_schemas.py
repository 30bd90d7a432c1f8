"""Schemas of what is deployed: the parts of the published ones that our files use. A field that they lack is an error,
so that one that is misspelt, or in the wrong place, is found here and not by a cluster that ignores it.

Kubernetes 1.27 (core/v1, apps/v1, policy/v1, autoscaling/v2, networking.k8s.io/v1), kustomize v1beta1, Prometheus
operator v1, KEDA v1alpha1, and the Compose specification.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
PortName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Label = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/")]
Seconds = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]
Positive = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Camel(Strict):
    model_config = ConfigDict(alias_generator=to_camel)


class Metadata(Camel):
    name: Name
    namespace: Name | None = None
    labels: dict[Label, str] = {}
    annotations: dict[Label, str] = {}


class Selector(Camel):
    match_labels: dict[Label, str] = Field(min_length=1)


# ---- core/v1 and apps/v1 ----


class Namespace(Camel):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    metadata: Metadata


class ServicePort(Camel):
    name: PortName
    port: Port
    target_port: Port | PortName


class ServiceSpec(Camel):
    selector: dict[Label, str] = Field(min_length=1)
    ports: list[ServicePort] = Field(min_length=1)


class Service(Camel):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


class KeyOf(Camel):
    name: Name
    key: str


class ValueFrom(Camel):
    secret_key_ref: KeyOf


class Env(Camel):
    name: EnvName
    value: str | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _has_one_value(self) -> Env:
        assert (self.value is None) != (self.value_from is None), f"{self.name} needs value or valueFrom"
        return self


class HttpGet(Camel):
    path: AbsolutePath
    port: Port | PortName


class Probe(Camel):
    http_get: HttpGet
    period_seconds: Positive
    failure_threshold: Positive
    timeout_seconds: Positive


class ContainerPort(Camel):
    name: PortName
    container_port: Port


class Resources(Camel):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


class Capabilities(Camel):
    drop: list[str]


class ContainerRights(Camel):
    allow_privilege_escalation: bool
    read_only_root_filesystem: bool
    capabilities: Capabilities


class VolumeMount(Camel):
    name: Name
    mount_path: AbsolutePath
    read_only: bool = False


class Container(Camel):
    name: Name
    image: str
    args: list[str]
    env: list[Env]
    ports: list[ContainerPort]
    startup_probe: Probe
    readiness_probe: Probe
    liveness_probe: Probe
    resources: Resources
    security_context: ContainerRights
    volume_mounts: list[VolumeMount]


class Claim(Camel):
    claim_name: Name
    read_only: bool = False


class SecretVolume(Camel):
    secret_name: Name
    default_mode: int = Field(ge=0, le=0o777)


class ConfigMapVolume(Camel):
    name: Name


class EmptyDir(Camel):
    size_limit: Quantity


class Volume(Camel):
    name: Name
    persistent_volume_claim: Claim | None = None
    secret: SecretVolume | None = None
    config_map: ConfigMapVolume | None = None
    empty_dir: EmptyDir | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Volume:
        sources = [self.persistent_volume_claim, self.secret, self.config_map, self.empty_dir]
        assert sum(source is not None for source in sources) == 1, f"volume {self.name} needs one source"
        return self


class SeccompProfile(Camel):
    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]


class PodRights(Camel):
    run_as_non_root: bool
    run_as_user: Positive
    run_as_group: Positive
    fs_group: Positive
    seccomp_profile: SeccompProfile


class Spread(Camel):
    max_skew: Positive
    topology_key: Label
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: Selector


class PodSpec(Camel):
    automount_service_account_token: bool
    enable_service_links: bool
    termination_grace_period_seconds: Positive
    security_context: PodRights
    topology_spread_constraints: list[Spread]
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume]


class PodMetadata(Camel):
    labels: dict[Label, str]


class PodTemplate(Camel):
    metadata: PodMetadata
    spec: PodSpec


class RollingUpdate(Camel):
    max_unavailable: int = Field(ge=0)
    max_surge: int = Field(ge=0)


class Strategy(Camel):
    rolling_update: RollingUpdate


class DeploymentSpec(Camel):
    replicas: Positive
    revision_history_limit: int = Field(ge=0)
    strategy: Strategy
    selector: Selector
    template: PodTemplate


class Deployment(Camel):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    metadata: Metadata
    spec: DeploymentSpec


# ---- availability and network ----


class DisruptionBudgetSpec(Camel):
    min_available: Positive
    selector: Selector


class PodDisruptionBudget(Camel):
    api_version: Literal["policy/v1"]
    kind: Literal["PodDisruptionBudget"]
    metadata: Metadata
    spec: DisruptionBudgetSpec


class Target(Camel):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    name: Name


class Utilization(Camel):
    type: Literal["Utilization"]
    average_utilization: int = Field(ge=1, le=100)


class AverageValue(Camel):
    type: Literal["AverageValue"]
    average_value: Quantity


class ResourceOfPods(Camel):
    name: Literal["cpu", "memory"]
    target: Utilization


class MetricName(Camel):
    name: Annotated[str, Field(pattern=r"^[a-z_]+$")]


class PodsMetric(Camel):
    metric: MetricName
    target: AverageValue


class MetricSource(Camel):
    type: Literal["Resource", "Pods"]
    resource: ResourceOfPods | None = None
    pods: PodsMetric | None = None

    @model_validator(mode="after")
    def _is_of_its_type(self) -> MetricSource:
        assert (self.resource is not None, self.pods is not None) == (self.type == "Resource", self.type == "Pods")
        return self


class ScaleDown(Camel):
    stabilization_window_seconds: int = Field(ge=0, le=3600)


class Behavior(Camel):
    scale_down: ScaleDown


class AutoscalerSpec(Camel):
    scale_target_ref: Target
    min_replicas: Positive
    max_replicas: Positive
    metrics: list[MetricSource] = Field(min_length=1)
    behavior: Behavior


class HorizontalPodAutoscaler(Camel):
    api_version: Literal["autoscaling/v2"]
    kind: Literal["HorizontalPodAutoscaler"]
    metadata: Metadata
    spec: AutoscalerSpec


class PolicyPort(Camel):
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: Port | PortName


class PolicyRule(Camel):
    ports: list[PolicyPort] = Field(min_length=1)


class NetworkPolicySpec(Camel):
    pod_selector: Selector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[PolicyRule]
    egress: list[PolicyRule]


class NetworkPolicy(Camel):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec


# ---- kustomize and the Prometheus operator ----


class Generator(Camel):
    name: Name
    files: list[str] = Field(min_length=1)


class Image(Camel):
    name: str
    new_tag: str


class Kustomization(Camel):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: Name
    resources: list[str] = Field(min_length=1)
    config_map_generator: list[Generator]
    images: list[Image]


class Authorization(Camel):
    type: Literal["Bearer"]
    credentials: KeyOf


class MonitorEndpoint(Camel):
    port: PortName
    path: AbsolutePath
    interval: Seconds
    authorization: Authorization


class MonitorSpec(Camel):
    selector: Selector
    endpoints: list[MonitorEndpoint] = Field(min_length=1)


class ServiceMonitor(Camel):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: MonitorSpec


# ---- KEDA ----


class AutoscalerOfKeda(Camel):
    name: Name
    behavior: Behavior


class Advanced(Camel):
    horizontal_pod_autoscaler_config: AutoscalerOfKeda


class PrometheusQuery(Camel):
    server_address: Annotated[str, Field(pattern=r"^https?://[a-z0-9.-]+(:\d+)?$")]
    query: str
    threshold: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]


class PrometheusTrigger(Camel):
    type: Literal["prometheus"]
    metric_type: Literal["AverageValue", "Value"]
    metadata: PrometheusQuery


class UtilizationValue(Camel):
    value: Annotated[str, Field(pattern=r"^\d{1,3}$")]


class CpuTrigger(Camel):
    type: Literal["cpu"]
    metric_type: Literal["Utilization", "AverageValue"]
    metadata: UtilizationValue


class ScaledObjectSpec(Camel):
    scale_target_ref: Target
    polling_interval: Positive
    min_replica_count: Positive
    max_replica_count: Positive
    advanced: Advanced
    triggers: list[Annotated[PrometheusTrigger | CpuTrigger, Field(discriminator="type")]] = Field(min_length=1)


class ScaledObject(Camel):
    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


MANIFEST: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        Namespace
        | Service
        | Deployment
        | PodDisruptionBudget
        | HorizontalPodAutoscaler
        | NetworkPolicy
        | Kustomization
        | ServiceMonitor
        | ScaledObject,
        Field(discriminator="kind"),
    ]
)


# ---- Compose ----


class Build(Strict):
    context: str
    dockerfile: str


class Condition(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    test: list[str] = Field(min_length=2)
    interval: Seconds
    timeout: Seconds
    retries: Positive


class ComposeService(Strict):
    image: str
    build: Build | None = None
    profiles: list[str] = []
    command: list[str] | None = None
    environment: dict[str, str] = {}
    ports: list[Annotated[str, Field(pattern=r"^127\.0\.0\.1:\d+:\d+$")]] = []
    volumes: list[Annotated[str, Field(pattern=r"^(\$\{.+\}|[^:]+):/[^:]+(:ro)?$")]]
    depends_on: dict[str, Condition] = {}
    healthcheck: Healthcheck | None = None
    read_only: bool = False
    tmpfs: list[AbsolutePath] = []
    cap_drop: list[str]
    cap_add: list[str] = []
    security_opt: list[str]
    stop_grace_period: Seconds | None = None
    mem_limit: Annotated[str, Field(pattern=r"^\d+[bkmg]$")] | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]


class Compose(Strict):
    name: Name
    services: dict[Name, ComposeService]
    volumes: dict[Name, None]

    @model_validator(mode="after")
    def _names_are_there(self) -> Compose:
        for name, service in self.services.items():
            assert service.depends_on.keys() <= self.services.keys(), f"{name} depends on a service that is not there"
            for volume in service.volumes:
                source = volume.split(":")[0]
                assert source.startswith((".", "/", "$")) or source in self.volumes, f"{name}: no volume {source}"
        return self
