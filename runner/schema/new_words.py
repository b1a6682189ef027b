"""What goes with methods that teach new words, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.schema.family import TRANSFORMERS
from runner.schema.knob import default_of
from runner.schema.method import NewTokens, Pivotal, TextualInversion
from runner.schema.training import Prodigy

if TYPE_CHECKING:
    from runner.schema.experiment import Experiment
    from runner.schema.training import OptimizerSettings


IDLE_WITHOUT_LORA = {
    "lora_plus_ratio": "which trains no up-projections",
    "weight_decay": "whose vectors are not decayed",
}
"""Settings of optimizers that do nothing for new words, with the reason."""


def refuse_what_words_do_not_go_with(experiment: Experiment) -> None:
    """Check an experiment that teaches new words.

    Raises:
        ValueError: a setting has no effect with it, or cannot be.
    """
    method, lora = experiment.method, experiment.lora
    if not isinstance(method, NewTokens):
        return
    if experiment.model.family in TRANSFORMERS:
        raise ValueError(
            f"method.name = {method.name!r}: is not offered with model.family={experiment.model.family}, one of whose "
            "text encoders is T5, for which no program reads new words; choose another method, or sd or sdxl"
        )
    if isinstance(method, TextualInversion):
        idle = [key for key in type(lora).model_fields if getattr(lora, key) != default_of(lora, key)]
        if idle:
            raise ValueError(
                f"lora.{idle[0]} = {getattr(lora, idle[0])!r}: has no effect with method.name=textual_inversion, which "
                "trains no LoRA; remove it, or choose method=pivotal"
            )
        _refuse_what_only_moves_a_lora(experiment.optimizer)
    if isinstance(method, Pivotal) and method.token_lr is not None and isinstance(experiment.optimizer, Prodigy):
        raise ValueError(
            f"method.token_lr = {method.token_lr}: Prodigy estimates one rate for all weights; set "
            "method.token_lr=null, or choose another optimizer"
        )
    if lora.text_encoder:
        raise ValueError(
            f"lora.text_encoder = True: with method.name={method.name} the new words are what is trained of the text "
            "encoders; remove it"
        )
    if lora.init_from is not None:
        raise ValueError(
            f"lora.init_from = {lora.init_from!r}: cannot be started from with method.name={method.name}, whose words "
            "are no part of that file; remove it"
        )


def _refuse_what_only_moves_a_lora(optimizer: OptimizerSettings) -> None:
    for key, reason in IDLE_WITHOUT_LORA.items():
        # Prodigy has no LoRA+.
        if key in type(optimizer).model_fields and getattr(optimizer, key) != default_of(optimizer, key):
            raise ValueError(
                f"optimizer.{key} = {getattr(optimizer, key)}: has no effect with method.name=textual_inversion, "
                f"{reason}; remove it, or choose method=pivotal"
            )
