package format

import (
	"bytes"
	"fmt"

	"github.com/crakefs/crake/wire"
)

// inspectBytes is how much of the start and of the end of a device is looked at.
const inspectBytes = 1 << 20

// Reader is what Inspect needs of a device.
type Reader interface {
	ReadAt(p []byte, off int64) error
	Size() int64
}

// Contents says what a device holds.
type Contents struct {
	Superblock *Superblock // of a drive of some cluster, or nil
	Foreign    string      // what else it holds, for people: "an ext4 filesystem"; empty when it is blank
}

// Inspect tells what is on a device, by its first and last MiB. alloc gives aligned memory.
func Inspect(d Reader, alloc func(int) []byte) (Contents, error) {
	n := min(int64(inspectBytes), d.Size()&^(BlockSize-1))
	head, tail := alloc(int(n)), alloc(int(n))
	if err := d.ReadAt(head, 0); err != nil {
		return Contents{}, err
	}
	if err := d.ReadAt(tail, (d.Size()&^(BlockSize-1))-n); err != nil {
		return Contents{}, err
	}
	for _, b := range [][]byte{head[:BlockSize], tail[n-BlockSize:]} {
		sb, err := DecodeSuperblock(b)
		switch {
		case err == nil:
			return Contents{Superblock: sb}, nil
		case wire.KindOf(err) == wire.KindVersion:
			return Contents{Foreign: "a drive with a newer layout"}, nil
		}
	}
	return Contents{Foreign: foreign(head, tail)}, nil
}

// signatures are what common users of devices write; see libblkid for their origin.
var signatures = []struct {
	at    int
	magic string
	what  string
}{
	{0x438, "\x53\xef", "an ext2/3/4 filesystem"},
	{0, "XFSB", "an XFS filesystem"},
	{0x10040, "_BHRfS_M", "a btrfs filesystem"},
	{0x200, "EFI PART", "a GPT partition table"},
	{0x200, "LABELONE", "an LVM physical volume"},
	{0, "LABELONE", "an LVM physical volume"},
	{0, "LUKS\xba\xbe", "a LUKS encrypted volume"},
	{0xff6, "SWAPSPACE2", "swap space"},
	{0x1000, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{0, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{0, "bluestore block device", "a Ceph BlueStore OSD"},
	{3, "EXFAT   ", "an exFAT filesystem"},
	{3, "NTFS    ", "an NTFS filesystem"},
	{0x36, "FAT", "a FAT filesystem"},
	{0x52, "FAT32", "a FAT filesystem"},
	{0x8001, "CD001", "an ISO 9660 filesystem"},
	{0, "hsqs", "a squashfs filesystem"},
	{0x400, "\x10\x20\xf5\xf2", "an F2FS filesystem"},
	{0x1fe, "\x55\xaa", "a partition table (MBR)"},
	{0, "CRKDRIVE", "a damaged superblock of a drive of a Crake cluster"},
}

func foreign(head, tail []byte) string {
	for _, s := range signatures {
		if s.at+len(s.magic) <= len(head) && string(head[s.at:s.at+len(s.magic)]) == s.magic {
			return s.what
		}
	}
	for _, part := range []struct {
		b    []byte
		what string
	}{{head, "first"}, {tail, "last"}} {
		if i := firstNonZero(part.b); i >= 0 {
			return fmt.Sprintf("unknown data (byte %d of the %s %d KiB is not zero)", i, part.what, len(part.b)>>10)
		}
	}
	return ""
}

func firstNonZero(b []byte) int {
	return bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
}
