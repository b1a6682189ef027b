"""What the jobs of a pack agree on, in words: two packs never read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.jobs.job import Job, make_job, make_task_job
from runner.plan.packs import pack_key, shared_terms
from runner.schema import Experiment
from runner.schema.tasks import TASKS


def job(**settings: Any) -> Job:
    """A job whose base has the identity that its settings of `model` give it."""
    experiment = Experiment.model_validate(settings)
    return make_job(experiment, model=json.dumps(settings.get("model")), dataset="images", outputs=Path("outputs"))


def test_the_plan_says_what_the_jobs_of_each_pack_agree_on() -> None:
    words = {"name": "textual_inversion", "tokens": ["<cat>"], "initial": ["cat"]}
    jobs = [
        job(),
        job(method=words),
        job(lora={"text_encoder": True}),
        job(resolution=128),
        *[job(model={"prediction_type": kind}) for kind in ("epsilon", "v_prediction")],
        *[job(model={"prediction_type": "v_prediction", "zero_terminal_snr": end}) for end in (True, False)],
        *[job(model={"revision": revision}) for revision in ("v1", "v2")],
    ]
    assert len({pack_key(each) for each in jobs}) == len(jobs)
    assert len({shared_terms(each) for each in jobs}) == len(jobs)


def test_jobs_that_load_the_same_files_in_another_way_share_no_base() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"quantization": "int8"},
        {"quantization": "nf4"},
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    ]
    experiments = [Experiment.model_validate({"model": way}) for way in ways]
    jobs = [make_job(each, model="base", dataset="images", outputs=Path("outputs")) for each in experiments]
    assert len({pack_key(each) for each in jobs}) == len(jobs)


def test_other_tasks_share_what_is_loaded_only_with_their_like() -> None:
    def doing(name: str, model: str, prompt: str = "a hill") -> Job:
        drawn = {"prompts": [prompt]} if name == "generate" else {}
        given = TASKS[name].model_validate({"task": {"name": name}, "adapter": "lora", **drawn})
        return make_task_job(given, {"model": model}, outputs=Path("outputs"))

    jobs = [doing("generate", "base"), doing("generate", "another"), doing("evaluate", "base")]
    assert len({pack_key(each) for each in jobs}) == len(jobs)
    assert pack_key(doing("generate", "base", "a house")) == pack_key(jobs[0])
