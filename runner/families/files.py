"""Where a base model's files are and what they contain, without reading them into tensors or importing torch.

A model is identified by its content: a folder that was moved is the same model, one that was changed is not. A model in
S3 is identified by its listing instead, wherever it is trained, so it differs from a local copy of the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from runner.embedded import MODEL_DIR
from runner.errors import ModelError
from runner.families import stored
from runner.families.known import FAMILIES
from runner.families.layout import (
    CONFIG,
    INDEX,
    Weights,
    config_of,
    has_zeros_for_empty,
    index_of,
    layout_faults,
    names_in,
    part_faults,
)
from runner.families.single_file import is_single_file, lay_out_single_file, single_file_faults
from runner.hub import hub_faults, not_to_be_had, reason_of
from runner.paths import cache_dir, path_of
from runner.s3 import is_s3
from runner.schema import Experiment, ModelSettings
from runner.schema.method import DreamBooth
from runner.system.archive import BadArchive, is_archive
from runner.system.hashes import HASHED_SUFFIXES, file_hash, folder_hash

MODEL_FILES, VAE_FILES = (INDEX,), (CONFIG, f"vae/{CONFIG}")
"""Files that identify the layout; any one of them is enough."""
FAMILY_OF_PIPELINE = {known.pipeline: name for name, known in FAMILIES.items()}


def local_folder(path: str) -> Path | None:
    """The folder of a model on this machine, including a complete copy of one in S3; None otherwise.

    Raises:
        BadArchive: it is a `.tar.gz` that cannot be unpacked.
    """
    if path == "embedded":
        return MODEL_DIR
    if is_s3(path):
        return stored.local_copy(path)
    folder = path_of(path)
    if is_archive(path) and folder.is_file():
        return stored.laid_out(folder)
    return folder.absolute() if folder.is_dir() else None


def model_folder(settings: ModelSettings) -> Path | None:
    """The folder of a base model with its weights, if it is on this machine; None otherwise."""
    if is_single_file(settings.path):
        place = _place_of_single_file(settings)
        return place if place.is_dir() else None
    return local_folder(settings.path)


def planning_folder(settings: ModelSettings) -> Path | None:
    """The folder with a checked model's configurations, possibly without weights; None if they are not here."""
    if settings.config is not None:
        return path_of(settings.config)
    return stored.described(settings.path) if is_s3(settings.path) else local_folder(settings.path)


def dropout_faults(experiment: Experiment) -> list[str]:
    """Why nothing would train the text encoders of a checked model, one line; empty if something does."""
    data, method = experiment.dataset, experiment.method
    # The base model's own prediction for the class is learnt with the class prompt, which is never left out.
    has_prompts = isinstance(method, DreamBooth) and method.prior == "base"
    folder = planning_folder(experiment.model)
    if not experiment.lora.text_encoder or data.caption_dropout < 1 or has_prompts or folder is None:
        return []
    if experiment.model.family != "sdxl" or not has_zeros_for_empty(index_of(folder)):
        return []  # the encoded empty caption trains them
    reason = "leaves out every caption, and this model then takes zeros instead of what its text encoders give"
    fix = "so that lora.text_encoder=true trains nothing; lower it, or set lora.text_encoder=false"
    return [f"dataset.caption_dropout = {data.caption_dropout}: {reason}, {fix}"]


def resolution_faults(settings: ModelSettings, resolution: int, *, longest_px: int | None = None) -> list[str]:
    """Why a checked model cannot be trained at a resolution, one line each: SD3 has a limited number of positions.

    Args:
        longest_px: longest side of any bucket, if images are not square.
    """
    folder = planning_folder(settings)
    if folder is None:
        return []
    try:
        config = config_of(folder, FAMILIES[settings.family].denoiser)
        vae_levels = len(config_of(folder, "vae")["block_out_channels"])
        limit_px = config["pos_embed_max_size"] * config["patch_size"] * 2 ** (vae_levels - 1)
    except (OSError, ValueError, KeyError, TypeError):  # it has no such limit
        return []
    if resolution > limit_px:
        return [f"resolution = {resolution}: {settings.path} supports images of up to {limit_px} px; lower it"]
    if longest_px is not None and longest_px > limit_px:
        said = f"{settings.path} supports images of up to {limit_px} px, and the longest bucket has {longest_px}"
        return [f"dataset.buckets = true: {said}; lower dataset.bucket_max_aspect or resolution"]
    return []


def _place_of_single_file(settings: ModelSettings) -> Path:
    return cache_dir() / "single-files" / hashlib.sha256(_single_file_identity(settings).encode()).hexdigest()[:20]


def _single_file_identity(settings: ModelSettings) -> str:
    """Identifies the file and the folder beside it by their content, whatever their names."""
    digest = file_hash(path_of(settings.path))
    return f"single-file-{digest}:{folder_hash(path_of(str(settings.config)))}"


def check_model(settings: ModelSettings, *, used_here: bool = True) -> list[str]:
    """Faults of `model.path` and `model.vae`, one line each.

    Args:
        used_here: whether a Hub id must be in the local cache or reachable, not merely well-formed.
    """
    faults = _model_faults(settings, used_here=used_here)
    if settings.vae is not None:
        faults += _vae_faults(settings.vae, used_here=used_here)
    return faults


def _model_faults(settings: ModelSettings, *, used_here: bool) -> list[str]:
    if is_single_file(settings.path):
        faults, beside = single_file_faults(settings, used_here=used_here), path_of(str(settings.config))
        faults = faults or _other_family(beside, settings)
        lacks = () if faults else _lacks(beside, names_in(beside), settings, "none")
        return faults + [f"model.config = {settings.config!r}: {reason}" for reason in lacks]
    if is_s3(settings.path):
        faults = stored.look("model.path", settings.path, one_of=MODEL_FILES)
        folder = None if faults else stored.described(settings.path)
        return faults if folder is None else _layout_faults(folder, settings)
    try:
        folder = local_folder(settings.path)
    except BadArchive as error:
        return [f"model.path = {settings.path!r}: {error}"]
    if folder is not None:
        return _layout_faults(folder, settings)

    def missing_in(copy: Path) -> Iterator[str]:
        return _lacks(copy, names_in(copy), settings, "here")

    return hub_faults("model.path", settings.path, INDEX, settings.revision, ask=used_here, lacks=missing_in)


def _layout_faults(folder: Path, settings: ModelSettings) -> list[str]:
    said = f"model.path = {settings.path!r}"
    if not (folder / INDEX).is_file():
        why = f"the folder has no {INDEX}, so it is not a model in diffusers layout"
        return [f"{said}: {why}; name the folder that save_pretrained wrote"]
    wrong_variant = _missing_variant(folder, settings)
    try:
        other_family = _other_family(folder, settings)
    except (OSError, ValueError):
        other_family = []  # the checks below report what is wrong with the index
    if other_family:
        return other_family + wrong_variant  # checks made for the wrong family would all fail
    listed = is_s3(settings.path) and not is_archive(settings.path)
    names = set(stored.names_like(settings.path, "*")) if listed else names_in(folder)
    weights: Weights = "none" if wrong_variant else "listed" if listed else "here"
    lacks = _lacks(folder, names, settings, weights)
    return wrong_variant + [f"{said}: {reason}" for reason in lacks]


def _lacks(folder: Path, names: Collection[str], settings: ModelSettings, weights: Weights) -> Iterator[str]:
    return layout_faults(
        folder,
        names,
        FAMILIES[settings.family].denoiser,
        variant=settings.variant,
        own_vae=settings.vae is None,
        weights=weights,
    )


def _vae_faults(path: str, *, used_here: bool) -> list[str]:
    if is_s3(path):
        return stored.look("model.vae", path, one_of=VAE_FILES)
    try:
        if folder := local_folder(path):
            found = part_faults(vae_folder(folder, None))
            return [f"model.vae = {path!r}: {reason}" for reason in found]
        faults = hub_faults("model.vae", path, CONFIG, None, ask=used_here, lacks=part_faults)
        # `model=sdxl` brings one along, even if model.path is a copy on this machine.
        return [f"{fault}, or set model.vae=null for the model's own" for fault in faults]
    except BadArchive as error:
        return [f"model.vae = {path!r}: {error}"]


def _missing_variant(folder: Path, settings: ModelSettings) -> list[str]:
    pattern = f"{FAMILIES[settings.family].denoiser}/*.{settings.variant}.*"
    # The weights of a folder in S3 are not here yet.
    listed = is_s3(settings.path) and stored.names_like(settings.path, pattern)
    if settings.variant is None or listed or any(folder.glob(pattern)):
        return []
    return [f"model.variant = {settings.variant!r}: {settings.path} has no files of this variant; set it to null"]


def _other_family(folder: Path, settings: ModelSettings) -> list[str]:
    pipeline = str(index_of(folder).get("_class_name"))
    family = FAMILY_OF_PIPELINE.get(pipeline)
    if family == settings.family:
        return []
    fix = f"set model.family={family}" if family else f"families are {', '.join(FAMILY_OF_PIPELINE.values())}"
    return [f"model.family = {settings.family!r}: {settings.path} holds a {pipeline}; {fix}"]


def fingerprint(settings: ModelSettings) -> str:
    """Identifies the base model: a hash of its files if they are local, its name and revision if it is on the Hub.

    A model in S3 is identified by its listing (names, sizes, ETags) as of the check before, even if a copy is here: a
    job has one id wherever it runs, which differs from that of a local folder with the same files.
    """
    single = is_single_file(settings.path)
    own = _single_file_identity(settings) if single else _identity(settings.path, settings.revision, settings.variant)
    parts = [own]
    if settings.vae is not None:
        parts.append(_identity(settings.vae, None, None))
    return "+".join(parts)


def _identity(path: str, revision: str | None, variant: str | None) -> str:
    if is_s3(path):
        return stored.listing_hash(path, HASHED_SUFFIXES) + (f":{variant}" if variant else "")
    folder = local_folder(path)
    if folder is None:
        return f"{path}@{revision or 'main'}:{variant or ''}"
    return folder_hash(folder) + (f":{variant}" if variant else "")


def snapshot(settings: ModelSettings) -> Path:
    """The local folder with a model's files, fetched from S3 or the Hub or laid out if necessary.

    Raises:
        ModelError: it is neither on this machine nor reachable, or one of its files cannot be read.
    """
    path = settings.path
    if is_single_file(path):
        return lay_out_single_file(settings, _place_of_single_file(settings))
    if is_s3(path):
        return stored.fetched("model.path", path)
    folder = local_folder(path)
    if folder is not None:
        return folder
    from diffusers import DiffusionPipeline

    try:
        fetched = DiffusionPipeline.download(
            path, revision=settings.revision, variant=settings.variant, use_safetensors=True
        )
    except Exception as error:  # the client's HTTP library has its own exceptions, which are not OSErrors
        raise ModelError(f"model.path = {path!r}: {not_to_be_had(reason_of(error))}") from error
    return Path(fetched)


def vae_folder(model: Path, vae: Path | None) -> Path:
    """The folder with the VAE's own files: the model's, or those of its replacement."""
    source = vae or model
    return source / "vae" if (source / "vae").is_dir() else source


def vae_source(settings: ModelSettings) -> Path | None:
    """The folder of a VAE that replaces the model's own; None without a replacement.

    Raises:
        ModelError: it is neither on this machine nor reachable.
    """
    if settings.vae is None:
        return None
    if is_s3(settings.vae):
        return stored.fetched("model.vae", settings.vae)
    local = local_folder(settings.vae)
    return local if local is not None else _vae_snapshot(settings.vae)


def _vae_snapshot(path: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*VAE_FILES, "*.safetensors", "vae/*.safetensors"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # as above
        said = not_to_be_had(reason_of(error))
        raise ModelError(f"model.vae = {path!r}: {said}, or set model.vae=null for the model's own") from error


def check_fetched(settings: ModelSettings, planned: str) -> None:
    """Compare what was fetched from S3 with the fingerprint that a job was planned with.

    Raises:
        ModelError: it has changed since, or is a model of another family.
    """
    stored_keys = [key for key in ("path", "vae") if is_s3(getattr(settings, key) or "")]
    if stored_keys and fingerprint(settings) != planned:
        key = stored_keys[0]
        raise ModelError(
            f"model.{key} = {getattr(settings, key)!r}: the files in S3 have changed since the job was planned; run "
            "the command again"
        )
    # Only now is it known what an archive in S3 contains.
    if is_s3(settings.path) and is_archive(settings.path):
        check_layout(settings)


def check_layout(settings: ModelSettings) -> None:
    """Check an unpacked folder.

    Raises:
        ModelError: it is not a model in diffusers layout, or belongs to another family.
    """
    folder = local_folder(settings.path)
    assert folder is not None, settings.path
    if faults := _layout_faults(folder, settings):
        raise ModelError("; ".join(faults))
