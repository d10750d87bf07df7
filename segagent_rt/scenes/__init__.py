"""Synthetic scenes with referring expressions: seed in; image, masks and phrases out."""

from segagent_rt.scenes.expressions import Expression
from segagent_rt.scenes.scene import GENERATOR, Scene, make_scene

__all__ = ["GENERATOR", "Expression", "Scene", "make_scene"]
