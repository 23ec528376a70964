#!/bin/sh
# Prepares the root of a small machine of this one's Debian release, for tests/packaging/test_units_under_systemd.py to boot.
#
# usage: scripts/systemd-root.sh FOLDER [MIRROR]      nothing is done if the folder has one already
set -eu
root=$1
[ "$(id -u)" -eq 0 ] || { echo "systemd-root: run as root: debootstrap and systemd-nspawn need it" >&2; exit 2; }
for pair in debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux; do
    command -v "${pair%%:*}" >/dev/null || { echo "systemd-root: apt-get install -y --no-install-recommends ${pair##*:}" >&2; exit 2; }
done
[ ! -e "$root/prepared" ] || exit 0
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
rm -rf --one-file-system "$root"
mkdir -p "$root"
packages=systemd,systemd-sysv,dbus,python3,python3-venv,mosquitto,mosquitto-clients,openssl,iproute2,procps
# shellcheck disable=SC2086 # no mirror: debootstrap's own
debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${2:-}
touch "$root/prepared"
