"""What a search by SageMaker sends, and what it refuses; without an account."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator
from pydantic import ValidationError

from runner.aws.names import Location
from runner.errors import SettingsError
from runner.jobs.job import Job
from runner.launchers.sagemaker.request import Channel, training_request
from runner.schema import Experiment, ObjectiveSettings, SageMakerLauncher, TuningSettings
from runner.search.tuning.checks import faults_of_inputs, faults_of_settings, require_sagemaker
from runner.search.tuning.ranges import Range
from runner.search.tuning.records import TuningRecord
from runner.search.tuning.request import search_key, tuning_job_name, tuning_request
from tests.command_line import runner

GOLDEN = Path(__file__).parent / "golden" / "tuning.json"
LAUNCHER = SageMakerLauncher(image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/lora:1", tags={"team": "art"})
RANGES = [
    Range("optimizer.lr", "Continuous", "1e-05", "0.001", log=True),
    Range("lora.rank", "Integer", "2", "64"),
    Range("lora.targets", "Categorical", values={"attention": "lora=attention", "linear": "lora=linear"}),
]
HYPERBAND = {"strategy": "Hyperband", "min_resource": 2, "max_resource": 9, "seed": 5, "warm_start": ("earlier-1",)}


def training() -> dict[str, object]:
    return training_request(
        LAUNCHER,
        name="photos-0123456789",
        experiment="photos",
        role_arn="arn:aws:iam::123456789012:role/training",
        image=str(LAUNCHER.image),
        place=Location("bucket", "lora-runner/experiments/photos/photos-0123456789/"),
        channels=[Channel("config", "s3://bucket/lora-runner/experiments/photos/photos-0123456789/config/")],
        environment={"WANDB_ENTITY": "us"},
    )


def test_the_request_is_the_golden_one_and_good_for_botocore() -> None:
    requests = {
        name: tuning_request(
            TuningSettings.model_validate(settings),
            training(),
            name="photos-0123456789",
            trials=20,
            ranges=RANGES,
            objective=ObjectiveSettings(),
            parents=settings.get("warm_start", ()),
        )
        for name, settings in {"plain": {}, "hyperband": HYPERBAND}.items()
    }
    text = json.dumps(requests, indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "UPDATE_GOLDEN=1 writes it anew"

    model = get_session().get_service_model("sagemaker").operation_model("CreateHyperParameterTuningJob")
    for request in requests.values():
        assert ParamValidator().validate(request, model.input_shape).generate_report() == ""


def test_the_metric_is_found_in_what_a_container_prints() -> None:
    from runner.container.objective import objective_line

    found = tuning_request(
        TuningSettings(), training(), name="x", trials=1, ranges=RANGES, objective=ObjectiveSettings()
    )
    (metric,) = found["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"]
    for value in (0.25, 1e-7, 3.0, -2.5e16):
        (text,) = re.findall(metric["Regex"], objective_line("validation/loss", value))
        assert float(text) == value
    assert not re.findall(metric["Regex"], "validation/loss=nan")
    assert not re.findall(metric["Regex"], "validation/loss_t0062=0.5")


def test_the_same_search_has_the_same_name() -> None:
    identity = {"schema": 1, "model": "m", "dataset": "d", "settings.steps": 9, "settings.lora.rank": 2}
    objective, settings = ObjectiveSettings(), TuningSettings()
    key = search_key(RANGES, identity, settings, objective)

    assert search_key(RANGES, identity | {"settings.lora.rank": 64}, settings, objective) == key
    assert search_key(RANGES, identity, TuningSettings(parallel=9), objective) == key
    assert search_key(RANGES, identity | {"dataset": "other"}, settings, objective) != key
    assert search_key(RANGES, identity | {"settings.steps": 10}, settings, objective) != key
    assert search_key(RANGES, identity, TuningSettings(n_trials=21), objective) != key
    assert search_key(RANGES[1:], identity, settings, objective) != key
    assert search_key(RANGES, identity, settings, ObjectiveSettings(direction="maximize")) != key
    for name in (tuning_job_name("a_very.long-name" * 5, key, 1), tuning_job_name("___", key, 12)):
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}", name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "Hyperband", "early_stopping": "Auto"}, "has no effect with strategy=Hyperband"),
        ({"min_resource": 2}, "min_resource = 2: has no effect without strategy=Hyperband"),
        ({"strategy": "Hyperband", "min_resource": 9, "max_resource": 3}, "is above max_resource = 3"),
        ({"warm_start_type": "TransferLearning"}, "has no effect without warm_start"),
        ({"warm_start": ["no name"]}, "should be the name of a tuning job: up to 32 letters and digits"),
        ({"warm_start": list("abcdef")}, "at most 5"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        TuningSettings.model_validate(settings)


def test_off_in_a_file_is_off() -> None:
    assert TuningSettings.model_validate({"early_stopping": False}).early_stopping == "Off"


def test_what_the_launcher_or_the_experiment_say_in_vain_is_refused() -> None:
    launcher = SageMakerLauncher(concurrency=3, resubmissions=2, keep_alive_s=60, spot=False, pack=4)
    experiment = Experiment.model_validate({"launcher": launcher.model_dump(), "pruning": {"name": "asha"}})
    faults = "\n".join(faults_of_settings(experiment, launcher, TuningSettings(early_stopping="Auto")))

    for part in (
        "launcher.concurrency = 3: has no effect here; hydra.sweeper.parallel says",
        "launcher.resubmissions = 2: has no effect",
        "launcher.keep_alive_s = 60: has no effect",
        "launcher.pack = 4: has no effect",
        "pruning = 'asha': trials cannot see each other",
        "validation.every = 0: hydra.sweeper.early_stopping=Auto decides by what is measured during a training",
    ):
        assert part in faults


def test_containers_of_this_machine_are_not_tuned() -> None:
    (fault,) = faults_of_settings(Experiment(), SageMakerLauncher(local=True), TuningSettings())

    assert fault.startswith("launcher.local = true: ")


def test_all_trials_have_the_same_inputs(tmp_path: Path) -> None:
    first = Job("a", Experiment(), {"model": "m", "dataset": "d"}, tmp_path)
    other = dataclasses.replace(first, identity={"model": "m", "dataset": "e"})

    assert faults_of_inputs([first, first, other], ["lora.rank=4", "dataset.max_images=9"]) == [
        "dataset.max_images=9: changes the data set, which is sent once for all trials; run a search for each"
    ]
    with pytest.raises(SettingsError, match=r"launcher = 'local'; set launcher=sagemaker"):
        require_sagemaker({"launcher": {"name": "local"}})


def test_trials_that_were_stopped_count_only_where_the_search_has_stopped_them() -> None:
    trials = {"a": "Completed", "b": "Stopped", "c": "Failed"}
    record = TuningRecord(name="x", arn="y", status="Completed", failure_reason=None, trials=trials, jobs=())

    assert record.done == 2
    assert dataclasses.replace(record, status="Stopped").done == 1


def test_a_dry_run_shows_space_cost_and_request_and_mistakes_start_nothing() -> None:
    search = [
        "-m",
        "hydra/sweeper=sagemaker_tuning",
        "logger=none",
        "lora.rank=int(interval(2,9))",
        "lora=attention,linear",
    ]
    answer = runner(*search, "launcher=sagemaker", "launcher.dry_run=true", "hydra.sweeper.strategy=Random")
    assert answer.code == 0, answer.output
    for part in (
        "a search of 20 trials by SageMaker (Random), 2 at once",
        "lora.rank: 2 to 9, whole numbers",
        "cost: about $",
        '"HyperParameterTuningJobName": "dev-',
        "no AWS credentials here",
    ):
        assert part in answer.output

    wrong = runner(*search, "model.resolution=64,128", "launcher=sagemaker", "launcher.dry_run=true")
    assert wrong.code == 2
    assert "model.resolution=128: changes resolution too" in wrong.output
    assert runner(*search, "hydra.sweeper.n_trails=3").output.count("did you mean n_trials?") == 1
    assert "set launcher=sagemaker" in runner(*search).output
