"""The decoder: plain single-device modules, and how a stage of them is built for one rank."""

from launcher.runtime.model.context import ForwardContext
from launcher.runtime.model.stage import StageModule, build_stage, tied_parameter

__all__ = ["ForwardContext", "StageModule", "build_stage", "tied_parameter"]
