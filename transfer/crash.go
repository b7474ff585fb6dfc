package transfer

// crash is called at the steps of a restore, a save and a second pass, with the name of the step. It does nothing; tests
// make something happen there: somebody else changes a file, a collection runs, the context ends. (That nbc is killed
// needs no such steps: tests kill it at every system call.)
var crash = func(step string) { _ = step }
