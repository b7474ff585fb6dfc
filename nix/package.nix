{ lib
, buildGoModule
, release ? "0-unstable"
}:

buildGoModule {
  pname = "nbc";
  version = release;

  # What the program is built from, so that other changes do not build it again, and tests do not count for vendorHash.
  src = builtins.path {
    name = "nbc-source";
    path = ../.;
    filter = path: type:
      let
        relative = lib.removePrefix (toString ../. + "/") (toString path);
        top = builtins.head (lib.splitString "/" relative);
      in
      if type == "directory"
      then builtins.elem top [ "chunk" "index" "mtime" "transfer" "cmd" ] && baseNameOf path != "testdata"
      else if top == relative then builtins.elem top [ "go.mod" "go.sum" ]
      else !(lib.hasSuffix "_test.go" path || lib.hasSuffix ".md" path);
  };

  # The hash of what "go mod vendor" makes in this source. A test compares it, and says what it has become.
  vendorHash = "sha256-b5CTp05NT1/JAc1bD3IWNBp0GJgPP91ejRu+VbyR8n0=";

  subPackages = [ "cmd/nbc" ];
  env.CGO_ENABLED = 0; # builds run it in sandboxes in which there is nothing else
  ldflags = [ "-s" "-w" "-X main.release=${release}" ];
  doCheck = false; # the tests want tools, servers and a checkout

  meta = {
    description = "Keeps the intermediate files of builds in an object store";
    mainProgram = "nbc";
    license = lib.licenses.mit;
    platforms = lib.platforms.unix;
  };
}
