package transfer

import "nbc/mtime"

// Tree says which files of a source tree a restore or a save is about. Patterns are relative to the tree.
type Tree struct {
	// Dirs are the patterns of the cache directories.
	Dirs []string
	// Exclude are patterns of artifacts that are left out of a save.
	Exclude []string
	// IgnoreSources are patterns of sources that cannot influence the build.
	IgnoreSources []string
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
}

// SaveOptions say what to save.
type SaveOptions struct {
	// Name is the cache name. If it is "", name and Tree are taken from the receipt.
	Name string
	Tree
	// Fallbacks are names whose chunks may be used again, where there is no receipt.
	Fallbacks []string
	// Failed says that the build failed: the save then keeps its progress only where that cannot replace something better.
	Failed bool
}
