"""What is trained, and how: adapter, optimizer, schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator

from runner.schema.knob import Settings, knob
from runner.system.values import as_typed

TARGET_PRESETS = ("attention", "attention_ff", "linear", "linear_conv")

Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0)]
Value = TypeVar("Value", bound=float)


class LoraSettings(Settings):
    """Group `lora`: the adapter."""

    rank: int = knob(8, ge=1, le=1024, doc="Rank of the update of each targeted layer.")
    alpha: float | None = knob(
        None, gt=0, doc="The update is scaled by alpha / rank; null means alpha = rank, a scale of 1."
    )
    rslora: bool = knob(
        False,
        doc="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732): updates of large ranks do not shrink.",
    )
    dora: bool = knob(
        False,
        doc="Train the norm of each output channel separately from its direction (DoRA, arXiv 2402.09353). Then there "
        "is no file for ComfyUI and A1111, whose readers use other norms.",
    )
    rank_pattern: dict[str, Rank] | None = knob(
        None,
        doc="Ranks of some layers that differ from `rank`: regular expressions for the end of a layer's name, as in "
        "peft, such as `{conv1: 4, conv2: 4}` for the convolutions of the residual blocks.",
    )
    alpha_pattern: dict[str, Alpha] | None = knob(
        None, doc="Alphas of some layers that differ from `alpha`, by regular expressions as in `rank_pattern`."
    )
    dropout: float = knob(
        0.0, ge=0, lt=1, unit="share of inputs", doc="Dropout on the input of each adapter while training."
    )
    rank_dropout: float = knob(
        0.0,
        ge=0,
        lt=1,
        unit="share of ranks",
        doc="Leaves out ranks of each adapter, drawn anew for each layer and sample; the others are scaled up to "
        "compensate (as in LyCORIS and sd-scripts).",
    )
    module_dropout: float = knob(
        0.0,
        ge=0,
        lt=1,
        unit="share of layers",
        doc="Leaves out the adapters of whole layers, drawn anew for each sample; nothing compensates for it (as in "
        "LyCORIS and sd-scripts).",
    )
    targets: str = knob(
        "attention",
        min_length=1,
        doc="Layers of the UNet or transformer that get an adapter: `attention`, `attention_ff` (plus feed-forward), "
        "`linear` (every linear layer of the transformer blocks and their projections), `linear_conv` (plus the "
        "convolutions of a UNet's residual, down- and upsampling blocks), or a regular expression that matches whole "
        "module names.",
    )
    blocks: tuple[str, ...] | None = knob(
        None,
        min_length=1,
        doc="Only the targeted layers in these blocks, such as `[up_blocks.0.attentions.1]`; null means all. "
        "`lora=b_lora` takes the two blocks of SDXL that hold content and style (B-LoRA, arXiv 2403.14572).",
    )
    init: Literal["gaussian", "kaiming"] = knob(
        "gaussian",
        doc="Initial values of the down-projection: normal with standard deviation 1/rank, or Kaiming-uniform.",
    )
    init_from: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Adapter to start from: the folder of a completed job, or a `.safetensors` file with peft's names. Its "
        "content is part of the job's identity.",
    )
    text_encoder: bool = knob(False, doc="Train adapters on the attention of the text encoders as well.")
    ema: float = knob(
        0.0,
        ge=0,
        lt=1,
        doc="Decay of a moving average of the weights (0.99 is usual for short trainings); 0 is off. The decay at step "
        "n is min(ema, n / (9 + n)), and 0 at the first, as in diffusers' EMAModel. The average is what is validated, "
        "drawn and saved; the weights themselves stay in the checkpoints.",
    )

    @field_validator("targets")
    @classmethod
    def _compiles(cls, value: str) -> str:
        if value not in TARGET_PRESETS:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"should be one of {', '.join(TARGET_PRESETS)} or a regular expression ({error})"
                ) from error
        return value

    def _faults(self) -> Iterator[str]:
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(self, key)
            if patterns == {}:
                yield f"{key} = {{}}: should hold at least one layer, such as {{conv1: 4}}; or be null"
            for pattern in patterns or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    yield f"{key} = {pattern!r}: should be a regular expression ({error})"
        for key in ("rank_dropout", "module_dropout"):
            if self.dora and getattr(self, key):
                yield (
                    f"{key} = {getattr(self, key)}: cannot be used with lora.dora=true, whose norms are those of whole "
                    "updates; take lora.dropout"
                )

    def rank_of(self, layer: str) -> int:
        """Rank of the update of the layer of this name."""
        return _of_layer(self.rank_pattern, layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """Alpha of the layer of this name; its rank if nobody sets one."""
        return _of_layer(self.alpha_pattern, layer, self.rank_of(layer) if self.alpha is None else self.alpha)

    def scale_of(self, layer: str) -> float:
        """Factor on the low-rank update of the layer of this name: alpha / rank, or alpha / sqrt(rank) (rsLoRA)."""
        rank = self.rank_of(layer)
        return self.alpha_of(layer) / (math.sqrt(rank) if self.rslora else rank)


def matches_layer(pattern: str, layer: str) -> bool:
    """Whether an expression matches the end of a layer's name, from its start or after a dot, as in peft."""
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


def _of_layer(values: Mapping[str, Value] | None, layer: str, otherwise: Value) -> Value:
    return next((value for pattern, value in (values or {}).items() if matches_layer(pattern, layer)), otherwise)


TEXT_ENCODER_LR = "Learning rate of the text encoders' adapters; null means `lr`."
LORA_PLUS = "Up-projections learn this many times faster than `lr` (LoRA+, arXiv 2402.12354; 16 is usual); 1 is off."


Decay = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Settings):
    weight_decay: float = knob(0.01, ge=0, doc="Decoupled weight decay.")
    max_grad_norm: float = knob(
        1.0, ge=0, doc="Gradients are scaled down to this norm over all of a job's weights; 0 is off."
    )


class AdamW(_Optimizer):
    """`optimizer=adamw`: AdamW in one fused kernel per job."""

    name: Literal["adamw"] = knob("adamw", doc="Which optimizer.")
    lr: float = knob(1e-4, gt=0, doc="Peak learning rate.")
    text_encoder_lr: float | None = knob(None, gt=0, doc=TEXT_ENCODER_LR)
    lora_plus_ratio: float = knob(1.0, ge=1, doc=LORA_PLUS)
    betas: tuple[Decay, Decay] = knob((0.9, 0.999), doc="Decay rates of the two moments.")
    eps: float = knob(1e-8, gt=0, doc="Added to the denominator.")


class AdamW8bit(AdamW):
    """`optimizer=adamw8bit`: AdamW with 8-bit moments (bitsandbytes)."""

    name: Literal["adamw8bit"] = knob("adamw8bit", doc="Which optimizer.")  # type: ignore[assignment]


LEAST_FACTOR = 0.01
"""For Prodigy: below this, nothing would be learnt in any usual number of steps."""


class Prodigy(_Optimizer):
    """`optimizer=prodigy`: learning-rate-free (prodigyopt); one estimated rate for all weights."""

    name: Literal["prodigy"] = knob("prodigy", doc="Which optimizer.")
    lr: float = knob(1.0, gt=0, doc="Factor on the estimated learning rate; 1 is the authors' advice.")
    betas: tuple[Decay, Decay] = knob((0.9, 0.999), doc="Decay rates of the two moments.")
    d_coef: float = knob(1.0, gt=0, doc="Factor on the estimate of the distance to the solution.")
    safeguard_warmup: bool = knob(True, doc="Keep warm-up steps out of that estimate.")

    @field_validator("lr")
    @classmethod
    def _is_a_factor(cls, value: float) -> float:
        if value < LEAST_FACTOR:
            raise ValueError(
                "looks like the rate of another optimizer (of a recipe?); Prodigy estimates the rate, and this is a "
                "factor on it: 1, or close to it"
            )
        return value


class Adafactor(_Optimizer):
    """`optimizer=adafactor`: factored second moments (transformers), with a given learning rate."""

    name: Literal["adafactor"] = knob("adafactor", doc="Which optimizer.")
    lr: float = knob(1e-4, gt=0, doc="Peak learning rate.")
    text_encoder_lr: float | None = knob(None, gt=0, doc=TEXT_ENCODER_LR)
    lora_plus_ratio: float = knob(1.0, ge=1, doc=LORA_PLUS)


OPTIMIZER_PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Packages that only some optimizers need; the extra `optimizers` installs them."""

OptimizerSettings = Annotated[AdamW | AdamW8bit | Prodigy | Adafactor, Field(discriminator="name")]


FACTOR = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
RULES = re.compile(rf"(?:{FACTOR}:[0-9]+,)+{FACTOR}")
"""For `piecewise_constant`: factors of at least 0, each but the last with the step that it applies up to."""
POLYNOMIAL_END = 1e-7
"""The learning rate that `polynomial` falls to, as in diffusers."""


class LrSchedulerSettings(Settings):
    """Group `lr_scheduler`: the learning rate over the optimizer steps."""

    name: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "piecewise_constant",
    ] = knob("constant", doc="Shape of the curve; the names are those of diffusers.")
    warmup_steps: int = knob(0, ge=0, unit="optimizer steps", doc="Rise from 0 to the peak over this many steps.")
    cycles: int = knob(1, ge=1, doc="Number of restarts; used by `cosine_with_restarts`.")
    power: float = knob(1.0, gt=0, doc="Exponent of `polynomial`, which falls to a learning rate of 1e-7.")
    rules: str | None = knob(
        None,
        doc="Rules of `piecewise_constant`, such as `1:10,0.1:20,0.01`: factor 1 to step 10, and so on. On the command "
        "line it needs quotes of both kinds: `'lr_scheduler.rules=\"1:10,0.1:20,0.01\"'`.",
    )

    def _faults(self) -> Iterator[str]:
        used = {
            "warmup_steps": self.name not in ("constant", "piecewise_constant"),
            "cycles": self.name == "cosine_with_restarts",
            "power": self.name == "polynomial",
            "rules": self.name == "piecewise_constant",
        }
        for key, takes in used.items():
            if not takes:
                yield from self.idle(key, because=f"with lr_scheduler.name={self.name}")
        if self.name == "constant_with_warmup" and not self.warmup_steps:
            yield "warmup_steps = 0: lr_scheduler.name=constant_with_warmup needs at least 1; or take constant"
        if self.name == "piecewise_constant":
            yield from self._faults_of_rules()

    def _faults_of_rules(self) -> Iterator[str]:
        if not RULES.fullmatch(self.rules or ""):
            wanted = "should read like 1:10,0.1:20,0.01 with lr_scheduler.name=piecewise_constant"
            yield f"rules = {as_typed(self.rules)}: {wanted}"
            return
        factors = [part.partition(":")[0] for part in (self.rules or "0").split(",")]
        if endless := [factor for factor in factors if not math.isfinite(float(factor))]:
            yield f"rules = {self.rules!r}: {endless[0]} is too large a factor; lower it"
        ends = [int(part.partition(":")[2]) for part in (self.rules or "").split(",")[:-1]]
        if ends != sorted(set(ends)):
            yield f"rules = {self.rules!r}: the steps should rise from rule to rule"


Sampler = Literal["model", "ddpm", "ddim", "euler", "euler_ancestral", "dpmpp", "unipc", "lcm", "tcd"]
"""What draws images; `model` is the one saved with the model."""


class SchedulerSettings(Settings):
    """Group `scheduler`: the sampler that draws validation images. Training adds noise by the model's own process."""

    name: Sampler = knob(
        "model",
        doc="Sampler; `model` is the one saved with the model. `lcm` and `tcd` need an adapter, or a model, that was "
        "distilled for them.",
    )
    eta: float | None = knob(
        None,
        ge=0,
        le=1,
        doc="Share of fresh noise in each step, for `ddim` and for `tcd`, whose paper calls it gamma (arXiv "
        "2402.19159); null is the sampler's own default, 0 and 0.3.",
    )

    def _faults(self) -> Iterator[str]:
        if self.name not in NOISY_SAMPLERS:
            because = f"with scheduler={self.name}, only with {' and '.join(NOISY_SAMPLERS)}"
            yield from self.idle("eta", because=because)


NOISY_SAMPLERS = ("ddim", "tcd")
"""Samplers that can be told how much fresh noise to add."""
