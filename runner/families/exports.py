"""How the file for ComfyUI and others names an adapter's tensors; which of the two layouts fits, each family says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Names:
    """The keys of one layer's tensors."""

    down: str
    up: str
    alpha: str | None
    """None where the layout has none, which readers take as the rank."""


class Layout(Protocol):
    """A layout of adapter files."""

    module: str
    """`ss_network_module` of the header, by which programs tell layouts apart; "" writes none."""
    readers: str
    """Programs that read it, for people."""

    def names(self, component: str, path: str) -> Names:
        """The keys of a layer, by its component and its path in it."""


class Kohya:
    """`<prefix>_<path with _>.lora_down.weight` and so on, as ComfyUI, A1111, kohya's scripts and diffusers read it.

    Args:
        prefixes: of each component.
        renamed: layers that go by another name than the diffusers one, which some reader does not know.
    """

    module = "networks.lora"
    readers = "ComfyUI and A1111"

    def __init__(self, prefixes: Mapping[str, str], renamed: Mapping[str, str] | None = None) -> None:
        self.prefixes, self.renamed = prefixes, renamed or {}

    def names(self, component: str, path: str) -> Names:
        """As kohya's scripts name them."""
        layer = f"{self.prefixes[component]}_{self.renamed.get(path, path).replace('.', '_')}"
        return Names(f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha")


class Peft:
    """`<component>.<path>.lora_A.weight` without alpha, as ComfyUI and diffusers read transformers.

    In kohya's layout these have one fused projection where diffusers has three or four. An adapter of some of them
    would come back with layers that were not trained, and diffusers splits fused ones only at FLUX.1's own widths.
    """

    module = ""
    readers = "ComfyUI"

    def names(self, component: str, path: str) -> Names:
        """As in the file for diffusers."""
        layer = f"{component}.{path}"
        return Names(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", None)
