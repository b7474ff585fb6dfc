# A small Nixpkgs: what nbc needs of it, and tools of the machine that runs the tests.
{ nbc # a directory with bin/nbc
, system ? builtins.currentSystem
, lib ? import ./lib.nix
}:

let
  derivationOf = attrs:
    let
      structured = attrs.__structuredAttrs or false;
      shell = attrs.shellCommand or "source ${./setup.sh}; genericBuild";
      base = removeAttrs attrs [ "meta" "passthru" "shellCommand" ] // {
        name = attrs.name or "${attrs.pname}-${attrs.version}";
        inherit system;
        builder = "/bin/bash";
        args = [ "-c" shell ];
        outputs = attrs.outputs or [ "out" ];
        __ignoreNulls = true;
      };
      stringly = value: if builtins.isAttrs value && !(value ? outPath) then null else value;
    in
    derivation (if structured then base else builtins.mapAttrs (_: stringly) base // (attrs.env or { }));

  mkDerivation = argument:
    let
      function = if builtins.isFunction argument then argument else _: argument;
      final = function final';
      final' = final // { inherit (result) out; };
      result = derivationOf final // final.passthru or { } // {
        overrideAttrs = change: mkDerivation (finalAttrs:
          let
            old = function finalAttrs;
            new = change old;
          in
          old // (if builtins.isFunction new then change finalAttrs old else new));
        inherit stdenv;
      };
    in
    result;

  stdenv = { inherit mkDerivation; hostPlatform = { inherit system; }; };

  pkgs = {
    inherit lib stdenv system;

    callPackage = path: overrides:
      let function = import path;
      in function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);

    # It does not build: the program is there.
    buildGoModule = attrs: attrs // {
      type = "derivation";
      name = "${attrs.pname}-${attrs.version}";
      outPath = "${nbc}";
    };

    makeSetupHook = { name, substitutions ? { } }: script: derivationOf {
      inherit name;
      shellCommand = ''
        PATH=/usr/bin:/bin
        mkdir -p $out/nix-support
        substitute="${toString (lib.mapAttrsToList (n: v: "-e s|@${n}@|${v}|g") substitutions)}"
        sed $substitute ${script} >$out/nix-support/setup-hook
      '';
    };

    writeText = builtins.toFile;
    cacert = "/no-cacert";
  };
in
pkgs
