"""Checks a configuration for errors that would make the start fail, without loading anything."""

from __future__ import annotations

from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.scheduling.policy import policy_class
from fgengine.scheduling.predictors import check_predictor


def check_names(config: EngineConfig) -> None:
    """Raise ValueError if the model, policy or predictor does not exist, or the profile is not a file."""
    shape_of(config.model)
    policy_class(config.policy)
    check_predictor(config.predictor)
    if config.profile is not None and not config.profile.is_file():
        raise ValueError(f"--profile: there is no file {config.profile}; 'fgbench profile' writes one")
