"""What shells and users do to a command line: flags among settings, spaces, values without their quotes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.command import entry
from runner.command.diagnose import diagnose
from runner.command.typed import flags_first, mended


def said_of(*arguments: str) -> list[str]:
    """The faults of a command line that Hydra rejects."""
    title, *faults = str(diagnose(arguments, ValueError("what Hydra says"))).splitlines()
    assert title == "The configuration is invalid, nothing was started:"
    return [fault.strip() for fault in faults]


def test_flags_may_stand_among_settings() -> None:
    arguments = ["lora.rank=4", "--config-dir", "mine", "-m", "lora=ours", "--cfg", "job", "steps=1,2"]
    in_order = ["--config-dir", "mine", "-m", "--cfg", "job", "lora.rank=4", "lora=ours", "steps=1,2"]
    assert flags_first(arguments) == (in_order, [])
    arguments = ["lora.rank=4", "--config-dir=mine", "--info", "steps=1", "lora.alpha", "=", "-1"]
    in_order = ["--config-dir=mine", "--info", "lora.rank=4", "steps=1", "lora.alpha", "=", "-1"]
    assert flags_first(arguments) == (in_order, [])


def test_a_setting_with_dashes_is_refused_with_what_to_type() -> None:
    settings, faults = flags_first(
        ["--lora.rank=4", "steps=3", "--seed", "5", "--learning_rate", "1e-4", "--network_dim=8", "--prompts"]
    )

    assert settings == ["lora.rank=4", "steps=3", "seed=5", "optimizer.lr=1e-4", "lora.rank=8"]
    no_flag = "there is no such flag; settings have no dashes:"
    assert [fault.partition(" (")[0] for fault in faults] == [
        f"--lora.rank=4: {no_flag} lora.rank=4",
        f"--seed 5: {no_flag} seed=5",
        f"--learning_rate 1e-4: {no_flag} optimizer.lr=1e-4",
        f"--network_dim=8: {no_flag} lora.rank=8",
        f"--prompts: {no_flag} prompts=...",
    ]


def test_a_wrong_flag_hides_no_other_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["runner", "--multirunn", "steps=0", "--cfg", "jobb", "--lora.rank=x"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines() == [
        "The command is invalid, nothing was started:",
        "  --multirunn: there is no such flag, did you mean --multirun? (--hydra-help lists them)",
        "  --cfg jobb: should be one of job, hydra, all, did you mean job?",
        "  --lora.rank=x: there is no such flag; settings have no dashes: lora.rank=x (--hydra-help lists the flags)",
        "  steps = 0: should be at least 1",
        "  lora.rank = 'x': should be a whole number",
    ]
    assert flags_first(["--cfg=jobb", "-c", "job"]) == (
        ["-c", "job"],
        ["--cfg jobb: should be one of job, hydra, all, did you mean job?"],
    )


def test_a_flag_at_the_end_that_lacks_its_value_is_refused_with_what_it_takes() -> None:
    for arguments in (["steps=1", "--config-dir"], ["--cfg"]):
        settings, faults = flags_first(arguments)
        assert settings == arguments[:-1]
        what = ", one of job, hydra, all" if arguments[-1] == "--cfg" else ""
        assert faults == [f"{arguments[-1]}: should be followed by a value{what} (--hydra-help lists the flags)"]
    assert flags_first(["--info"]) == (["--info"], [])


def test_where_hydra_would_put_results_is_refused() -> None:
    _, faults = flags_first(["-m", "hydra.sweep.dir=elsewhere", "+hydra.run.dir=x"])

    moved = "moves no results; set the variable RUNNER_OUTPUTS, and name=... for the folder in it"
    assert faults == [f"hydra.sweep.dir = elsewhere: {moved}", f"hydra.run.dir = x: {moved}"]


@pytest.mark.parametrize("key", ["hydra.output_subdir", "hydra.job.chdir", "hydra.mode"])
def test_what_hydra_does_elsewhere_and_not_here_is_refused(key: str) -> None:
    settings, faults = flags_first([f"{key}=x", "steps=1"])

    assert settings == ["steps=1"]
    assert len(faults) == 1 and faults[0].startswith(f"{key} = x: ")


def test_what_would_take_a_sweep_apart_is_refused() -> None:
    """Each batch would be checked, planned and packed separately, the second one after the first is trained."""
    _, faults = flags_first(["-m", "lora.rank=4,8", "hydra.sweeper.max_batch_size=1", "hydra/launcher=submitit_slurm"])

    apart = "takes a sweep apart, which is checked and packed as a whole; remove it,"
    assert faults == [
        f"hydra.sweeper.max_batch_size = 1: {apart} launcher.pack and launcher.concurrency say how many at once",
        f"hydra/launcher = submitit_slurm: {apart} launcher=local, slurm or sagemaker says where",
    ]


@pytest.mark.parametrize(
    ("words", "meant", "fault"),
    [
        ("lora.rank = 4", "lora.rank=4", "lora.rank = 4: no spaces around '=' and ',': lora.rank=4"),
        ("lora.rank =4", "lora.rank=4", "lora.rank =4: no spaces around '=' and ',': lora.rank=4"),
        ("seed=0, 1", "seed=0,1", "seed=0, 1: no spaces around '=' and ',': seed=0,1"),
        (
            "dataset.instance_prompt=a photo of sks dog, red",
            'dataset.instance_prompt="a photo of sks dog, red"',
            (
                "dataset.instance_prompt=a photo of sks dog, red: a value with spaces needs quotes: "
                "'dataset.instance_prompt=\"a photo of sks dog, red\"'"
            ),
        ),
        (
            "validation.prompts=[a house, b]",
            "validation.prompts=[a house, b]",
            "validation.prompts=[a house, b]: a value with spaces needs quotes: 'validation.prompts=[a house, b]'",
        ),
    ],
)
def test_a_setting_that_the_shell_has_cut_is_put_together(words: str, meant: str, fault: str) -> None:
    assert mended(["steps=3", *words.split(" "), "~lora.rank"]) == (["steps=3", meant, "~lora.rank"], [fault])


def test_what_is_no_setting_is_told() -> None:
    assert said_of("lora.rank", "8") == ["lora.rank 8: is not a setting; write key=value, such as lora.rank=8"]


def test_several_values_without_m_are_told_apart_by_what_they_can_mean() -> None:
    several = "several values need -m (python -m runner -m ...)"
    assert said_of("lora=linear,attention") == [f"lora = linear,attention: {several}"]
    assert said_of("optimizer.lr=interval(1e-4,1e-2)") == [f"optimizer.lr = interval(1e-4,1e-2): {several}"]
    assert said_of("lora.rank=4,8") == [f"lora.rank = 4,8: {several}"], "a list is no number"
    for task, key in (("train", "validation.seeds"), ("generate", "adapter_weight")):
        first, *more = said_of(f"task={task}", f"{key}=4,8")
        assert not [fault for fault in more if fault.startswith(key)], "told once"
        assert first == f"{key} = 4,8: {several}; a list needs brackets: '{key}=[4,8]'"
    (prompt,) = said_of("dataset.instance_prompt=a dog, red")
    assert prompt.endswith("; a text with commas needs quotes of its own: 'dataset.instance_prompt=\"a dog, red\"'")


def test_a_text_with_signs_is_told_with_its_quotes() -> None:
    for text, typed in (
        ("dataset.instance_prompt=it's", "'dataset.instance_prompt=\"it'\\''s\"'"),
        ("dataset.instance_prompt=a <cat>", "'dataset.instance_prompt=\"a <cat>\"'"),
        ("dataset.instance_prompt=Gemälde", "'dataset.instance_prompt=\"Gemälde\"'"),
        ("validation.prompts=[a <cat>]", "'key=\"value\"'"),
        ("optimizer.lr=log(interval(1,2))", "'key=\"value\"'"),
        ("lora..rank=4", "'key=\"value\"'"),
        ("dataset.instance_prompt=~/x", "'dataset.instance_prompt=\"~/x\"'"),
    ):
        (fault,) = said_of(text)
        assert fault.endswith(f"; quote values with special characters: {typed}")


@pytest.mark.parametrize(
    "text",
    [
        "prompts=a <cat> and a dog",
        "prompts=a red house, in a garden",
        "prompts=ein schönes Haus",
        "prompts=Öl",
        "prompts=a,b",
    ],
)
def test_a_text_without_its_quotes_is_not_told_as_missing_besides(text: str) -> None:
    (fault,) = said_of("task=generate", text)

    assert fault.startswith(text.partition("=")[0])


def test_tasks_are_not_swept_and_nothing_is_said_of_settings_that_depend_on_them() -> None:
    (fault,) = said_of("-m", "task=merge,export", "adapter=outputs/dev/123")

    assert fault == "task = merge,export: tasks have settings of their own, so run the command once for each of them"


def test_no_group_can_be_left_out() -> None:
    (fault,) = said_of("lora=null")

    assert fault.startswith("lora = null: there is no such choice; there are: attention, ")


def test_a_file_of_the_user_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "lora" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(b"rank: 4\n# f\xfcr uns\n")

    (fault,) = said_of("--config-dir", str(tmp_path), "lora=mine")

    assert fault == f"{file}, line 2: is not UTF-8 (invalid start byte); save it as UTF-8"


def test_a_file_of_the_user_that_is_a_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lora" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("- rank: 4\n")

    (fault,) = said_of("--config-dir", str(tmp_path), "lora=mine")

    assert fault == (
        f"{file}: holds a list (- value), where settings with their names belong (key: value); correct the file"
    )


def test_a_file_with_another_ending_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lora" / "mine.yml"
    file.parent.mkdir()
    file.write_text("rank: 4\n")

    (fault,) = said_of("--config-dir", str(tmp_path), "lora=mine")

    assert fault == f"lora = mine: {file} is not read, because its name must end with .yaml; rename it"


def test_a_sweep_of_a_recipe_that_is_left_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n")
    monkeypatch.setattr(entry, "launch", lambda configs: configs)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["runner", "recipe=mine", "--config-dir", str(tmp_path)])

    main()

    assert "a single job: the sweep of the recipe (seed=0,1) needs -m" in capsys.readouterr().err
    sys.argv[1:] = ["-m", "recipe=demo,mine", "--config-dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  recipe = mine: its own sweep (seed=0,1) has no effect where recipes are swept; run the command once for each"
    ]


def test_a_recipe_whose_settings_nothing_would_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("steps: 7\nlora: {rank: 4}\n")

    (fault,) = said_of("--config-dir", str(tmp_path), "recipe=mine")

    assert fault.startswith("recipe.steps, recipe.lora: nothing reads settings below recipe; ")
    assert "'# @package _global_'" in fault
    file.write_text("# @package _global_\n" + file.read_text())
    assert said_of("--config-dir", str(tmp_path), "recipe=mine") == ["what Hydra says"]


def test_what_would_be_in_a_list_is_told_with_the_list() -> None:
    whole = "dataset.sources is a list, and is set as a whole: 'dataset.sources=[...]'"
    assert said_of("dataset.sources.first=9") == [f"dataset.sources.first = 9: {whole}"]
    assert said_of("dataset.sources=[{path: embedded}]", "dataset.path=null", "dataset.sources.0.repeats=3") == [
        f"dataset.sources.0.repeats = 3: {whole}"
    ]


def test_an_item_of_a_list_is_not_removed_by_its_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("sys.argv", ["runner", "~optimizer.betas.0", "steps=0"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  ~optimizer.betas.0: optimizer.betas is a list, and is set as a whole: 'optimizer.betas=[...]'",
        "  steps = 0: should be at least 1",
    ]


def test_a_defect_in_the_composition_is_not_called_the_users() -> None:
    defect = TypeError("of ours")
    with pytest.raises(TypeError) as raised:
        diagnose(["seed=1"], defect)
    assert raised.value is defect
