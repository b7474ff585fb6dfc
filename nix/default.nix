# What nbc has for Nix, made from a Nixpkgs.
{ pkgs }:

let
  package = pkgs.callPackage ./package.nix { };
  hook = pkgs.makeSetupHook
    {
      name = "nbc-hook";
      substitutions.nbc = "${package}/bin/nbc";
    } ./setup-hook.sh;
  inputKey = import ./input-key.nix { inherit (pkgs) lib; };
  wrap = import ./wrap.nix { inherit (pkgs) lib; inherit hook inputKey; };
in
{
  # So that one name in an overlay will do: pkgs.nbc.wrap.
  nbc = package // { inherit hook wrap inputKey; };
  inherit hook;
  lib = { inherit wrap inputKey; };
}
