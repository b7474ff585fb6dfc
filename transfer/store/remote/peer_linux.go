package remote

import (
	"net"

	"golang.org/x/sys/unix"
)

func credentials(c *net.UnixConn) (p Peer) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}
	}
	// An error leaves the peer unknown.
	_ = raw.Control(func(fd uintptr) {
		u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			p = Peer{UID: u.Uid, GID: u.Gid, PID: u.Pid, Known: true}
		}
	})
	return p
}
