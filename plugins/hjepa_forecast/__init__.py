"""Levels that predict their own next states, the predictors that do it, and the macro-actions that lead there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("level", "forecast", "hjepa_forecast.forecast:Forecast")
    components.add("predictor", "causal", "hjepa_forecast.causal:Causal")
    components.add("predictor", "ensemble", "hjepa_forecast.ensemble:Ensemble")
    components.add("predictor", "gru", "hjepa_forecast.gru:GRU")
    components.add("predictor", "mlp", "hjepa_forecast.mlp:StepMLP")
    components.add("predictor", "conv", "hjepa_forecast.conv:StepConv")
    components.add("macro_action", "sum", "hjepa_forecast.sum:Sum")
    components.add("macro_action", "mlp", "hjepa_forecast.macro_mlp:MacroMLP")
    components.add("macro_action", "transformer", "hjepa_forecast.macro_transformer:MacroTransformer")
