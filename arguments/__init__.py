"""Every flag of the three scripts: one dataclass a group, and the parser made from them.

A field's name is the flag, its default the default, the string under it the help. Nothing below the scripts knows
argparse; they get instances of these classes.
"""

from arguments.groups import (
    ConsensusParams,
    EvaluationParams,
    ModelParams,
    PipelineParams,
    ReferringParams,
    RenderingParams,
    RGBParams,
    TrainingParams,
)
from arguments.parser import parse

__all__ = [
    "ConsensusParams",
    "EvaluationParams",
    "ModelParams",
    "PipelineParams",
    "RGBParams",
    "ReferringParams",
    "RenderingParams",
    "TrainingParams",
    "parse",
]
