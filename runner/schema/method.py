"""Group `method`: how images and captions become a training signal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from runner.paths import WEIGHTS_NAME
from runner.schema.drawing import GUIDANCE
from runner.schema.knob import Settings, knob
from runner.system.values import as_typed

TOKEN = re.compile(r"<[\w.-]+>")
"""New words become names of files, too."""


class TextToImage(Settings):
    """`method=text_to_image`: each image with its caption."""

    name: Literal["text_to_image"] = knob("text_to_image", doc="Which method.")


class DreamBooth(Settings):
    """`method=dreambooth`: a subject from a few images, while its class stays as it was (arXiv 2208.12242).

    Images without a caption of their own get `dataset.instance_prompt`, or that of their `dataset_info.json`.
    """

    name: Literal["dreambooth"] = knob("dreambooth", doc="Which method.")
    prior: Literal["images", "base", "none"] = knob(
        "images",
        doc="What keeps the class as it was: `images` of it, trained beside those of the subject; `base`, which needs "
        "no such images: the base model's own prediction for the class prompt on the subject's noisy images; or "
        "`none`.",
    )
    prior_loss_weight: float = knob(1.0, gt=0, le=100, doc="Weight of the prior's loss relative to the subject's.")
    class_prompt: str | None = knob(
        None,
        min_length=1,
        identity=False,  # enters the identity separately, wherever it comes from (runner.data.classes)
        doc="The subject's class, such as `a photo of a dog`; null takes it from `dataset_info.json`. Each of several "
        "subjects can have its own (`dataset.sources`).",
    )
    class_data_dir: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Folder with images of the class, local or in S3; null takes `class_data_dir` from `dataset_info.json`, if "
        "it names one. The captions of these images are not used.",
    )
    num_class_images: int = knob(
        100,
        ge=0,
        le=100_000,
        unit="images",
        doc="Fewest images of each class: the base model draws those that the folder lacks, once for all jobs.",
    )
    class_guidance_scale: float | None = knob(None, ge=0, doc=f"Guidance of the images that are drawn; {GUIDANCE}")
    class_inference_steps: int = knob(
        25, ge=1, le=1000, unit="sampling steps", doc="Steps of the sampler (`scheduler`) that draws them."
    )

    def _faults(self) -> Iterator[str]:
        because, drawing = f"with method.prior={self.prior}", ("class_guidance_scale", "class_inference_steps")
        if self.prior == "none":
            yield from self.idle("prior_loss_weight", "class_prompt", because=because)
        if self.prior != "images":
            yield from self.idle("class_data_dir", "num_class_images", *drawing, because=because)
        elif not self.num_class_images:
            yield from self.idle(*drawing, because="with method.num_class_images=0")


class NewTokens(Settings):
    """Settings of methods that teach the text encoders new words."""

    tokens: tuple[str, ...] = knob(
        ("<new>",),
        min_length=1,
        max_length=64,
        doc="New words, as written in captions and prompts: in angle brackets, such as `<cat>`.",
    )
    initial: tuple[str, ...] = knob((), doc="The word that each of them starts from, in the same order, such as `cat`.")
    vectors: int = knob(
        1, ge=1, le=32, doc="Embeddings that make up each word; each takes the place of one token in a caption."
    )

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many vectors each word has."""
        return (self.vectors,) * len(self.tokens)

    @field_validator("tokens")
    @classmethod
    def _are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for token in value:
            if not TOKEN.fullmatch(token):
                raise ValueError(f"{token!r} should be one word between angle brackets, such as <cat>")
            if token == f"<{WEIGHTS_NAME.removesuffix('.safetensors')}>":
                raise ValueError(f"{token!r} is what the LoRA's own file is called; choose another word")
        if len(set(value)) < len(value):
            raise ValueError("should name each word once")
        first: dict[str, str] = {}
        for token in value:
            if (other := first.setdefault(token.lower(), token)) != token:
                said = f"{token!r} is {other!r} to CLIP's tokenizers, which read all letters as small ones"
                raise ValueError(f"{said}; name each word once")
        return value

    def _faults(self) -> Iterator[str]:
        if len(self.initial) != len(self.tokens) or any(not word.strip() for word in self.initial):
            yield (
                f"initial = {as_typed(self.initial)}: should name a word that each of tokens = {as_typed(self.tokens)} "
                "starts from, such as method.initial=[cat]"
            )
        # diffusers looks for the word among the pieces of a prompt, which CLIP's tokenizers give in small letters.
        capitals = [token for token in self.tokens if token != token.lower()]
        if self.vectors > 1 and capitals:
            yield (
                f"tokens = {as_typed(self.tokens)}: diffusers finds a word of vectors = {self.vectors} only in small "
                f"letters; write {', '.join(map(str.lower, capitals))}, here and in captions, or set vectors to 1"
            )


class TextualInversion(NewTokens):
    """`method=textual_inversion`: new words only; the model stays as it is (arXiv 2208.01618)."""

    name: Literal["textual_inversion"] = knob("textual_inversion", doc="Which method.")


class Pivotal(NewTokens):
    """`method=pivotal`: new words and a LoRA together."""

    name: Literal["pivotal"] = knob("pivotal", doc="Which method.")
    token_lr: float | None = knob(None, gt=0, doc="Learning rate of the words; null means `optimizer.lr`.")


MethodSettings = Annotated[TextToImage | DreamBooth | TextualInversion | Pivotal, Field(discriminator="name")]
