"""One job's LoRA: which layers it adapts, and its fp32 weights as one flat vector in an order of its own.

The vector does not depend on the pack the job is in, so neither do its optimizer, its checkpoints or its file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from runner.errors import CheckpointError, SettingsError
from runner.families import targets
from runner.families.family import is_text_encoder
from runner.families.targets import Presets
from runner.schema import LoraSettings
from runner.train.randomness import generator

TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclasses.dataclass(frozen=True)
class Site:
    """A frozen layer that carries an adapter, and the shape of that adapter per unit of rank."""

    component: str
    name: str
    in_shape: tuple[int, ...]
    """Shape of one row of the down-projection: `[in]`, or `[in, kernel, kernel]` for a convolution."""
    out: int

    @property
    def down_units(self) -> int:
        """Numbers in one row of the down-projection."""
        return math.prod(self.in_shape)

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of peft's `lora_A.weight`."""
        return (rank, *self.in_shape)

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of peft's `lora_B.weight`."""
        return (self.out, rank, *(1 for _ in self.in_shape[1:]))


def peft_config(settings: LoraSettings, component: str, presets: Presets) -> LoraConfig:
    """The adapter of one component in peft's words: what it targets, and what its file says of it.

    Args:
        presets: what the names in `lora.targets` stand for in the model's family.
    """
    chosen = TEXT_ENCODER_TARGETS if is_text_encoder(component) else presets.get(settings.targets, settings.targets)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        # diffusers leaves the modules it adds in training mode: with the dropout of the training in the file, every
        # image drawn from it would be another one.
        lora_dropout=0.0,
        target_modules=chosen if isinstance(chosen, str) else list(chosen),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def find_sites(
    settings: LoraSettings, components: Mapping[str, nn.Module], presets: Presets = targets.UNET
) -> list[Site]:
    """The layers of the given components that `settings` targets, in the order of the modules.

    Args:
        presets: what the names in `lora.targets` stand for in the model's family.

    Raises:
        SettingsError: nothing is matched, or something that cannot carry an adapter.
    """
    sites: list[Site] = []
    for component, root in components.items():
        config = peft_config(settings, component, presets)
        before = len(sites)
        for name, module in root.named_modules():
            if name and check_target_module_exists(config, name):
                sites.append(_site(component, name, module, settings.targets))
        if len(sites) == before:
            raise SettingsError(
                f"lora.targets = {settings.targets!r}: matches no layer of the {component}; its layers are named "
                f"like {', '.join(_examples(root))}"
            )
    return sites


def _site(component: str, name: str, module: nn.Module, targets: str) -> Site:
    if isinstance(module, nn.Linear):
        return Site(component, name, (module.in_features,), module.out_features)
    if isinstance(module, nn.Conv2d) and _is_plain(module):
        height, width = module.kernel_size
        return Site(component, name, (module.in_channels, height, width), module.out_channels)
    raise SettingsError(
        f"lora.targets = {targets!r}: matches {name}, a {type(module).__name__}, which cannot carry a LoRA; "
        "match only linear and convolution layers"
    )


def _is_plain(module: nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _examples(root: nn.Module) -> list[str]:
    names = [name for name, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [names[0], names[len(names) // 2], names[-1]] if names else []


class Adapter:
    """The weights of one job's LoRA and their gradient, fp32."""

    def __init__(self, settings: LoraSettings, sites: Sequence[Site], *, seed: int, device: torch.device) -> None:
        self.sites = tuple(sites)
        self.rank = settings.rank
        self.scale = settings.scale
        self.dropout = settings.dropout
        self.seed = seed
        lengths = [self.rank * (site.down_units + site.out) for site in self.sites]
        self.weights = torch.zeros(sum(lengths), device=device)
        self.gradient = torch.zeros_like(self.weights)
        self.load_state(
            {
                component: {
                    key: value
                    for site in self.sites
                    if site.component == component
                    for key, value in _initial(site, settings, seed)
                }
                for component in dict.fromkeys(site.component for site in self.sites)
            }
        )

    def __len__(self) -> int:
        return self.weights.numel()

    @property
    def has_effect(self) -> bool:
        """Whether it changes any output: one that was not trained yet does not, its up-projections are zero."""
        return any(bool(up.any()) for _, _, up in self.pairs(self.weights))

    def pairs(self, vector: Tensor) -> list[tuple[Site, Tensor, Tensor]]:
        """(site, down, up) views into a vector laid out as the weights are."""
        views, start = [], 0
        for site in self.sites:
            middle = start + self.rank * site.down_units
            end = middle + self.rank * site.out
            down = vector[start:middle].view(site.down_shape(self.rank))
            views.append((site, down, vector[middle:end].view(site.up_shape(self.rank))))
            start = end
        return views

    def spans(self) -> dict[str, slice]:
        """Where each component's weights lie in the vector; sites are ordered by component."""
        spans: dict[str, slice] = {}
        start = 0
        for site in self.sites:
            end = start + self.rank * (site.down_units + site.out)
            spans[site.component] = slice(spans[site.component].start if site.component in spans else start, end)
            start = end
        return spans

    def state(self) -> dict[str, dict[str, Tensor]]:
        """component -> peft key -> a copy of the tensor, fp32 on the CPU."""
        state: dict[str, dict[str, Tensor]] = {}
        for site, down, up in self.pairs(self.weights):
            layers = state.setdefault(site.component, {})
            layers[f"{site.name}.lora_A.weight"] = down.detach().to("cpu", copy=True)
            layers[f"{site.name}.lora_B.weight"] = up.detach().to("cpu", copy=True)
        return state

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over weights under peft keys.

        Raises:
            CheckpointError: a layer is missing, unknown or of another shape.
        """
        given = {(component, key) for component, layers in state.items() for key in layers}
        for site, down, up in self.pairs(self.weights):
            for view, suffix in ((down, "lora_A"), (up, "lora_B")):
                key = f"{site.name}.{suffix}.weight"
                tensor = state.get(site.component, {}).get(key)
                if tensor is None or tensor.shape != view.shape:
                    found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
                    raise CheckpointError(f"{site.component} {key} is {found}, not {list(view.shape)}")
                view.copy_(tensor)
                given.discard((site.component, key))
        if given:
            raise CheckpointError(f"unknown layer in the saved adapter: {min(given)}")


def _initial(site: Site, settings: LoraSettings, seed: int) -> list[tuple[str, Tensor]]:
    """First values: the update is zero because the up-projection is; keyed by the layer's name alone."""
    draw = generator(seed, "init", site.component, site.name)
    shape = site.down_shape(settings.rank)
    if settings.init == "gaussian":
        down = draw.standard_normal(shape) / settings.rank
    else:  # kaiming_uniform with a = sqrt(5), as torch starts linear layers: a bound of 1 / sqrt(fan in)
        bound = 1 / math.sqrt(site.down_units)
        down = draw.uniform(-bound, bound, shape)
    return [
        (f"{site.name}.lora_A.weight", torch.from_numpy(down).float()),
        (f"{site.name}.lora_B.weight", torch.zeros(site.up_shape(settings.rank))),
    ]
