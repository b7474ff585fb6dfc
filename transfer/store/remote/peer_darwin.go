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
		u, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if err != nil || u.Ngroups < 1 {
			return
		}
		p = Peer{UID: u.Uid, GID: u.Groups[0], Known: true}
		if pid, err := unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID); err == nil {
			p.PID = int32(pid)
		}
	})
	return p
}
