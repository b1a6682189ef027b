"""One job's LoRA: which layers it adapts, and its fp32 weights as one flat vector in its own order.

The vector does not depend on which pack the job is in, so neither do its optimizer, its checkpoints or its file.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from runner.errors import CheckpointError, SettingsError
from runner.families import targeted
from runner.families.family import is_text_encoder
from runner.families.targets import TEXT_ENCODER, UNET, Presets
from runner.mix import write
from runner.mix.layers import AdapterLayers, LowRank
from runner.schema import LoraSettings
from runner.train.adapters.dora import squared_norms
from runner.train.randomness import generator

DOWN, UP, MAGNITUDE = write.DOWN, write.UP, write.MAGNITUDE
WORDS = "words"
"""Component and kind of the vectors of new words; their site is named after their text encoder, not after a layer."""


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

    def shape(self, kind: str, rank: int) -> tuple[int, ...]:
        """Shape of the tensor that peft calls `kind`."""
        ones = tuple(1 for _ in self.in_shape[1:])
        if kind == MAGNITUDE:
            return (1, self.out, *ones) if ones else (self.out,)
        return (rank, *self.in_shape) if kind == DOWN else (self.out, rank, *ones)


def peft_config(settings: LoraSettings, component: str, presets: Presets, layers: Sequence[str] = ()) -> LoraConfig:
    """The adapter of one component as a peft configuration: what it targets, and what its file records about it.

    Args:
        presets: what the names in `lora.targets` stand for in the model's family.
        layers: names of the adapted layers, for the ranks and alphas that differ from layer to layer.
    """
    of_text = is_text_encoder(component)
    chosen = TEXT_ENCODER if of_text else targeted.targets_of(settings, presets)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    # Keyed by full layer names: diffusers sorts the patterns, and the first match counts.
    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        rank_pattern=write.differing({name: settings.rank_of(name) for name in layers}, settings.rank),
        alpha_pattern=write.differing({name: settings.alpha_of(name) for name in layers}, alpha),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        # diffusers leaves the modules it adds in training mode: if the file carried the training dropout, every image
        # generated from it would come out different.
        lora_dropout=0.0,
        target_modules=chosen if isinstance(chosen, str) else list(chosen),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def find_sites(settings: LoraSettings, components: Mapping[str, nn.Module], presets: Presets = UNET) -> list[Site]:
    """The layers of the given components that `settings` targets, in the order of the modules.

    Args:
        presets: what the names in `lora.targets` stand for in the model's family.

    Raises:
        SettingsError: nothing matches, or a match cannot carry an adapter; a named block has no adapted layer; a
            pattern for ranks or alphas matches no adapted layer, or two match the same one.
    """
    sites: list[Site] = []
    for component, root in components.items():
        config = peft_config(settings, component, presets)
        before = len(sites)
        for name, module in root.named_modules():
            if name and check_target_module_exists(config, name):
                sites.append(_site(component, name, module, settings.targets))
        names = [site.name for site in sites[before:]]
        if not is_text_encoder(component):
            modules = [name for name, module in root.named_modules() if name and any(module.children())]
            _refuse(targeted.block_faults(settings, names, modules))
        if not names:
            layers = [name for name, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
            _refuse([targeted.matches_nothing(settings, component, layers)])
    _refuse(targeted.pattern_faults(settings, [site.name for site in sites]))
    return sites


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise SettingsError("\n".join(faults))


def _site(component: str, name: str, module: nn.Module, targets: str) -> Site:
    if isinstance(module, nn.Linear):
        return Site(component, name, (module.in_features,), module.out_features)
    if isinstance(module, nn.Conv2d) and _is_plain(module):
        height, width = module.kernel_size
        return Site(component, name, (module.in_channels, height, width), module.out_channels)
    raise SettingsError(targeted.cannot_carry(targets, name, f"a {type(module).__name__}"))


def _site_of(key: tuple[str, str], factors: LowRank, components: Mapping[str, nn.Module]) -> Site:
    """The layer that a trained update belongs to."""
    component, name = key
    try:
        site = _site(component, name, components[component].get_submodule(name), name)
    except (KeyError, AttributeError) as error:
        raise SettingsError(
            f"adapter: the model has no layer {component}.{name}; is it of this kind of model?"
        ) from error
    down, up = tuple(factors.down.shape[1:]), len(factors.up)
    if (down, up) != (site.in_shape, site.out):
        raise SettingsError(
            f"adapter: of {component}.{name} it is for {list(down)} inputs and {up} outputs, and the model has "
            f"{list(site.in_shape)} and {site.out}; is it of this kind of model?"
        )
    return site


def _is_plain(module: nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class Adapter:
    """The weights of one job's LoRA and of its new words, with their gradient, all in fp32.

    The vector holds, for each component, the magnitudes (of DoRA), then the down- and then the up-projections; the
    vectors of new words come last.

    Args:
        components: the frozen parts, needed by DoRA, whose magnitudes start as the norms of their weights.
        words: text encoder -> initial vectors of the new words, `[V, D]`.
    """

    def __init__(
        self,
        settings: LoraSettings,
        sites: Sequence[Site],
        *,
        seed: int,
        device: torch.device,
        components: Mapping[str, nn.Module] | None = None,
        words: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.dropout, self.rank_dropout = settings.dropout, settings.rank_dropout
        self.module_dropout = settings.module_dropout
        self.seed = seed
        ranks = {site: settings.rank_of(site.name) for site in sites}
        scales = {site: settings.scale_of(site.name) for site in sites}
        self._lay_out(ranks, scales, dora=settings.dora, device=device, words=words or {})
        first = {site: _initial(site, self.ranks[site], settings.init, seed) for site in self.sites}
        for site, kind, view in self.parts(self.weights):
            if kind == WORDS:
                assert words is not None
                view.copy_(words[site.name])
            elif kind == DOWN:  # the up-projection stays zero, so the initial update is zero
                view.copy_(first[site])
            elif kind == MAGNITUDE:
                assert components is not None
                frozen = components[site.component].get_submodule(site.name)
                view.copy_(squared_norms(frozen).sqrt().view(view.shape))

    @classmethod
    def of_layers(
        cls,
        layers: AdapterLayers,
        components: Mapping[str, nn.Module],
        *,
        device: torch.device,
        words: Mapping[str, Tensor] | None = None,
    ) -> Adapter:
        """An adapter from trained weights of any origin, each layer with its own rank and scale; without dropout.

        Raises:
            SettingsError: a layer does not exist or has another shape; some layers are DoRA and others are not.
        """
        found = {_site_of(key, factors, components): factors for key, factors in layers.items()}
        dora = [factors.magnitude is not None for factors in found.values()]
        if any(dora) and not all(dora):
            raise SettingsError("an adapter that is a DoRA on some parts of the model only cannot be drawn with")
        adapter = cls.__new__(cls)
        adapter.dropout = adapter.rank_dropout = adapter.module_dropout = 0.0
        adapter.seed = 0
        ranks = {site: factors.rank for site, factors in found.items()}
        scales = {site: factors.scale for site, factors in found.items()}
        adapter._lay_out(ranks, scales, dora=any(dora), device=device, words=words or {})
        for site, kind, view in adapter.parts(adapter.weights):
            if kind == WORDS:
                assert words is not None
                view.copy_(words[site.name])
                continue
            factors = found[site]
            tensor = {DOWN: factors.down, UP: factors.up, MAGNITUDE: factors.magnitude}[kind]
            assert tensor is not None
            view.copy_(tensor.view(view.shape))
        return adapter

    def _lay_out(
        self,
        ranks: Mapping[Site, int],
        scales: Mapping[Site, float],
        *,
        dora: bool,
        device: torch.device,
        words: Mapping[str, Tensor],
    ) -> None:
        self.sites, self.ranks, self.scales = tuple(ranks), dict(ranks), dict(scales)
        self.kinds = (MAGNITUDE, DOWN, UP) if dora else (DOWN, UP)
        self.components = tuple(dict.fromkeys(site.component for site in self.sites))
        self._layout = [
            (site, kind, site.shape(kind, self.ranks[site]))
            for component in self.components
            for kind in self.kinds
            for site in self.sites
            if site.component == component
        ]
        self.low_rank_length = sum(math.prod(shape) for _, _, shape in self._layout)
        self.words = {name: Site(WORDS, name, (first.shape[1],), first.shape[0]) for name, first in words.items()}
        self._layout += [(site, WORDS, (site.out, *site.in_shape)) for site in self.words.values()]
        self.weights = torch.zeros(sum(math.prod(shape) for _, _, shape in self._layout), device=device)
        self.gradient = torch.zeros_like(self.weights)

    def __len__(self) -> int:
        return self.weights.numel()

    @property
    def drops(self) -> bool:
        """Whether any dropout applies while it trains."""
        return bool(self.dropout or self.rank_dropout or self.module_dropout)

    @property
    def has_effect(self) -> bool:
        """Whether it changes any output; an untrained one does not, because its up-projections are zero."""
        return bool(self.words) or any(
            bool(self.weights[self.span(component, UP)].any()) for component in self.components
        )

    def parts(self, vector: Tensor) -> Iterator[tuple[Site, str, Tensor]]:
        """(site, kind, view) into a vector laid out like the weights, in its order."""
        start = 0
        for site, kind, shape in self._layout:
            end = start + math.prod(shape)
            yield site, kind, vector[start:end].view(shape)
            start = end

    def words_in(self, vector: Tensor) -> dict[str, Tensor]:
        """Text encoder -> view `[V, D]` of the new words in a vector laid out like the weights."""
        views, start = {}, self.low_rank_length
        for name, site in self.words.items():
            end = start + site.out * site.down_units
            views[name] = vector[start:end].view(site.out, *site.in_shape)
            start = end
        return views

    def span(self, component: str, *kinds: str) -> slice:
        """Where the weights of the given, adjacent kinds lie in the vector."""
        start = ends = 0
        wanted = []
        for site, kind, shape in self._layout:
            ends = start + math.prod(shape)
            if site.component == component and kind in kinds:
                wanted.append((start, ends))
            start = ends
        assert all(one[1] == other[0] for one, other in itertools.pairwise(wanted)), (component, kinds)
        return slice(wanted[0][0], wanted[-1][1])

    def state(self, vector: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """component -> peft key -> a copy of the tensor, fp32 on the CPU; from the weights or a vector laid out so."""
        state: dict[str, dict[str, Tensor]] = {}
        for site, kind, view in self.parts(self.weights if vector is None else vector):
            state.setdefault(site.component, {})[f"{site.name}.{kind}"] = view.detach().to("cpu", copy=True)
        return state

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load weights given under peft keys.

        Raises:
            CheckpointError: a layer is missing, unknown or has another shape.
        """
        given = {(component, key) for component, layers in state.items() for key in layers}
        for site, kind, view in self.parts(self.weights):
            key = f"{site.name}.{kind}"
            tensor = state.get(site.component, {}).get(key)
            if tensor is None or tensor.shape != view.shape:
                found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
                raise CheckpointError(f"{site.component} {key} is {found}, not {list(view.shape)}")
            view.copy_(tensor)
            given.discard((site.component, key))
        if given:
            raise CheckpointError(f"unknown layer in the saved adapter: {min(given)}")


def _initial(site: Site, rank: int, init: str, seed: int) -> Tensor:
    """Initial values of a down-projection; they depend only on the seed and the layer's name, not on its place."""
    draw = generator(seed, "init", site.component, site.name)
    shape = site.shape(DOWN, rank)
    if init == "gaussian":
        down = draw.standard_normal(shape) / rank
    else:  # kaiming_uniform with a = sqrt(5), torch's default for linear layers: a bound of 1 / sqrt(fan in)
        bound = 1 / math.sqrt(site.down_units)
        down = draw.uniform(-bound, bound, shape)
    return torch.from_numpy(down).float()
