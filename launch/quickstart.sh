#!/usr/bin/env bash
# The whole IDEAL loop on built-in data, on a CPU, in minutes; installs what it needs first.
#   launch/quickstart.sh [--workdir=DIR] [--config.x=y …]
# Run it again to continue after an interruption.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
environment

workdir=$root/runs/quickstart
overrides=()
for argument in "$@"; do
    case $argument in
        --workdir=*) workdir=${argument#--workdir=} ;;
        *) overrides+=("$argument") ;;
    esac
done
exec ideal-jax run --config="$root/configs/quickstart.py" --workdir="$workdir" "${overrides[@]}"
