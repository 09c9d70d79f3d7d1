package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/crakefs/crake/wire"
)

// status chooses the errno for an error: the one place that does.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return fuse.Status(errno(wire.KindOf(err)))
}

func errno(k wire.Kind) syscall.Errno {
	switch k {
	case wire.KindNotFound:
		return syscall.ENOENT
	case wire.KindExists:
		return syscall.EEXIST
	case wire.KindNoSpace:
		return syscall.ENOSPC
	case wire.KindNotDir:
		return syscall.ENOTDIR
	case wire.KindIsDir:
		return syscall.EISDIR
	case wire.KindNotEmpty:
		return syscall.ENOTEMPTY
	case wire.KindNameTooLong:
		return syscall.ENAMETOOLONG
	case wire.KindInvalid:
		return syscall.EINVAL
	case wire.KindPermission, wire.KindRefused:
		return syscall.EPERM
	case wire.KindAccess:
		return syscall.EACCES
	case wire.KindCrossDevice:
		return syscall.EXDEV
	case wire.KindTooManyLinks:
		return syscall.EMLINK
	case wire.KindNoData:
		return syscall.ENODATA
	case wire.KindRange:
		return syscall.ERANGE
	case wire.KindWouldBlock:
		return syscall.EAGAIN
	case wire.KindDeadlock:
		return syscall.EDEADLK
	case wire.KindInterrupted:
		return syscall.EINTR
	case wire.KindTooBig:
		return syscall.EFBIG
	case wire.KindNotSupported, wire.KindVersion:
		return syscall.EOPNOTSUPP
	case wire.KindStale:
		return syscall.ESTALE
	case wire.KindOverLimit:
		return syscall.E2BIG
	case wire.KindShutdown, wire.KindStaleSession:
		return syscall.ENOTCONN
	}
	return syscall.EIO
}

// nameStatus is status for what needs a name in a directory: if the directory is not there any more, there is no such name. (ESTALE
// would make the kernel walk the path again, in vain.)
func nameStatus(err error) fuse.Status {
	if errors.Is(err, wire.KindStale) {
		return fuse.ENOENT
	}
	return status(err)
}

// xattrStatus is status for extended attributes, where a missing inode and a missing attribute must not be confused.
func xattrStatus(err error) fuse.Status {
	switch {
	case errors.Is(err, wire.KindExists):
		return fuse.Status(syscall.EEXIST)
	case errors.Is(err, wire.KindOverLimit):
		return fuse.Status(syscall.ENOSPC)
	}
	return status(err)
}
