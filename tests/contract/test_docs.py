"""Documentation is true to the code: generated pages, commands and keys in examples, and links."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from conlora.cli.main import app
from conlora.config import NodeConfig, RemoteNode
from conlora.core.reasons import REASONS
from conlora.net.wire import PROTOCOL_VERSION
from conlora.testbed.spec import TestbedSpec
from conlora.v1 import adapter_pb2, peer_pb2

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")], key=lambda page: page.as_posix()
)
SHELL = ("bash", "console")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page, `(language, text)`; those inside list items lose their indent."""
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL):
        indent, language, text = found.groups()
        yield language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Every `conlora` command line in the page's shell blocks and in its running text."""
    lines = [
        line.removeprefix("$ ").strip()
        for language, text in blocks(page)
        if language in SHELL
        for line in text.split("\n")
    ]
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(conlora [^`]+)`", prose)
    for line in lines:
        if line.startswith("conlora "):  # else it is what a command says
            yield shlex.split(line, comments=True)[1:]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_generated_pages_are_those_of_the_code() -> None:
    check = [sys.executable, str(ROOT / "docs" / "generate_reference.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_examples_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        known = {"--help"}
        for before, word in itertools.pairwise(["", *words]):
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
            elif word in (">", "|"):
                break
            elif word.startswith("-"):
                known |= {option for parameter in command.params for option in parameter.opts}
                assert word.partition("=")[0] in known, f"{' '.join(words)}: no option {word}"
            else:
                placeholder = word.isupper() or before.startswith("-")  # COMMAND, or an option's value
                assert placeholder or not hasattr(command, "commands"), f"{' '.join(words)}: no command {word}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_in_examples_exist(page: Path) -> None:
    for language, text in blocks(page):
        if language == "yaml":
            example = yaml.safe_load(text)
            unknown = [
                unknown_keys(example, model.model_json_schema()) for model in (NodeConfig, RemoteNode, TestbedSpec)
            ]
            assert [] in unknown, f"{text}: unknown {min(unknown, key=len)}"


def unknown_keys(example: Any, schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> list[str]:
    """Keys of the example that the JSON schema of a file does not have."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if "oneOf" in schema:  # sections that are told apart by their type
        kinds = [definitions[one["$ref"].rpartition("/")[2]] for one in schema["oneOf"]]
        wanted = example.get("type", "text-classification")
        schema = next(kind for kind in kinds if kind["properties"]["type"]["const"] == wanted)
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if not isinstance(example, dict) or "anyOf" in schema:
        return []
    odd = []
    for key, value in example.items():
        inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
        if inner is not True:
            odd += unknown_keys(value, inner, definitions) if inner else [key]
    return odd


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{target}: no such file"
        if fragment:
            assert fragment in anchors(destination), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The headings of a page as fragments, the way that forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_hold_examples() -> None:
    """Guards the tests above against finding nothing to test."""
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 20
    assert ["check", "mercy"] in found


def test_design_sections_exist() -> None:
    """'DESIGN n.m' in a comment is a section of docs/design.md."""
    headings = re.findall(r"^#+ ([\d.]+) ", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    sections = {heading.rstrip(".") for heading in headings}
    for source in [*ROOT.glob("node/conlora/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for reference in re.findall(r"DESIGN (\d+(?:\.\d+)?)", source.read_text()):
            assert reference in sections, f"{source}: DESIGN {reference}"


def test_every_reason_of_a_refusal_is_in_the_protocol() -> None:
    text = (ROOT / "docs" / "reference" / "protocol.md").read_text()
    section = text.partition("## Refusals and quarantine")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert sorted(re.findall(r"`([a-z-]+)`", rows)) == sorted(REASONS)


def test_the_protocol_page_knows_every_frame_reason_and_setting() -> None:
    """The fields are in the generated page; what they are for has to be told by somebody."""
    text = (ROOT / "docs" / "reference" / "protocol.md").read_text()
    told = set(re.findall(r"`([A-Za-z_.]+)`", text))
    kinds = set(peer_pb2.Frame.DESCRIPTOR.fields_by_name) - {"hello"}  # it has a section
    reasons = {
        r for r in peer_pb2.Goodbye.DESCRIPTOR.enum_types_by_name["Reason"].values_by_name if r != "REASON_UNSPECIFIED"
    }
    settings = set(adapter_pb2.FederationSettings.DESCRIPTOR.fields_by_name)
    assert kinds | reasons | settings | {"Hello"} <= told
    assert f"protocol version {PROTOCOL_VERSION}." in text
