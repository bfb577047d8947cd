"""A gated recurrent unit whose memory is the state itself (Cho et al. 2014, arXiv:1406.1078), as in PLDM and EB-JEPA.

What leads to the next step is what the unit reads, and what it remembers then is the next step (Sobal et al. 2025,
arXiv:2502.14819; EB-JEPA, arXiv:2602.03604). It looks at the last step alone: a rollout costs two products of matrices a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.contracts import Spec, Whole
from hjepa.nn import linear
from hjepa_forecast.markov import Leads, Markov

KEEPING = 2.0
"""The bias that the gate which keeps the state begins with: 0.88 of it are kept, so that gradients come through many steps."""


class GRU(Markov):
    """Predicts each token of the next step from the same token of this one, and from what leads there: action, condition and z.

    hidden: width of a layer between, which sees the token and what leads on, so that an action can do different things in
    different states; 0 for none, as in EB-JEPA, where the encoder must learn states in which it does not;
    norm: a layer norm without parameters on what is predicted, for encoders that end in the same. Without it, nothing that is
    predicted is further from 0 than 1 or the same number of the state before, whichever is further.
    Tokens that are not valid are read as zeros.
    """

    def __init__(self, spec: Spec, *, hidden: Whole = 0, norm: bool = False) -> None:
        super().__init__()
        self.spec, self.norm, self.leads = spec, norm, Leads("gru", spec)
        self.between = linear(spec.width + self.leads.width, hidden) if hidden else None
        self.of_state = linear(spec.width, 3 * spec.width)
        nn.init.constant_(self.of_state.bias[spec.width : 2 * spec.width], KEEPING)
        reads = hidden or self.leads.width
        self.of_read = linear(reads, 3 * spec.width) if reads else None

    def following(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        read = self.leads(tokens, action, condition, z)
        if self.between is not None:
            read = F.gelu(self.between(torch.cat((tokens, read.expand(*tokens.shape[:3], -1)), dim=-1)))
        predicted = self._unit(tokens, read)
        return F.layer_norm(predicted, predicted.shape[-1:]) if self.norm else predicted

    def _unit(self, state: Tensor, read: Tensor) -> Tensor:
        """state (B, T, N, D), read (B, T, N or 1, R) -> (B, T, N, D)."""
        reset, keep, new = self.of_state(state).chunk(3, dim=-1)
        if self.of_read is None:
            new = (reset.sigmoid() * new).tanh()
        else:
            by_reset, by_keep, by_new = self.of_read(read).chunk(3, dim=-1)
            keep, new = keep + by_keep, ((reset + by_reset).sigmoid() * new + by_new).tanh()
        return new + keep.sigmoid() * (state - new)
