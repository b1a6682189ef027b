"""How the file for ComfyUI and others names an adapter's tensors; each family chooses one of two layouts."""

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
    """None if the layout has no alpha, which readers take to equal the rank."""


class Layout(Protocol):
    """A layout of adapter files."""

    module: str
    """`ss_network_module` in the header, which tells programs the layout; "" writes none."""
    readers: str
    """Programs that read it, as told to people."""

    def names(self, component: str, path: str) -> Names:
        """The keys of a layer, given its component and its path in it."""


class Kohya:
    """`<prefix>_<path with _>.lora_down.weight` and so on, as ComfyUI, A1111, kohya's scripts and diffusers read it.

    Args:
        prefixes: the prefix of each component.
        renamed: layers whose diffusers name is unknown to some reader -> the name to use instead.
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
    """`<component>.<path>.lora_A.weight` without alpha, as ComfyUI and diffusers read adapters of transformers.

    In kohya's layout, transformers have one fused projection where diffusers has three or four. An adapter of some of
    them would come back with untrained layers, and diffusers splits fused ones only at FLUX.1's own widths.
    """

    module = ""
    readers = "ComfyUI"

    def names(self, component: str, path: str) -> Names:
        """As in the file for diffusers."""
        layer = f"{component}.{path}"
        return Names(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", None)
