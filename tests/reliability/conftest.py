"""The fixture with which these tests record what they saw: runs/reliability/NAME.json and .md."""

import pytest
from tests.bench.figures import ROOT, Figures


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Figures:
    """The report of a test module, under the first line of its docstring; see docs/reliability.md."""
    module = request.module
    name = module.__name__.rpartition(".")[2].removeprefix("test_")
    return Figures(name, module.__doc__.splitlines()[0], ROOT / "runs" / "reliability")
