# Sourced by the TPU scripts: the names that clouds give to what `ideal-jax plan` calls v6e:4x4.
# shellcheck shell=bash disable=SC2034

# usage: tpu_type 2*v6e:4x4    sets slices and, of one slice: shape, hosts, chips_per_host, accelerator,
#                              runtime, gke_accelerator.
tpu_type() {
    local one=${1#*\*} generation cores=1 chips=1 prefix side
    slices=1
    case $1 in
        *\**) slices=${1%%\**} ;;
    esac
    case $slices in
        '' | 0* | *[!0-9]*) refuse "--topology=$1: expected a number of slices before the *" ;;
    esac
    generation=${one%%:*} shape=${one#*:}
    case $generation in
        v4) prefix=v4 cores=2 runtime=tpu-ubuntu2204-base gke_accelerator=tpu-v4-podslice ;;
        v5e) prefix=v5litepod runtime=v2-alpha-tpuv5-lite gke_accelerator=tpu-v5-lite-podslice ;;
        v5p) prefix=v5p cores=2 runtime=v2-alpha-tpuv5 gke_accelerator=tpu-v5p-slice ;;
        v6e) prefix=v6e runtime=v2-alpha-tpuv6e gke_accelerator=tpu-v6e-slice ;;
        *) refuse "--topology=$1: expected v4, v5e, v5p or v6e and a shape, as in v6e:4x4" ;;
    esac
    case $generation:$shape in
        v[56]e:*x*x* | v*:*x | v*:x* | v*:*xx* | v*:*[!0-9x]* | v*:0* | v*:*x0*) false ;;
        v[56]e:*x* | v*:*x*x*) ;;
        *) false ;;
    esac || refuse "--topology=$1: expected a shape such as v5e:4x8 (v4, v5p: three sides, v5p:4x4x8)"
    for side in ${shape//x/ }; do
        chips=$((chips * side))
    done
    # Every machine of a slice has four chips, but for the one-chip machine.
    hosts=$(((chips + 3) / 4))
    chips_per_host=$((chips < 4 ? chips : 4))
    accelerator=$prefix-$((chips * cores)) # some generations are counted in cores
}
