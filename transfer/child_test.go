package transfer

// childVariable holds the job of a process that a test has started from its own binary.
const childVariable = "NBC_TEST_CHILD"

func childMain(job string) int { return 0 }
