#!/usr/bin/env bash
# Makes a stand-in for the base image of the Dockerfile, for machines that can't pull one. For tests only.
#
#   tests/e2e/stand_in_base_image.sh [IMAGE]        default: debian:bookworm-slim
#
# Needs root, debootstrap, and a Docker engine at DOCKER_HOST. From the environment, if set:
#   DEBIAN_MIRROR    where debootstrap and apt in the image find packages
#   PIP_CERT         a CA bundle for pip: copied into the image
#   PIP_FIND_LINKS   a folder with wheels for pip: copied into the image
# Images that are built on it hold these two as well; don't publish them.
set -euo pipefail

image="${1:-debian:bookworm-slim}"
root="$(mktemp -d)"
chmod 0755 "$root" # it becomes /, and the image's user is not root
trap 'rm -rf "$root"' EXIT

echo "==> debootstrap bookworm"
debootstrap --variant=minbase bookworm "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root.log" 2>&1 || {
  tail -n 20 "$root.log" >&2
  exit 1
}
rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

# as in the real image: apt keeps no packages and no caches
echo 'Dir::Cache { pkgcache ""; srcpkgcache ""; };' >"$root/etc/apt/apt.conf.d/no-caches"

changes=(--change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD ["bash"]')
if [ -n "${PIP_CERT:-}" ]; then
  install -D -m 0644 "$PIP_CERT" "$root/opt/pip/ca.pem"
  changes+=(--change 'ENV PIP_CERT=/opt/pip/ca.pem')
fi
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  mkdir -p "$root/opt/pip/wheels"
  cp -rL "$PIP_FIND_LINKS/." "$root/opt/pip/wheels/"
  changes+=(--change 'ENV PIP_FIND_LINKS=/opt/pip/wheels')
fi

echo "==> import as $image"
tar -C "$root" -c . | docker import "${changes[@]}" - "$image"
