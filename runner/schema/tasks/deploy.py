"""`task=deploy` and `task=undeploy`: a SageMaker endpoint that draws with a base model and many adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from runner.schema.aws import BUCKET, INSTANCE, AwsSettings
from runner.schema.drawing import GUIDANCE, MOST_GUIDANCE, MOST_PIXELS_SIDE, DrawingSettings
from runner.schema.family import drawing_faults
from runner.schema.job import JobSettings
from runner.schema.knob import Settings, dashed, knob, section, spelt
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings

LONGEST = 50
NAME = rf"[A-Za-z0-9](-*[A-Za-z0-9]){{0,{LONGEST - 1}}}"
"""Of an endpoint; short enough that the names of its models can be made from it."""
ENDPOINT = spelt(
    NAME,
    f"up to {LONGEST} letters and digits, and dashes between them",
    lambda text: f"endpoint.name={dashed(text, LONGEST) or 'dev'}",
)


class EndpointName(Settings):
    """Which endpoint."""

    name: Annotated[str, ENDPOINT] | None = knob(None, doc="Name of the endpoint; null is the experiment's name.")
    poll_s: float = knob(15.0, gt=0, le=600, unit="seconds", identity=False, doc="How often SageMaker is polled.")


class EndpointSettings(AwsSettings, EndpointName):
    """Section `endpoint`: the account and the instances that serve."""

    instance: Annotated[str, INSTANCE] = knob("ml.g5.xlarge", doc="Instance type.")
    instances: int = knob(1, ge=1, le=100, doc="Instances at the start, and the minimum of autoscaling.")
    max_instances: int | None = knob(None, ge=2, le=100, doc="Maximum of autoscaling; null turns it off.")
    requests_per_instance: float = knob(
        10.0, gt=0, unit="requests a minute", doc="What autoscaling aims for; used with `max_instances`."
    )
    startup_timeout_s: int = knob(
        1800,
        ge=60,
        le=3600,
        unit="seconds",
        doc="Longest from the start of a container to its first passed health check.",
    )
    hub_secret: str | None = knob(
        None, min_length=1, doc="ARN or name of a Secrets Manager secret with a Hugging Face token, for gated models."
    )
    wait: bool = knob(True, identity=False, doc="Wait until the endpoint is in service.")

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.max_instances is None:
            without = "without endpoint.max_instances"
            yield from self.idle("requests_per_instance", because=without, fix="add it, or remove this")
        elif self.max_instances <= self.instances:
            yield f"max_instances = {self.max_instances}: should be more than endpoint.instances = {self.instances}"


def _faults_of_name(settings: Deploy | Undeploy) -> Iterator[str]:
    """A fault if the endpoint would get the experiment's name, and that is no valid name for one."""
    if settings.endpoint.name is None and not re.fullmatch(NAME, settings.name):
        yield (
            f"name = {settings.name!r}: would be the name of the endpoint, which may have up to {LONGEST} letters and "
            f"digits, and dashes between them; set endpoint.name, such as "
            f"endpoint.name={dashed(settings.name, LONGEST)}"
        )


class Deploy(WithAdapters, DrawingSettings):
    """`task=deploy`: serve a base model with adapters; each request chooses one or a mix."""

    resolution: int = knob(
        64, ge=8, le=MOST_PIXELS_SIDE, multiple_of=8, unit="px", doc="Side of the images, if a request names none."
    )
    guidance_scale: float | None = knob(
        None, ge=0, le=MOST_GUIDANCE, doc=f"Guidance, if a request names none; {GUIDANCE}"
    )
    scheduler: SchedulerSettings = section(SchedulerSettings)
    endpoint: EndpointSettings = section(EndpointSettings)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        yield from _faults_of_name(self)
        yield from drawing_faults(self, self)


class UndeployedEndpoint(EndpointName):
    """Section `endpoint`: which one, and where."""

    region: str | None = knob(None, min_length=1, doc="AWS region; null takes it from the environment or profile.")
    bucket: Annotated[str, BUCKET] | None = knob(None, doc="As `endpoint.bucket` of the deployment.")
    prefix: str = knob("lora-runner", min_length=1, doc="As `endpoint.prefix` of the deployment.")


class Undeploy(JobSettings):
    """`task=undeploy`: remove an endpoint, its configurations, its models and what was uploaded for them."""

    done_once: ClassVar[bool] = False
    endpoint: UndeployedEndpoint = section(UndeployedEndpoint)

    def _faults(self) -> Iterator[str]:
        yield from _faults_of_name(self)
