package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbc/transfer/store/storetest"
)

// A tracer stops a child before every system call that changes a file, and decides whether it goes on, is killed, or
// fails. That is more than hooks in the code could do: nothing that the code calls is left out, and no call is missed
// that is added later.

// argument of a system call.
type argument uint8

const (
	none argument = iota
	pathArg
	fdArg
	dirArg // a descriptor, and the path relative to it in the next register
)

// changing are the system calls that change files, and what names the file that is changed.
var changing = map[uint64]struct {
	name string
	args [2]argument // of the first and the second file
	regs [2]int
}{
	unix.SYS_OPENAT:          {"openat", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_MKDIR:           {"mkdir", [2]argument{pathArg}, [2]int{0}},
	unix.SYS_MKDIRAT:         {"mkdirat", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_RMDIR:           {"rmdir", [2]argument{pathArg}, [2]int{0}},
	unix.SYS_UNLINK:          {"unlink", [2]argument{pathArg}, [2]int{0}},
	unix.SYS_UNLINKAT:        {"unlinkat", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_RENAME:          {"rename", [2]argument{pathArg, pathArg}, [2]int{0, 1}},
	unix.SYS_RENAMEAT:        {"renameat", [2]argument{dirArg, dirArg}, [2]int{0, 2}},
	unix.SYS_RENAMEAT2:       {"renameat2", [2]argument{dirArg, dirArg}, [2]int{0, 2}},
	unix.SYS_LINKAT:          {"linkat", [2]argument{dirArg, dirArg}, [2]int{0, 2}},
	unix.SYS_SYMLINKAT:       {"symlinkat", [2]argument{dirArg}, [2]int{1}},
	unix.SYS_CHMOD:           {"chmod", [2]argument{pathArg}, [2]int{0}},
	unix.SYS_FCHMOD:          {"fchmod", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_FCHMODAT:        {"fchmodat", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_FCHMODAT2:       {"fchmodat2", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_UTIMENSAT:       {"utimensat", [2]argument{dirArg}, [2]int{0}},
	unix.SYS_TRUNCATE:        {"truncate", [2]argument{pathArg}, [2]int{0}},
	unix.SYS_FTRUNCATE:       {"ftruncate", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_WRITE:           {"write", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_PWRITE64:        {"pwrite64", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_WRITEV:          {"writev", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_COPY_FILE_RANGE: {"copy_file_range", [2]argument{fdArg}, [2]int{2}},
	unix.SYS_SENDFILE:        {"sendfile", [2]argument{fdArg}, [2]int{0}},
	unix.SYS_SPLICE:          {"splice", [2]argument{fdArg}, [2]int{2}},
}

// unnamed is the flag of open for a file without a name.
const unnamed = unix.O_TMPFILE &^ unix.O_DIRECTORY

const (
	seccompSetFilter  = 1
	seccompThreadSync = 1
	retTrace          = 0x7ff00000
	retAllow          = 0x7fff0000
)

// traceMe makes the kernel stop this process, with all its threads, before each call in changing.
func traceMe() error {
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: code, K: k, Jt: yes, Jf: no}
	}
	var calls []uint32
	for nr := range changing {
		if nr != unix.SYS_OPENAT {
			calls = append(calls, uint32(nr))
		}
	}
	f := []unix.SockFilter{
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0), // the number
		jump(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, unix.SYS_OPENAT, 0, 2),
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 32), // the flags
		jump(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, unix.O_CREAT|unix.O_TRUNC|unnamed, uint8(len(calls)+1), uint8(len(calls))),
	}
	for i, nr := range calls {
		f = append(f, jump(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, nr, uint8(len(calls)-i), 0))
	}
	f = append(f, statement(unix.BPF_RET|unix.BPF_K, retAllow), statement(unix.BPF_RET|unix.BPF_K, retTrace))
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompSetFilter, seccompThreadSync, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// point is a call that the child is about to make.
type point struct {
	n    int    // how many came before; -1 if it makes a file without a name, which changes nothing that can be seen
	name string // of the call
	path string // that is changed
	to   string // of a rename or link
}

func (p point) String() string { return fmt.Sprintf("%d: %s %s %s", p.n, p.name, p.path, p.to) }

// verdict of a tracer on a call.
type verdict struct {
	kill  bool
	errno syscall.Errno
}

// trace runs a job and asks decide at every call that changes a file below base. Died says that it was killed.
func (j job) trace(t testing.TB, base string, decide func(point) verdict) (r childResult, died bool) {
	t.Helper()
	j.Traced = true
	cmd := j.command(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = in, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}

	runtime.LockOSThread() // all requests must come from the thread that started the child
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	printed := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(out)
		printed <- data
	}()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	died, err = (&tracer{pid: cmd.Process.Pid, base: base, decide: decide}).run()
	data := <-printed
	if err := cmd.Process.Release(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("tracing: %v", err)
	}
	if died {
		return r, true
	}
	return j.result(t, data), false
}

type tracer struct {
	pid    int
	base   string
	decide func(point) verdict
	n      int
}

const (
	traceSeccomp = 0x80 // PTRACE_O_TRACESECCOMP
	eventSeccomp = 7
)

func (tr *tracer) run() (died bool, err error) {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.pid, &ws, unix.WALL, nil); err != nil {
		return false, err
	}
	options := unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC |
		unix.PTRACE_O_EXITKILL | traceSeccomp
	if err := unix.PtraceSetOptions(tr.pid, options); err != nil {
		return false, err
	}
	if err := unix.PtraceCont(tr.pid, 0); err != nil {
		return false, err
	}
	for {
		// For any thread of the child's process group. Other tests have children, too, some from this same thread.
		tid, err := unix.Wait4(-tr.pid, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, err
		case ws.Exited() || ws.Signaled():
			if tid != tr.pid {
				continue
			}
			if ws.Signaled() {
				return true, nil
			}
			if ws.ExitStatus() != 0 {
				return false, fmt.Errorf("exit status %d", ws.ExitStatus())
			}
			return false, nil
		}
		signal := 0
		switch {
		case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() == eventSeccomp:
			if err := tr.stopped(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, err
			}
		case ws.StopSignal() == unix.SIGTRAP, ws.StopSignal() == unix.SIGSTOP:
		default:
			signal = int(ws.StopSignal())
		}
		if err := unix.PtraceCont(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, err
		}
	}
}

// stopped decides about one call.
func (tr *tracer) stopped(tid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	call := changing[regs.Orig_rax]
	p := point{n: tr.n, name: call.name}
	values := []uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8}
	for i, path := range []*string{&p.path, &p.to} {
		var err error
		switch r := call.regs[i]; call.args[i] {
		case pathArg:
			*path, err = readString(tid, values[r])
		case fdArg:
			*path = fdPath(tid, values[r])
		case dirArg:
			if values[r+1] == 0 { // a descriptor alone: futimens
				*path = fdPath(tid, values[r])
				break
			}
			*path, err = readString(tid, values[r+1])
			if err == nil && !strings.HasPrefix(*path, "/") {
				*path = fdPath(tid, values[r]) + "/" + *path
			}
		}
		if err != nil {
			return err
		}
	}
	if !within(p.path, tr.base) && !within(p.to, tr.base) {
		return nil
	}
	if regs.Orig_rax == unix.SYS_OPENAT && values[2]&unnamed != 0 {
		p.n = -1
	} else {
		tr.n++
	}
	v := tr.decide(p)
	if v.kill {
		return unix.Kill(tr.pid, unix.SIGKILL)
	}
	if v.errno != 0 {
		regs.Orig_rax, regs.Rax = ^uint64(0), uint64(-int64(v.errno))
		return unix.PtraceSetRegs(tid, &regs)
	}
	return nil
}

func fdPath(tid int, fd uint64) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	if err != nil {
		path, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", tid)) // AT_FDCWD
	}
	return path
}

// readString reads a path from the child's memory.
func readString(tid int, at uint64) (string, error) {
	buf := make([]byte, unix.PathMax)
	for n := 0; n < len(buf); {
		// No further than the end of a page, behind which there may be nothing.
		size := min(len(buf)-n, os.Getpagesize()-int(at+uint64(n))%os.Getpagesize())
		local := []unix.Iovec{{Base: &buf[n], Len: uint64(size)}}
		k, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(at) + uintptr(n), Len: size}}, 0)
		if err != nil {
			return "", err
		}
		if i := bytes.IndexByte(buf[n:n+k], 0); i >= 0 {
			return string(buf[:n+i]), nil
		}
		n += k
	}
	return "", unix.ENAMETOOLONG
}

// traceProblem says why no child can be traced here.
var traceProblem = sync.OnceValue(func() error {
	cmd := job{Do: "nothing", Traced: true}.command(quietly{})
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	tr := &tracer{pid: cmd.Process.Pid, base: "/nowhere"}
	_, err := tr.run()
	return errors.Join(err, cmd.Process.Release())
})

// quietly is a testing.TB for helpers that cannot fail there.
type quietly struct{ testing.TB }

func (quietly) Helper() {}

func needTrace(t testing.TB) {
	t.Helper()
	storetest.Need(t, "ptrace", traceProblem())
}
