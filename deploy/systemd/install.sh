#!/usr/bin/env bash
# Installs ConLoRA as a systemd service: a virtual environment in /opt/conlora, the units conlora@ and conlora-check@, their user and directories.
# Run it again to upgrade, while no node runs. It starts nothing, and changes nothing in /etc/conlora and /var/lib/conlora.
#
#   sudo deploy/systemd/install.sh [--gpu]     --gpu: with the drop-in that gives nodes NVIDIA's GPUs
#
# PYTHON: Python 3.11 (default: python3.11). pip takes its own variables, such as PIP_INDEX_URL. DESTDIR: put all files below that
# directory, and touch nothing else.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
SOURCE="$(cd "$HERE/../.." && pwd)"
PYTHON="${PYTHON:-python3.11}"
DESTDIR="${DESTDIR:-}"
VENV="$DESTDIR/opt/conlora"
UNITS=/etc/systemd/system
LINK="$DESTDIR/usr/local/bin/conlora"
GPU=""

say() { printf '%s\n' "$*"; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 2
}

for argument in "$@"; do
  case "$argument" in
    --gpu) GPU=yes ;;
    *) fail "$argument: no such option; there is --gpu" ;;
  esac
done
[ -n "$DESTDIR" ] || [ "$(id -u)" -eq 0 ] || fail "needs root: run it with sudo"
command -v "$PYTHON" >/dev/null || fail "$PYTHON: no such command; install Python 3.11 with its venv module, or set PYTHON"
case "$(readlink -f "$(command -v "$PYTHON")")" in
  /home/* | /root/*) fail "$PYTHON lies in a home, where the service may not look; set PYTHON to one that all users can run" ;;
esac
"$PYTHON" -c "import venv, ensurepip" 2>/dev/null || fail "$PYTHON lacks its venv module; install python3.11-venv, or set PYTHON"
[ ! -e "$VENV" ] || [ -e "$VENV/pyvenv.cfg" ] || fail "$VENV is there already, and no virtual environment; move it away"
if [ -e "$LINK" ] || [ -L "$LINK" ]; then
  [ "$(readlink "$LINK" || true)" = /opt/conlora/bin/conlora ] || fail "$LINK is there already, and not of this script; move it away"
fi

put() { # put FILE PLACE: what differs is written and named
  if ! cmp -s "$HERE/$1" "$DESTDIR$2"; then
    install -D -m 0644 "$HERE/$1" "$DESTDIR$2"
    say "written    $2"
  fi
}

umask 022 # the service's user has to read all of this
[ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv --clear "$VENV" # also where an earlier run was broken off
"$VENV/bin/pip" install --quiet -c "$SOURCE/constraints.txt" "$SOURCE"
say "installed  /opt/conlora: $("$VENV/bin/conlora" --version)"
mkdir -p "${LINK%/*}"
ln -sfn /opt/conlora/bin/conlora "$LINK"

for unit in conlora@ conlora-check@ conlora-gpu; do # the last does nothing until a drop-in wants it
  put "$unit.service" "$UNITS/$unit.service"
done
put sysusers.d/conlora.conf /etc/sysusers.d/conlora.conf
put tmpfiles.d/conlora.conf /etc/tmpfiles.d/conlora.conf
[ ! -e "$DESTDIR$UNITS/conlora@.service.d/gpu.conf" ] || GPU=yes # from an earlier run
if [ -n "$GPU" ]; then
  for unit in conlora@ conlora-check@; do
    put gpu.conf "$UNITS/$unit.service.d/gpu.conf"
  done
elif [ -e /proc/driver/nvidia ]; then
  say "note       there is a GPU, which nodes don't see; run install.sh --gpu"
fi

if [ -z "$DESTDIR" ]; then
  systemd-sysusers /etc/sysusers.d/conlora.conf
  systemd-tmpfiles --create /etc/tmpfiles.d/conlora.conf
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active 'conlora@*'; then
      say "note       nodes run that have started with the old version, and a trainer that dies comes back with the new one;"
      say "           restart them now: systemctl restart 'conlora@*'"
    fi
  fi
fi

say "next       conlora init /etc/conlora/NODE --service --name NODE --advertise HOST:7443"
say "           edit /etc/conlora/NODE/conlora.yaml, exchange cards with partners, then systemctl enable --now conlora@NODE"
