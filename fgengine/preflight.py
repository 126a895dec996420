"""Checks a configuration for errors that would make the start fail, without loading anything."""

from __future__ import annotations

from fgengine.analytic import profile_of
from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.scheduling.policy import policy_class
from fgengine.scheduling.predictors import check_predictor


def check_names(config: EngineConfig) -> None:
    """Raise ValueError if the model, policy, predictor or device is unknown, or the profile is no file."""
    shape_of(config.model)
    policy_class(config.policy)
    check_predictor(config.predictor)
    if config.device_spec is not None:
        profile_of(config)
    elif config.step_overhead_ms is not None:
        raise ValueError("--step-overhead-ms is for analytic devices: add --device-spec, or leave it out")
    if config.profile is not None and not config.profile.is_file():
        raise ValueError(f"--profile: there is no file {config.profile}; 'fgbench profile' writes one")
