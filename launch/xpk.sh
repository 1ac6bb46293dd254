#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster that xpk made.
#   launch/xpk.sh --cluster=C --name=N --image=IMAGE --topology=v6e:4x4 --storage=S \
#       -- run --config=configs/llama3_8b.py --workdir=/mnt/share/runs/llama
# Flags: --topology as in `ideal-jax plan` (two slices: '2*v6e:4x4'); --storage, a shared folder that
# `xpk storage attach` knows by that name; if needed --zone, --project, --dry-run (prints the command).
# IMAGE is one of launch/Dockerfile with EXTRA=tpu RUN_AS=root.
set -euo pipefail
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"
# shellcheck source=launch/tpu_types.sh
source "$(dirname "$0")/tpu_types.sh"

cluster='' name='' image='' topology='' storage='' zone='' project=''
flags "cluster name image topology storage zone project" "$@"
need cluster name image topology storage
need_name "$name"
need_verb
tpu_type "$topology"

# xpk starts again after preemptions (128 and above); 1 is what is left of a host that lost another.
perform xpk workload create "--cluster=$cluster" "--workload=$name" "--tpu-type=$accelerator" \
    "--num-slices=$slices" ${zone:+"--zone=$zone"} ${project:+"--project=$project"} \
    "--docker-image=$image" "--storage=$storage" --max-restarts=100 \
    --restart-on-exit-codes=1 --termination-grace-period-seconds=120 \
    "--command=$(quoted ideal-jax "${verb[@]}")"
