"""Attention: ways to compute it, each best on some device; `hjepa.nn.attention` describes which tokens see which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("attention", "auto", "hjepa_attention.auto:Auto")
    components.add("attention", "sdpa", "hjepa_attention.sdpa:SDPA")
    components.add("attention", "varlen", "hjepa_attention.varlen:Varlen")
    components.add("attention", "xformers", "hjepa_attention.xformers:XFormers")
