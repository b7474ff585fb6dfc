{ pkgs ? import <nixpkgs> { } }:

import ./nix { inherit pkgs; } // {
  overlay = import ./nix/overlay.nix;
  nixosModule = ./nix/module.nix;
}
