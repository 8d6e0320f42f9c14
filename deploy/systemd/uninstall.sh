#!/usr/bin/env bash
# Takes away what install.sh has put there, and stops all nodes of this machine first. Keys, configuration, state and the user stay.
#
#   sudo deploy/systemd/uninstall.sh [--purge]     --purge: they go too; nobody can bring a node's key back
#
# DESTDIR: as for install.sh.
set -euo pipefail

DESTDIR="${DESTDIR:-}"
PURGE=""
UNITS=/etc/systemd/system

say() { printf '%s\n' "$*"; }
fail() {
  printf 'uninstall.sh: %s\n' "$*" >&2
  exit 2
}

for argument in "$@"; do
  case "$argument" in
    --purge) PURGE=yes ;;
    *) fail "$argument: no such option; there is --purge" ;;
  esac
done
[ -n "$DESTDIR" ] || [ "$(id -u)" -eq 0 ] || fail "needs root: run it with sudo"

remove() { # remove PLACE...: what is there goes, and is named
  for place in "$@"; do
    if [ -e "$DESTDIR$place" ] || [ -L "$DESTDIR$place" ]; then
      rm -rf -- "$DESTDIR${place:?}"
      say "removed    $place"
    fi
  done
}

running=""
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
  running=yes
  systemctl stop 'conlora@*.service' 'conlora-check@*.service' # each node writes a checkpoint
  for link in "$UNITS"/*.wants/conlora@*.service; do
    [ ! -L "$link" ] || systemctl disable --quiet "${link##*/}"
  done
fi

for unit in conlora@ conlora-check@; do
  remove "$UNITS/$unit.service" "$UNITS/$unit.service.d/gpu.conf"
  rmdir "$DESTDIR$UNITS/$unit.service.d" 2>/dev/null || true
done
remove "$UNITS/conlora-gpu.service" /etc/sysusers.d/conlora.conf /etc/tmpfiles.d/conlora.conf
[ -z "$running" ] || systemctl daemon-reload
for own in "$DESTDIR$UNITS"/conlora@*.d "$DESTDIR$UNITS"/conlora-check@*.d; do
  [ ! -d "$own" ] || say "kept       ${own#"$DESTDIR"}: not of install.sh"
done
[ ! -e "$DESTDIR/opt/conlora/pyvenv.cfg" ] || remove /opt/conlora
[ "$(readlink "$DESTDIR/usr/local/bin/conlora" || true)" != /opt/conlora/bin/conlora ] || remove /usr/local/bin/conlora

if [ -n "$PURGE" ]; then
  remove /etc/conlora /var/lib/conlora /var/cache/conlora
  if [ -z "$DESTDIR" ] && id conlora >/dev/null 2>&1; then
    userdel conlora
    say "removed    the user conlora"
  fi
else
  for place in /etc/conlora /var/lib/conlora /var/cache/conlora; do
    [ ! -e "$DESTDIR$place" ] || say "kept       $place"
  done
  say "next       nothing; --purge removes what was kept, and the user conlora, for good"
fi
