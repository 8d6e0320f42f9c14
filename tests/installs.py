"""What deploy/systemd/install.sh puts below a directory, with a virtual environment that runs the code of this checkout."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import conlora

SYSTEMD = Path(__file__).parents[1] / "deploy" / "systemd"
SOURCE = Path(conlora.__file__).parents[1]
# Stands for `python3.11 -m venv --clear PLACE`, with a pip that notes down what it is asked: a real one would fetch gigabytes.
# FAILS=import: has no venv module. FAILS=venv: what it makes has no pip.
PYTHON = f"""#!/bin/sh
if [ "$1" = -c ]; then [ "$FAILS" != import ]; exit; fi
[ "$1 $2 $3" = "-m venv --clear" ] || exit 1
shift
rm -rf "$3"
mkdir -p "$3/bin"
touch "$3/pyvenv.cfg"
[ "$FAILS" != venv ] || exit 1
printf '#!/bin/sh\\necho "$@" >> "%s/pip.log"\\n' "$3" > "$3/bin/pip"
printf '#!/bin/sh\\nPYTHONPATH={SOURCE} exec {sys.executable} -m conlora "$@"\\n' > "$3/bin/conlora"
chmod +x "$3/bin/pip" "$3/bin/conlora"
"""


def run(script: str, root: Path, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """install.sh or uninstall.sh below `root`."""
    python = root / "python3.11"
    if not python.exists():
        python.write_text(PYTHON)
        python.chmod(0o755)
    environment = {**os.environ, "DESTDIR": str(root), "PYTHON": str(python), **variables}
    command = [str(SYSTEMD / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def make_user(root: Path) -> None:
    """What systemd makes of the two small files: the user, and the parents of directories."""
    for tool in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        subprocess.run([*tool, f"--root={root}", "conlora.conf"], check=True, capture_output=True)


def files(root: Path) -> set[str]:
    """All that lies below it, directories left out."""
    return {f"/{path.relative_to(root)}" for path in root.rglob("*") if not stat.S_ISDIR(path.lstat().st_mode)}
