# services.nbc: the daemon on a build host, and what lets sandboxed builds reach it. README.md beside this file says how
# to use it.
{ config, lib, pkgs, utils, ... }:

let
  cfg = config.services.nbc;

  inherit (lib) mkIf mkOption optionals types;

  list = description: mkOption {
    type = types.listOf types.str;
    default = [ ];
    inherit description;
  };

  file = description: mkOption {
    type = types.nullOr types.str; # a path would be copied to the store, where everybody can read it
    default = null;
    inherit description;
  };

  each = flag: lib.concatMap (value: [ flag value ]);

  command = verb: flags: utils.escapeSystemdExecArgs ([ "${cfg.package}/bin/nbc" verb "--store" cfg.store ] ++ flags);

  rules = pkgs.writeText "nbc-rules" cfg.rules;

  # What both services may do. They are in no user namespace (PrivateUsers): in one the daemon would take all builds for
  # those of the user nobody, and rules about users would mean nothing.
  service = { credentialsFile, environmentFile }: {
    environment = cfg.environment // lib.optionalAttrs (credentialsFile != null) {
      AWS_SHARED_CREDENTIALS_FILE = "%d/credentials";
    };
    after = [ "network-online.target" ];
    wants = [ "network-online.target" ];
    serviceConfig = {
      User = "nbc"; # one for both, so that both own a store below /var/lib/nbc
      DynamicUser = true;
      StateDirectory = "nbc";
      CacheDirectory = "nbc";
      LoadCredential = optionals (credentialsFile != null) [ "credentials:${credentialsFile}" ];
      EnvironmentFile = optionals (environmentFile != null) [ environmentFile ];

      CapabilityBoundingSet = "";
      LockPersonality = true;
      MemoryDenyWriteExecute = true;
      NoNewPrivileges = true;
      PrivateDevices = true;
      PrivateTmp = true;
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHome = true;
      ProtectHostname = true;
      ProtectKernelLogs = true;
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      ProtectSystem = "strict";
      RemoveIPC = true;
      RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
      RestrictNamespaces = true;
      RestrictRealtime = true;
      RestrictSUIDSGID = true;
      SystemCallArchitectures = "native";
      SystemCallErrorNumber = "EPERM";
      SystemCallFilter = [ "@system-service" "~@privileged" ];
      UMask = "0077";
    };
  };
in
{
  options.services.nbc = {
    enable = lib.mkEnableOption "the nbc daemon, which gives sandboxed builds their intermediate files back";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = "built from this source";
      description = "The nbc to run.";
    };

    store = mkOption {
      type = types.str;
      default = "/var/lib/nbc/store";
      example = "s3://bucket/prefix?region=eu-west-1";
      description = "Where the saved trees are: a bucket, or a directory below `/var/lib/nbc`.";
    };

    near = mkOption {
      type = types.str;
      default = "/var/cache/nbc/near";
      description = "Where copies of what was fetched from a bucket are kept, or `off`.";
    };

    nearSize = mkOption {
      type = types.str;
      default = "10G";
      description = "How much is kept there at most.";
    };

    socketGroup = mkOption {
      type = types.str;
      default = "nixbld";
      description = "The group that may connect, which is that of the build users.";
    };

    socketMode = mkOption {
      type = types.str;
      default = "0660";
      description = "Permissions of the socket. With `auto-allocate-uids` builds are in no group: `0666`.";
    };

    allowRead = list "Cache names that builds may read, such as `myapp/**`. By default they may read none.";
    allowWrite = list "Cache names that builds may write, such as `myapp/pr-*`. By default they may write none.";

    rules = mkOption {
      type = types.lines;
      default = "";
      example = "write myapp/main uid=ci";
      description = "More rules, one on each line, as `nbc help daemon` explains them.";
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = { AWS_REGION = "eu-west-1"; };
      description = "Environment variables of the services. They are readable by everybody.";
    };

    credentialsFile = file "A file in the format of `~/.aws/credentials`. It need only be readable by root.";
    environmentFile = file "A file of lines such as `AWS_ACCESS_KEY_ID=…`. It need only be readable by root.";

    metrics = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "127.0.0.1:9137";
      description = "Where to serve metrics and health.";
    };

    extraFlags = list "More flags of `nbc daemon`.";

    gc = {
      enable = lib.mkEnableOption "collecting what no saved tree needs; one host of those that share a store will do";

      dates = mkOption {
        type = types.str;
        default = "weekly";
        description = "When, as in `systemd.time(7)`.";
      };

      keepWithin = mkOption {
        type = types.nullOr types.str;
        default = "30d";
        description = "Drop names that were last saved longer ago.";
      };

      keep = list "Names that are never dropped, such as `*/main`.";
      extraFlags = list "More flags of `nbc gc`.";

      credentialsFile = file "Credentials that may also delete; by default those of the daemon.";
      environmentFile = file "Environment variables; by default those of the daemon.";
    };
  };

  config = mkIf cfg.enable {
    # With the question mark: without it every build on this host would fail while there is no such folder. The folder
    # and not the socket, which would go stale in a build's sandbox when it is made anew.
    nix.settings.extra-sandbox-paths = [ "/run/nbc?" ];

    # The socket is systemd's: its folder stays when the daemon ends, and a build that connects meanwhile waits.
    systemd.sockets.nbc = {
      description = "Socket of the nbc daemon";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "/run/nbc/nbc.sock" ];
      socketConfig = {
        SocketGroup = cfg.socketGroup;
        SocketMode = cfg.socketMode;
        DirectoryMode = "0755";
      };
    };

    systemd.services.nbc = lib.recursiveUpdate
      (service { inherit (cfg) credentialsFile environmentFile; })
      {
        description = "nbc daemon";
        requires = [ "nbc.socket" ];
        after = [ "network-online.target" "nbc.socket" ];
        serviceConfig = {
          ExecStart = command "daemon" (
            [ "--near" cfg.near "--near-size" cfg.nearSize ]
            ++ each "--allow-read" cfg.allowRead
            ++ each "--allow-write" cfg.allowWrite
            ++ optionals (cfg.rules != "") [ "--rules" "${rules}" ]
            ++ optionals (cfg.metrics != null) [ "--metrics" cfg.metrics ]
            ++ cfg.extraFlags
          );
          Restart = "on-failure";
          TimeoutStopSec = 60; # more than --drain
          LimitNOFILE = 65536;
        };
      };

    systemd.services.nbc-gc = mkIf cfg.gc.enable (lib.recursiveUpdate
      (service {
        credentialsFile = if cfg.gc.credentialsFile != null then cfg.gc.credentialsFile else cfg.credentialsFile;
        environmentFile = if cfg.gc.environmentFile != null then cfg.gc.environmentFile else cfg.environmentFile;
      })
      {
        description = "Collection of what no tree saved by nbc needs";
        startAt = cfg.gc.dates;
        serviceConfig = {
          Type = "oneshot";
          ExecStart = command "gc" (
            optionals (cfg.gc.keepWithin != null) [ "--keep-within" cfg.gc.keepWithin ]
            ++ each "--keep" cfg.gc.keep
            ++ cfg.gc.extraFlags
          );
        };
      });

    systemd.timers.nbc-gc = mkIf cfg.gc.enable {
      timerConfig = {
        Persistent = true;
        RandomizedDelaySec = "1h";
      };
    };
  };
}
