"""Two nodes that sign sketches."""

import pytest
from tests.sketch_records import FEDERATION, LAYOUT

from conlora.net.identity import Identity, create_identity
from conlora.net.sketches import Scribe


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    directory = tmp_path_factory.mktemp("identities")
    return create_identity(directory / "anna"), create_identity(directory / "mercy")


@pytest.fixture(scope="module")
def anna(identities: tuple[Identity, Identity]) -> Scribe:
    return Scribe(identities[0], FEDERATION, LAYOUT.size)


@pytest.fixture(scope="module")
def mercy(identities: tuple[Identity, Identity]) -> Scribe:
    return Scribe(identities[1], FEDERATION, LAYOUT.size)
