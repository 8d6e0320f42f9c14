"""The fixture with which bench tests record what they measure."""

import pytest
from tests.bench.figures import Figures


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Figures:
    """The report of a test module: runs/bench/<its name without test_>, under the first line of its docstring."""
    module = request.module
    return Figures(module.__name__.rpartition(".")[2].removeprefix("test_"), module.__doc__.splitlines()[0])
