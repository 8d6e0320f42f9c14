"""Our YAML files: their sections, and how they are read.

Each name is imported when it is first asked for: who only wants to know where a node is does not wait for all sections.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conlora.config.basics import NodeBasics, RemoteNode, load_basics, load_place
    from conlora.config.fields import Address, FilePath, Section
    from conlora.config.model import LoraSection, ModelSection
    from conlora.config.node import (
        DATA_FORMATS,
        DataSection,
        ExchangeSection,
        NodeConfig,
        TrainingSection,
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
    "NodeBasics",
    "NodeConfig",
    "RemoteNode",
    "Section",
    "TaskSection",
    "TrainingSection",
    "load_basics",
    "load_config",
    "load_place",
    "load_section",
    "readable",
]

_MODULES = dict.fromkeys(__all__, "node") | {
    "Address": "fields",
    "FilePath": "fields",
    "LoraSection": "model",
    "ModelSection": "model",
    "Section": "fields",
    "TaskSection": "tasks",
    "NodeBasics": "basics",
    "RemoteNode": "basics",
    "load_basics": "basics",
    "load_place": "basics",
    "load_section": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
