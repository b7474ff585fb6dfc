# shellcheck shell=bash
#
# The setup hook of nbc: it restores before the configure phase, sets times again before the build phase, and saves
# before the install phase, or when the build fails. README.md beside this file says what its variables mean.
#
# It never fails a build, and it leaves nothing behind but the cache directories. What it does happens in subshells in
# which errors do not count: stdenv runs phases under "set -eu", where an unset variable would end the build. It is
# phases, and not hooks of phases, because a derivation may have a configurePhase that runs no hooks, or none at all, and
# because preConfigure may change the directory.

# The program.
_nbc=@nbc@

# Where the restore was: the source tree, and the receipt for the save.
_nbcRoot=
_nbcState=
# What has happened: the restore phase was there; it has left a receipt; there was a save.
_nbcSeen=
_nbcBegun=
_nbcSaved=

_nbcSay() {
    printf 'nbc: %s\n' "$*" >&2
}

# Sets _nbcItems to the items of the variable $1. It is an array where attributes are structured. A string has an item
# on each line if it has more than one line, else its words are the items. Only called where globbing is off: items may
# be patterns, and these are for nbc.
_nbcList() {
    _nbcItems=()
    local declared all item
    declared=$(declare -p "$1" 2>/dev/null) || return 0
    if [[ $declared =~ ^declare\ -[^\ ]*a ]]; then
        local -n array=$1
        _nbcItems=("${array[@]}")
        return 0
    fi
    if [[ ${!1} != *$'\n'* ]]; then
        # shellcheck disable=SC2206 # words are what is wanted
        _nbcItems=(${!1})
        return 0
    fi
    mapfile -t all <<<"${!1}"
    for item in "${all[@]}"; do
        [[ -z $item ]] || _nbcItems+=("$item")
    done
}

# Adds the items of the variable $2 to _nbcFlags, each behind the flag $1.
_nbcFlagEach() {
    local item
    _nbcList "$2"
    for item in "${_nbcItems[@]}"; do
        _nbcFlags+=("$1" "$item")
    done
}

# Does something apart from the build: no setting of its shell matters, nor does an error.
_nbcAside() (
    set -f +eu +o pipefail
    IFS=$' \t\n'
    "$@"
)

# Runs a verb of nbc on the tree of the restore.
_nbcRun() {
    local verb=$1
    shift
    if [[ -n ${nbcCredentialsFile-} ]]; then
        export AWS_SHARED_CREDENTIALS_FILE=$nbcCredentialsFile
    fi
    if [[ -n ${nbcCertificatesFile-} ]]; then
        export SSL_CERT_FILE=$nbcCertificatesFile
    fi
    if [[ -n ${nbcEnvironmentFile-} ]]; then
        set -a
        # shellcheck disable=SC1090 # the user names it
        source "$nbcEnvironmentFile"
        set +a
    fi
    "$_nbc" "$verb" "$@" --store "${nbcStore:-unix:/run/nbc/nbc.sock}" --near "${nbcNear:-off}" \
        --source "$_nbcRoot" --state "$_nbcState" --timeout "${nbcTimeout:-10m}" --best-effort </dev/null
}

# Says in one line why there can be no daemon, where that is so.
_nbcReachable() {
    local socket=${1#unix:}
    if [[ $1 != unix:* || -S $socket ]]; then
        return 0
    elif [[ $OSTYPE == darwin* ]]; then
        _nbcSay "cold: no socket $socket, and on macOS Nix shows none to builds"
    elif [[ -d ${socket%/*} ]]; then
        _nbcSay "cold: no socket $socket: is nbc daemon running?"
    else
        _nbcSay "cold: no socket $socket: ${socket%/*} is not in Nix's extra-sandbox-paths, or nothing has made it"
    fi
    return 1
}

_nbcRestore() {
    local key=${nbcInputKey:+@$nbcInputKey} name
    if [[ -z ${nbcCacheName-} ]]; then
        _nbcSay "cold: nbcCacheName is not set"
        return 1
    fi
    _nbcList nbcCacheDirs
    if [[ ${#_nbcItems[@]} -eq 0 ]]; then
        _nbcSay "cold: nbcCacheDirs is not set"
        return 1
    fi
    for name in "${nbcCredentialsFile-}" "${nbcEnvironmentFile-}"; do
        if [[ -n $name && ! -r $name ]]; then
            _nbcSay "cold: $name cannot be read"
            return 1
        fi
    done
    _nbcReachable "${nbcStore:-unix:/run/nbc/nbc.sock}" || return 1

    _nbcFlags=()
    _nbcFlagEach --dir nbcCacheDirs
    _nbcFlagEach --exclude nbcExclude
    _nbcFlagEach --ignore-source nbcIgnoreSource
    _nbcFlagEach --no-rewrite nbcNoRewrite
    for name in $(getAllOutputNames); do
        _nbcFlags+=(--output-path "$name=${!name}")
    done
    if [[ $_nbcRoot == "$NIX_BUILD_TOP" ]]; then
        # These are Nix's and stdenv's own, and different in every build.
        for name in env-vars .attrs.json .attrs.sh; do
            _nbcFlags+=(--ignore-source "./$name")
        done
    fi
    _nbcList nbcFallbackNames
    for name in "${_nbcItems[@]}"; do
        [[ $name == "$nbcCacheName" ]] || _nbcFlags+=(--fallback "$name$key")
    done
    [[ -z ${nbcTimes-} ]] || _nbcFlags+=(--times "$nbcTimes")
    [[ -z ${nbcOnSkew-} ]] || _nbcFlags+=(--on-skew "$nbcOnSkew")
    _nbcList nbcRestoreFlags
    _nbcRun restore "$nbcCacheName$key" "${_nbcFlags[@]}" "${_nbcItems[@]}" && [[ -e $_nbcState ]]
}

_nbcSave() {
    _nbcList nbcSaveFlags
    _nbcRun save "$@" "${_nbcItems[@]}"
}

nbcRestorePhase() {
    _nbcSeen=1
    [[ -z $_nbcBegun ]] || return 0
    _nbcRoot=$PWD
    _nbcState=$NIX_BUILD_TOP/.nbc/receipt
    if [[ $_nbcRoot == "$NIX_BUILD_TOP" ]]; then
        # In the tree the receipt would be a source. A sandbox has a /tmp of its own.
        if ! _nbcState=$(mktemp -d /tmp/nbc.XXXXXX)/receipt; then
            _nbcSay "cold: no place for the receipt"
            return 0
        fi
    fi
    if _nbcAside _nbcRestore; then
        _nbcBegun=1
    fi
}

nbcTimesPhase() {
    [[ -n $_nbcBegun && -z $_nbcSaved ]] || return 0
    _nbcAside _nbcRun times || true
}

nbcSavePhase() {
    [[ -n $_nbcBegun && -z $_nbcSaved ]] || return 0
    _nbcSaved=1
    _nbcAside _nbcSave "$@" || true
}

# What a build that fails has made is progress, too. A failure before the restore saves nothing.
_nbcFailureHook() {
    nbcSavePhase --failed
}

# A cache that is silent when it is not used is taken for one that works.
_nbcExitHook() {
    [[ -n $_nbcSeen ]] || _nbcSay "not used: this derivation has a buildCommand, or phases without nbcRestorePhase"
}

# In a nix-shell the source tree is somebody's own.
if [[ -z ${dontNbc-} && -z ${IN_NIX_SHELL-} ]]; then
    appendToVar preConfigurePhases nbcRestorePhase
    appendToVar preBuildPhases nbcTimesPhase
    appendToVar preInstallPhases nbcSavePhase
    failureHooks+=(_nbcFailureHook)
    exitHooks+=(_nbcExitHook)
fi
