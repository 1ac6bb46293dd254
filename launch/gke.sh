#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster, as a JobSet that begins again after preemptions.
#   launch/gke.sh --name=N --image=IMAGE --topology=v6e:4x4 --claim=PVC \
#       -- run --config=configs/llama3_8b.py --workdir=/mnt/share/runs/llama
# Flags: --topology as in `ideal-jax plan` (two slices: '2*v6e:4x4'); --claim, a ReadWriteMany volume
# claim (Filestore, NFS), mounted on /mnt/share of all hosts; if needed --capacity=spot (else on demand),
# --namespace=NS, --dry-run (prints the command and the manifest, and applies nothing).
# IMAGE is one of launch/Dockerfile with EXTRA=tpu. The cluster needs JobSet 0.6 or later and a node
# pool of the topology for every slice. Its log:  kubectl logs --follow jobs/N-slice-0
# Ends it:  kubectl delete jobset N
set -euo pipefail
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"
# shellcheck source=launch/tpu_types.sh
source "$(dirname "$0")/tpu_types.sh"

name='' image='' topology='' claim='' capacity='' namespace=''
flags "name image topology claim capacity namespace" "$@"
need name image topology claim
need_name "$name"
need_verb
tpu_type "$topology"

# A list of words in JSON, which YAML reads too; $$ is how Kubernetes writes a $.
json() {
    local word list=''
    for word; do
        word=${word//\$/\$\$}
        word=${word//\\/\\\\}
        word=${word//\"/\\\"}
        word=${word//$'\n'/\\n}
        list+=", \"${word//$'\t'/\\t}\""
    done
    echo "[${list#, }]"
}

fill() {
    manifest=${manifest//"@$1@"/"$2"}
}

manifest=$(<"$(dirname "$0")/gke_jobset.yaml")
case $capacity in
    spot) ;;
    '') manifest=$(grep -v gke-spot <<<"$manifest") ;;
    *) refuse "--capacity=$capacity: expected spot, or leave it out" ;;
esac
fill NAME "$name"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill ACCELERATOR "$gke_accelerator"
fill SHAPE "$shape"
fill IMAGE "\"$image\""
fill CHIPS "$chips_per_host"
fill CLAIM "\"$claim\""
fill ARGUMENTS "$(json "${verb[@]}")" # last: nothing is filled into what the user wrote

apply=(kubectl apply ${namespace:+"--namespace=$namespace"} --filename=-)
if $dry_run; then
    printf '%s <<'\''MANIFEST'\''\n%s\nMANIFEST\n' "$(quoted "${apply[@]}")" "$manifest"
else
    "${apply[@]}" <<<"$manifest"
fi
