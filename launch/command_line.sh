# Sourced by the other scripts: --flag=value, refusals in one line, and --dry-run.
# shellcheck shell=bash

dry_run=false
verb=() # the arguments of ideal-jax: everything from the first word that is no flag, or after --

# The comment at the head of the script.
usage() {
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
}

refuse() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# usage: flags "NAME …" "$@"      --name=value sets the variable `name`; the rest becomes `verb`.
flags() {
    local known=$1 flag
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --) shift && break ;;
            -h | --help) usage && exit 0 ;;
            --dry-run) dry_run=true ;;
            --*)
                flag=${1%%=*} flag=${flag#--}
                case " $known " in
                    *" $flag "*) ;;
                    *) refuse "--$flag: unknown flag; known: ${known:+--${known// / --} }--dry-run --help" ;;
                esac
                case $1 in
                    *=?*) printf -v "$flag" %s "${1#*=}" ;;
                    *) refuse "--$flag needs a value, as in --$flag=…" ;;
                esac
                ;;
            *) break ;;
        esac
        shift
    done
    verb=("$@")
}

need() {
    local flag
    for flag; do
        [ -n "${!flag}" ] || refuse "--$flag=… is missing; --help shows an example"
    done
}

# What clouds take as a name.
need_name() {
    case $1 in
        [!a-z]* | *[!a-z0-9-]* | *-) refuse "--name=$1: expected a-z, 0-9 and -, as in --name=llama-8b" ;;
    esac
}

need_verb() {
    [ ${#verb[@]} -gt 0 ] ||
        refuse "what should ideal-jax do? as in: run --config=configs/quickstart.py --workdir=DIR"
}

# The words as one line that a shell reads back as the same words.
quoted() {
    local word line='' quote="'\\''"
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$quote}'" ;;
        esac
        line+=" $word"
    done
    echo "${line# }"
}

# A command like any other; with --dry-run prints it instead.
perform() {
    if $dry_run; then
        quoted "$@"
    else
        "$@"
    fi
}
