"""task=generate from the command line: drawn as in training, swept, continued, and refused if it is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from runner.check import Checker
from runner.embedded import MODEL_DIR
from runner.errors import SettingsError
from runner.jobs.adapter_file import find_adapter
from runner.jobs.job import State, read_job, update_manifest
from runner.system.tensor_file import PEFT_CONFIG
from tests.command_line import runner, trained
from tests.conftest import MakeOnce
from tests.data.hub_data_sets import giving
from tests.launchers.running import manifests, outputs
from tests.mix.adapters import random_layers, write_peft_plainly
from tests.mix.conftest import Parts
from tests.tasks.doing import with_words
from tests.train.bench import Bench

PROMPT, DRAWING = "a red house", ("inference_steps=3", "seeds=[0,1]", "logger=none")


@pytest.fixture(scope="module")
def adapter(made_once: MakeOnce) -> Path:
    """The folder of a short training."""
    samples = (f"validation.prompts=['{PROMPT}']", "validation.inference_steps=3", "validation.seeds=[0,1]")
    folder = made_once(
        "generated-from", lambda folder: trained(folder, "steps=3", "lora.rank=2", "logger=none", *samples)
    )
    (job,) = folder.glob("outputs/dev/*/manifest.json")
    return job.parent


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def test_a_sweep_over_the_weight_draws_the_samples_of_the_training_and_goes_on(adapter: Path) -> None:
    command = ("-m", "task=generate", "name=drawn", f"adapter={adapter}", f"prompts='{PROMPT}'", *DRAWING)

    answer = runner(*command, "adapter_weight=0,1.0")

    assert answer.code == 0, answer.output
    jobs = {read_job(outputs() / "drawn" / each).settings.adapter_weight[0]: each for each in manifests("drawn")}  # type: ignore[attr-defined]
    drawn = {weight: outputs() / "drawn" / each / "samples" / "step-000000" for weight, each in jobs.items()}
    assert pictures(drawn[1.0]) == pictures(adapter / "samples" / "step-000003")
    assert pictures(drawn[0.0]) == pictures(adapter / "samples" / "step-000000")
    with Image.open(outputs() / "drawn" / jobs[1.0] / "sheet.png") as sheet:
        assert sheet.width > 2 * 64
    assert (outputs() / "drawn" / "report.html").is_file()

    # Only a lost result is drawn again.
    before = pictures(drawn[1.0])
    for file in drawn[1.0].glob("*.png"):
        file.unlink()
    again = runner(*command, "adapter_weight=0,1.0")

    assert "1 job to run" in again.output
    assert pictures(drawn[1.0]) == before


def test_a_file_of_another_program_may_lie_beside_its_own_configuration(tmp_path: Path) -> None:
    """Other trainers write a config.yaml too, which says nothing about a job."""
    theirs = tmp_path / "aitk"
    (theirs / "lora").mkdir(parents=True)
    (theirs / "config.yaml").write_text("job: extension\nmodel: theirs\nprecision: nf4\nresolution: 1000\n")
    for file in (theirs / "my_lora.safetensors", theirs / "lora" / "my_lora.safetensors"):
        save_file({"unet.a.lora_A.weight": torch.zeros(2, 3)}, file)
        found = find_adapter(str(file), key="adapter")
        assert (found.file, found.job) == (file, None)
        raw = told(adapter=str(file), model={"family": "sdxl"}, precision="fp32", resolution=64)
        settings = Checker(tmp_path).job(raw).settings
        assert (settings.model.path, settings.precision, settings.resolution) == ("embedded", "fp32", 64)  # type: ignore[attr-defined]


def test_a_folder_in_a_job_stands_for_itself_and_not_for_what_came_out_at_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.job(MODEL_DIR)
    job.paths.lora.mkdir()
    save_file({"unet.a.lora_A.weight": torch.zeros(2, 3)}, job.paths.weights)
    update_manifest(job.folder, state=State.COMPLETED)
    for folder in (job.folder, job.paths.lora):
        assert find_adapter(str(folder), key="adapter").file == job.paths.weights
    (checkpoint := job.paths.checkpoint_at(500)).mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"step-000500': holds no pytorch_lora_weights\.safetensors; name a job's"):
        find_adapter(str(checkpoint), key="adapter")
    (exported := job.paths.export).mkdir()
    shutil.copy(job.paths.weights, exported)
    assert find_adapter(str(exported), key="adapter").file == exported / job.paths.weights.name


def test_an_adapter_on_the_hub_may_have_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with giving(monkeypatch, str(tmp_path / "hub")) as hub:
        content = save({"unet.a.lora_A.weight": torch.zeros(2, 3)})
        hub.files["ann/pixels"] = {"pixels.safetensors": content, "README.md": b"of pixels"}
        hub.files["ann/several"] = {"one.safetensors": content, "two.safetensors": content}
        found = find_adapter("ann/pixels", key="adapter").file
        assert (found.name, found.read_bytes()) == ("pixels.safetensors", content)
        of_peft = save({"base_model.model.a.lora_A.weight": torch.zeros(2, 3)})
        hub.files["ann/peft"] = {"adapter_model.safetensors": of_peft, "adapter_config.json": b'{"lora_alpha": 4}'}
        hub.files["ann/alone"] = {"adapter_model.safetensors": of_peft}
        assert [each.name for each in find_adapter("ann/alone", key="adapter").files] == ["adapter_model.safetensors"]
        file, config = find_adapter("ann/peft", key="adapter").files
        assert (file.read_bytes(), config.name, config.read_bytes()) == (of_peft, PEFT_CONFIG, b'{"lora_alpha": 4}')
        hub.files["ann/pissa"] = {file.name: of_peft, config.name: b'{"init_lora_weights": "pissa"}'}
        with pytest.raises(SettingsError, match=r"starts as a part of its base \(init_lora_weights = 'pissa'\)"):
            find_adapter("ann/pissa", key="adapter")
        with pytest.raises(SettingsError, match=r"holds one\.safetensors, two\.safetensors; download the one"):
            find_adapter("ann/several", key="adapter")
        # A worker may have no access to the Hub, and have the file from the machine that planned the job.
        hub.refused["/"] = 0
        assert find_adapter("ann/pixels", key="adapter").file == found
        with pytest.raises(SettingsError, match=r"is neither on this machine nor available from the Hub"):
            find_adapter("ann/several", key="adapter")


@pytest.mark.parametrize("refused", ["/api/models/", "/resolve/main/pixels"])
def test_a_hub_that_fails_is_told_of_the_adapter_and_not_of_this_disk(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with giving(monkeypatch, str(tmp_path / "hub")) as hub:
        hub.files["ann/pixels"] = {"pixels.safetensors": save({"a": torch.zeros(1)})}
        hub.refused[refused] = 501

        answer = runner(
            "task=generate", "adapter=ann/pixels", "prompts=a", "launcher.dry_run=true", cwd=tmp_path,
            extra={"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "other")},
        )  # fmt: skip

    assert answer.code == 2
    assert "adapter = 'ann/pixels': is on the Hub, but cannot be downloaded (" in answer.output, answer.output
    assert "501" in answer.output
    assert "HTTP Request" not in answer.output, "addresses may be signed"


@pytest.mark.parametrize("given", ["8d9f4367bc", "grid/8d9f4367bc", "outputs/grid"])
def test_a_job_is_suggested_for_its_id_alone_and_for_its_experiment(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs" / "grid" / "8d9f4367bc" / "lora").mkdir(parents=True)
    (tmp_path / "outputs" / "grid" / "0ab1c2d3e4").mkdir()
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SettingsError, match=r", did you mean outputs/grid/8d9f4367bc\?$"):
        find_adapter(given, key="adapter")


def test_what_a_job_has_exported_is_suggested_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "e" / "export").mkdir(parents=True)
    save_file(
        {"unet.a.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "e" / "export" / "pytorch_lora_weights.safetensors"
    )

    with pytest.raises(SettingsError, match=r"holds no \S+, did you mean \S+/e/export\?$"):
        find_adapter(str(tmp_path / "e"), key="adapter")


def told(**changes: object) -> dict[str, object]:
    return {"name": "x", "task": {"name": "generate"}, "prompts": "a house", **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": []}, "prompts = []: has no value; set prompts="),
        ({"adapter": "nowhere/at/all"}, "adapter = 'nowhere/at/all': is not there"),
        ({"adapter_weight": [1, 2]}, "adapter_weight = [1.0, 2.0]: has no effect without adapter=..."),
        ({"adapter": "a", "adapter_weight": [1, 2]}, "adapter_weight = [1.0, 2.0]: 2 weights for 1 adapters"),
        ({"adapter_weight": 0.5}, "adapter_weight = [0.5]: has no effect without adapter"),
        ({"scheduler": {"name": "euler", "eta": 0.5}}, "scheduler.eta = 0.5: has no effect with scheduler=euler"),
        ({"control": {"path": "x"}}, "control.image = null: control.path needs it"),
        ({"control": {"path": "x", "image": "no.png"}}, "control.image = 'no.png': is not a file"),
        ({"control": {"path": "no/such", "image": __file__}}, "control.path = 'no/such': neither a folder on this"),
        ({"control": {"path": "no/such/one", "image": __file__}}, "control.path = 'no/such/one': there is no such"),
        ({"control": {"path": str(Path(__file__).parent), "image": __file__}}, "the folder has no config.json, so it"),
        ({"control": {"path": "x", "image": __file__}}, f"control.image = '{__file__}': cannot be read as an image"),
        (
            {"control": {"path": "x", "image": "wide.png"}},
            "control.image = 'wide.png': is 64 x 32, and what is drawn is",
        ),
        ({"control": {"path": "x", "image": "y"}, "model": {"family": "sd3"}}, "with model.family=sd and sdxl only"),
        (
            {"control": {"path": "x", "image": "y"}, "guidance_rescale": 0.7, "model": {"family": "sdxl"}},
            "guidance_rescale = 0.7: has no effect with control.path; remove it",
        ),
        ({"seeds": [2**64]}, "should be less than 18446744073709551616"),
        ({"model": {"family": "flux"}, "scheduler": {"name": "ddim"}}, "scheduler.name = 'ddim': belongs to models"),
        ({"scheduler": {"name": "lcm"}, "inference_steps": 51}, "inference_steps = 51: scheduler=lcm picks its"),
        ({"launcher": {"name": "local", "processes": 2}}, "launcher.processes = 2: has no effect with task=generate"),
        (
            {"launcher": {"name": "slurm", "gpus_per_node": 4}},
            "launcher.gpus_per_node = 4: has no effect with task=generate, which takes one process; remove it",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_drawn(
    changes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 32)).save("wide.png")
    with pytest.raises(SettingsError) as refused:
        Checker(tmp_path).job(told(**changes))

    assert said in str(refused.value)


def test_no_prompts_at_all_are_as_wrong_as_an_empty_list_of_them(tmp_path: Path) -> None:
    raw = told()
    del raw["prompts"]
    with pytest.raises(SettingsError, match=r"prompts = .*: has no value; set prompts="):
        Checker(tmp_path).job(raw)


def test_what_images_follow_counts_by_its_content(tmp_path: Path) -> None:
    network, image = tmp_path / "network", tmp_path / "edges.png"
    network.mkdir()
    (network / "config.json").write_text("{}")
    save_file({"any": torch.zeros(1)}, network / "diffusion_pytorch_model.safetensors")
    Image.new("RGB", (64, 64)).save(image)
    raw = told(control={"path": str(network), "image": str(image)}, model={"family": "sdxl"}, seeds=[2**64 - 1])
    before = Checker(tmp_path).job(raw).id
    assert Checker(tmp_path).job(raw).id == before
    (network / "config.json").write_text('{"other": 1}')
    assert Checker(tmp_path).job(raw).id != before


def test_a_training_cannot_be_drawn_with_another_family(adapter: Path, tmp_path: Path, sd15_folder: Path) -> None:
    raw = told(adapter=str(adapter), model={"family": "sd", "path": str(sd15_folder)})

    with pytest.raises(SettingsError, match="was trained for a model of the family sdxl"):
        Checker(tmp_path).job(raw, ("model.path=x",))


def test_the_model_is_that_of_the_adapter_unless_another_is_chosen(adapter: Path, tmp_path: Path) -> None:
    raw = told(adapter=str(adapter), resolution=512, model={"family": "sdxl", "path": "elsewhere", "resolution": 1024})

    job = Checker(tmp_path).job(raw)

    assert job.settings.model.path == "embedded"
    assert job.settings.resolution == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", [{"name": "generate"}, {"name": "evaluate"}])
def test_adapters_that_cannot_be_drawn_with_together_are_refused_before_anything_starts(
    task: dict[str, str], bench: Bench, sdxl_folder: Path, sdxl_parts: Parts, tmp_path: Path
) -> None:
    """So are adapters with a weight that they cannot have; an adapter of weight 0 is ignored."""
    unet = {"unet": sdxl_parts["unet"]}
    dora = str(write_peft_plainly(tmp_path / "dora.safetensors", random_layers(unet, dora=True), {"use_dora": True}))
    plain = str(write_peft_plainly(tmp_path / "plain.safetensors", random_layers(unet), {}))
    words, both = (str(with_words(bench, sdxl_folder, layers=layers).folder) for layers in (False, True))

    def check(adapter: list[str], weight: list[float]) -> None:
        raw = told(task=task, adapter=adapter, adapter_weight=weight)
        if task["name"] == "evaluate":
            raw = {**raw, "prompts": None, "metrics": ["base_drift"]}
        Checker(tmp_path).job(raw)

    for adapter, weight, said in (
        ([dora, plain], [1.0], "is a DoRA, which cannot be put together with others"),
        ([dora], [0.5], r"adapter_weight = 0\.5: .* is a DoRA"),
        ([words, both], [1.0], "brings the word <sks>, and so does"),
        ([words], [0.5], r"adapter_weight = 0\.5: has no effect on .*, which is words alone"),
        ([plain, words], [1.0, 0.5], "which is words alone"),
    ):
        with pytest.raises(SettingsError, match=said):
            check(adapter, weight)
    check([dora, plain], [1.0, 0.0])
    check([dora, words], [1.0])
    check([words, both], [0.0, 0.5])
    check([plain, words], [0.5])
