#!/usr/bin/env bash
# Lint, types, the floors of the house, shell scripts, the test suite; installs what it needs first.
#   launch/test.sh [PYTEST ARGUMENTS …]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
environment test
cd "$root"

ruff format --check .
ruff check .
mypy
lint-imports
shellcheck --external-sources launch/*.sh launch/*.sbatch .ci/run
exec pytest "$@"
