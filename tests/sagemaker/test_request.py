"""SageMaker requests, letter by letter; names, places, division among training jobs, cost; what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from pydantic import ValidationError

from runner.aws.names import NAME_LENGTH, Places, training_job_name
from runner.aws.prices import Price, tabled
from runner.jobs.job import Job, make_job
from runner.launchers.sagemaker import machine
from runner.launchers.sagemaker.channels import too_many_channels
from runner.launchers.sagemaker.divide import divided, parts
from runner.launchers.sagemaker.estimate import STARTING_S, estimate
from runner.launchers.sagemaker.request import Channel, training_request
from runner.plan import Pack, Plan, Predictor, make_plan
from runner.schema import Experiment, ObjectiveSettings, SageMakerLauncher, TuningSettings
from runner.schema.instances import INSTANCES
from runner.search.tuning.request import tuning_request
from tests.command_line import runner

GOLDEN = Path(__file__).parent / "golden"
FULL: dict[str, Any] = {
    "instance": "ml.p4d.24xlarge",
    "instances": 2,
    "spot": False,
    "keep_alive_s": 600,
    "max_hours": 1.5,
    "volume_gb": 500,
    "kms_key": "alias/ours",
    "subnets": ["subnet-1", "subnet-2"],
    "security_groups": ["sg-1"],
    "tags": {"team": "vision"},
}


def settings(**changes: Any) -> SageMakerLauncher:
    return SageMakerLauncher.model_validate({"name": "sagemaker", **changes})


def request(**changes: Any) -> dict[str, Any]:
    place = Places("our-bucket", "team/lora").training_job("styles", "styles-0a1b2c3d")
    return training_request(
        settings(**changes),
        name="styles-0a1b2c3d",
        experiment="styles",
        role_arn="arn:aws:iam::123456789012:role/lora-runner-execution",
        image="123456789012.dkr.ecr.us-east-1.amazonaws.com/lora-runner@sha256:" + "0" * 64,
        place=place,
        channels=[
            Channel("config", (place / "config/").uri),
            Channel("dataset-11112222", Places("our-bucket", "team/lora").dataset("1" * 64).uri, "FastFile"),
            Channel("cache", (place / "cache.manifest").uri, kind="ManifestFile"),
        ],
        environment={"RUNNER_WORKER": "styles-0a1b2c3d"},
    )


@pytest.mark.parametrize(("name", "changes"), [("plain", {}), ("full", FULL)])
def test_the_request_is_the_one_of_the_golden_file(name: str, changes: dict[str, Any]) -> None:
    assert request(**changes) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("instance", ["ml.g6e.xlarge", "ml.p5.48xlarge", "ml.m5.xlarge", "ml.c5.large"])
def test_a_key_encrypts_what_is_written_and_volumes_but_no_disks_of_an_instance_itself(instance: str) -> None:
    asked = request(instance=instance, kms_key="k")
    definition = tuning_request(TuningSettings(), asked, name="x", trials=1, ranges=[], objective=ObjectiveSettings())[
        "TrainingJobDefinition"
    ]

    for each in (asked, definition):
        assert each["OutputDataConfig"]["KmsKeyId"] == "k"
        volumes = {"VolumeKmsKeyId": "k"} if instance.startswith(("ml.m5.", "ml.c5.")) else {}
        assert {key: value for key, value in each["ResourceConfig"].items() if key == "VolumeKmsKeyId"} == volumes


@pytest.mark.parametrize("changes", [{}, FULL])
def test_the_request_keeps_within_the_limits_of_the_service(changes: dict[str, Any]) -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request(**changes), shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("experiment", ["dev", "x" * 100, "a.b_c", "...", "-", "x" * 53 + ".y"])
def test_names_are_those_that_sagemaker_takes(experiment: str) -> None:
    for attempt in (1, 2, 17):
        name = training_job_name(experiment, "0a1b2c3d", attempt)
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", name)
        assert len(name) <= NAME_LENGTH
        assert "0a1b2c3d" in name
    assert training_job_name(experiment, "k1", 1) != training_job_name(experiment, "k1", 2)


def test_folders_in_s3_end_with_a_slash_so_that_no_other_begins_like_them() -> None:
    places = Places("b", "p")
    for place in (
        places.dataset("d" * 64),
        places.model("m" * 64),
        places.code("c" * 64),
        places.training_job("e", "n"),
    ):
        assert place.uri.endswith("/")


def jobs(count: int, steps: Sequence[int] = (1000,), **launcher: Any) -> list[Job]:
    raw = {"model": {"family": "sdxl", "path": "owner/name"}, "resolution": 1024, "precision": "bf16", "batch_size": 1}
    launcher = {"name": "sagemaker", "gradient_checkpointing": True, **launcher}
    return [
        make_job(
            Experiment.model_validate({**raw, "seed": seed, "steps": steps[seed % len(steps)], "launcher": launcher}),
            model="m",
            dataset="d",
            outputs=Path("/outputs"),
        )
        for seed in range(count)
    ]


def plan(count: int, steps: Sequence[int] = (1000,), expected: int = 0, **launcher: Any) -> Plan:
    found = jobs(count, steps, **launcher)
    chosen = found[0].experiment.launcher
    assert isinstance(chosen, SageMakerLauncher)
    return make_plan(found, {}, chosen, machine=machine(chosen), costs=Predictor(), expected=expected)


def test_sixteen_jobs_on_eight_gpus_are_one_training_job_with_two_on_each() -> None:
    whole = plan(16, instance="ml.p4d.24xlarge")
    (pack,) = divided(whole, settings(instance="ml.p4d.24xlarge")).packs
    assert (len(pack.jobs), pack.at_once, pack.processes) == (16, 2, 1)


def test_jobs_are_divided_among_as_many_training_jobs_as_are_allowed_at_a_time() -> None:
    chosen = {"instance": "ml.g6e.xlarge", "concurrency": 3}
    parts = divided(plan(8, **chosen), settings(**chosen)).packs
    assert [len(part.jobs) for part in parts] == [3, 3, 2]
    assert {job.id for part in parts for job in part.jobs} == {job.id for job in jobs(8)}
    assert {part.at_once for part in parts} == {3}


@pytest.mark.parametrize("instance", ["ml.g6e.xlarge", "ml.g6e.12xlarge"])
def test_training_jobs_have_as_much_to_do_each(instance: str) -> None:
    chosen = {"instance": instance, "concurrency": 2}
    steps = [100 * number for number in range(1, 9)]
    parts = divided(plan(8, steps, **chosen), settings(**chosen)).packs
    assert [sum(job.experiment.steps for job in part.jobs) for part in parts] == [1800, 1800]


def test_a_training_job_has_no_more_inputs_than_sagemaker_takes() -> None:
    raw = {"model": {"family": "sdxl", "path": "owner/name"}, "dataset": {"path": "images"}}
    experiment = Experiment.model_validate({**raw, "launcher": {"name": "sagemaker"}})
    many = [
        make_job(experiment, model="m", dataset=f"{number:08x}", outputs=Path("/outputs")) for number in range(16, 36)
    ]
    places = Places("our-bucket", "team/lora")

    def said(count: int, training_jobs: int) -> str | None:
        pack = Pack(tuple(many[:count]), 8, 1, 1, "")
        return too_many_channels(parts(pack, settings(concurrency=training_jobs)), places)

    assert said(17, 1) is None
    assert "would need 21 input channels" in (said(18, 1) or "")
    assert said(20, 2) is None


def test_the_cost_is_hours_times_price_and_less_with_spot_instances() -> None:
    price = Price(2.0, "a test")
    chosen = {"instance": "ml.g6e.xlarge"}
    whole = plan(8, **chosen)
    prediction = whole.packs[0].prediction
    assert prediction is not None
    spot = estimate(whole, settings(**chosen), price)
    full = estimate(whole, settings(**chosen, spot=False), price)
    assert spot is not None
    assert full is not None
    assert full.usd == pytest.approx((prediction.seconds + STARTING_S) / 3600 * 2.0)
    assert spot.usd_on_demand == pytest.approx(full.usd)
    assert spot.usd == pytest.approx(0.35 * full.usd)
    assert full.usd_apart == pytest.approx((prediction.alone_s + 8 * STARTING_S) / 3600 * 2.0)


def test_a_search_costs_what_all_its_trials_do() -> None:
    price = Price(2.0, "a test")
    chosen = {"instance": "ml.g6e.xlarge", "concurrency": 4}
    search = estimate(plan(1, expected=16, **chosen), settings(**chosen), price)
    sweep = estimate(plan(16, **chosen), settings(**chosen), price)
    assert search is not None
    assert sweep is not None
    assert (search.usd, search.usd_apart) == pytest.approx((sweep.usd, sweep.usd_apart))
    assert search.training_jobs == sweep.training_jobs == 4


def test_prices_are_dated_and_of_known_instances() -> None:
    assert tabled("ml.g5.xlarge") == Price(1.408, "table of 2025-10, us-east-1")
    assert tabled("ml.no.such") is None
    known = [name for name in INSTANCES if tabled(name) is not None]
    assert {"ml.g5.12xlarge", "ml.g6e.xlarge", "ml.p4d.24xlarge", "ml.p5.48xlarge"} <= set(known)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instance": "ml.g5.12xlrge"}, "did you mean ml.g5.12xlarge"),
        ({"keep_alive_s": 60}, "launcher.spot=false"),
        ({"spot": False, "max_wait_hours": 2}, "no effect with launcher.spot=false"),
        ({"max_hours": 3, "max_wait_hours": 2}, "cannot be below"),
        ({"subnets": ["subnet-1"]}, "a VPC needs security_groups too"),
        ({"pass_secrets": True, "wandb_secret": "x"}, "remove one"),
        ({"device": "cuda", "instance": "ml.m5.xlarge"}, "has no GPU"),
        ({"instances": 2, "processes": 3}, "spread evenly"),
        ({"instance": "ml.g5.12xlarge", "processes": 5}, "has 4 GPUs"),
        ({"tags": {"lora-runner:experiment": "x"}}, "set by the runner itself"),
        ({"prefix": "/x"}, "names with slashes between"),
        ({"wait": False, "resubmissions": 3}, "launcher.wait=false"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        settings(**changes)


def test_a_dry_run_without_an_account_shows_plan_requests_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    answer = runner("model=sdxl", "launcher=sagemaker", "lora.rank=16", "launcher.dry_run=true")
    assert answer.code == 0, answer.output
    assert "1 job to run in 1 pack" in answer.output
    assert re.search(r"cost: about \$\d+\.\d\d for .* of ml\.g6e\.xlarge with spot instances", answer.output)
    assert '"TrainingJobName": "dev-' in answer.output
    assert "no AWS credentials here: a run would need them" in answer.output
