#!/usr/bin/env bash
# Tries a make target on a machine that has nothing: a minimal Debian or Ubuntu tree with only git, make and python3.
#
#   sudo scripts/try-fresh.sh -m MIRROR [-s bookworm] [-t DIR] [-b HOSTDIR]... [-f HOSTFILE]... [-e NAME=VALUE]... [COMMAND]
#
#   -m  the Debian or Ubuntu mirror to take the tree from
#   -s  the release (bookworm)
#   -t  where the tree goes; kept and used again if it exists already (default: a new one, removed at the end)
#   -b  a folder of this machine to show read-only inside, at the same path (a local package folder)
#   -f  a file of this machine to copy inside, at the same path (apt, pip or certificate settings of your network)
#   -e  an environment variable to set inside
#   COMMAND  what to try in a clone of HEAD ("make setup && make test")
#
# Needs root and debootstrap. All mounts are undone, whatever happens.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
mirror="" suite=bookworm tree="" binds=() files=() variables=()
while getopts "m:s:t:b:f:e:h" option; do
    case $option in
        m) mirror=$OPTARG ;;
        s) suite=$OPTARG ;;
        t) tree=$OPTARG ;;
        b) binds+=("$OPTARG") ;;
        f) files+=("$OPTARG") ;;
        e) variables+=("$OPTARG") ;;
        *) sed -n '2,15p' "$0"; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
command=${*:-make setup && make test}
[[ -n $mirror ]] || { echo "try-fresh: name a mirror with -m" >&2; exit 2; }
[[ $(id -u) -eq 0 ]] || { echo "try-fresh: run as root (debootstrap and mounts need it)" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "try-fresh: apt-get install -y debootstrap" >&2; exit 2; }

mounts=() remove=false
if [[ -z $tree ]]; then
    tree=$(mktemp -d /var/tmp/catchment-fresh.XXXXXX)
    remove=true
fi

# Never remove a tree into which something is still mounted.
clean_up() {
    local index
    for ((index = ${#mounts[@]} - 1; index >= 0; index--)); do
        umount "${mounts[index]}" || umount -l "${mounts[index]}" || remove=false
    done
    if $remove; then rm -rf --one-file-system "$tree"; fi
}
trap clean_up EXIT

show() { # show SOURCE TARGET [options]
    mkdir -p "$tree$2"
    mount --bind "$1" "$tree$2"
    mounts+=("$tree$2")
    if [[ ${3:-} == ro ]]; then mount -o remount,bind,ro "$tree$2"; fi
}

if [[ ! -x $tree/usr/bin/git ]]; then
    debootstrap --variant=minbase --include=git,make,python3 "$suite" "$tree" "$mirror"
fi
for file in "${files[@]}"; do install -D -m 0644 "$file" "$tree$file"; done
for folder in "${binds[@]}"; do show "$folder" "$folder" ro; done
show /proc /proc
show /dev /dev
# A container has no init: packages must not try to start their services.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod +x "$tree/usr/sbin/policy-rc.d"
cp /etc/resolv.conf /etc/hosts "$tree/etc/"
rm -rf "$tree/src"
git clone --quiet --no-hardlinks "$checkout" "$tree/src"

began=$SECONDS
code=0
chroot "$tree" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    "${variables[@]}" sh -c "cd /src && $command" || code=$?
echo "try-fresh: $suite: \"$command\" ended with $code after $((SECONDS - began)) s"
exit "$code"
