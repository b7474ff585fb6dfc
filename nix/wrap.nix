# Makes the rebuilds of a derivation incremental: wrap { cacheName = "myapp/main"; cacheDirs = [ "dist" ]; } drv.
# README.md beside this file explains the arguments.
{ lib, hook, inputKey }@nbc:

{ cacheName
, cacheDirs
, fallbackNames ? [ ]
, exclude ? [ ]
, ignoreSource ? [ ]
, noRewrite ? [ ]
, inputKey ? null # null is the key of the derivation's inputs, "" none
, times ? null
, onSkew ? null
, store ? null
, timeout ? null
, restoreFlags ? [ ]
, saveFlags ? [ ]
, variables ? { } # other variables of the hook
}:

drv:

let
  key = if inputKey == null then nbc.inputKey drv else inputKey;

  # What a derivation can have that the hook's phases do not come to pass in.
  around = old: builtins.filter (name: old ? ${name}) [ "phases" "buildCommand" "buildCommandPath" ];

  warn = old: lib.warnIf (around old != [ ]) (
    "nbc: ${drv.name} has ${lib.concatStringsSep " and " (around old)}, so its builds stay cold"
    + " unless it calls nbcRestorePhase, nbcTimesPhase and nbcSavePhase there"
  );
in
if !(drv ? overrideAttrs) then
  throw "nbc: ${drv.name or "this"} has no overrideAttrs: it was not made by stdenv.mkDerivation"
else
  drv.overrideAttrs (old:
    let
      # A list in the environment is words; a line for each item keeps those together that have spaces.
      list = items:
        if old.__structuredAttrs or false then items
        else lib.concatMapStrings (item: item + "\n") items;
      some = lib.filterAttrs (_: value: value != null && value != "" && value != [ ]);
    in
    warn old (
      {
        nativeBuildInputs = old.nativeBuildInputs or [ ] ++ [ hook ];
        nbcCacheName = cacheName;
        nbcCacheDirs = list cacheDirs;
      }
      // some {
        nbcFallbackNames = list fallbackNames;
        nbcExclude = list exclude;
        nbcIgnoreSource = list ignoreSource;
        nbcNoRewrite = list noRewrite;
        nbcInputKey = key;
        nbcTimes = times;
        nbcOnSkew = onSkew;
        nbcStore = store;
        nbcTimeout = timeout;
        nbcRestoreFlags = list restoreFlags;
        nbcSaveFlags = list saveFlags;
      }
      // variables
    ))
