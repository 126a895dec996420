"""Finds in a configuration what would make a start fail, without loading anything."""

from __future__ import annotations

from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.scheduling.policy import policy_class
from fgengine.scheduling.predictors import check_predictor


def check_names(config: EngineConfig) -> None:
    """Raises ValueError for a model, policy or predictor that is not there, and a profile that is no file."""
    shape_of(config.model)
    policy_class(config.policy)
    check_predictor(config.predictor)
    if config.profile is not None and not config.profile.is_file():
        raise ValueError(f"--profile: there is no file {config.profile}; 'fgbench profile' writes one")
