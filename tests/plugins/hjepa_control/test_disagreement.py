"""What costs where predictors disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import states

from hjepa.contracts import Spec
from hjepa.errors import Mistake
from hjepa_control.disagreement import Disagreement

PLACES = states(torch.zeros(2, 3, 2))


def test_it_is_the_mean_over_steps_and_tokens() -> None:
    doubted = replace(PLACES, doubt=torch.tensor([[[0.0], [1.0], [5.0]], [[3.0], [3.0], [3.0]]]))
    found = Disagreement(Spec(2))(doubted, None, PLACES)
    assert found.value.tolist() == [2, 3] and found.violation.tolist() == [0, 0]


def test_where_there_is_one_predictor_it_says_what_to_do() -> None:
    with pytest.raises(Mistake, match="this level has one; use the predictor ensemble"):
        Disagreement(Spec(2))(PLACES, None, PLACES)
