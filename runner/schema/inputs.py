"""What goes into a job: the base model and the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import field_validator

from runner.schema.knob import Settings, knob
from runner.schema.shapes import LEAST_STEP_PX, MOST_ASPECT

Precision = Literal["fp32", "bf16", "fp16"]


class ModelSettings(Settings):
    """Group `model`: the frozen base. A job's identity includes the content of its files, not their names."""

    family: Literal["sd", "sdxl", "sd3", "flux"] = knob(
        "sdxl",
        doc="Architecture: `sd` is Stable Diffusion 1.x and 2.x, `sdxl` is Stable Diffusion XL, `sd3` is Stable "
        "Diffusion 3 and 3.5, `flux` is FLUX.1.",
    )
    path: str = knob(
        "embedded",
        min_length=1,
        identity=False,
        doc="Hub id; folder or `.tar.gz` in diffusers layout, local or in S3 (`s3://bucket/folder/`); or a single "
        "`.safetensors` file, with `config`. `embedded` is the miniature that comes with the package.",
    )
    config: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="With a single file as `path`: a folder in diffusers layout with the configurations and tokenizers of that "
        "kind of model, and the weights that the file lacks.",
    )
    revision: str | None = knob(None, identity=False, doc="Branch, tag or commit on the Hub.")
    variant: str | None = knob(None, identity=False, doc="File variant on the Hub, such as `fp16`.")
    vae: str | None = knob(
        None,
        identity=False,
        doc="Hub id, folder or `.tar.gz` (local or in S3) of a VAE that replaces the model's own (SDXL: the fp16 fix).",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = knob(
        None,
        doc="What the model predicts: the noise, the velocity or the image; null takes it from the model's scheduler "
        "configuration.",
    )
    zero_terminal_snr: bool | None = knob(
        None,
        doc="Whether the last timestep is pure noise (arXiv 2305.08891), in training and sampling; not for models that "
        "predict noise. Null takes it from the model's scheduler configuration.",
    )
    quantization: Literal["none", "int8", "nf4"] = knob(
        "none",
        doc="Keep the denoiser's linear layers in 8 or 4 bits (`nf4` as in QLoRA, arXiv 2305.14314) while adapters are "
        "trained beside them: less memory, not less time.",
    )
    resolution: int = knob(64, ge=8, unit="px", identity=False, doc="Side of the square images the model was made for.")
    precision: Precision = knob("fp32", identity=False, doc="Precision the model is usually trained in.")

    def _faults(self) -> Iterator[str]:
        if not self.path.endswith(".safetensors"):
            yield from self.idle("config", because="unless model.path is a single file")
            return
        if self.path.startswith("s3://"):
            yield f"path = {self.path!r}: single files are read from disks only; give a folder in S3"
        if self.config is None:
            yield (
                f"config = null: {self.path} is a single file, which does not say how the model is built; give "
                "model.config=<folder in diffusers layout with the configurations and tokenizers of this kind of model>"
            )
        yield from self.idle("revision", "variant", because="with a single file as model.path")


class SourceSettings(Settings):
    """One of `dataset.sources`: where some of the images are, and how often they count. Null means as in `dataset`."""

    path: str = knob(min_length=1, doc="As `dataset.path`.")
    repeats: int = knob(
        1, ge=1, le=100_000, unit="times per epoch", doc="How often each image of the source appears in an epoch."
    )
    revision: str | None = knob(None, doc="As `dataset.revision`.")
    split: str | None = knob(None, min_length=1, doc="As `dataset.split`.")
    image_column: str | None = knob(None, min_length=1, doc="As `dataset.image_column`.")
    caption_column: str | None = knob(None, min_length=1, doc="As `dataset.caption_column`.")
    instance_prompt: str | None = knob(None, doc="As `dataset.instance_prompt`.")
    class_prompt: str | None = knob(
        None,
        min_length=1,
        doc="The class of this source's subject, such as `a photo of a dog`, with `method=dreambooth`; null means as "
        "in `method`.",
    )
    class_data_dir: str | None = knob(
        None,
        min_length=1,
        doc="Folder with images of that class. Null means as in `method` if `class_prompt` is null too, and otherwise "
        "the folder that the source's `dataset_info.json` names, if any.",
    )
    mask_column: str | None = knob(None, min_length=1, doc="As `dataset.mask_column`.")
    captions_per_line: bool | None = knob(None, doc="As `dataset.captions_per_line`.")
    stream: bool | None = knob(None, doc="As `dataset.stream`.")


class DatasetSettings(Settings):
    """Group `dataset`: images and captions. A job's identity includes their content, not their names."""

    path: str | None = knob(
        "embedded",
        min_length=1,
        identity=False,
        doc="Folder of images, or a parquet or arrow file or folder, local or in S3 (`s3://bucket/folder/`); Hub id; "
        "or `embedded` (houses). Null with `sources`.",
    )
    sources: tuple[SourceSettings, ...] = knob(
        (),
        identity=False,
        doc="Several sources of images instead of `path`: a list of paths, or of mappings with the keys below.",
    )
    revision: str | None = knob(None, identity=False, doc="Branch, tag or commit on the Hub.")
    split: str = knob("train", min_length=1, identity=False, doc="Split of a Hub data set.")
    stream: bool = knob(
        False,
        identity=False,
        doc="Fetch the parquet files of a Hub data set when they are needed instead of downloading all of it; only "
        "`max_cache_gb` of them are on disk at a time.",
    )
    max_cache_gb: float = knob(
        50.0, gt=0, unit="GB", identity=False, doc="Most disk space for these parquet files; used with `stream`."
    )
    image_column: str = knob(
        "image", min_length=1, identity=False, doc="Column with the image in parquet, arrow and Hub data."
    )
    caption_column: str = knob(
        "text",
        min_length=1,
        identity=False,
        doc="Column (parquet, arrow, Hub) or key (`metadata.jsonl`) with the caption.",
    )
    instance_prompt: str | None = knob(None, identity=False, doc="Caption of every image that has none of its own.")
    captions_per_line: bool = knob(
        False, identity=False, doc="Each line of a `.txt` file is a caption of its own; a sample gets one of them."
    )
    caption_prefix: str | None = knob(
        None, min_length=1, doc="Text before every caption; joined by a space, unless punctuation follows."
    )
    caption_suffix: str | None = knob(
        None, min_length=1, doc="Text after every caption; joined by a space, unless it begins with punctuation."
    )
    caption_shuffle: bool = knob(
        False, doc="Train with the parts of each caption in several orders, which depend on the caption alone."
    )
    caption_variants: int = knob(
        8, ge=2, le=64, unit="orders", doc="Orders of each caption that are encoded; used with `caption_shuffle`."
    )
    caption_separator: str = knob(
        ",", min_length=1, doc="Separator between the parts of a caption; used with `caption_shuffle`."
    )
    keep_tokens: int = knob(
        0,
        ge=0,
        unit="parts",
        doc="How many parts at the start of a caption keep their place; used with `caption_shuffle`.",
    )
    caption_dropout: float = knob(
        0.0, ge=0, le=1, unit="share of samples", doc="How often a sample is trained without its caption."
    )
    masks: bool = knob(
        False,
        identity=False,
        doc="Read the masks of images: `photo.mask.png` beside `photo.jpg`, `masks/photo.png`, or a column of a table; "
        "white is what counts in a masked loss (`loss.masked`).",
    )
    mask_column: str = knob(
        "mask", min_length=1, identity=False, doc="Column with the mask in parquet, arrow and Hub data; with `masks`."
    )
    buckets: bool = knob(
        False,
        doc="Train each image in the shape closest to its own, with at most the area of `resolution` squared, instead "
        "of in a square.",
    )
    bucket_step: int = knob(
        64,
        ge=LEAST_STEP_PX,
        multiple_of=8,
        unit="px",
        doc="The sides of all buckets are multiples of this; used with `buckets`.",
    )
    bucket_max_aspect: float = knob(
        2.0,
        ge=1,
        le=MOST_ASPECT,
        unit="longest side over shortest",
        doc="Most elongated bucket; used with `buckets`.",
    )
    crop: Literal["center", "random"] = knob(
        "center", doc="Where the square, or the bucket's shape, is cut from a longer image."
    )
    flip: bool = knob(False, doc="Mirror every second sample, on average.")
    variants: int = knob(4, ge=1, le=64, unit="crops", doc="Random crops encoded per image; used with `crop=random`.")
    skip_unreadable: bool = knob(
        False,
        identity=False,
        doc="Skip files that cannot be read or are too small, instead of rejecting the data set.",
    )
    max_images: int | None = knob(None, ge=1, unit="images", identity=False, doc="Use only this many images.")
    min_side_px: int = knob(
        32, ge=1, unit="px", identity=False, doc="Images with a side shorter than this are rejected."
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the images are."""
        return tuple(source.path for source in self.sources) if self.path is None else (self.path,)

    @property
    def streams(self) -> bool:
        """Whether any of the data is streamed."""
        sources = [source.stream for source in self.sources if source.stream is not None]
        return any(sources) or (self.stream and len(sources) < max(1, len(self.sources)))

    @field_validator("sources", mode="before")
    @classmethod
    def _paths_alone(cls, value: object) -> object:
        kinds = (str, Mapping, SourceSettings)
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, kinds) for each in value):
            raise ValueError("should be a list of paths, or of mappings with a path")
        return [{"path": each} if isinstance(each, str) else each for each in value]

    def _faults(self) -> Iterator[str]:
        if self.sources:
            because = "with dataset.sources"
            if self.path is not None:
                fix = "choose dataset=sources, which has none"
                fix += "" if self.path == "embedded" else ", and remove it or make it one of the sources"
                yield f"path = {self.path!r}: has no effect {because}; {fix}"
            yield from self.idle("revision", because=because, fix="give it to one of them")
        elif self.path is None:
            yield "path: has no value; set dataset.path=..., or dataset.sources=[...]"
        if not self.streams:
            yield from self.idle("max_cache_gb", because="without dataset.stream=true")
        elif self.masks:
            yield (
                "masks = true: masks are kept in memory, and a streamed data set is too large for that; remove it, or "
                "dataset.stream"
            )
        if self.crop == "center":
            yield from self.idle("variants", because="with dataset.crop=center")
        used_with = {
            "masks": ("mask_column",),
            "buckets": ("bucket_step", "bucket_max_aspect"),
            "caption_shuffle": ("caption_variants", "caption_separator", "keep_tokens"),
        }
        for switch, keys in used_with.items():
            if not getattr(self, switch):
                yield from self.idle(*keys, because=f"without dataset.{switch}=true")
