package transfer

import (
	"nbc/index"
	"nbc/mtime"
)

// Tree says which files of a source tree a restore or a save is about. Patterns are relative to the tree.
type Tree struct {
	// Dirs are the patterns of the cache directories.
	Dirs []string
	// Exclude are patterns of artifacts that are left out of a save.
	Exclude []string
	// IgnoreSources are patterns of sources that cannot influence the build.
	IgnoreSources []string
	// NoRewrite are patterns of artifacts in which output paths are neither replaced by a save nor written by a restore.
	NoRewrite []string
}

// RestoreOptions say what to restore.
type RestoreOptions struct {
	Tree
	// Name is the cache name, Fallbacks those that are tried, in order, when it has no index that can be used.
	Name      string
	Fallbacks []string
	// Times and OnSkew choose the times of files.
	Times  mtime.Times
	OnSkew mtime.OnSkew
	// Moved allows to restore an index that was saved in another directory.
	Moved bool
	// Replace gives up what the cache directories hold, even if nbc did not put it there.
	Replace bool
	// Outputs are those of the Nix derivation that is built. Their paths take the places of those of the build that was
	// saved; an index that holds such paths and does not say where, or other ones, is a miss.
	Outputs []index.Output
}

// SaveOptions say what to save.
type SaveOptions struct {
	// Name is the cache name. If it is "", name and Tree are taken from the receipt.
	Name string
	Tree
	// Fallbacks are names whose chunks may be used again, where there is no receipt.
	Fallbacks []string
	// Outputs are those of the Nix derivation that was built; if there is none, those of the receipt.
	Outputs []index.Output
	// Failed says that the build failed: the save then keeps its progress only where that cannot replace something better.
	Failed bool
}
