#!/usr/bin/env bash
# Installs ConLoRA as a systemd service: a virtual environment in /opt/conlora, the unit conlora@.service, its user and directories.
# Run it again to upgrade. It starts nothing, and changes nothing in /etc/conlora and /var/lib/conlora.
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
[ ! -e "$VENV" ] || [ -e "$VENV/pyvenv.cfg" ] || fail "$VENV is there already, and no virtual environment; move it away"

put() { # put FILE PLACE: what differs is written and named
  if ! cmp -s "$HERE/$1" "$DESTDIR$2"; then
    install -D -m 0644 "$HERE/$1" "$DESTDIR$2"
    say "written    $2"
  fi
}

umask 022 # the service's user has to read all of this
[ -e "$VENV/pyvenv.cfg" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/pip" install --quiet -c "$SOURCE/constraints.txt" "$SOURCE"
say "installed  /opt/conlora: $("$VENV/bin/conlora" --version)"
mkdir -p "$DESTDIR/usr/local/bin"
ln -sfn /opt/conlora/bin/conlora "$DESTDIR/usr/local/bin/conlora"

put conlora@.service /etc/systemd/system/conlora@.service
put sysusers.d/conlora.conf /etc/sysusers.d/conlora.conf
put tmpfiles.d/conlora.conf /etc/tmpfiles.d/conlora.conf
if [ -n "$GPU" ]; then
  put gpu.conf /etc/systemd/system/conlora@.service.d/gpu.conf
elif [ -e /proc/driver/nvidia ] && [ ! -e "$DESTDIR/etc/systemd/system/conlora@.service.d/gpu.conf" ]; then
  say "note       there is a GPU, which nodes don't see; run install.sh --gpu"
fi

if [ -z "$DESTDIR" ]; then
  systemd-sysusers /etc/sysusers.d/conlora.conf
  systemd-tmpfiles --create /etc/tmpfiles.d/conlora.conf
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active 'conlora@*'; then
      say "note       nodes run on with the version that they started with: systemctl restart 'conlora@*'"
    fi
  fi
fi

say "next       conlora init /etc/conlora/NODE --service --name NODE --advertise HOST:7443"
say "           edit /etc/conlora/NODE/conlora.yaml, exchange cards with partners, then systemctl enable --now conlora@NODE"
