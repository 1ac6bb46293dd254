#!/usr/bin/env bash
# The experiment of arXiv 2505.12762: Llama-3.1-8B, two updates of its mixture, 1 and 3 epochs.
#   launch/reproduce_paper.sh --data=domains --workdir=runs/paper --machine=h200:8
# --data is a folder with a sub-folder per domain, as docs/data.md describes; configs/paper_llama31_8b.py
# tells which, and what the paper leaves open. --machine is what the config is fitted to, as in
# `ideal-jax plan`; --model=FOLDER is the base model if it is not to come from the hub. Run it again to
# continue; --dry-run prints the commands. What follows -- starts each run, elsewhere if it must:
#   launch/reproduce_paper.sh --data=domains --workdir=/mnt/share/runs/paper --machine=v5e:4x8 \
#       -- launch/tpu_pod.sh watch --name=paper --zone=us-west4-a --topology=v5e:4x8 --nfs=10.0.0.2:/share --
#   launch/reproduce_paper.sh --data=/shared/domains --workdir=/shared/runs/paper --machine=h200:16 \
#       -- sbatch --nodes=2 launch/slurm.sbatch
set -euo pipefail
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"

data='' workdir='' machine='' model=''
flags "data workdir machine model" "$@"
need data workdir machine
launcher=("${verb[@]}") config=configs/paper_llama31_8b.py # as seen from where it runs
if [ ${#launcher[@]} -eq 0 ]; then
    launcher=("$(dirname "$0")/gpu.sh") config=$(dirname "$0")/../$config
fi

for epochs in 1 3; do
    perform "${launcher[@]}" run "--config=$config:$machine" "--config.data.root=$data" \
        ${model:+"--config.model.init=$model"} "--config.training.epochs=$epochs" \
        "--workdir=$workdir/epochs_$epochs"
done
