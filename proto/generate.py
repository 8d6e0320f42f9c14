"""Generates node/conlora/v1 from the .proto files; with --check, fails where the committed code differs."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "proto" / "conlora" / "v1").glob("*.proto"))
TARGET = ROOT / "node"


def generate(target: Path) -> list[Path]:
    """Runs protoc into `target` and returns what it made; services get stubs only where there is a service."""
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main([*arguments, *map(str, SOURCES)]) != 0:
        raise SystemExit("protoc failed")
    services = [source for source in SOURCES if "\nservice " in source.read_text()]
    if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--grpc_python_out={target}", *map(str, services)]) != 0:
        raise SystemExit("protoc failed")
    package = target / "conlora" / "v1"
    (package / "__init__.py").write_text('"""Generated from proto/conlora/v1 by `make proto`; do not edit."""\n')
    return sorted(package.glob("*.py*"))


def check() -> None:
    """Exits with 1 and names the files where committed and generated code differ."""
    with tempfile.TemporaryDirectory() as directory:
        made = {path.name: path.read_bytes() for path in generate(Path(directory))}
    committed = {path.name: path.read_bytes() for path in (TARGET / "conlora" / "v1").glob("*.py*")}
    differing = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    if differing:
        raise SystemExit(f"node/conlora/v1 differs from proto/: {', '.join(differing)}; run `make proto` and commit")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        check()
    else:
        generate(TARGET)
