# A small stdenv: what nbc's hook sees of the real one, in the order and with the shell options that it has there.
set -eu -o pipefail
shopt -s inherit_errexit nullglob

__structuredAttrs=
if [ -e "$NIX_BUILD_TOP/.attrs.sh" ]; then
    source "$NIX_BUILD_TOP/.attrs.sh"
    __structuredAttrs=1
    for name in "${!outputs[@]}"; do export "$name=${outputs[$name]}"; done
    for name in "${!env[@]}"; do export "$name=${env[$name]}"; done
fi
export PATH=/usr/bin:/bin TZ=UTC LANG=C.UTF-8 prefix=$out

getAllOutputNames() {
    if [ -n "$__structuredAttrs" ]; then echo "${!outputs[*]}"; else echo "${outputs:-out}"; fi
}

runHook() {
    local name=$1 hooks="${1%Hook}Hooks[@]" hook
    if declare -F "$name" >/dev/null; then "$name"; elif [ -n "${!name:-}" ]; then eval "${!name}"; fi
    for hook in ${!hooks+"${!hooks}"}; do
        if declare -F "$hook" >/dev/null; then "$hook"; else eval "$hook"; fi
    done
    return 0
}

appendToVar() {
    local -n list=$1
    local declared array=$__structuredAttrs
    declared=$(declare -p "$1" 2>/dev/null) || declared=
    if [[ $declared == 'declare -a'* ]]; then array=1; elif [ -n "$declared" ]; then array=; fi
    shift
    if [ -n "$array" ]; then list=(${list+"${list[@]}"} "$@"); else list="${list-} $*"; fi
}

exitHandler() {
    exitCode=$?
    set +e
    if [ "$exitCode" != 0 ]; then
        runHook failureHook
        if [ -n "${succeedOnFailure:-}" ]; then
            echo "build failed with exit code $exitCode (ignored)"
            mkdir -p "$out/nix-support"
            printf %s "$exitCode" >"$out/nix-support/failed"
            exit 0
        fi
    else
        runHook exitHook
    fi
    return "$exitCode"
}
trap exitHandler EXIT

unpackPhase() {
    runHook preUnpack
    local -a list=(${srcs[@]:-${src:?}})
    local item name
    for item in "${list[@]}"; do
        name=${item##*/}
        cp -r --preserve=mode,timestamps --no-preserve=ownership "$item" "${name:33}"
        : "${sourceRoot=${name:33}}"
    done
    chmod -R u+w -- "$sourceRoot"
    runHook postUnpack
}

patchPhase() {
    runHook prePatch
    local item
    for item in ${patches[@]:-}; do bash "$item"; done # here a patch is a script
    runHook postPatch
}

configurePhase() {
    runHook preConfigure
    if [ -x ./configure ]; then ./configure --prefix="$prefix"; else echo "no configure script, doing nothing"; fi
    runHook postConfigure
}

buildPhase() {
    runHook preBuild
    make ${makeFlags[@]:-}
    runHook postBuild
}

checkPhase() {
    runHook preCheck
    make check
    runHook postCheck
}

installPhase() {
    runHook preInstall
    mkdir -p "$prefix"
    make ${makeFlags[@]:-} install
    runHook postInstall
}

genericBuild() {
    if [ -n "${buildCommand:-}" ]; then
        eval "$buildCommand"
        return
    fi
    : "${phases=unpackPhase patchPhase ${preConfigurePhases[*]:-} configurePhase ${preBuildPhases[*]:-} buildPhase \
        checkPhase ${preInstallPhases[*]:-} installPhase}"
    for curPhase in ${phases[*]}; do
        case $curPhase in
            unpackPhase) [ -z "${dontUnpack:-}" ] || continue ;;
            configurePhase) [ -z "${dontConfigure:-}" ] || continue ;;
            buildPhase) [ -z "${dontBuild:-}" ] || continue ;;
            checkPhase) [ -n "${doCheck:-}" ] || continue ;;
            installPhase) [ -z "${dontInstall:-}" ] || continue ;;
        esac
        echo "Running phase: $curPhase"
        if [ -z "${noDumpEnvVars:-}" ]; then export >"$NIX_BUILD_TOP/env-vars"; fi
        eval "${!curPhase:-$curPhase}"
        if [ "$curPhase" = unpackPhase ]; then cd "$sourceRoot"; fi
    done
}

for input in ${nativeBuildInputs[@]:-}; do
    if [ -e "$input/nix-support/setup-hook" ]; then source "$input/nix-support/setup-hook"; fi
    if [ -d "$input/bin" ]; then PATH=$input/bin:$PATH; fi
done
