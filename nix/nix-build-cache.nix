# The function nix-build-cache, argument for argument, made of nbc: README.md beside this file says what is different.
{ aws-key
, aws-secret
, pkgs
, cache-name
, master-cache
, cache-dirs
, s3-bucket
  # These it did not have.
, times ? "two-hours"
, exclude ? [ "*.so" "*.a" ]
, input-key ? null
, direct ? false
, credentials-file ? null
, environment-file ? null
}:

let
  inherit (pkgs) lib;
  nbc = import ./. { inherit pkgs; };

  # The build itself speaks to S3, as it did. The keys are read where it runs: aws-key and aws-secret are not even
  # looked at, because a derivation is readable by everybody.
  network = {
    __noChroot = true;
    nbcStore = "s3://${s3-bucket}";
    nbcCertificatesFile = "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt";
  }
  // lib.optionalAttrs (credentials-file != null) { nbcCredentialsFile = toString credentials-file; }
  // lib.optionalAttrs (environment-file != null) { nbcEnvironmentFile = toString environment-file; };
in

drv:

lib.warnIf direct "nbc: ${drv.name} is built with the network and without a sandbox; nbc daemon needs neither"
  (nbc.lib.wrap
    {
      cacheName = cache-name;
      fallbackNames = [ master-cache ];
      cacheDirs = map toString cache-dirs;
      inputKey = input-key;
      inherit exclude times;
      # Without a sandbox each build has a directory of another name.
      restoreFlags = lib.optionals direct [ "--moved" ];
      variables = lib.optionalAttrs direct network;
    }
    drv)
