"""docs/reference/configuration.md: every key of the files that people write, from their models."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pages.markdown import GENERATED, prose, table
from pydantic import TypeAdapter

from conlora.config import Address, NodeConfig, RemoteNode, Section, TaskSection
from conlora.core.rules import RULES
from conlora.core.topology import NAMED, REFERENCE_GRAPHS
from conlora.net.identity import PeerCard
from conlora.testbed.grid import Block, GridSpec
from conlora.testbed.spec import TestbedSpec

PATTERNS = {  # what a pattern means, in words
    TypeAdapter(Address).json_schema()["pattern"]: "host:port",
    NodeConfig.model_json_schema()["properties"]["name"]["pattern"]: "name: letters, digits and `. _ -`, at most 63",
}
OF_A_NODE = {"ModelSection", "LoraSection", "TrainingSection"} | {
    get_args(task)[0].__name__ for task in get_args(get_args(TaskSection)[0])
}

Schema = dict[str, Any]


def configuration() -> str:
    """Every key of the files that people write, from their models."""
    parts = [
        GENERATED,
        "# Configuration\n",
        prose(
            "Four kinds of YAML file have keys: a node's `conlora.yaml`, an operator's file, an identity card, and a testbed's "
            "specification. "
            "A key that is not listed here is an error, and every mistake is reported with its file and key. "
            "Paths are relative to the file that they stand in."
        ),
        "## A node: `conlora.yaml`\n",
        prose(
            "`conlora init` writes one with comments. These have to be equal on all nodes of a federation, which compare them "
            "when they meet: `model.base` (by the digest of its weights), `lora` but for `dropout` and `plus_ratio`, "
            "`federation.name`, `seed`, `rule` and `mode`, the type of the task and its `labels`, and `training.local_steps`."
        ),
        *_model(NodeConfig, known=set()),
        "### Rules\n",
        table(("`federation.rule`", "trained, sent and mixed", "default learning rate"), _rules()),
        "## An identity card: `peers/NAME.yaml`\n",
        "`conlora id` prints this node's own; `conlora peers add` checks a partner's and puts it in place.\n",
        *_model(PeerCard, known=set()),
        "## An operator's file\n",
        prose(
            "`conlora init --operator` writes one. Commands for a running node take it in the place of the node's configuration."
        ),
        *_model(RemoteNode, known=set()),
        "## A testbed: `SPEC.yaml`\n",
        prose(
            "`conlora testbed run` reads it. `deploy/demo/demo.yaml` is one with comments. The sections `model`, `lora`, `task` "
            "and `training` are those of a node."
        ),
        *_model(TestbedSpec, known=OF_A_NODE),
        "## A grid: `GRID.yaml`\n",
        prose(
            "`conlora testbed compare` reads it. `deploy/testbed/reference.yaml` is one with comments. Each block under `grid` "
            "is a full product of its axes; what two blocks share is run once."
        ),
        *_model(GridSpec, known=OF_A_NODE | {"GridData"}),
        "### `grid` (a list of blocks)\n",
        *_model(Block, known=set()),
        "### Named topologies\n",
        prose(
            f"For any number of nodes (a torus needs a product of two factors above 1): {_names(NAMED)}. "
            f"For 7 nodes, from the literature: {_names(REFERENCE_GRAPHS)}."
        ),
    ]
    return "\n".join(parts)


def _rules() -> list[tuple[str, ...]]:
    return [
        (f"`{rule.name}`", ", ".join(sorted(rule.shared)), f"`{rule.default_learning_rate:g}`")
        for rule in RULES.values()
    ]


def _names(named: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in named)


def _model(model: type[Section], known: set[str]) -> Iterator[str]:
    """A table of the model's keys, and one for each section in it that is not in `known`."""
    schema = model.model_json_schema()
    definitions: dict[str, Schema] = schema.get("$defs", {})
    yield _keys(schema, definitions)
    for key, name in _sections(schema, definitions):
        if name not in known:
            yield f"### `{key}`\n"
            yield f"{definitions[name]['description']}\n"
            yield _keys(definitions[name], definitions)


def _sections(schema: Schema, definitions: dict[str, Schema]) -> Iterator[tuple[str, str]]:
    """The keys that hold sections, with the names of these; a section within a section directly after it."""
    for key, value in schema["properties"].items():
        for one in value.get("oneOf", []):  # a section that comes in several types
            name = _referred(one)
            yield f"{key}: {definitions[name]['properties']['type']['const']}", name
        values = value.get("additionalProperties")
        for alternative, suffix in [(value, ""), (values if isinstance(values, dict) else {}, ".NAME")]:
            name = _referred(alternative)
            if name and "properties" in definitions[name]:
                yield key + suffix, name
                for inner, inner_name in _sections(definitions[name], definitions):
                    yield f"{key}{suffix}.{inner}", inner_name


def _referred(value: Schema) -> str:
    return str(value.get("$ref", "")).rpartition("/")[2]


def _keys(schema: Schema, definitions: dict[str, Schema]) -> str:
    required = schema.get("required", [])
    rows = []
    for key, value in schema["properties"].items():
        default = "required" if key in required else _default(value)
        rows.append((f"`{key}`", _kind(value, definitions), default, value.get("description", "")))
    return table(("key", "value", "default", ""), rows)


def _default(value: Schema) -> str:
    match value.get("default"):
        case None:
            return ""
        case bool() as flag:
            return f"`{str(flag).lower()}`"
        case dict() as section:
            return "its defaults" if section else "`{}`"
        case float() as number:
            return f"`{number:g}`"
        case other:
            return f"`{other}`"


def _kind(value: Schema, definitions: dict[str, Schema]) -> str:
    """A JSON schema in words."""
    match value:
        case {"$ref": reference}:
            return _kind(definitions[reference.rpartition("/")[2]], definitions)
        case {"anyOf": alternatives}:
            return " or ".join(_kind(one, definitions) for one in alternatives if one.get("type") != "null")
        case {"oneOf": _}:
            return "section, by its `type`"
        case {"enum": values}:
            return " or ".join(f"`{one}`" for one in values)
        case {"const": constant}:
            return f"`{constant}`"
        case {"type": "array", "prefixItems": items}:
            return f"[{', '.join(_kind(one, definitions) for one in items)}]"
        case {"type": "array"}:
            least = f", at least {value['minItems']}" if value.get("minItems", 0) > 1 else ""
            return f"list of {_plural(_kind(value['items'], definitions))}{least}"
        case {"type": "object", "properties": properties} if len(properties) == 1:
            key, only = next(iter(properties.items()))
            return "section" if "$ref" in only else f"`{{{key}: NUMBER}}` ({_kind(only, definitions)})"
        case {"type": "object", "properties": _}:
            return "section"
        case {"type": "object", "additionalProperties": dict() as values}:
            return f"mapping of names to {_plural(_kind(values, definitions))}"
        case {"type": "object"}:
            return "mapping of names to anything"
        case {"format": "path"}:
            return "path"
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "integer"}:
            return "whole number" + _limits(value)
        case {"type": "number"}:
            return "number" + _limits(value)
    return PATTERNS.get(value.get("pattern", ""), "text")


def _plural(kind: str) -> str:
    return re.sub(r"^(text|number|whole number|section)\b", r"\1s", kind)


def _limits(value: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {_power(value[key])}" for key, word in words.items() if key in value]
    return ", " + " and ".join(limits) if limits else ""


def _power(number: float) -> str:
    return "2^63" if number == 2**63 else f"{number:g}"
