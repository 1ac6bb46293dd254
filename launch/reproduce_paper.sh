#!/usr/bin/env bash
# The experiment of arXiv 2505.12762: Llama-3.1-8B, two rounds of IDEAL, trained for 1 and for 3 epochs.
#   launch/reproduce_paper.sh --model=models/Llama-3.1-8B --data=domains --workdir=runs/paper
# --data is a folder with a sub-folder per domain, as docs/data.md describes; configs/paper_llama31_8b.py
# says which, and what the paper leaves open. Run it again to continue; --dry-run prints the commands.
# What follows -- starts each run, elsewhere if it must:
#   launch/reproduce_paper.sh --model=… --data=… --workdir=/mnt/share/runs/paper \
#       -- launch/tpu_pod.sh watch --name=paper --zone=us-west4-a --topology=v5e:8x16 --nfs=10.0.0.2:/share --
#   launch/reproduce_paper.sh --model=… --data=… --workdir=/shared/runs/paper \
#       -- sbatch --nodes=2 launch/slurm.sbatch
set -euo pipefail
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"

model='' data='' workdir=''
flags "model data workdir" "$@"
need model data workdir
launcher=("${verb[@]}") config=configs/paper_llama31_8b.py # as seen from where it runs
if [ ${#launcher[@]} -eq 0 ]; then
    launcher=("$(dirname "$0")/gpu.sh") config=$(dirname "$0")/../$config
fi

for epochs in 1 3; do
    perform "${launcher[@]}" run "--config=$config" "--config.model.init=$model" \
        "--config.data.root=$data" "--config.training.epochs=$epochs" "--workdir=$workdir/epochs_$epochs"
done
