"""A small convolutional network that predicts the next map of states from the last one alone: what happens somewhere follows from what is
near there.

The predictor of PLDM's mazes and of HWM (arXiv:2502.14819, arXiv:2604.03208) is of this kind. A rule that is learned in one place holds
in all, walls included, which a network over one vector has to learn anew for every wall. What leads to the next step scales and shifts
the channels of every layer (FiLM, Perez et al. 2018, arXiv:1709.07871).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hjepa.contracts import Count, Spec
from hjepa.nn import linear
from hjepa_forecast.markov import Leads, Markov


class StepConv(Markov):
    """Predicts each token of the next step from the tokens around it, and from what leads there: action, condition and z.

    width: channels between; depth: residual layers, each of which sees one place further; kernel: how many places wide a layer sees;
    residual: predict the change, so that at the start the prediction is nearly a copy of the last step;
    norm: normalise every predicted token, for encoders that do so too: long rollouts then cannot drift away in length.
    Tokens that are not valid are read as zeros.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 32,
        depth: Count = 2,
        kernel: Count = 3,
        residual: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if not spec.width or len(spec.grid) != 2:
            raise ValueError(f"conv predicts tokens that lie in a plane; those that it is given lie as {list(spec.grid)}")
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}: the place itself lies in the middle, so write an odd number")
        self.spec, self.residual, self.norm = spec, residual, norm
        self.leads = Leads("conv", spec)
        wide = self.leads.width
        self.enter = nn.Conv2d(spec.width, width, kernel, padding=kernel // 2)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, kernel, padding=kernel // 2) for _ in range(depth))
        self.guide = nn.Sequential(linear(wide, width), nn.SiLU(), linear(width, 2 * width * depth)) if wide else None
        self.out = linear(width, spec.width, scale=0.02 if residual else 1.0)

    def following(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        flat = tokens.flatten(0, 1)
        maps = flat.view(-1, *self.spec.grid, self.spec.width).permute(0, 3, 1, 2)  # channels last, as tokens are: no copy
        x = self.enter(maps)
        for layer, (scale, shift) in zip(self.layers, self._guides(tokens, action, condition, z), strict=True):
            x = x + layer(functional.gelu(torch.addcmul(shift, x, 1 + scale)))
        out: Tensor = self.out(functional.gelu(x).permute(0, 2, 3, 1).flatten(1, 2))
        out = flat + out if self.residual else out
        out = functional.layer_norm(out, out.shape[-1:]) if self.norm else out
        return out.view_as(tokens)

    def _guides(
        self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each layer a scale and a shift of its channels, (B*T, width, 1, 1)."""
        leads = self.leads(tokens, action, condition, z)
        if self.guide is None:
            nothing = tokens.new_zeros(1, 1, 1, 1)
            return [(nothing, nothing)] * len(self.layers)
        made = self.guide(leads.flatten(0, 2))[:, :, None, None].chunk(2 * len(self.layers), dim=1)
        return list(zip(made[::2], made[1::2], strict=True))
