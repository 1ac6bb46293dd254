#!/usr/bin/env bash
# A run on one machine with NVIDIA GPUs; one process drives all of them. Installs what it needs first.
#   launch/gpu.sh run --config=configs/llama3_2_1b.py --workdir=runs/llama
# Run it again to continue after an interruption. CUDA_VISIBLE_DEVICES=0,1 chooses GPUs;
# --dry-run before the verb prints the command. An ideal-jax on the path is used as it is.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
# shellcheck source=launch/command_line.sh
source "$(dirname "$0")/command_line.sh"
flags "" "$@"
need_verb
$dry_run || active_or_installed cuda

# Without the first, a machine whose driver does not answer would quietly train on its CPU.
command=(env JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
    XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" ideal-jax "${verb[@]}")
$dry_run || exec "${command[@]}"
quoted "${command[@]}"
