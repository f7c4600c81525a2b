"""Every flag of the scripts: one dataclass per group, and the parser made from them.

A field's name is the flag, its default the default, the string under it the help text. Only scripts and commands parse
flags; everything below them takes instances of these classes, or plain values.
"""

# ruff: noqa: F401 (names for `from arguments import ...`)
from arguments.groups import (
    DATASETS,
    ConsensusParams,
    EvaluationParams,
    ModelParams,
    PhotoParams,
    PipelineParams,
    PseudoMaskParams,
    ReferringParams,
    RenderingParams,
    RGBParams,
    SelectionParams,
    TrainingParams,
    VideoParams,
)
from arguments.parser import parse
