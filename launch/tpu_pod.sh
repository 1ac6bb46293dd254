#!/usr/bin/env bash
# A run on a Cloud TPU pod of one or more slices, through queued resources.
#   launch/tpu_pod.sh watch --name=N --zone=Z --topology=v6e:4x4 --capacity=spot --nfs=10.0.0.2:/share \
#       -- run --config=configs/llama3_8b.py --workdir=/mnt/share/runs/llama
# does everything: creates the pod, installs, runs, starts again after preemptions, deletes the pod.
# The same step by step:
#   launch/tpu_pod.sh up     creates the pod, waits for it, copies this folder to all hosts, installs
#   launch/tpu_pod.sh run    copies this folder again, runs the command on all hosts, shows its output
#   launch/tpu_pod.sh down   deletes the pod
# Flags: --name --zone --topology (as in `ideal-jax plan`; two slices: '2*v6e:4x4'), and if needed
# --project, --capacity=spot|reserved (else on demand), --nfs=HOST:/SHARE (mounted on /mnt/share of all
# hosts), --dry-run (prints the commands and runs none). Configs must lie in this folder, the work directory
# on the share. Needs gcloud, logged in, and its key in the ssh agent.
set -euo pipefail
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"
# shellcheck source=launch/tpu_types.sh
source "$(dirname "$0")/tpu_types.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

phase=${1:-}
case $phase in
    -h | --help) usage && exit 0 ;;
    up | run | watch | down) shift ;;
    *) refuse "expected up, run, watch or down, not '$phase'; --help explains them" ;;
esac
name='' zone='' project='' topology='' capacity='' nfs=''
flags "name zone project topology capacity nfs" "$@"
need name zone
need_name "$name"
case $capacity in
    '' | spot | reserved) ;;
    *) refuse "--capacity=$capacity: expected spot or reserved, or leave it out" ;;
esac
case $phase in
    up | watch) need topology && tpu_type "$topology" ;;
esac
case $phase in
    run | watch) need_verb ;;
    *) [ ${#verb[@]} -eq 0 ] || refuse "$phase runs nothing: '${verb[0]}' is too much" ;;
esac

place=("--zone=$zone" ${project:+"--project=$project"})
pods=(gcloud compute tpus queued-resources)
everywhere=(--worker=all --node=all --batch-size=all)
pause=${PAUSE:-30} # seconds between looks at the pod

create() {
    local nodes=("--node-id=$name")
    [ "$slices" -eq 1 ] || nodes=("--node-count=$slices" "--node-prefix=$name")
    perform "${pods[@]}" create "$name" "${place[@]}" "--accelerator-type=$accelerator" \
        "--runtime-version=$runtime" "${nodes[@]}" ${capacity:+"--$capacity"}
}

delete() {
    perform "${pods[@]}" delete "$name" "${place[@]}" --force --quiet
}

# What the queue says of the pod; PREEMPTED if one of its slices is gone, NONE if there is no pod.
look=("${pods[@]}" describe "$name" "${place[@]}" '--format=value(state.state)')
state() {
    local found slices_too=(gcloud compute tpus tpu-vm list "${place[@]}" --format="value(state)")
    if found=$("${look[@]}" 2>&1); then
        if [ "$found" = ACTIVE ] &&
            "${slices_too[@]}" "--filter=name~/$name(-[0-9]+)?\$" |
            grep -Eq 'PREEMPTED|TERMINATED|STOPPED|DELETING'; then
            found=PREEMPTED
        fi
    else
        case $found in
            *NOT_FOUND* | *"not found"*) found=NONE ;;
            *) echo "$found" >&2 && found=UNKNOWN ;;
        esac
    fi
    echo "$found"
}

await() {
    local now=''
    if $dry_run; then
        quoted "${look[@]}"
        echo "# … until it says ACTIVE"
        return
    fi
    while [ "$now" != ACTIVE ]; do
        [ -z "$now" ] || sleep "$pause"
        now=$(state)
        echo "$(date +%T) $name: $now"
        case $now in
            NONE | FAILED | SUSPENDED | PREEMPTED)
                echo "$name did not start; why: $(quoted "${look[@]:0:6}" "${place[@]}")" >&2
                return 1
                ;;
        esac
    done
}

# A pod, ready: the one there is, or a new one in place of none or of what a preemption left.
ensure() {
    local now=NONE
    $dry_run || now=$(state)
    case $now in
        NONE) create || return ;;
        FAILED | SUSPENDING | SUSPENDED | PREEMPTED) delete && create || return ;;
    esac
    await
}

on_all_hosts() {
    perform "${pods[@]}" ssh "$name" "${place[@]}" "${everywhere[@]}" "--command=$1"
}

install() {
    local archive=${TMPDIR:-/tmp}/ideal-jax-$name.tgz unpack
    unpack="mkdir -p ideal-jax && tar -xzf ideal-jax.tgz -C ideal-jax"
    perform tar -czf "$archive" --exclude='./.*' --exclude=./runs -C "$root" . &&
        perform "${pods[@]}" scp "$archive" "$name:ideal-jax.tgz" "${place[@]}" "${everywhere[@]}" &&
        on_all_hosts "$unpack && $(quoted ideal-jax/launch/tpu_worker.sh install ${nfs:+"$nfs"})"
}

up() {
    ensure && install
}

run() {
    local attempt=ATTEMPT
    $dry_run || attempt=$(date +%Y%m%d-%H%M%S)-$$-$RANDOM
    # Ended everywhere before anything starts, or the new would join the old.
    install && on_all_hosts "ideal-jax/launch/tpu_worker.sh stop" &&
        on_all_hosts "$(quoted ideal-jax/launch/tpu_worker.sh start "$attempt" "${verb[@]}")"
}

# The run on a pod that comes and goes: on a new pod the same command continues.
watch() {
    local status failures=0 begun now
    trap leave INT TERM
    while true; do
        begun=$SECONDS status=1
        if ensure; then
            status=0
            run || status=$?
        fi
        if $dry_run; then
            echo "# … again, on a new pod, if it was preempted"
            break
        fi
        [ $status -ne 0 ] || break
        now=$(state)
        echo "$(date +%T) the run ended with status $status, $name: $now"
        failures=$((failures + 1))
        case $status:$now in
            *:SUSPENDING | *:SUSPENDED | *:PREEMPTED) failures=0 ;;
            2:*) break ;; # refused, and would be again
        esac
        [ $((SECONDS - begun)) -lt 1800 ] || failures=0
        if [ $failures -eq 5 ]; then
            echo "failed five times in a row, without a preemption" >&2
            break
        fi
        sleep "$pause"
    done
    $dry_run || [ "$(state)" != NONE ] || return $status
    delete
    return $status
}

leave() {
    trap '' INT TERM
    echo "the pod costs money until: launch/tpu_pod.sh down $(quoted "--name=$name" "${place[@]}")" >&2
    exit 130
}

case $phase in
    down) delete ;;
    *) "$phase" ;;
esac
