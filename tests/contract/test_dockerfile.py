"""The Dockerfile, read: what `make compose-test` tries on an engine can't silently go from it between two such runs."""

import re
import subprocess
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from conlora import __version__
from conlora.testbed.compose import IMAGE_USER, VOLUME

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
STAGES = [stage.splitlines() for stage in re.split(r"^(?=FROM )", TEXT, flags=re.MULTILINE)[1:]]
IMAGE = STAGES[-1]
EXTRAS = ("gguf", "quantized", "tensorboard")  # all of pyproject.toml but `dev`


def said(word: str) -> list[str]:
    """What follows an instruction of the image's own stage."""
    return [line.partition(" ")[2] for line in IMAGE if line.startswith(f"{word} ")]


def test_stages_build_on_one_base_and_on_each_other() -> None:
    assert [stage[0].split()[1] for stage in STAGES] == ["debian:bookworm-slim", "torch", "debian:bookworm-slim"]
    assert [copy.split()[0] for copy in said("COPY")] == ["--from=torch", "--from=build"]


def test_the_image_runs_as_a_user_whom_testbeds_know() -> None:
    assert said("USER") == ["conlora"]
    (made,) = (run for run in said("RUN") if "useradd" in run)
    assert f"--uid {IMAGE_USER} " in made
    assert said("VOLUME") == [str(VOLUME)]


def test_labels_tell_the_version_of_the_package() -> None:
    (labels,) = said("LABEL")
    told = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', labels))
    assert told["version"] == __version__
    assert told["licenses"] == "Apache-2.0"
    assert {"title", "description"} <= set(told)


def test_an_init_passes_signals_on_and_health_is_asked_through_the_admin_socket() -> None:
    assert said("ENTRYPOINT") == ['["tini", "-e", "143", "--", "conlora"]']
    assert said("STOPSIGNAL") == ["SIGTERM"]
    (health,) = said("HEALTHCHECK")
    assert health.endswith('CMD ["conlora", "status", "--json"]')


def test_every_installation_is_constrained() -> None:
    installs = [line for stage in STAGES for line in stage if re.match(r"RUN pip .* install ", line)]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)


def test_constraints_pin_all_that_the_package_brings() -> None:
    """Followed from distribution to distribution, for this Python, without extras but those that an image may be built with."""
    pins = {name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    wanted, seen = [Requirement(f"conlora[{','.join(EXTRAS)}]")], set[str]()
    while wanted:
        requirement = wanted.pop()
        if (key := str(requirement)) in seen:
            continue
        seen.add(key)
        for text in distribution(requirement.name).requires or ():
            needed = Requirement(text)
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
                # what PyTorch's CUDA builds bring is pinned by PyTorch itself, to the last digit
                assert name(needed.name) in pins or "==" in str(needed.specifier), f"{requirement.name} brings {needed}"


def test_an_image_is_built_with_the_extras_that_are_named() -> None:
    """As the shell of the build sees it, and with constraints as for all the rest."""
    (line,) = (line for line in STAGES[1] if line.startswith("RUN pip "))
    asked = line.removeprefix("RUN ").partition("&&")[0].replace("pip ", "echo ", 1)
    for extras, package in (("", "."), ("gguf,quantized", ".[gguf,quantized]")):
        said = subprocess.check_output(["sh", "-c", asked], env={"EXTRAS": extras}, text=True)
        assert said.split() == ["--python", "/opt/conlora/bin/python", "install", "-c", "constraints.txt", package]
    assert 'ARG EXTRAS=""' in STAGES[1]


def test_pages_name_the_extras_and_an_index_where_they_ask_for_a_build_of_pytorch() -> None:
    """PyPI has no `torch==...+cpu`."""
    page = (ROOT / "docs" / "how-to" / "compose.md").read_text()
    for text in (page, (ROOT / "Dockerfile").read_text()):
        builds = [line for line in text.splitlines() if "TORCH=cpu" in line]
        assert builds
        assert all("--build-arg TORCH_INDEX=https://" in line for line in builds)
    assert all(f"`{extra}`" in page for extra in EXTRAS)


def name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def test_nothing_but_what_is_needed_goes_to_the_engine() -> None:
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert allowed[0] == "*"
    kept = {line.removeprefix("!") for line in allowed if line.startswith("!")}
    copied = {word.strip("./") for stage in STAGES for line in stage if line.startswith("COPY ") and "--from" not in line
              for word in line.split()[1:-1]}  # fmt: skip
    assert kept == copied
