#!/usr/bin/env bash
# One host of a TPU pod; launch/tpu_pod.sh calls this on all of them.
#   launch/tpu_worker.sh install [HOST:/SHARE]    Python, the environment; mounts the share on /mnt/share
#   launch/tpu_worker.sh start ATTEMPT VERB …     runs `ideal-jax VERB …`, prints its log, exits as it does
#   launch/tpu_worker.sh stop                     ends what runs
# A lost connection does not end a run: the same `start` again follows the same run.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
# Emptied by a reboot, as it should be: what it speaks of is gone then.
state=${TMPDIR:-/tmp}/ideal-jax-worker

install() {
    command -v ideal-jax >/dev/null || install_environment
    if [ $# -gt 0 ] && ! mountpoint -q /mnt/share; then
        command -v mount.nfs >/dev/null || {
            sudo apt-get update --quiet
            sudo apt-get install --yes --quiet nfs-common
        }
        sudo mkdir -p /mnt/share
        # With NFS 3 a host that is gone would keep its lock of the work directory for ever.
        sudo mount -t nfs -o local_lock=flock "$1" /mnt/share
    fi
}

install_environment() {
    local python
    python=$(command -v python3.12 || command -v python3.13 || command -v python3.11 || true)
    if [ -z "$python" ]; then # the TPU images bring Python 3.10
        python3 -m pip install --user --quiet uv
        "$HOME/.local/bin/uv" python install 3.12
        python=$("$HOME/.local/bin/uv" python find 3.12)
    fi
    PYTHON=$python environment tpu
}

start() {
    local attempt=${1:?} run=$state/$1
    shift
    if [ "$(cat "$state/attempt" 2>/dev/null)" != "$attempt" ]; then
        stop
        mkdir -p "$state"
        rm -f "$run.status"
        : >"$run.log" # or tail might look for it before the run has opened it
        active_or_installed tpu
        # A session of its own: neither the connection nor its terminal takes the run with it. `stop` tells
        # all of the session to go; this shell outlives the run, whose last lines and status are to come.
        # shellcheck disable=SC2016
        STATUS=$run.status setsid bash -c 'trap : TERM; ideal-jax "$@"; echo $? >"$STATUS"' \
            ideal-jax "$@" >"$run.log" 2>&1 </dev/null &
        echo $! >"$state/pid"
        echo "$attempt" >"$state/attempt"
    fi
    tail --lines=+1 --follow --pid="$(cat "$state/pid")" "$run.log"
    exit "$(cat "$run.status" 2>/dev/null || echo 1)"
}

stop() {
    local pid waited=0
    pid=$(cat "$state/pid" 2>/dev/null) || return 0
    while kill -0 -- "-$pid" 2>/dev/null; do
        # The run has a minute to write a checkpoint.
        [ $waited -lt 60 ] || kill -KILL -- "-$pid" 2>/dev/null || true
        [ $waited -gt 0 ] || kill -TERM -- "-$pid" 2>/dev/null || true
        sleep 1
        waited=$((waited + 1))
    done
    rm -f "$state/pid" "$state/attempt"
}

case ${1:-} in
    install | stop) "$@" ;;
    start) cd "$root" && "$@" ;;
    *) sed -n '2,/^[^#]/s/^# //p' "$0" >&2 && exit 2 ;;
esac
