package matrix

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tool is a row of the matrix.
type tool struct {
	name string
	// needs are the components, as NBC_REQUIRE names them, that the row needs. See components.
	needs   []string
	project []string // archives in testdata
	dirs    []string // cache directories
	// files is an archive in testdata. It is laid, and prepare is run, once in a directory that scripts know as $TOOL.
	files, prepare string
	// configure and build are scripts, run in the tree; the second pass over the times is between them. Without a
	// configure, nbc run does it all.
	configure, build string
	// clean replaces configure, build and output in clean builds, where there is a way that is quicker and asks no build
	// tool: it prints what the program prints, and nothing else.
	clean string
	// output is a script that runs the program.
	output string
	// units finds what was compiled and linked: in the log, which compilers that are wrapped write, a line each, and in
	// what the build printed.
	units func(log, printed string) []string
	// counts says in a few words what a unit is, decides how the tool decides.
	counts, decides string
	// equality says that the tool asks whether a time is the same, not only which file is older: a timeline that was
	// moved is not right for it, except that sources with the time of an old tree keep that.
	equality bool
}

// component is a program that a row needs: one of these must be in PATH, or be what the environment variable names.
type component struct {
	programs []string
	variable string
	version  []string // arguments that print it
}

var components = map[string]component{
	"make":  {programs: []string{"make"}, version: []string{"--version"}},
	"gcc":   {programs: []string{"gcc"}, version: []string{"--version"}},
	"clang": {programs: []string{"clang"}, version: []string{"--version"}},
	"cmake": {programs: []string{"cmake"}, version: []string{"--version"}},
	"ninja": {programs: []string{"ninja"}, version: []string{"--version"}},
	"meson": {programs: []string{"meson"}, version: []string{"--version"}},
	"ghc":   {programs: []string{"ghc"}, version: []string{"--numeric-version"}},
	"cabal": {programs: []string{"cabal"}, version: []string{"--numeric-version"}},
	"cargo": {programs: []string{"cargo"}, version: []string{"--version"}},
	"dune":  {programs: []string{"dune"}, version: []string{"--version"}},
	"ocaml": {programs: []string{"ocamlc"}, version: []string{"-version"}},
	"tsc":   {programs: []string{"tsc"}, variable: "NBC_TSC", version: []string{"--version"}},
	"node":  {programs: []string{"node", "nodejs"}, version: []string{"--version"}},
	"elm":   {programs: []string{"elm"}, variable: "NBC_ELM", version: []string{"--version"}},
}

// wrapped are the compilers that are wrapped: each writes its arguments to the log.
var wrapped = []string{"gcc", "clang"}

const (
	cmakeConfigure = `cmake -S . -B build -DCMAKE_C_COMPILER="$(command -v gcc)" -G `
	cClean         = `mkdir -p build; gcc -o build/prog src/*.c; build/prog`
	ghcClean       = `ghc -v0 -isrc:alt -e main src/Main.hs`
	cCounts        = "calls of the compiler: sources and links"
	makeDecides    = "a target is older than what it is made from"
)

var tools = []*tool{
	{
		name: "make", needs: []string{"make", "gcc"}, project: []string{"c", "make"}, dirs: []string{"build"},
		build: `make CC=gcc`, clean: cClean, output: `build/prog`,
		units: cUnits, counts: cCounts, decides: makeDecides + ", to the nanosecond",
	},
	{
		name: "make, configure", needs: []string{"make", "gcc"}, project: []string{"c", "make", "configure"},
		dirs: []string{"build"},
		// Edited in place, it is a person who knows that configure need not be run again.
		configure: `if [ ! config.h -nt config.in ]; then ./configure; fi`,
		build:     `make CC=gcc CFLAGS="-I. -DHAVE_CONFIG"`, output: `build/prog`,
		clean: `./configure; mkdir -p build; gcc -I. -DHAVE_CONFIG -o build/prog src/*.c; build/prog`,
		units: cUnits, counts: cCounts, decides: "as make; `config.h` is written before each build, outside of the cache",
	},
	{
		name: "CMake, Makefiles", needs: []string{"cmake", "make", "gcc"}, project: []string{"c", "cmake"},
		dirs: []string{"build"}, configure: cmakeConfigure + `"Unix Makefiles"`,
		build: `make -C build`, clean: cClean, output: `build/prog`,
		units: cUnits, counts: cCounts, decides: "as make; lists of dependencies and stamps have times of their own",
	},
	{
		name: "CMake, Ninja", needs: []string{"cmake", "ninja", "gcc"}, project: []string{"c", "cmake"},
		dirs: []string{"build"}, configure: cmakeConfigure + `Ninja`,
		build: `ninja -C build -j1`, clean: cClean, output: `build/prog`,
		units: cUnits, counts: cCounts,
		decides: "an output is older than an input, or newer than the log says, or its command has changed",
	},
	{
		name: "meson", needs: []string{"meson", "ninja", "gcc"}, project: []string{"c", "meson"}, dirs: []string{"build"},
		configure: `CC=gcc meson setup build`,
		build:     `ninja -C build -j1`, clean: cClean, output: `build/prog`,
		units: cUnits, counts: cCounts, decides: "as Ninja",
	},
	{
		name: "gcc, precompiled header", needs: []string{"make", "gcc"}, project: []string{"c", "pch"},
		dirs: []string{"build"}, clean: cClean, output: `build/prog`,
		build: `make CC=gcc PCH=build/common.h.gch USE="-Winvalid-pch -include build/common.h"`,
		units: cUnits, counts: cCounts, decides: "as make; gcc itself does not look at times",
	},
	{
		name: "clang, precompiled header", needs: []string{"make", "clang"}, project: []string{"c", "pch"},
		dirs: []string{"build"}, output: `build/prog`,
		clean: `mkdir -p build; clang -o build/prog src/*.c; build/prog`,
		build: `make CC=clang PCH=build/common.h.pch USE="-include-pch build/common.h.pch"`,
		units: cUnits, counts: cCounts, equality: true,
		decides: "as make; and clang refuses a precompiled header if a header has another size or time than it had",
	},
	{
		name: "ghc --make", needs: []string{"ghc"}, project: []string{"haskell"}, dirs: []string{"build"},
		build:  `mkdir -p build; ghc --make -v1 -outputdir build -isrc:alt -o build/prog src/Main.hs`,
		clean:  ghcClean,
		output: `build/prog`,
		units:  ghcUnits, counts: "what it says: modules and links",
		decides: "an object is older than its source; then the hashes of what it imports",
	},
	{
		name: "Cabal, Setup", needs: []string{"ghc"}, project: []string{"haskell"}, dirs: []string{"dist"},
		prepare: `echo 'import Distribution.Simple; main = defaultMain' > Setup.hs; ghc --make -v0 Setup.hs`,
		// A Nix build, whose sources are of 1970, configures each time; a person does when the description has changed.
		configure: `if [ prog.cabal -ot "$TOOL/Setup" ] || [ ! dist/setup-config -nt prog.cabal ]; then
			"$TOOL/Setup" configure -v0; fi`,
		build: `"$TOOL/Setup" build -v1`, output: `dist/build/prog/prog`,
		clean: ghcClean,
		units: ghcUnits, counts: "what ghc says: modules and links", decides: "as ghc",
	},
	{
		name: "Cabal, v2-build", needs: []string{"ghc", "cabal"}, project: []string{"haskell"},
		dirs:    []string{"dist-newstyle"},
		prepare: `mkdir -p cabal; : > cabal/config`,
		build:   `CABAL_DIR="$TOOL/cabal" cabal --config-file="$TOOL/cabal/config" v2-build --offline -v1 -j1`,
		clean:   ghcClean,
		output:  `$(find dist-newstyle -name prog -type f -perm -100)`,
		units:   ghcUnits, counts: "what ghc says: modules and links",
		decides: "Cabal: times, then hashes, of the package's files; within a package, as ghc",
	},
	{
		name: "cargo", needs: []string{"cargo", "gcc"}, project: []string{"rust"}, dirs: []string{"target"},
		build: cargoBuild, output: `target/debug/app`, units: cargoUnits, counts: "calls of rustc",
		decides: "a source is newer than the record of the last build; an output is older than one that it needs",
	},
	{
		name: "cargo, build scripts", needs: []string{"cargo", "gcc"}, project: []string{"rust-build-scripts"},
		dirs: []string{"target"}, equality: true,
		build: cargoBuild, output: `target/debug/app`, units: cargoUnits, counts: "calls of rustc, runs of build scripts",
		decides: "as cargo for `rerun-if-changed`, also of a directory; without it, the newest time of the package " +
			"is another one",
	},
	{
		name: "dune", needs: []string{"dune", "ocaml"}, project: []string{"ocaml"}, dirs: []string{"_build"}, equality: true,
		build: `code=0; DUNE_CACHE=disabled dune build -j1 ./src/main.exe || code=$?
			cat _build/log; test $code = 0`,
		clean:  `ocamlc -I src -o prog $(ocamldep -sort src/*.ml); ./prog`,
		output: `_build/default/src/main.exe`,
		units:  duneUnits, counts: "the commands in `_build/log`",
		decides: "hashes, which are kept for files that have the same time and size as before",
	},
	{
		name: "Elm", needs: []string{"elm", "node"}, project: []string{"elm"}, dirs: []string{"elm-stuff"}, equality: true,
		files: "elm-home", prepare: elmRegistry, build: elmBuild,
		output: `"$NODE" -e 'require("./elm-stuff/main.js").Elm.Main.init()'`,
		units:  elmUnits, counts: "modules, which it counts itself",
		decides: "a module, or `elm.json`, has another time than it had, to the picosecond",
	},
	{
		name: "tsc -p", needs: []string{"tsc", "node"}, project: []string{"ts", "tsc-p"}, dirs: []string{"dist"},
		build: `"$TSC" -p . --incremental --listEmittedFiles`, output: `"$NODE" dist/src/main.js`,
		units: tscUnits, counts: "scripts that it writes", decides: "hashes",
	},
	{
		name: "tsc -b", needs: []string{"tsc", "node"}, project: []string{"ts", "tsc-b"}, dirs: []string{"dist"},
		build: `"$TSC" -b --listEmittedFiles`, output: `"$NODE" dist/src/main.js`,
		units: tscUnits, counts: "scripts that it writes",
		decides: "a project's newest source is newer than what was built; then hashes",
	},
}

// elmRegistry writes the list of packages that Elm would ask its host for, as Elm keeps it: the number of versions,
// that of packages, and for each package the names with their lengths, a version, and how many older ones there are.
const elmRegistry = `o='\0\0\0\0\0\0\0'; printf "$o"'\2'"$o"'\2\3elm\4core\1\0\5'"$o"'\0\3elm\4json\1\1\3'"$o"'\0' \
	> 0.19.1/packages/registry.dat`

// elmBuild builds once more after a cold build. In that, Elm's background writers may put the records of the modules
// and those of the packages into one file in the wrong order, and the next build is cold again, whoever runs it.
const elmBuild = `cold=; [ -d elm-stuff ] || cold=yes
elm() { ELM_HOME="$TOOL" "$ELM" make src/Main.elm --output=elm-stuff/main.js; }
elm
[ -z "$cold" ] || elm > "$TOOL/second" 2>&1`

const cargoBuild = `RUSTC_WRAPPER="$BIN/rustc-wrapper" cargo build --offline -j1`

var (
	cSource    = regexp.MustCompile(`\bsrc/(\w+\.[ch])$`)
	ghcModule  = regexp.MustCompile(`(?m)^\[ *\d+ of \d+\] Compiling (\S+)`)
	ghcLink    = regexp.MustCompile(`(?m)^Linking `)
	rustcCrate = regexp.MustCompile(`--crate-name (\S+)`)
	duneRun    = regexp.MustCompile(`(?m)^\$ \(cd _build.*`)
	duneTarget = regexp.MustCompile(`(?:-o|-c -impl) (\S+)`)
	elmCount   = regexp.MustCompile(`Compiled (\d+) module`)
	tscFile    = regexp.MustCompile(`(?m)^TSFILE: .*/(\S+\.js)$`)
)

// cUnits takes what a compiler makes from a file in src, or into prog; not what CMake and meson try out.
func cUnits(log, _ string) []string {
	var units []string
	for line := range strings.Lines(log) {
		args := strings.Fields(line)
		source := ""
		compiles := false
		output := ""
		for i, a := range args {
			if m := cSource.FindStringSubmatch(a); m != nil {
				source = m[1]
			}
			compiles = compiles || a == "-c"
			if a == "-o" && i+1 < len(args) {
				output = filepath.Base(args[i+1])
			}
		}
		switch {
		case compiles && source != "":
			units = append(units, source)
		case !compiles && output == "prog":
			units = append(units, "link")
		}
	}
	return units
}

func ghcUnits(_, printed string) []string {
	var units []string
	for _, m := range ghcModule.FindAllStringSubmatch(printed, -1) {
		units = append(units, m[1])
	}
	for range ghcLink.FindAllString(printed, -1) {
		units = append(units, "link")
	}
	return units
}

// cargoUnits takes the crates that rustc compiled, build scripts included, and those that build scripts say they ran.
func cargoUnits(log, _ string) []string {
	var units []string
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if m := rustcCrate.FindStringSubmatch(line); m != nil && m[1] != "___" {
			unit := m[1]
			if strings.HasPrefix(unit, "build_script") {
				unit = "compile a build script"
			}
			units = append(units, unit)
		} else if strings.HasPrefix(line, "run ") {
			units = append(units, line)
		}
	}
	return units
}

// duneUnits takes the commands from dune's log, which the script of the build has appended to what it printed.
func duneUnits(_, printed string) []string {
	var units []string
	for _, line := range duneRun.FindAllString(printed, -1) {
		unit := "command"
		if m := duneTarget.FindStringSubmatch(line); m != nil {
			unit = m[1]
		}
		units = append(units, unit)
	}
	return units
}

// elmUnits takes the number that Elm prints. A build that fails prints none.
func elmUnits(_, printed string) []string {
	m := elmCount.FindStringSubmatch(printed)
	if m == nil {
		return nil
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return []string{err.Error()}
	}
	return slices.Repeat([]string{"module"}, n)
}

func tscUnits(_, printed string) []string {
	var units []string
	for _, m := range tscFile.FindAllStringSubmatch(printed, -1) {
		units = append(units, m[1])
	}
	return units
}

// version returns the first line in which a component tells its version.
func (c component) printVersion(path string) string {
	out, err := exec.Command(path, c.version...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
