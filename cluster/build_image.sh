#!/bin/sh
# Builds a container image of this checkout where there is no Docker: a Debian root by debootstrap, then buildah. As root:
#
#   cluster/build_image.sh ggcn
#   buildah push ggcn oci-archive:ggcn.tar       # for apptainer: apptainer build ggcn.sif oci-archive://ggcn.tar
#
# MIRROR names a mirror of Debian; PIP_* variables and certificates (SSL_CERT_FILE) of this machine hold inside as well.
set -eu
[ $# = 1 ] || { echo "error: give the name of the image: $0 ggcn" >&2; exit 2; }
for tool in debootstrap buildah; do
    command -v "$tool" >/dev/null || { echo "error: there is no $tool; apt-get install debootstrap buildah" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "error: debootstrap needs root; run it as root, or in a virtual machine" >&2; exit 2; }
checkout=$(cd "$(dirname "$0")/.." && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}" STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}"

debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates,g++,git \
    bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
image=$(buildah from scratch)
buildah copy -q "$image" "$root" /
for path in pyproject.toml README.md LICENSE; do
    buildah copy -q "$image" "$checkout/$path" /opt/ggcn/
done
for path in ggcn configs; do
    buildah copy -q "$image" "$checkout/$path" "/opt/ggcn/$path"
done
set -- "$1" --volume /etc/ssl/certs:/etc/ssl/certs:ro
for setting in $(env | grep -E '^(PIP|SSL)_[A-Z_]*=[^ ]*$' || true); do
    set -- "$@" --env "$setting"
done
case "${PIP_FIND_LINKS:-}" in /*) set -- "$@" --volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro" ;; esac
name=$1
shift
buildah run "$@" "$image" -- pip3 install --break-system-packages --no-cache-dir /opt/ggcn
buildah run "$image" -- sh -c 'rm -r /opt/ggcn && ggcn --help >/dev/null'
buildah config --env PYTHONUNBUFFERED=1 "$image"
buildah commit -q --rm "$image" "$name"
