"""A model in one `.safetensors` file, as ComfyUI and A1111 use them: what it contains, and the folder made from it.

diffusers can read such a file when given the model's configurations, which lie in a separate folder (`model.config`).
Weights that the file lacks (the encoders and the VAE of a FLUX.1 file) come from that folder too. The result is kept in
the cache. Only reading the model needs torch.
"""

from __future__ import annotations

import logging
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from runner.errors import ModelError
from runner.families.known import FAMILIES
from runner.families.layout import INDEX, SCHEDULER_CONFIG, config_of, index_of
from runner.paths import atomic_folder, path_of
from runner.s3 import is_s3
from runner.schema import ModelSettings
from runner.system.exclusive import alone
from runner.system.tensor_file import read_header

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
DENOISER = ("model.diffusion_model.", "joint_blocks.", "double_blocks.", "transformer_blocks.", "single_blocks.")
VAE = ("first_stage_model.", "vae.")
T5 = ("text_encoders.t5xxl.",)
CLIP = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.clip_")
"""Prefixes of tensor names that tell what a file holds."""
PRECISIONS = ("F16", "BF16", "F32")
"""From the least to the most precise; if a file has several, everything is converted to the most precise."""
WHOLE_NUMBERS = ("I8", "I16", "I32", "I64", "U8", "BOOL")
V_PREDICTION = "v_prediction"
VELOCITY_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors that mark an SDXL file for other programs: one that predicts velocity, one that ends in pure noise."""


def is_single_file(path: str) -> bool:
    """Whether `model.path` names a single file."""
    return path.endswith(SUFFIX) and not is_s3(path)


def single_file_faults(settings: ModelSettings, *, used_here: bool) -> list[str]:
    """What is wrong with `model.path` as a single file and with `model.config`, one line each."""
    assert settings.config is not None, "the schema asks for it"
    file, folder = path_of(settings.path), path_of(settings.config)
    said = f"model.path = {settings.path!r}"
    if not used_here:
        why = "a single file is laid out on the machine that reads it, and jobs that run elsewhere are sent folders"
        return [f"{said}: {why}; give a folder in diffusers layout"]
    if not (folder / INDEX).is_file():
        fix = "the configurations and tokenizers of this kind of model (its weights are not needed)"
        return [f"model.config = {settings.config!r}: has no {INDEX}; give a folder in diffusers layout with {fix}"]
    try:
        header = read_header(file).tensors
    except (OSError, ValueError) as error:
        return [f"{said}: cannot be read as a {SUFFIX} file ({error})"]
    if not any(name.startswith(DENOISER) and "lora" not in name for name in header):
        return [f"{said}: holds no UNet or transformer; it may be a LoRA or a VAE, but not a base model"]
    kinds = _precisions(header)
    strange = kinds - {*PRECISIONS, *WHOLE_NUMBERS} or (set() if kinds & {*PRECISIONS} else kinds)
    if strange:
        return [f"{said}: its weights are quantised ({min(strange)}); give the file in bf16, fp16 or fp32"]
    try:
        apart = _apart(header, folder)
        faults = _other_prediction(settings, header, folder)
    except ValueError as error:
        return [f"model.config = {settings.config!r}: {error}; correct or replace it"]
    return faults + [
        f"model.config = {settings.config!r}: {settings.path} holds no weights of the {name}, and neither does this "
        f"folder; put them into its {name}/"
        for name in apart
        if not _has_weights(folder / name)
    ]


def _other_prediction(settings: ModelSettings, header: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """Faults where a mark in the file about its prediction contradicts the sampler beside it and no setting decides."""
    there = (folder / "scheduler" / SCHEDULER_CONFIG).is_file()
    sampler = config_of(folder, "scheduler") if there else {}
    told = f"model.config = {settings.config!r}: {settings.path} is marked as a model that"
    faults = []
    if VELOCITY_MARK in header and settings.prediction_type is None and sampler.get("prediction_type") != V_PREDICTION:
        faults.append(
            f"{told} predicts velocity, and the scheduler of this folder says otherwise; set "
            "model.prediction_type=v_prediction"
        )
    if ZERO_SNR_MARK in header and settings.zero_terminal_snr is None and not sampler.get("rescale_betas_zero_snr"):
        faults.append(
            f"{told} ends in noise alone, and the scheduler of this folder says otherwise; set "
            "model.zero_terminal_snr=true"
        )
    return faults


def _precisions(header: dict[str, dict[str, Any]]) -> set[str]:
    """The precisions of the model's weights, ignoring marks and tables of the noise schedule in the same file."""
    parts = (*DENOISER, *VAE, *T5, *CLIP)
    return {str(entry["dtype"]) for name, entry in header.items() if name.startswith(parts)}


def _apart(header: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """The model's parts with weights that are not in the file."""
    index = index_of(folder)
    wanted: dict[str, tuple[str, ...]] = {"vae": VAE}
    for name, value in index.items():
        if name.startswith("text_encoder") and value[0]:
            wanted[name] = T5 if value[1].startswith("T5") else CLIP
    return [name for name, begins in wanted.items() if not any(key.startswith(begins) for key in header)]


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def lay_out_single_file(settings: ModelSettings, folder: Path) -> Path:
    """Write the model into a folder in diffusers layout, which appears all at once; does nothing if it exists.

    Raises:
        ModelError: diffusers cannot read the file with these configurations.
    """
    with alone(folder.parent / f"{folder.name}.lock", doing=f"reading {Path(settings.path).name}"):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(left)
            log.info("laying out %s (only once)", settings.path)
            with atomic_folder(folder) as temporary:
                _read(settings).save_pretrained(temporary)
    return folder


def _read(settings: ModelSettings) -> Any:
    """The pipeline in the file, in its highest precision, on the CPU."""
    import diffusers
    import torch

    file, folder = path_of(settings.path), path_of(str(settings.config))
    header = read_header(file).tensors
    kinds = _precisions(header)
    found = [precision for precision in PRECISIONS if precision in kinds]
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[found[-1]]
    index = index_of(folder)
    try:
        given = {}
        for name in _apart(header, folder):
            library, kind = index[name]
            given[name] = getattr(import_module(library), kind).from_pretrained(folder / name, torch_dtype=dtype)
        kind = getattr(diffusers, FAMILIES[settings.family].pipeline)
        # As in `loading`: parts that these files were never meant to have.
        absent: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
        pipeline = kind.from_single_file(
            str(file), config=str(folder), local_files_only=True, torch_dtype=dtype, **given, **absent
        )
    except Exception as error:  # any exception here means the same as a missing tensor
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"model.path = {settings.path!r}: diffusers cannot read the file with the configurations in "
            f"model.config = {settings.config!r} ({type(error).__name__}: {reason}); are they of the same model?"
        ) from error
    _check_complete(pipeline, settings)
    return pipeline


def _check_complete(pipeline: Any, settings: ModelSettings) -> None:
    for name, part in pipeline.components.items():
        if hasattr(part, "tie_weights"):
            part.tie_weights()  # T5 holds its embeddings twice, the file once
        unread = [key for key, each in part.named_parameters() if each.is_meta] if hasattr(part, "parameters") else []
        if unread:
            raise ModelError(
                f"model.path = {settings.path!r}: has nothing for {name}.{unread[0]} of the configurations in "
                f"model.config = {settings.config!r}; are they of the same model?"
            )
