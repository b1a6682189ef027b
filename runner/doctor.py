"""`python -m runner.doctor`: what this machine has for training, what it lacks, and how to fix that.

Only looks and queries, and changes nothing. Its output contains no secrets and can be pasted into a bug report.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement

from runner.errors import in_words
from runner.paths import cache_dir, outputs_dir
from runner.system.machine import disk_of, find_gpus, folder_fault, this_machine
from runner.system.printable import printable
from runner.system.signals import silence
from runner.work import git_commit

PROJECT = "lora-runner"
ANSWER_WITHIN_S = 5.0
"""How long a server may take before it counts as silent."""
MARKS = {"good": "  ", "missing": "- ", "wrong": "! "}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    text: str
    kind: Literal["good", "missing", "wrong"] = "good"
    """`missing`: some feature cannot be used without it; `wrong`: training suffers from it."""
    fix: str = ""


def packages() -> Iterator[Finding]:
    """The project, and whether its requirements are installed in versions that it works with."""
    commit = git_commit()
    yield Finding("project", f"{metadata.version(PROJECT)}{f', commit {commit}' if commit else ''}")
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    found = []
    for requirement in _requirements(""):
        installed = _version(requirement.name)
        found.append(f"{requirement.name} {installed or 'missing'}")
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            there = f"{installed} is installed" if installed else "is not installed"
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            text = f"{requirement.name} {there}, but {requirement.specifier} is required"
            yield Finding("packages", text, "wrong", fix)
    yield Finding("packages", ", ".join(found))


def extras() -> Iterator[Finding]:
    """Parts of the project that need further packages."""
    for extra in metadata.metadata(PROJECT).get_all("Provides-Extra", []):
        if extra == "dev":
            continue
        lacking = [each.name for each in _requirements(extra) if _version(each.name) is None]
        if lacking:
            fix = f"pip install '{PROJECT}[{extra}]'"
            yield Finding(f"[{extra}]", f"not installed: {', '.join(lacking)}", "missing", fix)
        else:
            yield Finding(f"[{extra}]", "installed")


def devices() -> Iterator[Finding]:
    """What training runs on, and whether torch can use the GPUs that the driver lists."""
    import torch

    listed, build = find_gpus(), f"torch {torch.__version__}"
    yield Finding("host", this_machine("cpu").line())
    if not listed and torch.cuda.is_available():
        text = f"{build} sees {torch.cuda.device_count()}, and nvidia-smi lists none: plans are made for the CPU"
        fix = "put nvidia-smi on the PATH (in a container: the driver capability utility)"
        yield Finding("GPUs", text, "wrong", fix)
        return
    if not listed:
        yield Finding("GPUs", "nvidia-smi lists none that may be used here: training runs on the CPU")
        return
    line = this_machine("cuda").line()
    if torch.version.cuda is None:
        fix = "install a build of torch with CUDA"
        yield Finding("GPUs", f"{line}; {build} was built without CUDA and cannot use them", "wrong", fix)
        return
    try:
        for index in range(torch.cuda.device_count()):
            torch.ones(2, device=f"cuda:{index}").sum().item()
        fault = "" if torch.cuda.is_available() else "torch finds no GPU"
    except RuntimeError as error:  # an old driver, or a GPU that this build has no kernels for
        fault = str(error).splitlines()[0]
    if fault:
        fix = "install a build of torch that fits the driver and the GPU"
        yield Finding("GPUs", f"{line}; {build} cannot use them: {fault}", "wrong", fix)
    else:
        yield Finding("GPUs", f"{line}; {build}, CUDA {torch.version.cuda}")


def disks() -> Iterator[Finding]:
    """Where results and encodings go."""
    for name, folder, variable in (
        ("outputs", outputs_dir(), "RUNNER_OUTPUTS"),
        ("cache", cache_dir(), "RUNNER_CACHE"),
    ):
        free_gb, _ = disk_of(folder)
        if fault := folder_fault(folder):
            yield Finding(name, f"{folder}: {fault}", "wrong", f"set {variable} to another folder")
        else:
            yield Finding(name, f"{folder}, {free_gb:.1f} GB free")


def hub() -> Iterator[Finding]:
    """Whether models and data sets can be fetched from the Hub, including those that require an account."""
    from huggingface_hub import HfApi, constants, get_session, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", "HF_HUB_OFFLINE is set: only files on this machine are used")
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_WITHIN_S)
    except Exception as error:  # noqa: BLE001 (which HTTP client the Hub's library uses changes with its version)
        reason = f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
        yield Finding("Hub", f"{reason}: only models on this machine can be used", "missing", "model.path=FOLDER")
        return
    if not get_token():
        text = "reachable, but without an account: models that require one, such as FLUX.1, cannot be fetched"
        yield Finding("Hub", text, "missing", "hf auth login")
        return
    try:
        yield Finding("Hub", f"reachable, as {HfApi().whoami()['name']}")
    except HfHubHTTPError as error:
        yield Finding("Hub", f"the token was rejected ({error.response.status_code})", "wrong", "hf auth login")


def weights_and_biases() -> Iterator[Finding]:
    """Whether runs appear in W&B while they run."""
    from runner.track.reach import choose_mode, server_url, unreachable_because

    mode = choose_mode("auto")
    if mode != "online":
        named = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "no API key"
        yield Finding("W&B", f"{mode} ({named}): runs stay in their folders", "missing", "wandb login")
    elif reason := unreachable_because(server_url(), ANSWER_WITHIN_S):
        yield Finding("W&B", f"does not answer ({reason}): runs stay in their folders", "missing")
    else:
        yield Finding("W&B", f"online at {server_url()}")


def sagemaker() -> Iterator[Finding]:
    """Whether AWS recognises the credentials of this user."""
    from runner.s3.access import aws_session, client_config, require_boto3, understood

    require_boto3()
    session = aws_session()
    if session.get_credentials() is None:
        yield Finding("AWS", "no credentials", "missing", "aws configure, for launcher=sagemaker and s3:// paths")
        return
    with understood("sts:GetCallerIdentity"):
        client = session.client("sts", config=client_config(1), region_name=session.region_name or "us-east-1")
        caller = client.get_caller_identity()["Arn"].split(":")[-1]
    region = session.region_name or "no region"
    yield Finding("AWS", f"as {caller}, {region}")


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted to Slurm from here."""
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", "no sbatch here", "missing", "launcher=slurm is for machines that submit to a cluster")
    else:
        yield Finding("Slurm", f"{shutil.which('sbatch')}")


def _requirements(extra: str) -> list[Requirement]:
    """The requirements of the project, or of one of its extras, on this machine."""
    asked = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    always = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [each for each in asked if each not in always and each.marker and each.marker.evaluate({"extra": extra})]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(packages, devices, disks, hub, weights_and_biases, sagemaker, slurm, extras),
)


def findings() -> Iterator[Finding]:
    """The findings of all checks; a check that fails is a finding itself."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 (whatever it is, the other checks still run)
            yield Finding(check.__name__.replace("_", " "), in_words(error), "missing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings, one per line; returns 1 if anything is wrong."""
    about = "Report what this machine has for training, and what it lacks."
    parser = argparse.ArgumentParser(prog="python -m runner.doctor", description=about)
    parser.parse_args(arguments)
    wrong = False
    try:
        for each in findings():
            wrong |= each.kind == "wrong"
            fix = f"  ->  {each.fix}" if each.fix else ""
            sys.stdout.write(f"{MARKS[each.kind]}{each.name:<12} {printable(each.text)}{fix}\n")
            sys.stdout.flush()
    except BrokenPipeError:  # a reader that stops, such as head
        silence([sys.stdout.fileno()])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
