package transfer

import "nbc/mtime"

// Tree says which files a restore or save is about.
type Tree struct {
	// Root is the source tree, absolute.
	Root string
	// Dirs are the patterns of the cache directories, relative to Root.
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
	// State is the file of the receipt; "" keeps it in memory (Restored.Receipt). Its journal and lock stand beside it,
	// or, when it is "", beside DefaultState(Root).
	State string
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
	// Tree and Name are taken from the receipt if Name is "". Root is always needed.
	Tree
	Name string
	// Fallbacks are names whose chunks may be used again, where there is no receipt.
	Fallbacks []string
	// State is as in RestoreOptions.
	State string
	// Failed says that the build failed: the save then keeps its progress only where that cannot replace something better.
	Failed bool
}

// TimesOptions say where the second pass of the times is to be made.
type TimesOptions struct {
	Root  string
	State string
}
