"""What the jobs of a pack agree on, in words: two packs never read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.jobs.job import Job, make_job
from runner.plan.packs import pack_key, shared_terms
from runner.schema import Experiment


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
