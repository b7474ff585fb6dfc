{
  description = "nbc keeps the intermediate files of builds in an object store";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f (import ./. { pkgs = nixpkgs.legacyPackages.${system}; }));
    in
    {
      packages = each (nbc: { inherit (nbc) nbc hook; default = nbc.nbc; });

      overlays.default = import ./nix/overlay.nix;

      lib = {
        # The hook is one for the system that the derivation is built on.
        wrap = arguments: drv:
          (import ./. { pkgs = nixpkgs.legacyPackages.${drv.system}; }).lib.wrap arguments drv;
        inputKey = import ./nix/input-key.nix { inherit (nixpkgs) lib; };
      };

      nixosModules.default = { lib, pkgs, ... }: {
        imports = [ ./nix/module.nix ];
        services.nbc.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.nbc;
      };
    };
}
