package remote

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// Peer is the process at the other end of a connection, as the kernel knew it when it connected. The zero value is
// a peer of which nothing is known.
type Peer struct {
	UID, GID uint32
	PID      int32
	Known    bool
}

// String says who it is, for messages.
func (p Peer) String() string {
	if !p.Known {
		return "this peer"
	}
	return fmt.Sprintf("uid %d, gid %d", p.UID, p.GID)
}

// peerKey is where the context of a request has its *conn.
type peerKey struct{}

// derivation returns the name of the derivation that a process builds, or "". It goes by where the process has its
// root directory, which a process can forge, and the number may be another process's by now: it is good for logs.
func derivation(pid int32) string {
	if pid <= 0 {
		return ""
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxMountinfo))
	if err != nil {
		return ""
	}
	return derivationOf(string(data))
}

// maxMountinfo bounds what is read for a name: the mounts are the peer's, and the one at "/" is among the first.
const maxMountinfo = 64 << 10

// derivationOf finds it in the lines of a mountinfo: the root of the mount at "/" is below /nix/store/<drv>.chroot.
func derivationOf(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != "/" {
			continue
		}
		for element := range strings.SplitSeq(fields[3], "/") {
			if name, ok := strings.CutSuffix(element, ".drv.chroot"); ok {
				return short(name) + ".drv"
			}
		}
	}
	return ""
}

// peerOfConn asks the kernel who is at the other end.
func peerOfConn(c net.Conn) Peer {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}
	}
	return credentials(u)
}
