"""Every sentence that a node or a command may say is read by some test."""

import ast
from functools import cache
from pathlib import Path

import pytest
from pages.sentences import Sentence, sentences

TESTS = Path(__file__).resolve().parents[1]
ENOUGH = 20  # characters in a row of a sentence, and of no other where it has such; all of a shorter one


@cache
def read_by_tests() -> str:
    """All texts in the code of tests; regular expressions as what they find."""
    return "\n".join(
        node.value.replace("\\", "")
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@cache
def said() -> str:
    """All sentences."""
    return "\n".join("\n".join(sentence.pieces) for sentence in sentences())


@pytest.mark.parametrize("sentence", sentences(), ids=lambda s: s.text[:60])
def test_a_test_reads_the_sentence(sentence: Sentence) -> None:
    size = min(ENOUGH, max(map(len, sentence.pieces)))
    parts = {piece[at : at + size] for piece in sentence.pieces for at in range(len(piece) - size + 1)}
    own = {part for part in parts if said().count(part) == 1}
    assert any(part in read_by_tests() for part in own or parts), f"no test looks for: {sentence.text}"
