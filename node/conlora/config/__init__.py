"""Our YAML files: their sections, and how they are read."""

from conlora.config.fields import Address, FilePath, Section
from conlora.config.node import (
    DATA_FORMATS,
    DataSection,
    ExchangeSection,
    LoraSection,
    ModelSection,
    NodeConfig,
    TrainingSection,
    load_basics,
    load_config,
    readable,
)
from conlora.config.reading import load_section
from conlora.config.tasks import TaskSection

__all__ = [
    "DATA_FORMATS",
    "Address",
    "DataSection",
    "ExchangeSection",
    "FilePath",
    "LoraSection",
    "ModelSection",
    "NodeConfig",
    "Section",
    "TaskSection",
    "TrainingSection",
    "load_basics",
    "load_config",
    "load_section",
    "readable",
]
