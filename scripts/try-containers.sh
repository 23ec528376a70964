#!/usr/bin/env bash
# Builds deploy/edge/Containerfile and deploy/core/Containerfile, every line of them, on a machine that reaches no registry, and
# runs both images as documented: read-only, without capabilities. In the place of the official Python images stand minimal
# Debian trees of the same release and Python version; everything goes into a folder of its own.
#
#   sudo scripts/try-containers.sh -m MIRROR [-t DIR] [-f HOSTFILE]...
#
#   -m  the Debian mirror to take the trees from
#   -t  where trees and images go; trees are used again if they exist (default: a new one, removed at the end)
#   -f  a file of this machine to copy into the trees, at the same path (pip or certificate settings of your network)
#
# Needs root, debootstrap, buildah, podman, runc and mosquitto. The images go as they came: with -t their storage stays in DIR/storage.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
mirror="" work="" files=()
while getopts "m:t:f:h" option; do
    case $option in
        m) mirror=$OPTARG ;;
        t) work=$OPTARG ;;
        f) files+=("$OPTARG") ;;
        *) sed -n '2,13p' "$0"; exit 2 ;;
    esac
done
[[ -n $mirror ]] || { echo "try-containers: name a mirror with -m" >&2; exit 2; }
PATH=$PATH:/usr/sbin
for tool in debootstrap buildah podman runc mosquitto; do
    command -v $tool >/dev/null || { echo "try-containers: apt-get install -y --no-install-recommends $tool" >&2; exit 2; }
done
broker="" remove=false
if [[ -z $work ]]; then
    work=$(mktemp -d /var/tmp/catchment-containers.XXXXXX)
    remove=true
fi
clean_up() {
    podman "${store[@]}" rm --force --all >/dev/null 2>&1 || true
    [[ -z $broker ]] || kill "$broker"
    if $remove; then rm -rf --one-file-system "$work"; fi
}
trap clean_up EXIT
store=(--root "$work/storage" --runroot "$work/run" --storage-driver overlay)
export TMPDIR=$work BUILDAH_ISOLATION=chroot

stand_in() { # stand_in SUITE MINOR IMAGE: a tree with Python where the official images have it, under their name
    local tree=$work/$1 container
    [[ -x $tree/usr/bin/python3 ]] || debootstrap --variant=minbase --include=python3,python3-venv,python3-pip "$1" "$tree" "$mirror" >/dev/null
    for file in "${files[@]}"; do install -D -m 0644 "$file" "$tree$file"; done
    ln -sf "/usr/bin/python$2" "$tree/usr/local/bin/python"
    ln -sf /usr/bin/pip3 "$tree/usr/local/bin/pip"
    rm -f "$tree/usr/lib/python$2/EXTERNALLY-MANAGED" # Debian's own guard, which the official images do not have
    container=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" copy -q "$container" "$tree" / >/dev/null
    buildah "${store[@]}" config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah "${store[@]}" commit -q --rm "$container" "$3" >/dev/null
    echo "try-containers: $3 is Debian $1 here, not the official image"
}

run_locked() { # as deploy/edge/Containerfile tells; the limits of files and processes are no higher than those here
    podman "${store[@]}" --runtime runc --cgroup-manager cgroupfs run --rm --network=host --read-only --cap-drop=all \
        --security-opt=no-new-privileges --user 10001 --ulimit nofile=4096:4096 --ulimit nproc=1000:1000 "$@"
}

stand_in trixie 3.13 docker.io/library/python:3.13-slim
buildah "${store[@]}" bud -q --pull-never -f "$checkout/deploy/edge/Containerfile" -t catchment-agent "$checkout" >/dev/null
run_locked --memory 256m catchment-agent version
stand_in bookworm 3.11 docker.io/library/python:3.11-slim-bookworm
buildah "${store[@]}" bud -q --pull-never -f "$checkout/deploy/core/Containerfile" -t catchment-core "$checkout" >/dev/null
run_locked --tmpfs /tmp catchment-core version

# One loop through both: broker here, bridge, run loop and agent in containers; it ends when every sample is settled.
loop=$work/loop
rm -rf "$loop" && mkdir -p "$loop"/{configured,lake,state,broker}
chown 10001 "$loop"/{lake,state}
sed -e 's/listener 1883/listener 18830/' -e "s#/var/lib/mosquitto#$loop/broker#" "$checkout/deploy/broker/loopback.conf" >"$loop/mosquitto.conf"
printf 'lake = "/var/lib/catchment"\n[broker]\nport = 18830\n' >"$loop/configured/core.toml"
printf 'device = "d1"\nstate_dir = "/var/lib/catchment"\n[broker]\nport = 18830\n[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = { path = "/etc/catchment/table.csv" }\n' >"$loop/configured/agent.toml"
{ echo event_time,speed_mps; for n in {1..99}; do echo "2024-05-01T00:00:00Z,$n"; done; } >"$loop/configured/table.csv"
echo 'user root' >>"$loop/mosquitto.conf"
mosquitto -c "$loop/mosquitto.conf" >"$loop/broker.log" 2>&1 &
broker=$!
mounts=(-v "$loop/configured:/etc/catchment:ro" --tmpfs /tmp)
for role in bridge run; do
    run_locked --detach --name "try-$role" "${mounts[@]}" -v "$loop/lake:/var/lib/catchment" catchment-core $role -c /etc/catchment/core.toml
done
run_locked --memory 256m "${mounts[@]}" -v "$loop/state:/var/lib/catchment" catchment-agent run -c /etc/catchment/agent.toml --until-settled
run_locked "${mounts[@]}" -v "$loop/lake:/var/lib/catchment" catchment-core books -c /etc/catchment/core.toml
podman "${store[@]}" stop -t 60 try-bridge try-run
