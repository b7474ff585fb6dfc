package dir

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// networkTypes are the file systems that other machines may write to at the same time, by the magic numbers of
// statfs(2). FUSE is among them: what is behind it, sshfs or a local disk, cannot be told.
var networkTypes = map[uint32]string{
	unix.NFS_SUPER_MAGIC:   "nfs",
	unix.SMB_SUPER_MAGIC:   "smb",
	unix.SMB2_SUPER_MAGIC:  "smb2",
	unix.CIFS_SUPER_MAGIC:  "cifs",
	unix.FUSE_SUPER_MAGIC:  "fuse",
	unix.V9FS_MAGIC:        "9p",
	unix.AFS_SUPER_MAGIC:   "afs",
	unix.AFS_FS_MAGIC:      "afs",
	unix.CODA_SUPER_MAGIC:  "coda",
	unix.NCP_SUPER_MAGIC:   "ncp",
	unix.CEPH_SUPER_MAGIC:  "ceph",
	unix.OCFS2_SUPER_MAGIC: "ocfs2",
	0x01161970:             "gfs2",
	0x0bd00bd0:             "lustre",
	0x47504653:             "gpfs",
	0x19830326:             "beegfs",
	0x20030528:             "orangefs",
	0x786f4256:             "vboxsf",
	0xbacbacbc:             "vmhgfs",
}

// FileSystem says whether the store is on a file system that other machines may write to, where locks may or may not
// work, and what that is called.
func (s *Store) FileSystem() (name string, network bool, err error) {
	f, err := s.root.Open(".")
	if err != nil {
		return "", false, fmt.Errorf("finding the file system of %s: %w", s.path, explain(err))
	}
	var st unix.Statfs_t
	err = errors.Join(control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }), f.Close())
	if err != nil {
		return "", false, fmt.Errorf("finding the file system of %s: %w", s.path, err)
	}
	name, network = typeName(uint32(st.Type)) // 32 bits, though some machines keep them in a signed word
	return name, network, nil
}

func typeName(magic uint32) (name string, network bool) {
	if name, ok := networkTypes[magic]; ok {
		return name, true
	}
	return fmt.Sprintf("file system %#x", magic), false
}

// syncFileSystem writes out all that the kernel holds back of the file system that f is on.
func syncFileSystem(f *os.File) error { return control(f, unix.Syncfs) }
